"""Disks with a GUID partition table on smaller and larger ones; sfdisk and sgdisk find nothing wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.media import layout
from sqlimage.media.geometry import Geometry
from sqlimage.media.rearrange import Room, largest_disk_bytes, rearrange
from sqlimage.units import GIB, MIB, TIB
from tests.conftest import run
from tests.media.built import gpt_disk, put_mbr_records
from tests.media.disks import HEADER_FIELDS, ask_sfdisk, change_header, rows, sgdisk
from tests.media.kinds import loop_device
from tests.media.rearranged import SparseDisk, check_with_tools, rearranged, rooms_for, smallest, table_of

SIZE = 64 * MIB
LAST_LBA = SIZE // 512 - 1
PARTITIONS = (
    "--new=1:2048:+4M", "--typecode=1:EF00", "--change-name=1:EFI System",
    "--new=7:12288:+30M", "--typecode=7:0700", "--change-name=7:Größe 数据 💾", "--attributes=7:set:60",
    "--new=3:75776:+8M", "--typecode=3:8300", "--attributes=3:set:2",
    "--new=2:98304:100999", "--typecode=2:2700",
)  # fmt: skip
SIZES = [SIZE, SIZE + 512, SIZE + 100 * MIB, SIZE - 512, SIZE - 12 * MIB, 40 * MIB, GIB + 12345]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: sgdisk waits a second after each change."""
    return sgdisk(tmp_path_factory.mktemp("made") / "gpt.img", *PARTITIONS, size_bytes=SIZE)


@pytest.fixture
def disk(made: Path) -> SparseDisk:
    return SparseDisk.of(made)


def header(disk: SparseDisk, lba: int) -> dict[str, Any]:
    fields = layout.GPT_HEADER.unpack(disk.read(lba * disk.bytes_per_sector, layout.GPT_HEADER.size))
    return dict(zip(HEADER_FIELDS, fields, strict=True))


def third(length: int) -> int:
    return length // 3 * 2


@pytest.mark.parametrize("size", SIZES)
def test_programs_find_nothing_wrong(disk: SparseDisk, tmp_path: Path, size: int) -> None:
    plan, new = rearranged(disk, rooms_for(table_of(disk), third), size)
    path = new.save(tmp_path / "new.img")
    check_with_tools(path)
    oracle = ask_sfdisk(path)
    assert oracle is not None
    assert oracle[1] == rows(table_of(new))
    assert [row[1:3] for row in oracle[1]] == list(plan.places)


def test_the_smallest_disk(disk: SparseDisk, tmp_path: Path) -> None:
    rooms = rooms_for(table_of(disk), third)
    least = smallest(disk, rooms)
    plan, new = rearranged(disk, rooms, least)
    check_with_tools(new.save(tmp_path / "new.img"))
    assert sum(plan.places[-1]) + 33 * 512 == least
    with pytest.raises(RefusedError) as refused:
        rearranged(disk, rooms, least - 512)
    assert f"need 17.0 MiB ({least} bytes), there are 17.0 MiB ({least - 512} bytes)" in str(refused.value)


@pytest.mark.parametrize("size", [SIZE + 100 * MIB, 40 * MIB])
def test_everything_but_places_is_as_it_was(disk: SparseDisk, tmp_path: Path, size: int) -> None:
    """In the words of sfdisk's dump, in which only start, size and last-lba may differ."""
    _, new = rearranged(disk, rooms_for(table_of(disk), third), size)

    def dump(of: SparseDisk, name: str) -> list[str]:
        lines = run("sfdisk", "--dump", of.save(tmp_path / name)).stdout.decode().replace(name, "").splitlines()
        return [
            ",".join(part for part in line.split(",") if "size=" not in part and "start=" not in part)
            for line in lines
            if not line.startswith("last-lba")
        ]

    before, after = dump(disk, "old"), dump(new, "new")
    assert before == after
    assert any("attrs=" in line and "Gr" in line for line in after)


def test_headers_and_entries_of_the_new_disk(disk: SparseDisk) -> None:
    _, new = rearranged(disk, rooms_for(table_of(disk), third), 40 * MIB)
    last = 40 * MIB // 512 - 1
    old, primary, backup = header(disk, 1), header(new, 1), header(new, last)
    assert (primary["MyLBA"], primary["AlternateLBA"], primary["PartitionEntryLBA"]) == (1, last, 2)
    assert (backup["MyLBA"], backup["AlternateLBA"], backup["PartitionEntryLBA"]) == (last, 1, last - 32)
    assert primary["LastUsableLBA"] == backup["LastUsableLBA"] == last - 33
    for name in ("FirstUsableLBA", "DiskGUID", "NumberOfPartitionEntries", "SizeOfPartitionEntry", "HeaderSize"):
        assert old[name] == primary[name] == backup[name]
    assert new.read(1024, 128 * 128) == new.read((last - 32) * 512, 128 * 128)


