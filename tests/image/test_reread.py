"""Contents digested by their runs alone are digested as if each had been written out and hashed."""

from __future__ import annotations

import hashlib
import random
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import DeviceError
from sqlimage.filesystem.contract import HOLE, Contents
from sqlimage.image import reread
from sqlimage.image.reread import digests, first_places
from sqlimage.image.stored import StoredDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.streams.cluster_map import MapTable

UNIT = 16
few = settings(max_examples=50, deadline=None)
seeds = st.integers(0, 1 << 32)


@dataclass
class Row:
    """One content: its runs (place or ``HOLE``, length, whether it is unwritten), and its sizes."""

    runs: list[tuple[int, int, bool]]
    size: int
    valid: int


def contents_of(rows: list[Row], *, with_unwritten: bool = True) -> Contents:
    def column(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(values, dtype=np.int64)

    runs = [run for row in rows for run in row.runs]
    return Contents(
        record=column(list(range(len(rows)))),
        stream=[""] * len(rows),
        size_bytes=column([row.size for row in rows]),
        valid_bytes=column([row.valid for row in rows]),
        flags=np.zeros(len(rows), dtype=np.uint8),
        first_run=np.concatenate(([0], np.cumsum(column([len(row.runs) for row in rows])))).astype(np.int64),
        run_offset=column([run[0] for run in runs]),
        run_length=column([run[1] for run in runs]),
        inline_digest={},
        run_unwritten=np.array([run[2] for run in runs], dtype=np.bool_) if with_unwritten else None,
    )


def make(seed: int) -> tuple[bytes, list[Row]]:
    """A medium and contents anywhere on it: in pieces, with holes, unwritten runs, slack, and bytes never written."""
    chance = random.Random(seed)
    medium = chance.randbytes(UNIT * 200)
    rows = []
    for _ in range(chance.randint(0, 12)):
        runs = []
        for _ in range(chance.choice([0, 1, 1, 1, 2, 5])):
            count = chance.randint(1, 20)
            place = HOLE if chance.random() < 0.25 else chance.randint(0, 200 - count) * UNIT
            runs.append((place, count * UNIT, place != HOLE and chance.random() < 0.2))
        covered = sum(run[1] for run in runs)
        size = max(covered - chance.choice([0, 1, UNIT - 1, UNIT, covered // 2]), 0)
        size = chance.choice([size, size, size, covered + 50, 0])
        rows.append(Row(runs, size, chance.choice([size, size, chance.randint(0, size)])))
    return medium, rows


def content(medium: bytes | bytearray, row: Row) -> bytes:
    """What reading the file gives."""
    pieces = [bytes(n) if at == HOLE or zeros else medium[at : at + n] for at, n, zeros in row.runs]
    return b"".join(pieces)[: row.size][: row.valid].ljust(row.size, b"\0")


def as_stored(medium: bytes, row: Row) -> bytes:
    """What lies in its clusters, whatever of it counts."""
    return b"".join(medium[at : at + n] for at, n, zeros in row.runs if at != HOLE and not zeros)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and batches so small that all borders are met."""
    monkeypatch.setattr(reread, "_BLOCK_BYTES", 3 * UNIT - 5)
    monkeypatch.setattr(reread, "_ZEROS", memoryview(bytes(3 * UNIT - 5)))
    monkeypatch.setattr(reread, "_BATCH_BYTES", 30 * UNIT)
    monkeypatch.setattr(reread, "_BATCH_ROWS", 3)


def check(seed: int, threads: int) -> None:
    medium, rows = make(seed)
    table, order = contents_of(rows), list(range(len(rows)))
    random.Random(seed).shuffle(order)
    device, asked = MemoryDevice(medium), np.array(order, dtype=np.int64)
    for stored, model in ((False, content), (True, as_stored)):
        told: list[int] = []
        found = list(digests(device, table, asked, as_stored=stored, threads=threads, each=told.append))
        assert found == [(n, hashlib.sha256(model(medium, rows[n])).digest()) for n in order]
        assert sum(told) == sum(row.size for row in rows)


@few
@given(seeds)
def test_contents_have_the_digest_of_what_reading_them_gives(seed: int) -> None:
    check(seed, 1)


@pytest.mark.usefixtures("small_blocks")
def test_in_any_number_of_blocks_batches_and_threads_it_is_the_same() -> None:
    for seed in range(60):
        check(seed, 1 + seed % 3)


def test_blocks_and_batches_have_bounds_that_large_contents_cross() -> None:
    medium, chance = MemoryDevice(bytes(1 << 20)), random.Random(4)
    medium.content[:] = chance.randbytes(1 << 20)
    row = Row([(0, 1 << 20, False), (HOLE, 3 << 20, False), (UNIT, (1 << 20) - UNIT, False)], (5 << 20) - 99, 5 << 20)
    rows = [row, Row(row.runs, row.size, 1 << 19), *(Row([(n * UNIT, UNIT, False)], 9, 9) for n in range(5000))]
    found = list(digests(medium, contents_of(rows), np.arange(len(rows))))
    assert found == [(n, hashlib.sha256(content(medium.content, row)).digest()) for n, row in enumerate(rows)]


@few
@given(seeds)
def test_from_what_was_stored_they_are_the_same(seed: int) -> None:
    """Where a stretch lies in one chunk it is hashed without a copy, else read."""
    medium, rows = make(seed)
    chance, table, at = random.Random(seed), [], 0
    chunks: dict[int, bytes] = {}
    while at < 200:
        count = min(chance.randint(1, 30), 200 - at)
        chunks[len(chunks) + 1] = b"before" * UNIT + medium[at * UNIT : (at + count) * UNIT] + b"after"
        table.append((at, at + count - 1, len(chunks), 6 * UNIT))
        at += count
    columns = np.array(table, dtype=np.int64)
    device = StoredDevice(MapTable(*columns.T.copy()), UNIT, chunks.__getitem__, 0, len(medium))
    for stored, model in ((False, content), (True, as_stored)):
        found = list(digests(device, contents_of(rows), np.arange(len(rows)), as_stored=stored))
        assert found == [(n, hashlib.sha256(model(medium, row)).digest()) for n, row in enumerate(rows)]


@few
@given(seeds, st.booleans())
def test_the_first_place_of_a_content_is_its_first_run_that_is_read(seed: int, with_unwritten: bool) -> None:
    _, rows = make(seed)
    read = [[at for at, _, zeros in row.runs if at != HOLE and not (zeros and with_unwritten)] for row in rows]
    found = first_places(contents_of(rows, with_unwritten=with_unwritten))
    assert found.tolist() == [places[0] if places else HOLE for places in read]


def test_nothing_asked_for_is_nothing_and_the_rows_asked_for_are_all() -> None:
    medium, rows = make(11)
    assert list(digests(MemoryDevice(medium), contents_of(rows), np.empty(0, dtype=np.int64))) == []
    asked = np.array([3, 1], dtype=np.int64)
    assert [row for row, _ in digests(MemoryDevice(medium), contents_of(rows), asked)] == [3, 1]


@pytest.mark.usefixtures("small_blocks")
def test_a_medium_that_cannot_be_read_ends_it_with_its_error() -> None:
    rows = [Row([(n * UNIT, UNIT, False)], UNIT, UNIT) for n in range(40)]
    with pytest.raises(DeviceError):
        list(digests(MemoryDevice(bytes(30 * UNIT)), contents_of(rows), np.arange(40)))


@pytest.mark.usefixtures("small_blocks")
def test_whoever_stops_listening_leaves_no_thread_behind() -> None:
    rows = [Row([(n * UNIT, UNIT, False)], UNIT, UNIT) for n in range(40)]
    found = digests(MemoryDevice(bytes(40 * UNIT)), contents_of(rows), np.arange(40))
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reread")]
