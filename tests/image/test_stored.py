"""What a version holds, before it is published: it reads as the map says, chunk by chunk."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import DamagedError, DeviceError
from sqlimage.image import stored
from sqlimage.image.stored import Fetch, StoredDevice
from sqlimage.streams.cluster_map import MapTable

UNIT, CLUSTERS = 16, 60
MEDIUM = UNIT * CLUSTERS
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 1 << 32)

Rows = list[tuple[int, int, int, int]]
"""First and last cluster, data, offset in it; data 0: zeros that hide a parent's."""


def table_of(rows: Rows) -> MapTable:
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return MapTable(*(table[:, n].copy() for n in range(4)))


class Chunks:
    """Chunks in memory that count how often each is decoded."""

    def __init__(self, chunks: dict[int, bytes]) -> None:
        self.chunks = chunks
        self.fetched: list[int] = []
        self._lock = threading.Lock()

    def fetch(self, number: int) -> bytes:
        with self._lock:
            self.fetched.append(number)
        return self.chunks[number]


def make(seed: int) -> tuple[MapTable, Chunks, bytes, Rows]:
    """A map of chunks that are used in parts, more than once and in any order; what the medium reads as."""
    chance = random.Random(seed)
    chunks = {n: chance.randbytes(UNIT * chance.randint(1, 12)) for n in chance.sample(range(1, 1 << 50), 6)}
    rows: Rows = []
    model, at = bytearray(MEDIUM), 0
    while (at := at + chance.choice([0, 0, 1, 5])) < CLUSTERS:
        number = chance.choice([0, *chunks, *chunks])
        longest = len(chunks[number]) // UNIT if number else 9
        count = min(chance.randint(1, longest), CLUSTERS - at)
        offset = chance.randint(0, longest - count) * UNIT if number else 0
        rows.append((at, at + count - 1, number, offset))
        if number:
            model[at * UNIT : (at + count) * UNIT] = chunks[number][offset : offset + count * UNIT]
        at += count
    return table_of(rows), Chunks(chunks), bytes(model), rows


@few
@given(
    seeds,
    st.integers(0, MEDIUM),
    st.integers(0, MEDIUM),
    st.lists(st.tuples(st.integers(0, MEDIUM), st.integers(0, 99))),
)
def test_any_range_of_any_part_of_the_medium_reads_as_the_map_says(
    seed: int, begin: int, length: int, ranges: list[tuple[int, int]]
) -> None:
    table, chunks, medium, _ = make(seed)
    length = min(length, MEDIUM - begin)
    model = medium[begin : begin + length]
    device = StoredDevice(table, UNIT, chunks.fetch, begin, length)
    assert device.size_bytes == length
    for offset, count in [*ranges, (0, length)]:
        offset = min(offset, length)
        count = min(count, length - offset)
        assert device.read(offset, count) == model[offset : offset + count]
        buffer = bytearray(b"\xee" * count)
        device.read_into(offset, memoryview(buffer))
        assert buffer == model[offset : offset + count]
    assert sum(extent.length_bytes for extent in device.extents(0, length)) == length
    assert all(extent.is_data for extent in device.extents(0, length))


@few
@given(seeds, st.integers(0, MEDIUM), st.integers(0, MEDIUM), st.integers(0, 40))
def test_a_view_is_given_exactly_where_a_range_lies_in_one_record_that_has_data(
    seed: int, begin: int, offset: int, count: int
) -> None:
    table, chunks, medium, rows = make(seed)
    length = MEDIUM - begin
    device = StoredDevice(table, UNIT, chunks.fetch, begin, length)
    offset = min(offset, length)
    low, high = begin + offset, begin + min(offset + count, length)
    view = device.view(offset, high - low)
    inside = [
        row for row in rows if row[2] and row[0] * UNIT <= low < (row[1] + 1) * UNIT and high <= (row[1] + 1) * UNIT
    ]
    assert (view is not None) == bool(inside)
    if view is not None:
        assert bytes(view) == medium[low:high]


