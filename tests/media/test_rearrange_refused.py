"""Disks that cannot be rearranged safely are refused before anything is written, in words that say why."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.media import layout
from sqlimage.media.partition import read_partition_table
from sqlimage.media.rearrange import Room, rearrange, smallest_disk_bytes
from sqlimage.units import MIB
from tests.media.built import Extended, Logical, gpt_disk, mbr_disk, put_mbr_records
from tests.media.disks import change_header, mbr_sector
from tests.media.rearranged import SparseDisk, rearranged, rooms_for, smallest, table_of

SIZE = 64 * MIB
LAST_LBA = SIZE // 512 - 1
OTHER_SIZES = [SIZE - 8 * MIB, SIZE + 8 * MIB]


def refusal(disk: SparseDisk, size: int = SIZE - 8 * MIB) -> str:
    """Why; the smallest size is refused for the same reason."""
    rooms = rooms_for(table_of(disk), lambda length: length // 2)
    with pytest.raises(RefusedError) as refused:
        rearranged(disk, rooms, size)
    with pytest.raises(RefusedError) as smallest_refused:
        smallest(disk, rooms)
    assert str(smallest_refused.value) == str(refused.value)
    assert refused.value.hint
    return str(refused.value)


def changed(disk: SparseDisk, **fields: int) -> SparseDisk:
    """With other fields in both GPT headers, and right checksums."""
    content = bytearray(disk.read(0, disk.size_bytes))
    for lba in (1, disk.size_bytes // 512 - 1):
        change_header(content, lba, **fields)
        disk.write(lba * 512, content[lba * 512 :][:512])
    return disk


def test_partitions_outside_the_usable_lbas() -> None:
    disk = changed(gpt_disk(SIZE, [(1, 2048, 4096), (2, 8192, 4096)]), LastUsableLBA=10000)
    assert "partition 2 (LBA 8192 to 12287) leaves the usable LBAs 34 to 10000" in refusal(disk)
    disk = changed(gpt_disk(SIZE, [(1, 2048, 4096)]), FirstUsableLBA=2049)
    assert "partition 1 (LBA 2048 to 6143) leaves the usable LBAs" in refusal(disk)


def test_entries_that_lie_among_the_partitions() -> None:
    disk = changed(gpt_disk(SIZE, [(1, 2048, 4096)]), FirstUsableLBA=33)
    assert "would take LBA 2 to 33, which are not before FirstUsableLBA 33" in refusal(disk)


def test_a_backup_among_the_partitions_is_not_believed() -> None:
    disk = gpt_disk(SIZE, [(1, 2048, 4096), (2, 8192, 8192)])
    content = bytearray(disk.read(0, SIZE))
    content[9000 * 512 : 9001 * 512] = content[LAST_LBA * 512 :]
    content[9001 * 512 : 9033 * 512] = content[1024 : 34 * 512]
    change_header(content, 9000, MyLBA=9000, PartitionEntryLBA=9001)
    change_header(content, 1, AlternateLBA=9000)
    hostile = SparseDisk(SIZE)
    hostile.write(0, content)
    assert "not in the disk's last LBA" in table_of(hostile).problems[0]
    for size in (SIZE, *OTHER_SIZES):
        rearranged(hostile, rooms_for(table_of(hostile)), size)


def test_a_disk_that_was_cut_needs_room_for_its_backup() -> None:
    """Its last partition lies where the backup must be written."""
    disk = gpt_disk(SIZE, [(1, 2048, 6144), (2, 8192, LAST_LBA - 32 - 8192)])
    disk.size_bytes = SIZE - 20 * 512
    disk.cells = {at: cell for at, cell in disk.cells.items() if at * 512 < disk.size_bytes}
    table = table_of(disk)
    assert "backup GPT is damaged" in table.problems[0]
    for size in (disk.size_bytes, SIZE - 512):
        with pytest.raises(RefusedError, match="need"):
            rearranged(disk, rooms_for(table), size)
        plan, _ = rearranged(disk, [Room(MIB, True), Room(MIB, True)], size)
        assert plan.places[1][1] == SIZE - 5 * MIB
    plan, _ = rearranged(disk, rooms_for(table), SIZE)
    assert plan.places[1][1] == (LAST_LBA - 32 - 8192) * 512


def test_a_record_over_the_table_itself() -> None:
    disk = mbr_disk(SIZE, [(2048, 4096)])
    put_mbr_records(disk, (0x80, 0x17, 0, SIZE // 512), (0, 0xEF, 2048, 4096))
    assert "partition 1 would cover the partition table itself" in refusal(disk)


def extended() -> SparseDisk:
    return mbr_disk(SIZE, [Extended(2048, [Logical(2048, 8192), Logical(2048, 8192)], [0, 0], 100), (40960, 2048)])


def test_a_chain_that_may_have_been_cut() -> None:
    disk = extended()
    disk.write(12288 * 512 + 510, b"\0\0")
    assert "the extended boot record in sector 12288 has no signature 55 AA: partitions may" in refusal(disk)


def test_a_chain_that_leads_into_nothing_ends_there() -> None:
    disk = extended()
    disk.write(12288 * 512, bytes(512))
    for size in OTHER_SIZES:
        rearranged(disk, rooms_for(table_of(disk)), size)


def put_ebr(disk: SparseDisk, lba: int, logical: tuple[int, int], link: tuple[int, int] = (0, 0)) -> None:
    disk.write(lba * 512, mbr_sector((0, 0x83, *logical), (0, 5, *link)))


def test_a_partition_beyond_its_extended_partition() -> None:
    disk = extended()
    put_ebr(disk, 12288, (2048, 9000))
    assert "partition 6 reaches beyond extended partition 1" in refusal(disk)


def test_extended_boot_records_where_none_should_be() -> None:
    disk = extended()
    put_ebr(disk, 2048, (2048, 8192), (30000, 100))
    put_ebr(disk, 32048, (0, 0))
    assert "in sector 32048 lies outside extended partition 1" in refusal(disk)
    behind = 2048 + 2 * (2048 + 8192) + 100
    put_ebr(disk, 2048, (2048, 8192), (behind - 2048, 1))
    put_ebr(disk, behind, (0, 0))
    assert f"in sector {behind} lies outside extended partition 1" in refusal(disk)
    put_ebr(disk, 2048, (2048, 8192), (behind - 2048 - 1, 1))
    put_ebr(disk, behind - 1, (0, 0))
    rearranged(disk, rooms_for(table_of(disk)), SIZE + MIB)
    put_ebr(disk, 2048, (2048, 8192), (3000, 100))
    put_ebr(disk, 5048, (0, 0))
    assert "in sector 5048 lies inside partition 5" in refusal(disk)


def test_a_record_in_two_chains() -> None:
    first, second = Extended(2048, [Logical(1, 100)], [0]), Extended(4096, [Logical(1, 100)], [0])
    disk = mbr_disk(SIZE, [first, second])
    put_ebr(disk, 4096, (0, 0), (0, 0))
    put_ebr(disk, 2048, (1, 100), (2048, 10))
    assert "lies outside extended partition 1" in refusal(disk)


@pytest.mark.parametrize("size", OTHER_SIZES)
def test_dynamic_disks(size: int) -> None:
    disk = mbr_disk(SIZE, [(63, 20000)], kind=0x42)
    assert "partition 1 (type 0x42) belongs to a dynamic disk" in refusal(disk, size)
    plan, _ = rearranged(disk, rooms_for(table_of(disk)), SIZE)
    assert plan.fixups == ()
    disk = gpt_disk(SIZE, [(1, 2048, 4096)])
    content = bytearray(disk.read(0, SIZE))
    content[1024:1040] = bytes.fromhex("a0609baf3114624fbc683311714a69ad")
    content[(LAST_LBA - 32) * 512 :][:16] = b""
    change_header(content, 1)
    disk.write(0, content)
    assert "AF9B60A0-1431-4F62-BC68-3311714A69AD" in refusal(disk, size)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 17408, MIB])
def test_disks_that_hold_nothing(size: int) -> None:
    for disk in (gpt_disk(SIZE, [(1, 2048, 4096)]), extended()):
        with pytest.raises(RefusedError, match="need"):
            rearranged(disk, rooms_for(table_of(disk)), size)


def test_negative_sizes_and_what_no_disk_can_have() -> None:
    for disk in (gpt_disk(SIZE, [(1, 2048, 4096)]), extended()):
        for size in (-1, 1 << 63, 1 << 80):
            with pytest.raises(RefusedError):
                rearranged(disk, rooms_for(table_of(disk)), size)


def test_rooms_and_table_must_be_the_disks_own() -> None:
    disk, other = gpt_disk(SIZE, [(1, 2048, 4096)]), gpt_disk(SIZE, [(1, 2048, 4095)])
    table = table_of(disk)
    with pytest.raises(UsageError, match="2 rooms for 1 partitions"):
        smallest_disk_bytes(disk, table, [Room(0, True)] * 2, kept=Runs.empty())
    with pytest.raises(UsageError, match="not this disk's own"):
        rearrange(other, table, [Room(0, True)], SIZE, kept=Runs.empty())


def test_a_smallest_size_beyond_the_length_means_that_it_keeps_it() -> None:
    disk = gpt_disk(SIZE, [(1, 2048, 4096)])
    plan, _ = rearranged(disk, [Room(100 * MIB, True)], SIZE)
    assert plan.places == ((MIB, 2 * MIB),)
    assert smallest(disk, [Room(100 * MIB, True)]) == 3 * MIB + 33 * 512
    assert smallest(disk, [Room(0, True)]) == 2 * MIB + 33 * 512


def test_what_is_kept_may_be_anything() -> None:
    disk = extended()
    everywhere = Runs.of([(0, 1 << 62)])
    plan, _ = rearranged(disk, rooms_for(table_of(disk)), SIZE, kept=everywhere)
    assert plan.dropped.total == 0
    plan, _ = rearranged(disk, rooms_for(table_of(disk)), 43008 * 512, kept=everywhere)
    assert plan.dropped == Runs.of([(43008 * 512, SIZE - 43008 * 512)])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 6), st.booleans())
def test_random_damage_is_refused_or_rearranged_rightly(seed: int, count: int, is_gpt: bool) -> None:
    """Never anything else: no other error, no table that reads otherwise."""
    rng = random.Random(seed)
    if is_gpt:
        size = 2 * MIB
        disk = gpt_disk(size, [(1, 128, 256), (2, 512, 512), (4, 2048, 1024)], entries=16)
        places = [446, 512, 1024, 1152, 1408, size - 512, size - 5 * 512]
        lengths = [64, 92, 56, 56, 56, 92, 256]
    else:
        size = SIZE
        disk, places, lengths = extended(), [440, 2048 * 512 + 446, 12288 * 512 + 446], [72, 66, 66]
    for _ in range(count):
        which = rng.randrange(len(places))
        at = places[which] + rng.randrange(lengths[which])
        disk.write(at, bytes([rng.choice([0, 1, 5, 0x0F, 0x80, 0xEE, 0xFF, rng.randrange(256)])]))
    if is_gpt and rng.random() < 0.7:  # with checksums that are right
        changed(disk)
    try:
        table = read_partition_table(disk)
    except InconsistentVolume:
        return
    if table is None:
        return
    for other in (size, size - size // 8, size + size // 8):
        try:
            _, new = rearranged(
                disk, rooms_for(table, lambda length: length // 2), other, problems=["hybrid", "no signature"]
            )
        except RefusedError as refused:
            assert refused.hint
        else:
            assert new.read(layout.MBR_SIGNATURE_OFFSET, 2) == layout.MBR_SIGNATURE
