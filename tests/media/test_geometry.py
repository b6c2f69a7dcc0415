"""Disk geometry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import UsageError
from sqlimage.media.geometry import CHS_SATURATED, Chs, Geometry
from sqlimage.units import GIB, MIB, TIB


@pytest.mark.parametrize(
    ("size_bytes", "cylinders"),
    [(0, 1), (1, 1), (255 * 63 * 512, 1), (255 * 63 * 512 + 1, 2), (8 * GIB, 1045), (TIB, 133675)],
)
def test_cylinders_are_rounded_up(size_bytes: int, cylinders: int) -> None:
    geometry = Geometry.for_size(size_bytes)
    assert str(geometry) == f"{cylinders}/255/63"
    assert geometry.size_bytes >= size_bytes


def test_other_shapes() -> None:
    floppy = Geometry.for_size(2880 * 512, sectors_per_track=18, tracks_per_cylinder=2)
    assert floppy == Geometry(80, 2, 18)
    assert floppy.size_bytes == 2880 * 512
    assert Geometry.for_size(64 * MIB, bytes_per_sector=4096).bytes_per_cylinder == 255 * 63 * 4096


@pytest.mark.parametrize(
    ("lba", "chs"),
    [
        (0, (0, 0, 1)),
        (62, (0, 0, 63)),
        (63, (0, 1, 1)),
        (2048, (0, 32, 33)),
        (255 * 63, (1, 0, 1)),
        (1024 * 255 * 63 - 1, (1023, 254, 63)),
        (1024 * 255 * 63, (1023, 254, 63)),
        (1 << 60, (1023, 254, 63)),
    ],
)
def test_places_of_sectors(lba: int, chs: tuple[int, int, int]) -> None:
    assert Geometry.for_size(TIB).to_chs(lba) == chs


@given(
    st.integers(0, 1 << 34),
    st.integers(1, 1024),
    st.integers(1, 255),
    st.integers(1, 63),
)
def test_places_turn_back_into_sectors(lba: int, cylinders: int, tracks: int, sectors: int) -> None:
    geometry = Geometry(cylinders, tracks, sectors)
    lba %= cylinders * tracks * sectors
    chs = geometry.to_chs(lba)
    assert geometry.to_lba(chs) == lba
    assert chs <= (1023, 254, 63)


def test_saturated_is_not_beyond_what_a_record_holds() -> None:
    assert Geometry.for_size(TIB, tracks_per_cylinder=16).to_chs(1 << 40) == CHS_SATURATED
    assert Geometry.for_size(TIB, 32, 64).to_chs(1024 * 32 * 64 - 1) == (1023, 63, 32)


@pytest.mark.parametrize("chs", [Chs(2, 0, 1), Chs(0, 16, 1), Chs(0, 0, 0), Chs(0, 0, 64), Chs(-1, 0, 1)])
def test_places_outside(chs: Chs) -> None:
    with pytest.raises(UsageError, match="outside"):
        Geometry(2, 16, 63).to_lba(chs)


def test_negative_sectors_and_sizes() -> None:
    with pytest.raises(UsageError):
        Geometry(1, 1, 1).to_chs(-1)
    with pytest.raises(UsageError):
        Geometry.for_size(-1)


def test_from_text() -> None:
    assert Geometry.parse("1024/255/63") == Geometry(1024, 255, 63)
    assert Geometry.parse(" 80/2/18 ", bytes_per_sector=1024).bytes_per_sector == 1024
    assert Geometry.parse(str(Geometry(7, 6, 5))) == Geometry(7, 6, 5)


@pytest.mark.parametrize(
    "text",
    ["", "1024", "1024/255", "1024/255/63/1", "a/b/c", "-1/255/63", "0/255/63", "1/0/63", "1/255/0", "1/256/63",
     "1/255/64", "1.5/2/3", "1 / 2 / 3", f"{'9' * 30}/1/1"],
)  # fmt: skip
def test_from_text_that_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        Geometry.parse(text)


@pytest.mark.parametrize("bytes_per_sector", [0, 256, 513, 8192])
def test_sectors_of_odd_sizes(bytes_per_sector: int) -> None:
    with pytest.raises(UsageError):
        Geometry(1, 1, 1, bytes_per_sector)
