"""Contents digested in bulk, by their runs alone: proof that what was laid out anew holds what it held before."""

from __future__ import annotations

import hashlib
import os
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
        contents, buffer = self._contents, memoryview(bytearray(_BLOCK_BYTES))
        columns = (rows, contents.first_run[rows], contents.first_run[rows + 1], contents.size_bytes[rows])
        valid = contents.valid_bytes[rows].tolist()
        found = []
        for row, low, high, size, there in zip(*(column.tolist() for column in columns), valid, strict=True):
            if self._as_stored:
                there = size = int(contents.run_length[low:high][~self._zero[low:high]].sum())
            found.append((row, self._digest(low, high, size, there, buffer)))
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