def test_the_same_size_changes_nothing(disk: SparseDisk) -> None:
    plan, new = rearranged(disk, rooms_for(table_of(disk), third), SIZE)
    assert plan.fixups == ()
    assert new.cells == disk.cells
    plan, _ = rearranged(disk, rooms_for(table_of(disk)), SIZE, geometry=Geometry(100, 16, 63))
    assert plan.fixups == ()


def test_the_first_partition_and_all_before_it_stay(disk: SparseDisk) -> None:
    disk.write(40 * 512, b"a boot loader")
    for size in SIZES:
        plan, new = rearranged(disk, rooms_for(table_of(disk), third), size)
        assert new.read(40 * 512, 13) == b"a boot loader"
        assert plan.places[0][0] == MIB


def test_an_efi_partition_is_not_shortened_before_others_are(disk: SparseDisk) -> None:
    plan, _ = rearranged(disk, rooms_for(table_of(disk), third), 34 * MIB)
    assert [length / MIB for _, length in plan.places[:3]] == [4, 19, 8]
    assert plan.places[3][1] == 2696 * 512


@pytest.mark.parametrize("size", [SIZE + 4096, SIZE + 100 * MIB, 40 * MIB])
def test_sectors_of_4096_bytes(tmp_path: Path, size: int) -> None:
    path = sgdisk(
        tmp_path / "gpt.img", "--new=1:256:511", "--new=2:1024:+40M", "--new=3:12000:0", size_bytes=SIZE,
        sector_bytes=4096,
    )  # fmt: skip
    disk = SparseDisk.of(path)  # which tells 512 bytes, as files do
    plan, new = rearranged(disk, rooms_for(table_of(disk), third), size)
    new.save(path)
    with loop_device(path, "--sector-size", "4096") as name:
        check_with_tools(Path(name))
    oracle = ask_sfdisk(path, 4096)
    assert oracle is not None
    assert [row[1:3] for row in oracle[1]] == list(plan.places)


@pytest.mark.parametrize("entries", [4, 56, 129, 1024])
@pytest.mark.parametrize("entry_bytes", [128, 512, 4096])
def test_entry_arrays_of_any_shape(entries: int, entry_bytes: int) -> None:
    parts = [(1, 16384, 4096), (4, 20480, 40960)]
    disk = gpt_disk(SIZE, parts, entries=entries, entry_bytes=entry_bytes)
    for size in (SIZE + 100 * MIB, SIZE - 20 * MIB):
        _, new = rearranged(disk, rooms_for(table_of(disk), third), size)
        assert header(new, 1)["NumberOfPartitionEntries"] == entries
        assert header(new, 1)["SizeOfPartitionEntry"] == entry_bytes


