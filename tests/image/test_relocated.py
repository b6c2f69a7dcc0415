"""A medium as it is to be reads as one on which everything was moved and changed for good."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.device import BlockDevice, DeviceExtent, Prefetching
from sqlimage.errors import DeviceError, InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.fixup import Fixup
from sqlimage.image.relocated import RelocatedDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.moves import Moves

OLD_BYTES, NEW_BYTES = 700, 900
CELL = 10
"""The old medium is data or a hole in cells of so many bytes."""
few = settings(max_examples=30, deadline=None)


class Sparse(MemoryDevice):
    """A medium that knows its holes, and was told what will be read."""

    def __init__(self, content: bytes | bytearray, data: Runs) -> None:
        super().__init__(content)
        self._data = data
        self.told: list[tuple[int, int]] = []

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        at, end = offset_bytes, offset_bytes + length_bytes
        for start, length in self._data.clip(at, end):
            if start > at:
                yield DeviceExtent(at, start - at, is_data=False)
            yield DeviceExtent(start, length, is_data=True)
            at = start + length
        if at < end:
            yield DeviceExtent(at, end - at, is_data=False)

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self.told.append((offset_bytes, length_bytes))


@dataclass
class Made:
    """A medium laid out anew, and what it must read as."""

    source: Sparse
    moves: Moves
    fixups: list[Fixup]
    before_fixups: bytes
    model: bytes

    def device(self) -> RelocatedDevice:
        return RelocatedDevice(self.source, NEW_BYTES, self.moves, self.fixups)


def make(seed: int, longest: int = 60) -> Made:
    """Random moves and fix-ups: over what moved, over zeros, across borders of both."""
    chance = random.Random(seed)
    holes = [chance.random() < 0.4 for _ in range(OLD_BYTES // CELL)]
    data = Runs.of((n * CELL, CELL) for n, is_hole in enumerate(holes) if not is_hole)
    content = bytearray(OLD_BYTES)
    for start, length in data:
        content[start : start + length] = chance.randbytes(length)
    old, new, length_ = [], [], []
    at, pieces = 0, []
    while at < OLD_BYTES:
        size = chance.randint(1, longest)
        pieces.append((at, min(size, OLD_BYTES - at)))
        at += size
    pieces = [piece for piece in pieces if chance.random() < 0.8]
    if chance.random() < 0.8:
        chance.shuffle(pieces)
    at, model = 0, bytearray(NEW_BYTES)
    for start, size in pieces:
        at += chance.choice([0, 0, chance.randint(0, 15)])
        if at + size > NEW_BYTES:
            break
        old.append(start)
        new.append(at)
        length_.append(size)
        model[at : at + size] = content[start : start + size]
        at += size
    before, at = bytes(model), 0
    fixups: list[Fixup] = []
    while (at := at + chance.choice([0, 0, 3, chance.randint(0, 150)])) < NEW_BYTES:
        size = min(chance.choice([1, 2, 7, 40]), NEW_BYTES - at)
        replacement = chance.choice([chance.randbytes(size), bytes(size)])
        fixups.append(Fixup(at, before[at : at + size], replacement, f"change {len(fixups)}"))
        model[at : at + size] = replacement
        at += size
    moves = Moves.of(*(np.array(column, dtype=np.int64) for column in (old, new, length_)))
    return Made(Sparse(content, data), moves, fixups, before, bytes(model))


seeds = st.integers(0, 1 << 32)


@few
@given(seeds, st.lists(st.tuples(st.integers(0, NEW_BYTES), st.integers(0, 200) | st.integers(0, NEW_BYTES))))
def test_any_range_reads_as_everything_moved_and_changed(seed: int, ranges: list[tuple[int, int]]) -> None:
    made = make(seed)
    device = made.device()
    assert device.size_bytes == NEW_BYTES
    assert device.bytes_per_sector == made.source.bytes_per_sector
    for offset, length in [*ranges, (0, NEW_BYTES)]:
        length = min(length, NEW_BYTES - offset)
        assert device.read(offset, length) == made.model[offset : offset + length]
        buffer = bytearray(b"\xee" * length)
        device.read_into(offset, memoryview(buffer))
        assert buffer == made.model[offset : offset + length]
    device.check_applied()


@few
@given(seeds)
def test_read_byte_by_byte_it_is_the_same(seed: int) -> None:
    made = make(seed, longest=9)
    device = made.device()
    assert b"".join(device.read(at, 1) for at in range(NEW_BYTES)) == made.model
    device.check_applied()


@few
@given(seeds, st.lists(st.tuples(st.integers(0, NEW_BYTES), st.integers(0, NEW_BYTES)), max_size=5))
def test_extents_cover_exactly_what_is_asked_for_and_never_call_data_zeros(
    seed: int, ranges: list[tuple[int, int]]
) -> None:
    made = make(seed)
    device = made.device()
    for offset, length in [*ranges, (0, NEW_BYTES)]:
        length, at = min(length, NEW_BYTES - offset), offset
        for extent in device.extents(offset, length):
            assert extent.offset_bytes == at
            assert extent.length_bytes > 0
            at += extent.length_bytes
            if not extent.is_data:
                assert not any(made.model[extent.offset_bytes : at])
        assert at == offset + length


@few
@given(seeds)
def test_holes_stay_holes_and_what_comes_from_nowhere_is_one_but_for_changes(seed: int) -> None:
    made = make(seed)
    data = {
        place
        for extent in made.device().extents(0, NEW_BYTES)
        if extent.is_data
        for place in range(extent.offset_bytes, extent.offset_bytes + extent.length_bytes)
    }
    there = {p for e in made.source.extents(0, OLD_BYTES) if e.is_data for p in range(e.offset_bytes, _end(e))}
    moves = zip(made.moves.old.tolist(), made.moves.new.tolist(), made.moves.length.tolist(), strict=True)
    wanted = {new + k for old, new, length in moves for k in range(length) if old + k in there}
    wanted |= {f.offset_bytes + k for f in made.fixups for k in range(len(f.original))}
    assert data == wanted


def _end(extent: DeviceExtent) -> int:
    return extent.offset_bytes + extent.length_bytes


@few
@given(seeds, st.data())
def test_a_change_over_other_bytes_than_it_expects_is_refused_and_others_are_made(
    seed: int, data: st.DataObject
) -> None:
    made = make(seed)
    if not made.fixups:
        return
    wrong = data.draw(st.integers(0, len(made.fixups) - 1))
    fixup = made.fixups[wrong]
    place = data.draw(st.integers(0, len(fixup.original) - 1))
    original = bytearray(fixup.original)
    original[place] ^= data.draw(st.integers(1, 255))
    made.fixups[wrong] = fixup._replace(original=bytes(original))
    device, bad = made.device(), fixup.offset_bytes + place
    for at in range(NEW_BYTES):
        if at != bad:
            assert device.read(at, 1)[0] == made.model[at]
    for offset, length in ((0, NEW_BYTES), (bad, 1), (fixup.offset_bytes, len(original)), (max(bad - 3, 0), 4)):
        with pytest.raises(InconsistentVolume, match=f"fix-up at byte .*: change {wrong}: the bytes to be replaced"):
            device.read(offset, min(length, NEW_BYTES - offset))
    with pytest.raises(InconsistentVolume, match=f"change {wrong}: was not applied"):
        device.check_applied()


@few
@given(seeds, st.data())
def test_a_change_is_applied_when_every_byte_of_it_was_read(seed: int, data: st.DataObject) -> None:
    made = make(seed)
    device = made.device()
    if not made.fixups:
        device.check_applied()
        return
    left = data.draw(st.sampled_from(made.fixups))
    at = left.offset_bytes + data.draw(st.integers(0, len(left.original) - 1))
    device.read(0, at)
    device.read(at + 1, NEW_BYTES - at - 1)
    with pytest.raises(InconsistentVolume, match=f"at byte {left.offset_bytes}: {left.reason}: was not applied"):
        device.check_applied()
    device.read(at, 1)
    device.check_applied()


def test_beyond_its_end_nothing_is_read() -> None:
    device = make(1).device()
    for offset, length in ((NEW_BYTES, 1), (-1, 2), (0, NEW_BYTES + 1), (5, -1)):
        with pytest.raises(DeviceError, match=f"the device has {NEW_BYTES}"):
            device.read(offset, length)
        with pytest.raises(DeviceError):
            list(device.extents(offset, length))
    with pytest.raises(DeviceError):
        device.read_into(NEW_BYTES - 1, bytearray(2))
    assert device.read(NEW_BYTES, 0) == b""


def test_a_move_that_leads_off_the_medium_raises() -> None:
    source = MemoryDevice(bytes(100))
    device = RelocatedDevice(source, 100, Moves.of_runs(Runs.of([(60, 50)]), -60), ())
    with pytest.raises(DeviceError):
        device.read(0, 50)
    assert device.read(0, 40) == bytes(40)


@few
@given(seeds, st.integers(0, NEW_BYTES), st.integers(0, NEW_BYTES))
def test_what_will_be_read_is_told_to_the_medium_where_it_lies(seed: int, offset: int, length: int) -> None:
    made = make(seed)
    device, length = made.device(), min(length, NEW_BYTES - offset)
    assert isinstance(device, Prefetching)
    device.prefetch(offset, length)
    told = [place + k for place, count in made.source.told for k in range(count)]
    moves = zip(made.moves.old.tolist(), made.moves.new.tolist(), made.moves.length.tolist(), strict=True)
    origin = {new + k: old + k for old, new, count in moves for k in range(count)}
    assert told == [origin[at] for at in range(offset, offset + length) if at in origin]


def test_closed_it_leaves_the_medium_open_and_one_that_prefetches_nothing_is_enough() -> None:
    class Plain:
        """A medium that is a device and no more."""

        size_bytes, bytes_per_sector = 8, 4096

        def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
            buffer[:] = b"abcdefgh"[offset_bytes : offset_bytes + len(buffer)]

        def read(self, offset_bytes: int, length_bytes: int) -> bytes:
            return b"abcdefgh"[offset_bytes : offset_bytes + length_bytes]

        def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
            yield DeviceExtent(offset_bytes, length_bytes, is_data=True)

        def close(self) -> None:
            raise AssertionError("the medium belongs to whoever opened it")

    plain: BlockDevice = Plain()
    device = RelocatedDevice(plain, 10, Moves.of_runs(Runs.of([(0, 8)]), 1), [Fixup(0, b"\0a", b"xy", "both")])
    device.prefetch(0, 8)
    device.close()
    device.close()
    assert device.read(0, 10) == b"xybcdefgh\0"
    assert device.bytes_per_sector == 4096
