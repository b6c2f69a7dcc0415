"""Hybrid MBRs before a GPT: their records follow the partitions that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlimage.errors import RefusedError
from sqlimage.media.geometry import Geometry
from sqlimage.media.mbr import parse_records
from sqlimage.units import GIB, MIB, TIB
from tests.conftest import run
from tests.media.built import gpt_disk, put_mbr_records
from tests.media.disks import sgdisk
from tests.media.rearranged import SparseDisk, rearranged, rooms_for, table_of

SIZE = 64 * MIB
PARTS = [(1, 2048, 20480), (2, 24576, 40960), (3, 69632, 20480)]
FENCE = (0, 0xEE, 1, 2047)
"""Protects the table only, as sgdisk makes it."""


def hybrid(*records: tuple[int, int, int, int]) -> SparseDisk:
    disk = gpt_disk(SIZE, PARTS)
    put_mbr_records(disk, *records, geometry=Geometry(1, 255, 63))
    return disk


def records(disk: SparseDisk) -> list[tuple[int, int, int, int]]:
    return [(r.boot_indicator, r.os_type, r.starting_lba, r.size_in_lba) for r in parse_records(disk.read(0, 512))]


def half(length: int) -> int:
    return length // 2


@pytest.mark.parametrize("size", [SIZE, SIZE + 100 * MIB, 30 * MIB])
def test_records_made_by_sgdisk(tmp_path: Path, size: int) -> None:
    news = [f"--new={number}:{first}:{first + length - 1}" for number, first, length in PARTS]
    disk = SparseDisk.of(sgdisk(tmp_path / "gpt.img", *news, "--hybrid=1:2:3", size_bytes=SIZE))
    plan, new = rearranged(disk, rooms_for(table_of(disk), half), size, problems=["hybrid"])
    lbas = [(start // 512, length // 512) for start, length in plan.places]
    assert [(start, length) for _, _, start, length in records(new)] == [(1, 2047), *lbas]
    assert [row[:2] for row in records(new)] == [row[:2] for row in records(disk)]
    told = run("sgdisk", "--verify", new.save(tmp_path / "new.img")).stdout
    assert b"No problems found" in told


def test_chs_fields_follow_too() -> None:
    disk = hybrid(FENCE, (0x80, 0x07, 69632, 20480))
    plan, new = rearranged(disk, rooms_for(table_of(disk), half), 30 * MIB, problems=["hybrid"])
    shape, start, end = Geometry(1, 255, 63), plan.places[2][0] // 512, sum(plan.places[2]) // 512 - 1
    field = new.read(446 + 16, 16)
    assert field[1:4] == shape.to_chs(start).to_bytes()
    assert field[5:8] == shape.to_chs(end).to_bytes()
    assert new.read(446, 16) == disk.read(446, 16)


def test_another_geometry_is_asked_for() -> None:
    disk = hybrid(FENCE, (0x80, 0x07, 69632, 20480))
    asked = Geometry(1, 16, 63)
    plan, new = rearranged(disk, rooms_for(table_of(disk)), SIZE, geometry=asked, problems=["hybrid"])
    assert [fixup.reason for fixup in plan.fixups] == ["MBR record 2 (hybrid MBR)"]
    assert new.read(446 + 16 + 1, 3) == asked.to_chs(69632).to_bytes()


def test_a_record_over_the_whole_disk_grows_with_it() -> None:
    disk = hybrid((0, 0x07, 2048, 20480), (0, 0xEE, 1, SIZE // 512 - 1))
    _, new = rearranged(disk, rooms_for(table_of(disk), half), SIZE + MIB, problems=["hybrid"])
    assert records(new)[:2] == [(0, 0x07, 2048, 20480), (0, 0xEE, 1, (SIZE + MIB) // 512 - 1)]


ODD = [
    (0, 0x07, 2048, 20000),  # shorter than the partition
    (0, 0x83, 100, 200),
    (0, 0xEE, 90112, SIZE // 512 - 90112),  # protects what is behind the last
]


@pytest.mark.parametrize("odd", ODD)
def test_a_record_that_stands_for_no_partition_is_left_alone_or_refused(odd: tuple[int, int, int, int]) -> None:
    disk = hybrid(FENCE, odd)
    for size in (SIZE, SIZE + MIB - 512) if odd[1] == 0xEE else (SIZE, SIZE - MIB):  # nothing moves
        _, new = rearranged(disk, rooms_for(table_of(disk), half), size, problems=["hybrid"])
        assert records(new) == records(disk)
    if odd[1] == 0xEE:
        with pytest.raises(RefusedError, match="record 2 of the hybrid MBR"):
            rearranged(disk, rooms_for(table_of(disk), half), SIZE - MIB)
    with pytest.raises(RefusedError, match="record 2 of the hybrid MBR") as refused:
        rearranged(disk, rooms_for(table_of(disk), half), 30 * MIB)
    assert f"sector {odd[2]}, {odd[3]} sectors" in str(refused.value)


def test_unused_records_do_not_matter() -> None:
    disk = hybrid(FENCE, (0, 0x07, 5, 0), (0, 0, 77, 5))
    _, new = rearranged(disk, rooms_for(table_of(disk), half), 30 * MIB)
    assert records(new)[1:] == records(disk)[1:]
    assert records(new)[0] == (0, 0xEE, 1, 30 * 2048 - 1), "it is the only one, so it protects the disk"


def test_a_protective_record_over_some_of_the_partitions_is_refused() -> None:
    disk = hybrid((0, 0xEE, 1, 50000), (0, 0x07, 69632, 20480))
    with pytest.raises(RefusedError, match="record 1 of the hybrid MBR"):
        rearranged(disk, rooms_for(table_of(disk), half), 30 * MIB)
    disk = hybrid((0, 0xEE, 100, 1000), (0, 0x07, 69632, 20480))
    _, new = rearranged(disk, rooms_for(table_of(disk), half), 30 * MIB, problems=["hybrid"])
    assert records(new)[0] == (0, 0xEE, 100, 1000)


def test_the_geometry_is_that_of_the_hybrid_records() -> None:
    """Protective records are written with marks, or by programs that count otherwise."""
    told = Geometry(1, 16, 63)
    disk = hybrid(FENCE, (0, 0x07, 69632, 20480))
    disk.write(446 + 17, told.to_chs(69632).to_bytes())
    disk.write(446 + 21, told.to_chs(90111).to_bytes())
    plan, new = rearranged(disk, rooms_for(table_of(disk), half), 30 * MIB, problems=["hybrid"])
    assert new.read(446 + 17, 3) == told.to_chs(plan.places[2][0] // 512).to_bytes()


def test_a_partition_that_outgrows_its_record_is_refused() -> None:
    disk = gpt_disk(GIB, [(1, 2048, 2048 * 1000)])
    put_mbr_records(disk, FENCE, (0, 0x07, 2048, 2048 * 1000))
    with pytest.raises(RefusedError, match="a partition record can tell of 4294967295"):
        rearranged(disk, rooms_for(table_of(disk)), 4 * TIB)