def test_what_entries_hold_beyond_what_is_known_goes_along() -> None:
    disk = gpt_disk(SIZE, [(1, 2048, 4096), (2, 8192, 4096)], entries=4, entry_bytes=256)
    content = bytearray(disk.read(0, SIZE))
    for lba in (1, LAST_LBA):
        at = header(disk, lba)["PartitionEntryLBA"] * 512
        content[at + 256 + 200 : at + 256 + 205] = b"extra"
        change_header(content, lba, Reserved=77)
    odd = SparseDisk(SIZE)
    odd.write(0, content)
    plan, new = rearranged(odd, rooms_for(table_of(odd), third), SIZE + 8 * MIB)
    assert plan.places[1][1] == 10 * MIB
    assert new.read(1024 + 256 + 200, 5) == b"extra"
    assert header(new, 1)["Reserved"] == header(new, new.size_bytes // 512 - 1)["Reserved"] == 77


@pytest.mark.parametrize("size", [SIZE, SIZE + 100 * MIB, 40 * MIB])
@pytest.mark.parametrize(
    "damaged",
    [512 + 24, 512 + 72, 1024 + 300, LAST_LBA * 512 + 8, LAST_LBA * 512 + 40, (LAST_LBA - 32) * 512 + 300],
)
def test_a_damaged_copy_is_written_anew(disk: SparseDisk, tmp_path: Path, damaged: int, size: int) -> None:
    disk.write(damaged, b"\xff" * 4)
    assert table_of(disk).problems
    plan, new = rearranged(disk, rooms_for(table_of(disk), third), size)
    assert plan.fixups
    assert table_of(new).problems == ()
    check_with_tools(new.save(tmp_path / "new.img"))


@pytest.mark.parametrize("size", [SIZE, SIZE + 100 * MIB, 40 * MIB])
def test_a_wiped_copy_is_written_anew(disk: SparseDisk, tmp_path: Path, size: int) -> None:
    for start, length in ((512, 33 * 512), ((LAST_LBA - 32) * 512, 33 * 512)):
        wiped = SparseDisk(SIZE)
        wiped.cells = dict(disk.cells)
        wiped.write(start, bytes(length))
        _, new = rearranged(wiped, rooms_for(table_of(wiped), third), size)
        assert table_of(new).problems == ()
        check_with_tools(new.save(tmp_path / "new.img"))


@pytest.mark.parametrize("size", [SIZE + 16 * MIB, SIZE + 100 * MIB, SIZE, 40 * MIB])
def test_a_disk_that_was_enlarged_gets_its_backup_at_the_end(disk: SparseDisk, tmp_path: Path, size: int) -> None:
    """The old one is not left behind. Room that nobody had is not taken by a partition now, unless the disk grows."""
    disk.size_bytes += 16 * MIB
    plan, new = rearranged(disk, rooms_for(table_of(disk), third), size)
    check_with_tools(new.save(tmp_path / "new.img"))
    assert table_of(new).problems == ()
    headers = [at for at, cell in new.cells.items() if cell.startswith(layout.GPT_SIGNATURE)]
    assert headers == [1, size // 512 - 1]
    assert plan.places[1][1] == {SIZE + 100 * MIB: 114 * MIB, 40 * MIB: 25 * MIB}.get(size, 30 * MIB)


def test_a_backup_that_lists_other_partitions_follows_the_primary(disk: SparseDisk) -> None:
    content = bytearray(disk.read(0, SIZE))
    at = (LAST_LBA - 32) * 512
    layout.GPT_ENTRY.pack_into(content, at + 9 * 128, b"t" * 16, b"u" * 16, 110000, 111000, 0, b"")
    change_header(content, LAST_LBA)
    disk.write(0, content)
    assert "lists other partitions" in table_of(disk).problems[0]
    _, new = rearranged(disk, rooms_for(table_of(disk), third), SIZE + MIB)
    assert table_of(new).problems == ()


def test_a_main_table_that_was_moved_stays_there(made: Path, tmp_path: Path) -> None:
    """Boards load their boot loader from where it usually lies."""
    path = Path(shutil.copy(made, tmp_path / "moved.img"))
    sgdisk(path, "--move-main-table=1000")
    disk = SparseDisk.of(path)
    disk.write(16 * 512, b"a boot loader")
    _, new = rearranged(disk, rooms_for(table_of(disk), third), SIZE + 100 * MIB)
    assert header(new, 1)["PartitionEntryLBA"] == 1000
    assert new.read(16 * 512, 13) == b"a boot loader"
    check_with_tools(new.save(tmp_path / "new.img"))

    disk.write(512 + 24, b"\xff" * 8)  # the primary header is damaged, but its entries are found
    _, new = rearranged(disk, rooms_for(table_of(disk), third), SIZE)
    assert header(new, 1)["PartitionEntryLBA"] == 1000
    assert new.read(16 * 512, 13) == b"a boot loader"

    disk.write(1000 * 512 + 4, b"\xff" * 8)  # nor are they: what lies where they usually do must not be overwritten
    with pytest.raises(RefusedError, match="in LBA 1000 or 2 cannot be told"):
        rearranged(disk, rooms_for(table_of(disk), third), SIZE)


def test_no_partitions() -> None:
    disk = gpt_disk(SIZE, [])
    disk.write(20 * MIB, b"something")
    for size in (SIZE, SIZE + MIB, 21 * MIB, 10 * MIB, smallest(disk, [])):
        plan, new = rearranged(disk, [], size)
        assert plan.places == ()
        assert (b"something".ljust(512, b"\0") in new.cells.values()) == (size > 20 * MIB)
        assert (plan.dropped.total > 0) == (size <= 20 * MIB)


def test_what_lies_behind_the_last_partition_follows_its_end(disk: SparseDisk) -> None:
    """As far as there is room: the rest is told."""
    place = 60 * MIB
    disk.write(place, b"x" * 1024)
    plan, new = rearranged(disk, rooms_for(table_of(disk), third), SIZE + 100 * MIB)
    assert new.read(place + 100 * MIB, 1024) == b"x" * 1024
    assert len(plan.dropped) == 0
    plan, _ = rearranged(disk, rooms_for(table_of(disk), third), place + 512 + 33 * 512)
    assert plan.dropped == Runs.of([(place + 512, 512)])


def test_what_lies_between_partitions_goes_with_the_next_one(disk: SparseDisk) -> None:
    """And it takes room: gaps close only as far as they are empty."""
    rooms = rooms_for(table_of(disk), third)
    before = smallest(disk, rooms)
    disk.write(98304 * 512 - 2 * MIB, b"something")
    assert smallest(disk, rooms) == before + 2 * MIB
    for size in (before + 2 * MIB, SIZE + 100 * MIB):
        plan, new = rearranged(disk, rooms, size)
        assert new.read(plan.places[3][0] - 2 * MIB, 9) == b"something"
    with pytest.raises(RefusedError, match=r"gaps that hold data between partitions take 2\.0 MiB"):
        rearranged(disk, rooms, before)
    # unless nobody wants it
    rearranged(disk, rooms, before, kept=Runs.empty())


class Holes(SparseDisk):
    """A disk that knows its holes."""

    def extents(self, offset_bytes: int, length_bytes: int) -> Any:
        from sqlimage.device import DeviceExtent

        data = self.data().widen(4096).clip(offset_bytes, offset_bytes + length_bytes)
        holes = data.complement(offset_bytes + length_bytes).clip(offset_bytes, offset_bytes + length_bytes)
        pieces = [*((*run, True) for run in data), *((*run, False) for run in holes)]
        return (DeviceExtent(at, length, is_data=is_data) for at, length, is_data in sorted(pieces))


def test_what_the_device_knows_to_be_zeros_is_not_kept(disk: SparseDisk) -> None:
    whole = Runs.of([(0, SIZE)])
    rooms = rooms_for(table_of(disk), third)
    knowing = Holes(SIZE)
    knowing.cells = disk.cells
    assert smallest(knowing, rooms, whole) == smallest(disk, rooms)
    assert smallest(disk, rooms, whole) > smallest(disk, rooms) + 3 * MIB


@pytest.mark.parametrize("size", [TIB, 3 * TIB, 1 << 62])
def test_disks_larger_than_an_mbr_can_tell(size: int) -> None:
    disk = gpt_disk(GIB, [(1, 2048, 4096), (2, 8192, 1000000)])
    plan, new = rearranged(disk, rooms_for(table_of(disk)), size)
    assert plan.places[1][1] > size - GIB
    assert layout.MBR_PARTITION_RECORD.unpack_from(new.read(446, 16))[5] == min(size // 512 - 1, 0xFFFFFFFF)
    back, _ = rearranged(new, [Room(MIB, True), Room(MIB, True)], GIB)
    assert back.places == ((MIB, 2 * MIB), (3 * MIB, 1020 * MIB))


def test_the_largest_disk() -> None:
    disk = gpt_disk(GIB, [(1, 2048, 4096)])
    table = table_of(disk)
    largest = largest_disk_bytes(table)
    assert largest == (1 << 63) - 512
    with pytest.raises(RefusedError, match="scheme gpt"):
        rearrange(disk, table, rooms_for(table), largest + 1, kept=Runs.empty())


def test_a_protective_record_of_the_largest_size_keeps_it(disk: SparseDisk) -> None:
    """Windows writes it so for disks of any size."""
    put_mbr_records(disk, (0, 0xEE, 1, 0xFFFFFFFF), geometry=Geometry(1, 255, 63))
    _, new = rearranged(disk, rooms_for(table_of(disk), third), 40 * MIB)
    assert new.read(446, 16) == disk.read(446, 16)


@pytest.mark.parametrize(
    ("old_end", "size", "new_end"),
    [
        ("feffff", 40 * MIB, "feffff"),
        ("ffffff", 40 * MIB, "ffffff"),
        ("000000", 40 * MIB, "191405"),  # LBA 81919: cylinder 5, track 25, sector 20 of 255 and 63
        ("000000", 100 * GIB, "ffffff"),
    ],
)
def test_the_end_of_the_protective_record_as_chs(disk: SparseDisk, old_end: str, size: int, new_end: str) -> None:
    disk.write(446 + 5, bytes.fromhex(old_end))
    _, new = rearranged(disk, rooms_for(table_of(disk), third), size)
    assert new.read(446 + 5, 3).hex() == new_end
