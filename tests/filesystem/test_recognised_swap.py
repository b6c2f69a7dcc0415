"""Linux swap: an area is left out but for its header, unless somebody hibernated into it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.recognised import recognise, swap_header
from sqlimage.filesystem.recognised.swap import HEAD_BYTES
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.make.recognised import blkid, found, sparse

PAGES = [4096, 8192, 16384, 32768, 65536]


def header(
    page: int = 4096,
    last_page: int = 99,
    *,
    version: int = 1,
    bad: tuple[int, ...] = (),
    bad_count: int | None = None,
    signature: bytes = b"SWAPSPACE2",
    order: str = "<",
) -> bytearray:
    head = bytearray(HEAD_BYTES)
    count = len(bad) if bad_count is None else bad_count
    struct.pack_into(f"{order}III", head, 1024, version, last_page, count)
    struct.pack_into(f"{order}{len(bad)}I", head, 1536, *bad)
    head[page - 10 : page - 10 + len(signature)] = signature
    return head


@pytest.mark.parametrize("page", PAGES)
def test_what_mkswap_makes_is_told_and_left_out_but_for_the_first_page(tmp_path: Path, page: int) -> None:
    image = sparse(tmp_path / "swap", 3 * MIB + 1000)
    run("mkswap", "-p", str(page), "-L", "pages", image)
    seen = found(image)
    facts, printed = seen.facts, blkid(image)
    assert (facts.file_system, facts.label, facts.serial) == ("swap", "pages", printed["UUID"])
    assert (facts.size_bytes, facts.bytes_per_cluster) == (3 * MIB, page)
    assert (facts.total_clusters, facts.alignment_bytes) == (3 * MIB // page, page)
    assert seen.left_out() == Runs.of([(page, 3 * MIB - page)])
    assert seen.allocated() is None and not facts.hibernated
    area = swap_header(image.read_bytes()[:HEAD_BYTES], image.stat().st_size)
    assert area is not None and area.pages == seen.left_out() and area.serial == facts.serial


@pytest.mark.parametrize("signature", [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"])
@pytest.mark.parametrize("page", [4096, 65536])
def test_what_a_system_hibernated_into_is_kept_whole(tmp_path: Path, page: int, signature: bytes) -> None:
    head = header(page, signature=signature)
    image = sparse(tmp_path / "swap", 100 * page)
    with image.open("r+b") as file:
        file.write(head)
    seen = found(image)
    assert seen.facts.hibernated and seen.facts.file_system == "swap"
    assert seen.allocated() is None and len(seen.left_out()) == 0
    assert "hibernated" in seen.reason
    assert swap_header(bytes(head), 100 * page) is None
    assert blkid(image)["TYPE"] == "swsuspend"


def test_a_hibernated_system_counts_beside_an_older_signature() -> None:
    head = header(65536)
    assert swap_header(bytes(head), 100 * 65536) is not None
    head[4086:4096] = b"S1SUSPEND\0"
    assert swap_header(bytes(head), 100 * 65536) is None
    seen = recognise(MemoryDevice(head + bytes(100 * 65536)))
    assert seen is not None and seen.facts.hibernated and len(seen.left_out()) == 0


@given(
    page=st.sampled_from(PAGES), last=st.integers(1, 200), order=st.sampled_from("<>"), rest=st.integers(0, 300 * 65536)
)
def test_an_area_is_judged_by_its_size_wherever_it_lies(page: int, last: int, order: str, rest: int) -> None:
    """A partition or a file, of machines of either byte order."""
    area = swap_header(bytes(header(page, last, order=order)), rest)
    assert (area is not None) == ((last + 1) * page <= rest)
    if area is not None:
        assert list(area.pages) == [(page, last * page)]


@pytest.mark.parametrize(
    "head",
    [
        header(version=0),
        header(version=2),
        header(last_page=0),
        header(bad_count=638),
        header(bad=(0,)),
        header(bad=(100,)),
        header(signature=b"SWAP-SPACE"),
        header(signature=b"SWAPSPACE3"),
        header()[:4095],
        bytearray(),
    ],
)
def test_what_no_header_may_say_is_no_swap_area(head: bytearray) -> None:
    assert swap_header(bytes(head), 100 * 4096) is None
    assert recognise(MemoryDevice(head.ljust(100 * 4096, b"\0"))) is None


def test_bad_pages_are_allowed() -> None:
    assert swap_header(bytes(header(bad=(5, 99))), 100 * 4096) is not None
    assert swap_header(bytes(header(bad=tuple(range(1, 638)), last_page=700)), 701 * 4096) is not None


def test_an_area_longer_than_its_medium_is_refused() -> None:
    with pytest.raises(InconsistentVolume, match=f"says the volume has {400 * KIB} bytes, the medium has {396 * KIB}"):
        recognise(MemoryDevice(header() + bytes(99 * 4096 - HEAD_BYTES)))


@given(st.binary(max_size=9000), st.integers(0, 1 << 40))
def test_no_bytes_are_taken_for_a_header_by_chance(head: bytes, size: int) -> None:
    assert swap_header(head, size) is None
