"""Disks with a master boot record on smaller and larger ones; sfdisk finds nothing wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.media.geometry import Chs, Geometry
from sqlimage.media.mbr import parse_records
from sqlimage.media.rearrange import Room, largest_disk_bytes, rearrange
from sqlimage.units import GIB, MIB, TIB
from tests.conftest import run
from tests.media.built import Extended, Logical, mbr_disk
from tests.media.disks import ask_sfdisk, make_disk, rows
from tests.media.kinds import loop_device
from tests.media.rearranged import SparseDisk, check_with_tools, rearranged, rooms_for, smallest, table_of

SIZE = 64 * MIB
SCRIPTS = {
    "primaries": """label: dos
        start=2048, size=16384, type=7, bootable
        start=20480, size=40960, type=83
        start=65536, size=2048, type=ef
        start=69632, size=60000, type=27""",
    "logicals": """label: dos
        start=2048, size=16384, type=7
        start=20480, size=102400, type=5
        start=22528, size=20480, type=82
        start=47104, size=40960, type=83, bootable
        start=90112, size=2048, type=b
        start=96256, size=2049, type=83""",
    "primary behind logicals": """label: dos
        start=2048, size=4096, type=7
        start=8192, size=65536, type=f
        start=81920, size=20480, type=83
        start=10240, size=20480, type=83
        start=34816, size=20480, type=83""",
    "logicals first": """label: dos
        start=2048, size=60000, type=5
        start=65536, size=20480, type=83
        start=4096, size=20480, type=83
        start=30000, size=20480, type=83""",
    "logicals in another order": """label: dos
        start=2048, size=110000, type=f
        start=80000, size=20480, type=83
        start=5000, size=30720, type=83
        start=40000, size=20480, type=83""",
    "no logicals": """label: dos
        start=2048, size=40960, type=83
        start=45056, size=20480, type=5
        start=67584, size=40960, type=83""",
    "records in another order": """label: dos
        4 : start=2048, size=16384, type=83
        2 : start=20480, size=40960, type=83
        3 : start=65536, size=40960, type=83, bootable""",
}
SIZES = [SIZE, SIZE + 100 * MIB, SIZE + 512, SIZE - 512, 56 * MIB, 40 * MIB, 33 * MIB, GIB + 12345]


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    return SCRIPTS[request.param]


@pytest.fixture
def disk(tmp_path: Path, script: str) -> SparseDisk:
    return SparseDisk.of(make_disk(tmp_path / "old.img", script))


def half(length: int) -> int:
    return length // 2


def check(new: SparseDisk, path: Path) -> None:
    new.save(path)
    check_with_tools(path)
    oracle = ask_sfdisk(path)
    assert oracle is not None
    assert [row[:4] for row in oracle[1]] == [row[:4] for row in rows(table_of(new))]


@pytest.mark.parametrize("size", SIZES)
def test_sfdisk_finds_nothing_wrong(disk: SparseDisk, tmp_path: Path, size: int) -> None:
    _, new = rearranged(disk, rooms_for(table_of(disk), half), size)
    check(new, tmp_path / "new.img")


def test_the_smallest_disk(disk: SparseDisk, tmp_path: Path) -> None:
    rooms = rooms_for(table_of(disk), half)
    least = smallest(disk, rooms)
    plan, new = rearranged(disk, rooms, least)
    assert sum(plan.places[-1]) == least
    check(new, tmp_path / "new.img")
    with pytest.raises(RefusedError, match=f"need .*{least} bytes.*there are .*{least - 512} bytes"):
        rearranged(disk, rooms, least - 512)


@pytest.mark.parametrize("size", [SIZE + 100 * MIB, 40 * MIB])
def test_everything_but_places_is_as_it_was(disk: SparseDisk, tmp_path: Path, size: int) -> None:
    _, new = rearranged(disk, rooms_for(table_of(disk), half), size)

    def dump(of: SparseDisk, name: str) -> list[str]:
        lines = run("sfdisk", "--dump", of.save(tmp_path / name)).stdout.decode().replace(name, "").splitlines()
        return [",".join(p for p in line.split(",") if "size=" not in p and "start=" not in p) for line in lines]

    assert dump(disk, "old") == dump(new, "new")


def test_the_same_size_changes_nothing(disk: SparseDisk) -> None:
    plan, new = rearranged(disk, rooms_for(table_of(disk), half), SIZE)
    assert plan.fixups == ()
    assert new.cells == disk.cells


def test_boot_code_and_signature_stay(disk: SparseDisk) -> None:
    disk.write(0, b"boot code" * 48)
    disk.write(512, b"and more behind it" * 1000)
    _, new = rearranged(disk, rooms_for(table_of(disk), half), 40 * MIB)
    assert new.read(0, 446) == disk.read(0, 446)
    assert new.read(512, 18000) == disk.read(512, 18000)


@pytest.mark.parametrize("size", [SIZE + 100 * MIB, 40 * MIB])
def test_sectors_of_4096_bytes(tmp_path: Path, size: int) -> None:
    script = """label: dos
        start=256, size=2048, type=83
        start=2560, size=12288, type=5
        start=2816, size=4096, type=83
        start=7168, size=4096, type=83"""
    path = make_disk(tmp_path / "disk.img", script, sector_bytes=4096)
    disk = SparseDisk.of(path, 4096)
    plan, new = rearranged(disk, rooms_for(table_of(disk), half), size)
    new.save(path)
    with loop_device(path, "--sector-size", "4096") as name:
        assert b"No errors detected" in run("sfdisk", "--verify", name).stdout
    oracle = ask_sfdisk(path, 4096)
    assert oracle is not None
    assert [row[1:3] for row in oracle[1]] == list(plan.places)


def test_extended_boot_records_stay_as_far_before_their_partitions() -> None:
    extended = Extended(20480, [Logical(2048, 8192), Logical(63, 4096), Logical(1, 4096)], [0, 100, 5000], 3000)
    disk = mbr_disk(SIZE, [(2048, 10000), extended])
    table = table_of(disk)
    for size in (SIZE + 100 * MIB, smallest(disk, rooms_for(table, half))):
        plan, new = rearranged(disk, rooms_for(table, half), size)
        ebrs = [plan.places[1 + n][0] - logical.before * 512 for n, logical in enumerate(extended.logicals)]
        assert all(new.read(ebr + 510, 2) == b"\x55\xaa" for ebr in ebrs)
        container = parse_records(new.read(0, 512))[1]
        assert container.starting_lba * 512 == ebrs[0]
        links = [parse_records(new.read(ebr, 512))[1] for ebr in ebrs]
        ends = [sum(place) for place in plan.places[1:]]
        assert [link.starting_lba * 512 + ebrs[0] for link in links[:2]] == ebrs[1:]
        assert [link.size_in_lba * 512 for link in links[:2]] == [
            end - ebr for end, ebr in zip(ends[1:], ebrs[1:], strict=True)
        ]
        assert links[2].size_in_lba == 0
        assert container.is_extended
        reach = (container.starting_lba + container.size_in_lba) * 512
        assert reach == (ends[-1] + 3000 * 512 if size > SIZE else ends[-1])


def test_links_cover_as_much_behind_what_they_lead_to_as_they_did() -> None:
    """Programs disagree about what a link covers; nobody reads it."""
    extended = Extended(
        2048, [Logical(2048, 8192), Logical(2048, 8192), Logical(1, 0), Logical(1, 0)], [0, 0, 9, 9], 20
    )
    for size, expected in ((10240, 10240), (10250, 10250), (99999, 10240 + 9 + 1 + 9 + 1 + 20), (5, 10240)):
        disk = mbr_disk(SIZE, [extended, (61440, 2048)])
        disk.write(2048 * 512 + 446 + 16 + 12, size.to_bytes(4, "little"))
        _, new = rearranged(disk, rooms_for(table_of(disk), grow=False), SIZE + MIB)
        assert parse_records(new.read(2048 * 512, 512))[1].size_in_lba == expected
    links = [parse_records(new.read(place * 512, 512))[1] for place, _ in extended.places()[1:]]
    assert [link.size_in_lba for link in links] == [1, 1, 0]


def test_free_space_behind_the_logicals_goes_before_partitions_do() -> None:
    disk = mbr_disk(SIZE, [Extended(2048, [Logical(2048, 8192)], [0], 100000), (112640, 2048)])
    plan, new = rearranged(disk, rooms_for(table_of(disk), half), 10 * MIB)
    assert plan.places == ((2 * MIB, 4 * MIB), (9 * MIB, MIB))
    assert parse_records(new.read(0, 512))[0].size_in_lba == (9 - 1) * 2048


def test_a_chain_that_ends_in_records_without_partitions() -> None:
    """As some programs leave them when they delete a logical partition."""
    chain = [Logical(1, 0), Logical(2048, 8192), Logical(1, 0), Logical(1, 0)]
    disk = mbr_disk(SIZE, [(2048, 4096), Extended(8192, chain, [0, 100, 7000, 300], 50), (60000, 4096)])
    table = table_of(disk)
    assert [p.number for p in table.partitions] == [1, 5, 3]
    for size in (SIZE + 10 * MIB, smallest(disk, rooms_for(table, half))):
        rearranged(disk, rooms_for(table, half), size)


def test_an_empty_extended_partition_at_the_end() -> None:
    disk = mbr_disk(SIZE, [(2048, 40960), Extended(100000, [Logical(1, 0)], [0], 5000)])
    rooms = rooms_for(table_of(disk), half)
    assert smallest(disk, rooms) == MIB + 10 * MIB + 512
    plan, new = rearranged(disk, rooms, 12 * MIB)
    assert parse_records(new.read(0, 512))[1].starting_lba * 512 == 12 * MIB - 16384
    assert parse_records(new.read(0, 512))[1].size_in_lba == 32
    plan, new = rearranged(disk, rooms, 2 * SIZE)
    assert plan.places == ((MIB, 20 * MIB + SIZE),)
    assert parse_records(new.read(0, 512))[1].size_in_lba == 5001


def test_nothing_but_an_empty_extended_partition() -> None:
    disk = mbr_disk(SIZE, [Extended(2048, [Logical(1, 0)], [0], 5000)])
    assert smallest(disk, []) == MIB + 512
    for size in (MIB + 512, SIZE, 2 * SIZE):
        rearranged(disk, [], size)


def test_two_extended_partitions() -> None:
    first = Extended(8192, [Logical(63, 4000), Logical(63, 4000)], [0, 0], 4000)
    second = Extended(40960, [Logical(2048, 4096), Logical(2048, 4096)], [0, 4096], 1000)
    disk = mbr_disk(SIZE, [(2048, 4096), first, second])
    table = table_of(disk)
    assert [p.number for p in table.partitions] == [1, 5, 6, 7, 8]
    for size in (SIZE + 10 * MIB, 20 * MIB, smallest(disk, rooms_for(table, half))):
        _, new = rearranged(disk, rooms_for(table, half), size)
        containers = [record for record in parse_records(new.read(0, 512)) if record.is_extended]
        assert containers[0].starting_lba + containers[0].size_in_lba <= containers[1].starting_lba


OLD = Geometry(1, 240, 63)
CYLINDER = 240 * 63


@pytest.fixture
def old_disk() -> SparseDisk:
    """As DOS made them: partitions begin at tracks and end with cylinders."""
    extended = Extended(2 * CYLINDER, [Logical(63, CYLINDER - 63), Logical(63, 2 * CYLINDER - 63)], [0, 0], 0)
    return mbr_disk(SIZE, [(63, 2 * CYLINDER - 63), extended, (5 * CYLINDER, CYLINDER)], geometry=OLD)


def check_chs(disk: SparseDisk, geometry: Geometry) -> None:
    """Every CHS field of the table says what the sector numbers say."""
    queue = [0]
    for lba in queue:
        sector = disk.read(lba * 512, 512)
        for index, record in enumerate(parse_records(sector)):
            if record.size_in_lba:
                container = next((r.starting_lba for r in parse_records(disk.read(0, 512)) if r.is_extended), 0)
                start = record.starting_lba + (container if record.is_extended and lba else lba)
                if record.is_extended:
                    queue.append(start)
                field = sector[446 + index * 16 :]
                assert Chs.from_bytes(field[1:4]) == geometry.to_chs(start)
                assert Chs.from_bytes(field[5:8]) == geometry.to_chs(start + record.size_in_lba - 1)
    assert len(queue) == 3


def test_chs_fields_go_on_counting_in_the_geometry_they_counted_in(old_disk: SparseDisk) -> None:
    check_chs(old_disk, OLD)
    rooms = rooms_for(table_of(old_disk), half)
    for size in (SIZE + 100 * MIB, 30 * MIB, 20 * GIB):
        plan, new = rearranged(old_disk, rooms, size)
        check_chs(new, OLD)
        assert plan.places[0][0] == 63 * 512


def test_chs_fields_count_in_the_geometry_that_is_asked_for(old_disk: SparseDisk) -> None:
    asked = Geometry(1, 16, 32)
    rooms = rooms_for(table_of(old_disk), half)
    for size in (SIZE + 100 * MIB, 30 * MIB, SIZE):
        plan, new = rearranged(old_disk, rooms, size, geometry=asked)
        check_chs(new, asked)
    assert [place[0] for place in plan.places] == [p.offset_bytes for p in table_of(old_disk).partitions]
    assert all(b"\x55\xaa" not in fixup.replacement for fixup in plan.fixups)


def test_beyond_cylinder_1023_the_mark_stands() -> None:
    disk = mbr_disk(SIZE, [(2048, 4096), (8192, 4096)])
    _, new = rearranged(disk, rooms_for(table_of(disk)), 20 * GIB)
    field = new.read(446 + 16, 16)
    assert field[1:4] == Geometry(1, 255, 63).to_chs(8192).to_bytes()
    assert field[5:8] == b"\xfe\xff\xff"


def test_partitions_that_touch_close_the_ranks_to_the_sector(old_disk: SparseDisk) -> None:
    rooms = rooms_for(table_of(old_disk), half)
    plan, _ = rearranged(old_disk, rooms, smallest(old_disk, rooms))
    starts, ends = [start for start, _ in plan.places], [sum(place) for place in plan.places]
    assert starts[1] - ends[0] < 64 * 1024
    assert starts[3] - ends[2] < 64 * 1024


def test_partitions_whose_label_counts_from_the_start_of_the_disk_do_not_move() -> None:
    disk = mbr_disk(SIZE, [(2048, 40960), (63488, 20480), (86016, 2048)], kind=0xA5)
    rooms = rooms_for(table_of(disk), half)
    assert smallest(disk, rooms) == 43 * MIB
    plan, _ = rearranged(disk, rooms, SIZE + 10 * MIB)
    assert [start // 512 for start, _ in plan.places] == [2048, 63488, 86016]
    assert plan.places[2][1] == 11 * MIB


def test_the_largest_disk() -> None:
    disk = mbr_disk(SIZE, [(2048, 4096), (8192, 4096)])
    table = table_of(disk)
    largest = largest_disk_bytes(table)
    assert largest == 2 * TIB - 512
    plan, _ = rearranged(disk, rooms_for(table), largest)
    assert sum(plan.places[1]) == 2 * TIB - SIZE % MIB - (SIZE - 6 * MIB) - MIB
    with pytest.raises(RefusedError) as refused:
        rearranged(disk, rooms_for(table), largest + 1)
    assert "scheme mbr can tell of 2.0 TiB (2199023255040 bytes)" in str(refused.value)
    assert "at most 2199023255040 bytes; a GPT would hold it" in str(refused.value)
    assert largest_disk_bytes(table_of(mbr_disk(SIZE, [(256, 4096)], unit=4096))) == 16 * TIB - 4096


def test_a_disk_that_is_larger_than_its_table_can_tell_stays_possible() -> None:
    disk = mbr_disk(SIZE, [(2048, 4096), (8192, 4096)])
    disk.size_bytes = 5 * TIB
    plan, _ = rearranged(disk, rooms_for(table_of(disk)), 5 * TIB)
    assert plan.fixups == ()
    plan, _ = rearranged(disk, rooms_for(table_of(disk)), 4 * TIB)
    assert plan.fixups == ()
    with pytest.raises(RefusedError):
        rearranged(disk, rooms_for(table_of(disk)), 6 * TIB)


def test_data_behind_the_extended_partition_goes_with_the_next_primary() -> None:
    disk = mbr_disk(SIZE, [Extended(2048, [Logical(2048, 8192)], [0], 20000), (40960, 2048)])
    disk.write(14000 * 512, b"in the extended partition")
    rooms = [Room(MIB, True), Room(MIB, True)]
    assert smallest(disk, rooms) == 2 * MIB + MIB + 14 * MIB + MIB
    plan, new = rearranged(disk, rooms, SIZE + 10 * MIB)
    assert plan.places[1][0] == 30 * MIB
    assert new.read(14000 * 512 + 10 * MIB, 25) == b"in the extended partition"


def test_places_that_nobody_keeps_are_zeros_on_the_new_disk() -> None:
    disk = mbr_disk(SIZE, [(2048, 4096), (8192, 4096)])
    disk.write(512, b"left over")
    _, new = rearranged(disk, rooms_for(table_of(disk)), SIZE, kept=Runs.empty())
    assert new.read(512, 9) == bytes(9)
    assert new.read(0, 512) == disk.read(0, 512)


def test_many_logicals_and_gaps_take_no_time() -> None:
    chain = [Logical(63, 2048) for _ in range(120)]
    disk = mbr_disk(GIB, [(2048, 4096), Extended(8192, chain, [0] + [500] * 119, 9)])
    kept = Runs.of((at, 512) for at in range(0, GIB, 4096))
    table = table_of(disk)
    plan = rearrange(disk, table, rooms_for(table, half), 2 * GIB, kept=kept)
    assert len(plan.places) == 121
