"""An exFAT volume with fields and bytes changed at random: our errors or a reading, never anything else."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, NotFoundError, SqlimageError
from sqlimage.extent import Runs
from sqlimage.filesystem.exfat import ExfatVolume, is_exfat
from sqlimage.filesystem.exfat.boot import read_boot
from sqlimage.media.memory import MemoryDevice
from tests.make.exfat import (
    CHAINED,
    CONTIGUOUS,
    BareVolume,
    directory,
    file_set,
    label_entry,
    rotated_sum,
)


def sample() -> BareVolume:
    """A small good volume with files and directories of all sorts."""
    volume = BareVolume(240, cluster_shift=1)
    volume.use(*range(20, 240))
    vendor = b"\xe1\x01" + bytes(30)
    volume.write_root(
        label_entry("HOSTILE"),
        b"\xa0" + bytes(31),
        directory("A", 20, 3072, CHAINED),
        file_set("A Long Name Of A File.txt", 40, 5000, extra=vendor),
        b"\x05" + bytes(31),
        directory("Bä𝄞", 60, 1024),
        file_set("empty"),
    )
    volume.chain(20, 24, 22)
    volume.chain(40, 41, 45, 44, 50)
    inside = b"".join(file_set(f"file {k} {'n' * (k * 11 % 60)}", 70 + k, 700, valid=600, flags=3) for k in range(14))
    for at, cluster in enumerate((20, 24, 22)):
        volume.write(cluster, inside.ljust(3072, b"\0")[at * 1024 : at * 1024 + 1024])
    assert len(inside) <= 3072
    volume.write(60, directory("C", 100, 2048) + file_set("D", 110, 1500))
    volume.chain(110, 112)
    volume.write(100, directory("E", 120, 1024) + file_set("x" * 255, 130, 1024, flags=CONTIGUOUS))
    return volume


SAMPLE = sample()
SETS = [
    at
    for at in range(SAMPLE.heap_offset, len(SAMPLE.content), 32)
    if SAMPLE.content[at] == 0x85 and SAMPLE.content[at + 32] == 0xC0
]
ENTRIES = [at for at in range(SAMPLE.heap_offset, len(SAMPLE.content), 32) if any(SAMPLE.content[at : at + 32])]


def exercise(content: bytearray) -> bool:
    """Everything a caller can ask of a volume; only errors of ours may come out, and what comes out must hold. Whether
    it could be scanned."""
    is_exfat(bytes(content[:4096]))
    try:
        volume = ExfatVolume(MemoryDevice(content))
        facts = volume.facts
        inside = Runs.of([(0, facts.size_bytes)])
        allocated = volume.allocated()
        assert inside.covers(allocated)
        assert not ((allocated.start | allocated.length) % facts.alignment_bytes).any()
        scan = volume.scan()
    except SqlimageError as refused:
        assert isinstance(refused, InconsistentVolume)
        return False
    contents, entries = scan.contents, scan.entries
    assert inside.covers(Runs.from_arrays(contents.run_offset, contents.run_length))
    assert (contents.run_length > 0).all()
    assert not ((contents.run_offset | contents.run_length) % facts.alignment_bytes).any()
    assert len(set(entries.path)) == len(entries) == len(entries.record) == len(contents)
    assert entries.path[0] == "/"
    assert not any(part in ("", ".", "..") for path in entries.path[1:] for part in path[1:].split("/"))
    assert "\0" not in "".join(entries.path)
    "".join(entries.path).encode()
    assert (entries.content == np.arange(len(contents))).all()
    assert ((contents.valid_bytes >= 0) & (contents.valid_bytes <= contents.size_bytes)).all()
    held = np.append(0, contents.run_length.cumsum())[contents.first_run]
    assert (held[1:] - held[:-1] >= contents.size_bytes).all()
    for row, record in list(enumerate(contents.record.tolist()))[:20]:
        try:
            opened = volume.open(record)
        except SqlimageError:  # only where nothing says that the directory's cluster is in use
            assert not allocated.covers(Runs.of([(record * 32, 32)])) or crosses(content, record)
            continue
        assert opened.size_bytes == contents.size_bytes[row] or crosses(content, record)
        assert len(opened.read(max(0, opened.size_bytes - 700), 9000)) == min(opened.size_bytes, 700)
    for record in (1, facts.size_bytes // 64, facts.size_bytes // 32 - 1):
        with contextlib.suppress(SqlimageError):
            volume.open(record).read(0, 1000)
    return True


def crosses(content: bytearray, record: int) -> bool:
    """Whether the set at a record goes on in a cluster that ``open`` has to guess."""
    geometry = read_boot(MemoryDevice(content)).geometry
    within = (record * 32 - geometry.heap_offset) % geometry.bytes_per_cluster
    return within + (content[record * 32 + 1] + 1) * 32 > geometry.bytes_per_cluster


def seal_sets(content: bytearray) -> None:
    """Make the checksums of all sets right that lie in one piece."""
    for at in SETS:
        raw = bytes(content[at : at + (content[at + 1] + 1) * 32])
        if (at - SAMPLE.heap_offset) % 1024 + len(raw) <= 1024:
            content[at + 2 : at + 4] = rotated_sum(raw, 16, (2, 3)).to_bytes(2, "little")


def extremes(bits: int) -> st.SearchStrategy[int]:
    top = (1 << bits) - 1
    return st.one_of(
        st.sampled_from([0, 1, 2, top, top - 1, top >> 1, (top >> 1) + 1, top - 8]),
        st.integers(0, min(top, 600)),
        st.integers(0, top),
    )


WIDTHS = [64, 64, 32, 32, 32, 32, 32, 32, 16, 16, 8, 8, 8]


@st.composite
def hostile_volumes(draw: st.DrawFn) -> bytearray:
    """The sample with fields of its boot sector, entries and FAT changed; the checksums are right again, mostly."""
    volume = BareVolume.__new__(BareVolume)
    volume.__dict__.update(SAMPLE.__dict__)
    volume.content = bytearray(SAMPLE.content)
    volume.fields = dict(SAMPLE.fields)
    kinds = draw(st.sets(st.sampled_from(["boot", "entry", "link", "byte"]), min_size=1))
    if "boot" in kinds:
        for k in draw(st.sets(st.integers(0, len(WIDTHS) - 1), min_size=1, max_size=3)):
            name, width = list(volume.fields)[k], WIDTHS[k]
            near = volume.fields[name] + draw(st.integers(-3, 3)) & (1 << width) - 1
            volume.fields[name] = draw(st.one_of(extremes(width), st.just(near)))
        if volume.fields["BytesPerSectorShift"] == 9:
            volume.seal(backup=draw(st.booleans()))
    if "entry" in kinds:
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.sampled_from(ENTRIES))
            place, bits = draw(
                st.sampled_from(
                    [(0, 8), (1, 8), (3, 8), (4, 16), (6, 16), (8, 64), (8, 32), (20, 32), (24, 64), (12, 32)]
                )
            )
            volume.put(at + place, draw(extremes(bits)).to_bytes(bits // 8, "little"))
        if draw(st.integers(0, 4)):
            seal_sets(volume.content)
    if "link" in kinds:
        for _ in range(draw(st.integers(1, 4))):
            volume.link(draw(st.integers(0, 241)), draw(st.one_of(st.integers(0, 245), extremes(32))))
    if "byte" in kinds:
        for _ in range(draw(st.integers(1, 4))):
            volume.content[draw(st.integers(0, len(volume.content) - 1))] = draw(st.integers(0, 255))
    return volume.content


def test_the_sample_is_sound() -> None:
    assert exercise(bytearray(SAMPLE.content))
    assert len(ExfatVolume(MemoryDevice(SAMPLE.content)).scan().entries) == 1 + 4 + 14 + 2 + 2 + 2


@given(hostile_volumes())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_change_of_fields_brings_out_anything_but_our_errors(content: bytearray) -> None:
    exercise(content)


@pytest.mark.slow
@given(hostile_volumes())
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_changes_of_fields_bring_out_nothing_but_our_errors(content: bytearray) -> None:
    exercise(content)


def test_changes_of_bytes_are_survived_and_not_always_refused() -> None:
    chance = random.Random(7)
    scanned = 0
    for _ in range(150):
        content = bytearray(SAMPLE.content)
        for _ in range(chance.choice((1, 2, 5))):
            content[chance.choice(ENTRIES) + chance.randrange(32)] ^= 1 << chance.randrange(8)
        seal_sets(content)
        scanned += exercise(content)
    assert 25 < scanned < 149


def test_bytes_that_nobody_wrote_as_a_volume_are_refused() -> None:
    chance = random.Random(3)
    for _ in range(500):
        content = bytearray(chance.randbytes(700))
        content[3:11] = b"EXFAT   "
        assert not exercise(content)


def test_opening_any_record_of_a_volume_only_finds_or_does_not_find() -> None:
    volume = ExfatVolume(MemoryDevice(SAMPLE.content))
    listed = set(volume.scan().entries.record.tolist())
    found = set()
    for record in range(len(SAMPLE.content) // 32 + 2):
        with contextlib.suppress(NotFoundError, InconsistentVolume):
            volume.open(record)
            found.add(record)
    assert listed == found