@few
@given(seeds)
def test_in_the_order_of_their_ranks_every_chunk_is_decoded_once(seed: int) -> None:
    table, chunks, medium, _ = make(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "_HELD_BYTES", 0)
        device = StoredDevice(table, UNIT, chunks.fetch, 0, MEDIUM)
        place = np.arange(0, MEDIUM, UNIT, dtype=np.int64)
        for at in place[np.argsort(device.rank(place), kind="stable")].tolist():
            assert device.read(at, UNIT) == medium[at : at + UNIT]
    assert len(set(chunks.fetched)) == len(chunks.fetched)


def test_what_no_record_maps_has_a_rank_and_reads_as_zeros() -> None:
    chunks = Chunks({})
    for rows in ([], [(3, 9, 0, 0)]):
        device = StoredDevice(table_of(rows), UNIT, chunks.fetch, 0, MEDIUM)
        assert device.read(0, MEDIUM) == bytes(MEDIUM)
        assert device.rank(np.array([0, 100], dtype=np.int64)).tolist() == [0, 0]
        assert device.view(0, 1) is None
        assert device.view(4 * UNIT, 1) is None
    assert chunks.fetched == []


def test_a_record_that_reaches_beyond_its_chunk_is_damage_by_name() -> None:
    chunks = Chunks({7: bytes(3 * UNIT)})
    device = StoredDevice(table_of([(0, 3, 7, 0), (5, 6, 7, 2 * UNIT)]), UNIT, chunks.fetch, 0, MEDIUM)
    assert device.read(0, 3 * UNIT) == bytes(3 * UNIT)
    ways: list[Callable[[], object]] = [
        lambda: device.read(3 * UNIT, 1),
        lambda: device.view(0, 4 * UNIT),
        lambda: device.read_into(5 * UNIT, bytearray(2 * UNIT)),
    ]
    for way in ways:
        with pytest.raises(DamagedError, match="a map record reaches beyond data 7") as raised:
            way()
        assert raised.value.data == 7


def test_decoded_chunks_are_held_as_far_as_memory_is_meant_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_HELD_BYTES", 2 * UNIT)
    chunks = Chunks({n: bytes([n]) * UNIT for n in (1, 2, 3)} | {4: b"\4" * 9 * UNIT})
    device = StoredDevice(table_of([(n, n, n + 1, 0) for n in range(4)]), UNIT, chunks.fetch, 0, MEDIUM)

    def read(*clusters: int) -> list[int]:
        """The chunks that had to be decoded."""
        before = len(chunks.fetched)
        for n in clusters:
            assert device.read(n * UNIT, UNIT) == bytes([n + 1]) * UNIT
        return chunks.fetched[before:]

    assert read(0, 0, 1, 1, 0) == [1, 2]
    assert read(2) == [3]
    assert read(0) == [], "it was used after the other"
    assert read(1) == [2]
    assert read(3, 3) == [4], "one that is too large by itself is held too"
    device.close()
    assert read(3) == [4]
    assert read(3) == []


def test_a_chunk_that_cannot_be_had_is_the_readers_error_and_nothing_is_held() -> None:
    def fetch(number: int) -> bytes:
        raise DamagedError(f"data {number} is damaged", data=number)

    device = StoredDevice(table_of([(0, 0, 5, 0)]), UNIT, fetch, 0, MEDIUM)
    for _ in range(2):
        with pytest.raises(DamagedError, match="data 5"):
            device.read(0, 1)
    assert device.read(UNIT, 1) == b"\0"


def test_beyond_its_end_nothing_is_read() -> None:
    fetch: Fetch = Chunks({}).fetch
    device = StoredDevice(table_of([]), UNIT, fetch, UNIT, 50)
    for offset, length in ((50, 1), (-1, 2), (0, 51), (9, -1)):
        with pytest.raises(DeviceError, match="the device has 50"):
            device.read(offset, length)
        with pytest.raises(DeviceError):
            list(device.extents(offset, length))
    assert list(device.extents(50, 0)) == []
    assert device.bytes_per_sector == 512


def test_many_threads_read_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_HELD_BYTES", 20 * UNIT)
    table, chunks, medium, _ = make(3)
    device = StoredDevice(table, UNIT, chunks.fetch, 0, MEDIUM)

    def read(seed: int) -> bool:
        chance = random.Random(seed)
        for _ in range(300):
            offset = chance.randrange(MEDIUM)
            count = chance.randint(0, min(70, MEDIUM - offset))
            if device.read(offset, count) != medium[offset : offset + count]:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))
