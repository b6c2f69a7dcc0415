"""Changes to real volumes, found by hypothesis: a volume is inconsistent, or every promise of the contract holds."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.filesystem.contract import HOLE, EntryKind
from sqlimage.filesystem.iso9660 import IsoVolume, is_iso9660
from sqlimage.media.memory import MemoryDevice
from tests.make.cost import PATIENCE
from tests.make.iso import SECTOR, genisoimage, make_tree, mkisofs, xorriso

EVERYDAY, LONG = 600, 10_000
SECONDS_MAX = 10
"""Of one input, on a machine that others use too."""
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Change = Callable[[bytearray, Sequence[int]], None]


def pristine_volumes(work: Path) -> list[bytes]:
    """A volume of each kind, small, so that many are looked at in a second."""
    tree = make_tree(work / "tree")
    (tree / "text").write_bytes(b"some text, some more\n" * 100)
    (tree / "boot").mkdir()
    (tree / "boot" / "image").write_bytes(bytes(range(256)) * 20)
    (tree / "zeros").write_bytes(bytes(100_000))
    boot = ("-b", "boot/image", "-c", "boot/cat", "-no-emul-boot")
    plain = work / "plain"
    plain.mkdir()
    for name in ("one.txt", "two", "a long name"):
        (plain / name).write_text(name)
    images = [
        genisoimage(work / "1.iso", tree, "-no-pad", "-R", "-J", *boot),
        mkisofs(work / "2.iso", tree, "-no-pad", "-J", *boot),
        genisoimage(work / "3.iso", plain, "-no-pad", "-J", "-iso-level", "4"),
        genisoimage(work / "4.iso", plain, "-no-pad", *("-V", "LABEL")),
        xorriso(
            work / "5.iso", "-padding", "0", "-zisofs", "level=1", "-compliance", "deep_paths_off", "-map", tree, "/",
            "-set_filter_r", "--zisofs", "/", "--",
        ),
    ]  # fmt: skip
    return [image.read_bytes() for image in images]


def places_of(content: bytes) -> list[int]:
    """Where bytes have a meaning: descriptors, directories, Continuation Areas, the boot catalog, zisofs headers."""
    volume = IsoVolume(MemoryDevice(content))
    scan = volume.scan()
    sectors = {16, 17, 18}
    contents, entries = scan.contents, scan.entries
    for path, kind, row in zip(entries.path, entries.kind, entries.content.tolist(), strict=True):
        if kind in (EntryKind.DIRECTORY, EntryKind.METADATA) or path == "/zeros":
            first = int(contents.run_offset[contents.first_run[row]]) // SECTOR
            sectors.update(range(first, first + 1 + (path == "/")))
            if path == "/":
                sectors.add(first + 2)  # where both writers put Continuation Areas
    places = [sector * SECTOR + at for sector in sorted(sectors) for at in range(SECTOR)]
    return [place for place in places if place < len(content) and any(content[max(place - 8, 0) : place + 9])]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, list[int]]]:
    volumes = pristine_volumes(tmp_path_factory.mktemp("fuzz"))
    return [(content, places_of(content)) for content in volumes]


def put_byte(at: int, value: int) -> Change:
    def change(content: bytearray, places: Sequence[int]) -> None:
        content[places[at % len(places)]] = value

    return change


def put_number(at: int, number: int, form: str) -> Change:
    """Also in both byte orders, as most numbers are."""

    def change(content: bytearray, places: Sequence[int]) -> None:
        data = b"".join(struct.pack(order + form, number & (0xFFFF if form == "H" else 0xFFFFFFFF)) for order in "<>")
        place = places[at % len(places)]
        content[place : place + len(data)] = data[: len(content) - place]

    return change


def copy_bytes(at: int, source: int, length: int) -> Change:
    def change(content: bytearray, places: Sequence[int]) -> None:
        place, start = places[at % len(places)], places[source % len(places)]
        length_ = min(length, len(content) - max(place, start))
        content[place : place + length_] = content[start : start + length_]

    return change


AT = st.integers(0, 1 << 20)
CHANGES = st.lists(
    st.one_of(
        st.builds(put_byte, AT, st.integers(0, 255)),
        st.builds(put_number, AT, st.sampled_from(EXTREMES) | st.integers(0, 200), st.sampled_from("HI")),
        st.builds(copy_bytes, AT, AT, st.integers(1, 200)),
    ),
    min_size=1,
    max_size=12,
)
CUT = st.none() | st.integers(0, 100)


def check_promises(content: bytearray) -> None:
    """What the contract says of every volume, whatever it holds."""
    device = MemoryDevice(content)
    is_iso9660(device)
    volume = IsoVolume(device)
    facts = volume.facts
    assert 0 < facts.size_bytes <= device.size_bytes and facts.size_bytes % facts.alignment_bytes == 0
    assert volume.allocated().clip(0, facts.size_bytes) == volume.allocated()
    found = volume.scan()
    entries, contents = found.entries, found.contents
    assert len(set(entries.path)) == len(entries) == len(entries.kind) == len(entries.content)
    assert all(path.startswith("/") and "\0" not in path for path in entries.path)
    assert not any(part in ("", ".", "..") for path in entries.path[1:] for part in path[1:].split("/"))
    "".join(entries.path).encode("utf-8", "surrogateescape")
    assert ((entries.content >= -1) & (entries.content < len(contents))).all()
    has_content = entries.content >= 0
    assert (entries.record[has_content] == contents.record[entries.content[has_content]]).all()
    named = list(zip(contents.record.tolist(), contents.stream, strict=True))
    assert len(set(named)) == len(named)
    backed = contents.run_offset != HOLE
    assert backed.all() and (contents.run_offset >= 0).all() and (contents.run_length > 0).all()
    assert (contents.run_offset + contents.run_length <= facts.size_bytes).all()
    assert not ((contents.run_offset | contents.run_length) % facts.alignment_bytes).any()
    covered = np.append(0, contents.run_length.cumsum())[contents.first_run]
    assert ((covered[1:] - covered[:-1] >= contents.size_bytes) | (contents.flags != 0)).all()
    for row, (record, stream) in enumerate(named[:200]):
        with suppress(InconsistentVolume):  # of a compressed file
            opened = volume.open(record, stream)
            assert opened.size_bytes == contents.size_bytes[row]
            assert len(opened.read(0, 9000)) == min(opened.size_bytes, 9000)
            assert len(opened.read(max(opened.size_bytes - 100, 0), 9000)) == min(opened.size_bytes, 100)


def examine(pristine: list[tuple[bytes, list[int]]], which: int, changes: list[Change], cut: int | None) -> None:
    good, places = pristine[which % len(pristine)]
    content = bytearray(good)
    for change in changes:
        change(content, places)
    if cut is not None:
        del content[len(content) * cut // 100 :]
    started = time.monotonic()
    with suppress(InconsistentVolume):
        check_promises(content)
    assert time.monotonic() - started < SECONDS_MAX * PATIENCE


def test_the_volumes_that_are_changed_keep_their_promises(pristine: list[tuple[bytes, list[int]]]) -> None:
    for content, places in pristine:
        check_promises(bytearray(content))
        assert len(places) > 500
    assert sum(len(content) for content, _ in pristine) < 2 << 20


@settings(max_examples=EVERYDAY, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(which=st.integers(0, 4), changes=CHANGES, cut=CUT)
def test_no_change_to_a_volume_breaks_a_promise(
    pristine: list[tuple[bytes, list[int]]], which: int, changes: list[Change], cut: int | None
) -> None:
    examine(pristine, which, changes, cut)


@pytest.mark.slow
@settings(max_examples=LONG, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(which=st.integers(0, 4), changes=CHANGES, cut=st.none())
def test_ten_thousand_changes_to_a_volume_break_no_promise(
    pristine: list[tuple[bytes, list[int]]], which: int, changes: list[Change], cut: int | None
) -> None:
    examine(pristine, which, changes, cut)


@settings(max_examples=200, deadline=None, database=None)
@given(content=st.binary(max_size=3 * SECTOR), head=st.binary(max_size=4))
def test_bytes_behind_a_descriptor_s_head_are_refused_or_read(content: bytes, head: bytes) -> None:
    device = MemoryDevice(bytes(16 * SECTOR) + b"\1CD001\1" + head + content)
    is_iso9660(device)
    with suppress(InconsistentVolume, NotFoundError):
        IsoVolume(device).scan()
