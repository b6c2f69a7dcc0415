"""Partition records with other places, and the geometry that their CHS fields tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import RefusedError
from sqlimage.fixup import Fixup
from sqlimage.media.geometry import CHS_SATURATED, Chs, Geometry
from sqlimage.media.rearrange_outside import differences
from sqlimage.media.rearrange_records import RawRecord, Sectors, derive_geometry
from tests.media.disks import mbr_sector

LARGEST = (1 << 32) - 1


def shape(geometry: Geometry) -> tuple[int, int]:
    return geometry.tracks_per_cylinder, geometry.sectors_per_track


@given(st.integers(2, 255), st.integers(1, 63), st.lists(st.integers(1, 10_000_000), min_size=2, max_size=8))
def test_the_geometry_agrees_with_all_that_is_told(tracks: int, sectors: int, lbas: list[int]) -> None:
    told = [(lba, Geometry(1, tracks, sectors).to_chs(lba)) for lba in lbas]
    derived = derive_geometry(told)
    assert all(derived.to_chs(lba) == chs for lba, chs in told if chs.cylinder < 1023)


@pytest.mark.parametrize("made", [(255, 63), (240, 63), (16, 63), (64, 32), (4, 17), (1, 1), (255, 1)])
def test_one_partition_that_spans_cylinders_tells_the_geometry(made: tuple[int, int]) -> None:
    geometry = Geometry(1, *made)
    told = [(lba, geometry.to_chs(lba)) for lba in (made[1], 5 * made[0] * made[1] - 1)]
    assert shape(derive_geometry(told)) == made


@pytest.mark.parametrize(
    "told",
    [
        [],
        [(63, Chs(0, 1, 1))],  # many would do
        [(2048, Chs(0, 0, 0)), (99999, Chs(0, 0, 0))],  # nothing was written
        [(2048, CHS_SATURATED)],
        [(2048, Chs(1023, 15, 63))],  # another mark of what lies beyond
        [(2048, Chs(0, 32, 33)), (9000, Chs(7, 7, 7))],  # they contradict each other
    ],
)
def test_where_nothing_is_told_it_is_the_usual_one(told: list[tuple[int, Chs]]) -> None:
    assert shape(derive_geometry(told)) == (255, 63)


@given(st.integers(0, 1022), st.integers(0, 254), st.integers(1, 63))
def test_chs_fields_can_be_read_and_written(cylinder: int, track: int, sector: int) -> None:
    chs = Chs(cylinder, track, sector)
    assert Chs.from_bytes(chs.to_bytes()) == chs
    assert len(chs.to_bytes()) == 3


def test_the_mark_as_it_stands_on_disks() -> None:
    assert CHS_SATURATED.to_bytes() == b"\xfe\xff\xff"
    assert Chs.from_bytes(b"\xfe\xff\xff") == CHS_SATURATED


def test_a_record_keeps_what_is_not_about_places() -> None:
    record = RawRecord.of(bytes(mbr_sector((0x80, 0x07, 2048, 4096))), 0)
    moved = record.at(1000, Sectors(5000, 77), Geometry(1, 255, 63), "it")
    assert (moved.boot_indicator, moved.os_type, moved.starting_lba, moved.size_in_lba) == (0x80, 0x07, 4000, 77)
    assert Chs.from_bytes(moved.starting_chs) == Geometry(1, 255, 63).to_chs(5000)
    assert Chs.from_bytes(moved.ending_chs) == Geometry(1, 255, 63).to_chs(5076)
    assert record.at(0, Sectors(2048, 4096), None, "it") == record


def test_fields_hold_32_bits() -> None:
    record = RawRecord.of(bytes(mbr_sector((0x80, 0x07, 2048, 4096))), 0)
    assert record.at(0, Sectors(LARGEST, 1), None, "it").starting_lba == LARGEST
    assert record.at(0, Sectors(1, LARGEST), None, "it").size_in_lba == LARGEST
    assert record.at(5, Sectors(LARGEST + 5, 1), None, "it").starting_lba == LARGEST
    for place in (Sectors(LARGEST + 1, 1), Sectors(1, LARGEST + 1)):
        with pytest.raises(RefusedError, match=r"it would start at sector \d+ and have \d+ sectors"):
            record.at(0, place, None, "it")


def test_a_fix_up_is_where_the_record_is() -> None:
    sector = bytes(mbr_sector((0, 0x83, 1, 2), (0x80, 0x07, 2048, 4096)))
    record = RawRecord.of(sector, 1)._replace(size_in_lba=4097)
    assert [*record.fixup(sector, 1, 512000, "why")] == [Fixup(512000 + 446 + 16 + 12, b"\x00", b"\x01", "why")]
    assert [*RawRecord.of(sector, 1).fixup(sector, 1, 0, "why")] == []


@given(st.binary(min_size=1, max_size=9), st.data())
def test_fix_ups_are_from_the_first_to_the_last_byte_that_differs(old: bytes, data: st.DataObject) -> None:
    new = data.draw(st.binary(min_size=len(old), max_size=len(old)))
    found = [*differences(old, new, 100, "why")]
    differ = [at for at in range(len(old)) if old[at] != new[at]]
    if not differ:
        assert found == []
    else:
        first, end = differ[0], differ[-1] + 1
        assert found == [Fixup(100 + first, old[first:end], new[first:end], "why")]
