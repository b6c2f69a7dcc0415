"""Contents digested in bulk, by their runs alone: proof that what was laid out anew holds what it held before."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import HOLE, Contents
from sqlimage.image.stored import StoredDevice
from sqlimage.units import MIB

_BATCH_BYTES = 4 * MIB
_BATCH_ROWS = 2048
_GAP_BYTES = 32 << 10
"""What lies between contents that are read together, at most."""
_BLOCK_BYTES = MIB
_ZEROS = memoryview(bytes(_BLOCK_BYTES))


def digests(
    device: BlockDevice,
    contents: Contents,
    rows: Int64s,
    *,
    as_stored: bool = False,
    threads: int | None = None,
    each: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """SHA-256 of contents, read in the order of ``rows``, which should be that of their places.

    ``as_stored``: of the clusters whole, as they lie, where their bytes are not the file's (a compressed file).
    Memory is bounded by a few batches. ``each`` is told the bytes of every batch.
    """
    work = _Batches(device, contents, as_stored)
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="reread")
    window: deque[Future[list[tuple[int, bytes]]]] = deque()
    try:
        for batch, length in work.cut(rows):
            window.append(pool.submit(work.run, batch))
            if len(window) > 8:
                yield from window.popleft().result()
            if each:
                each(length)
        while window:
            yield from window.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Batches:
    def __init__(self, device: BlockDevice, contents: Contents, as_stored: bool) -> None:
        self._device = device
        self._contents = contents
        self._as_stored = as_stored
        self._zero = contents.reads_as_zeros()
        self._view = device.view if isinstance(device, StoredDevice) else None
        self._local = threading.local()

    def cut(self, rows: Int64s) -> Iterator[tuple[Int64s, int]]:
        """The rows in pieces of about ``_BATCH_BYTES`` and at most ``_BATCH_ROWS``, and the bytes of each."""
        size = self._contents.size_bytes[rows]
        reach = np.cumsum(size)
        at = 0
        while at < len(rows):
            before = int(reach[at]) - int(size[at])
            end = int(np.searchsorted(reach, before + _BATCH_BYTES, side="right"))
            end = min(max(end, at + 1), at + _BATCH_ROWS)
            yield rows[at:end], int(reach[end - 1]) - before
            at = end

    def run(self, rows: Int64s) -> list[tuple[int, bytes]]:
        """The digests of a batch: small contents in one run, which are nearly all, are read with their neighbours."""
        contents = self._contents
        low, high, size = contents.first_run[rows], contents.first_run[rows + 1], contents.size_bytes[rows]
        plain = np.zeros(len(rows), dtype=np.bool_)
        if not self._as_stored:
            plain = (high - low == 1) & (size <= _BLOCK_BYTES) & (contents.valid_bytes[rows] == size)
            plain[plain] = ~self._zero[low[plain]] & (contents.run_length[low[plain]] >= size[plain])
        found = dict(self._small(rows[plain], contents.run_offset[low[plain]], size[plain]))
        rest = ~plain
        columns = (rows[rest], low[rest], high[rest], size[rest], contents.valid_bytes[rows[rest]])
        for row, first, after, length, there in zip(*(column.tolist() for column in columns), strict=True):
            if self._as_stored:
                there = length = int(contents.run_length[first:after][~self._zero[first:after]].sum())
            found[row] = self._digest(first, after, length, there, self._buffer())
        return [(row, found[row]) for row in rows.tolist()]

    def _small(self, rows: Int64s, place: Int64s, size: Int64s) -> Iterator[tuple[int, bytes]]:
        """Neighbours are read together."""
        buffer = self._buffer()
        begin = end = 0
        reach = np.minimum(place + _BATCH_BYTES, self._device.size_bytes).tolist()
        behind = (place + size).tolist()
        for n, (row, at, after) in enumerate(zip(rows.tolist(), place.tolist(), behind, strict=True)):
            view = self._view(at, after - at) if self._view is not None else None
            if view is None:
                if not begin <= at <= after <= end:
                    begin = at
                    end = after if self._view is not None else _span(place, behind, n, reach[n])
                    self._device.read_into(begin, buffer[: end - begin])
                view = buffer[at - begin : after - begin]
            yield row, hashlib.sha256(view).digest()

    def _buffer(self) -> memoryview:
        """One for each thread."""
        found: memoryview | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = memoryview(bytearray(_BATCH_BYTES))
        return found

    def _digest(self, low: int, high: int, size: int, valid: int, buffer: memoryview) -> bytes:
        hashed, done, valid = hashlib.sha256(), 0, min(valid, size)
        for run in range(low, high):
            if done >= valid:
                break
            length = min(int(self._contents.run_length[run]), valid - done)
            if not self._zero[run]:
                self._feed(hashed, int(self._contents.run_offset[run]), length, buffer)
            elif self._as_stored:
                continue
            else:
                _feed_zeros(hashed, length)
            done += length
        _feed_zeros(hashed, size - done)
        return hashed.digest()

    def _feed(self, hashed: hashlib._Hash, place: int, length: int, buffer: memoryview) -> None:
        for at in range(0, length, _BLOCK_BYTES):
            block = min(_BLOCK_BYTES, length - at)
            view = self._view(place + at, block) if self._view is not None else None
            if view is None:
                view = buffer[:block]
                self._device.read_into(place + at, view)
            hashed.update(view)


def _span(place: Int64s, behind: list[int], first: int, reach: int) -> int:
    """Where a read that begins with one content and takes those that follow close behind ends, before ``reach``."""
    end = behind[first]
    for n in range(first + 1, len(behind)):
        if not end <= place[n] <= end + _GAP_BYTES or behind[n] > reach:
            break
        end = behind[n]
    return end


def _feed_zeros(hashed: hashlib._Hash, length: int) -> None:
    for at in range(0, length, _BLOCK_BYTES):
        hashed.update(_ZEROS[: length - at])


def first_places(contents: Contents) -> Int64s:
    """Where each content begins (its first backed run); ``HOLE`` where it has none."""
    backed = np.flatnonzero(~contents.reads_as_zeros())
    first = np.full(len(contents), HOLE, dtype=np.int64)
    owner = contents.run_owner()[backed][::-1]
    first[owner] = contents.run_offset[backed][::-1]  # of equal rows the last one counts: the first run
    return first
