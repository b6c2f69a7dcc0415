"""What a worker does with a job: read it, find what is zero and what was met before, digest and compress the rest.

Each step that costs (read, hash, compress) runs without the interpreter lock; the steps that are too small for that to
pay are kept on one thread.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sqlimage.codec.chunk import digest, encode, name_of
from sqlimage.codec.vault import Vault
from sqlimage.device import BlockDevice
from sqlimage.extent import Runs, overlaps
from sqlimage.image.holding import Held
from sqlimage.journey.jobs import Encrypt, Item, Job, Key, Pack, Piece, Slab

SMALLEST_HOLE_BYTES = 4096
"""Shorter stretches of zero clusters stay in their chunk: a map record costs more than they do once compressed."""
_MOST_REMEMBERED = 500_000
"""Digests kept in memory for deduplication, about 90 MB. Beyond it the writer still finds equal chunks."""


@dataclass(frozen=True, slots=True)
class NewChunk:
    id: int
    digest: bytes
    length: int
    flags: int
    stored_bytes: int
    stored: bytes | None
    """None: an ancestor holds the bytes."""


Holding = Callable[[bytes], Held | None]
"""What ancestors have under a digest; may be called from any thread."""


Record = tuple[int, int, int | None, int]
"""First cluster, last cluster (inclusive), data id (None: zeros that hide the parent's), byte offset in the data."""


@dataclass(slots=True)
class Encoded:
    """What a job came to."""

    read_bytes: int
    chunks: list[NewChunk] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    digests: list[tuple[Key, bytes]] = field(default_factory=list)
    repeated_bytes: int = 0
    zero_bytes: int = 0

    def add_record(self, start: int, count: int, data: int, offset: int, unit: int) -> None:
        """Map ``count`` clusters; what goes on where the last record ends becomes part of it."""
        if self.records:
            first, last, same, at = self.records[-1]
            if same == data and last + 1 == start and at + (last + 1 - first) * unit == offset:
                self.records[-1] = (first, start + count - 1, data, at)
                return
        self.records.append((start, start + count - 1, data, offset))


class Encoder:
    """Turns jobs into chunks and map records.

    ``level`` is zstd's; ``ids`` gives numbers for chunks, and ``held`` tells what need not be stored; ``vault``
    encrypts every chunk that has to do with the clusters ``secret``. :meth:`begin`
    belongs to one thread and MUST be called in the order of the plan, as MUST the callables it returns be started, by
    any threads: slabs of one content wait for those before.
    """

    def __init__(
        self,
        device: BlockDevice,
        unit: int,
        chunk_bytes: int,
        level: int,
        *,
        ids: Iterator[int] | None = None,
        held: Holding | None = None,
        vault: Vault | None = None,
        secret: Runs | None = None,
    ) -> None:
        self._device = device
        self._unit = unit
        self._chunk_clusters = chunk_bytes // unit
        self._level = level
        self._zero_run = re.compile(rb"\0{%d,}" % max(1, SMALLEST_HOLE_BYTES // unit))
        self._ids = ids or itertools.count(1)
        self._held = held
        self._vault = vault
        self._secret = secret if vault is not None and secret is not None else Runs.empty()
        self._chunks: dict[bytes, int] = {}
        self._smalls: dict[tuple[bytes, int, bool], tuple[int, int]] = {}
        self._local = threading.local()

    def begin(self, job: Job) -> Callable[[], Encoded]:
        """Do the part of a job that is many small steps, and return the rest, for any other thread.

        The many files of a pack are read and digested here, one thread after the other: several threads would only
        wait for each other's hold on the interpreter. What is left (compressing a pack; all of a slab) is large steps
        that run beside each other.
        """
        if isinstance(job, Pack):
            return self._gather(job)
        return partial(self._run_slab, job)

    def _run_slab(self, job: Slab) -> Encoded:
        try:
            buffer = self._read(job)
            result = Encoded(sum(piece[2] for piece in job.pieces) * self._unit)
            self._slab(job, buffer, self._used(buffer, job.clusters), result)
            return result
        except BaseException:
            if job.chain:
                job.chain.fail()
            raise

    def _used(self, buffer: memoryview, clusters: int) -> bytes:
        """A byte for each cluster: 0 where it is all zeros."""
        return np.frombuffer(buffer, dtype=np.uint64).reshape(clusters, -1).any(axis=1).tobytes()

    def _read(self, job: Job) -> memoryview:
        """The job's clusters in a buffer that this thread uses again and again; what has no clusters is zero."""
        unit, length = self._unit, job.clusters * self._unit
        whole: bytearray | None = getattr(self._local, "buffer", None)
        if whole is None or len(whole) < length:
            whole = self._local.buffer = bytearray(length)
        buffer = memoryview(whole)[:length]
        filled = 0
        for place, start, clusters in _joined(job.pieces):
            low, high = place * unit, (place + clusters) * unit
            if low > filled:
                _clear(buffer[filled:low])
            at = start * unit
            beyond = max(0, at + high - low - self._device.size_bytes)
            self._device.read_into(at, buffer[low : high - beyond])
            if beyond:
                _clear(buffer[high - beyond : high])
            filled = high
        return buffer

    def _used_stretches(self, used: bytes, low: int, high: int) -> list[tuple[int, int]]:
        """The parts of ``low .. high`` that are worth storing: what lies between long enough runs of zero clusters."""
        if used.find(0, low, high) < 0:
            return [(low, high)]
        if used.find(1, low, high) < 0:
            return []
        stretches = []
        for hole in self._zero_run.finditer(used, low, high):
            if hole.start() > low:
                stretches.append((low, hole.start()))
            low = hole.end()
        if low < high:
            stretches.append((low, high))
        return stretches

    def _gather(self, job: Pack) -> Callable[[], Encoded]:
        """Read a pack, digest each content, and leave out what was met before; the rest of the work is returned."""
        unit, buffer = self._unit, self._read(job)
        used = self._used(buffer, job.clusters)
        result = Encoded(sum(piece[2] for piece in job.pieces) * unit)
        mine, length = next(self._ids), 0
        parts: list[memoryview] = []
        places = [piece[0] for piece in job.pieces]
        for item in job.items:
            low, high = item.start, item.start + item.clusters
            content = buffer[low * unit : high * unit]
            data, offset = mine, length
            alike = self._digest_item(item, item.key, content, result) if item.key else None
            stretches = self._used_stretches(used, low, high)
            if not stretches:
                result.zero_bytes += len(content)
                continue
            known = (*alike, job.encrypt) if alike is not None else None
            met = self._smalls.get(known) if known is not None else None
            if met is not None:  # perhaps in this very pack
                data, offset = met
                result.repeated_bytes += len(content)
            elif known is not None and len(self._smalls) < _MOST_REMEMBERED:
                self._smalls[known] = (mine, length)
            for a, b in stretches:
                if met is None:
                    parts.append(buffer[a * unit : b * unit])
                    length += (b - a) * unit
                self._map(job.pieces, places, a, b, data, offset, result)
                offset += (b - a) * unit
        return partial(self._finish_pack, mine, b"".join(parts), job, result)

    def _finish_pack(self, data: int, whole: bytes, job: Pack, result: Encoded) -> Encoded:
        if whole:
            vault = self._vault if job.encrypt else None
            name = name_of(whole, vault)
            if len(self._chunks) < _MOST_REMEMBERED:
                self._chunks.setdefault(name, data)
            # Others may refer to this chunk by its number already, so it is never replaced here; where an equal one
            # exists, the writer finds out and re-points the records.
            self._encode(data, name, whole, job.store, vault, result)
        return result

    def _digest_item(self, item: Item, key: Key, content: memoryview, result: Encoded) -> tuple[bytes, int]:
        """The name under which an equal content is met again: its digest, with whatever lies behind its end."""
        size = item.size_bytes
        if item.valid_bytes == size <= len(content):
            name = digest(content[:size])
            if item.digested:
                result.digests.append((key, name))
            if size < len(content) and any_set(content[size:]):
                name = digest(content)
            return name, item.clusters
        if item.digested:
            there = min(item.valid_bytes, len(content))  # behind that, and in a hole at the end, there are zeros
            hashed = hashlib.sha256(content[:there])
            hashed.update(bytes(size - there))
            result.digests.append((key, hashed.digest()))
        return digest(content), item.clusters

    def _slab(self, job: Slab, buffer: memoryview, used: bytes, result: Encoded) -> None:
        places = [piece[0] for piece in job.pieces]
        for low in range(0, job.clusters, self._chunk_clusters):
            high = min(low + self._chunk_clusters, job.clusters)
            stretches = self._used_stretches(used, low, high)
            if not stretches:
                result.zero_bytes += (high - low) * self._unit
            elif job.encrypt == Encrypt.PARTS:
                secret, plain = self._divided(job.pieces, stretches)
                self._chunk(job, buffer, places, secret, self._vault, result)
                self._chunk(job, buffer, places, plain, None, result)
            else:
                vault = self._vault if job.encrypt == Encrypt.ALL else None
                self._chunk(job, buffer, places, stretches, vault, result)
        if job.chain:
            whole_digest = job.chain.feed(job.turn, job.offset_bytes, buffer, last=job.last)
            if whole_digest:
                result.digests.append((job.chain.key, whole_digest))

    def _chunk(
        self,
        job: Slab,
        buffer: memoryview,
        places: list[int],
        stretches: list[tuple[int, int]],
        vault: Vault | None,
        result: Encoded,
    ) -> None:
        """Stretches of the buffer, as one chunk."""
        if not stretches:
            return
        unit = self._unit
        parts = [buffer[a * unit : b * unit] for a, b in stretches]
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        name = name_of(whole, vault)
        data, is_new = self._claim(name)
        if is_new:
            self._encode(data, name, whole, job.store, vault, result)
        else:
            result.repeated_bytes += len(whole)
        offset = 0
        for a, b in stretches:
            self._map(job.pieces, places, a, b, data, offset, result)
            offset += (b - a) * unit

    def _divided(
        self, pieces: list[Piece], stretches: list[tuple[int, int]]
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Stretches of the buffer that are secret, and those that are not."""
        place, start, count = np.array(pieces, dtype=np.int64).T
        met = overlaps(start, count, self._secret.start, self._secret.length)
        secret = Runs.of(zip((place[met.a] + met.into_a).tolist(), met.length.tolist(), strict=True))
        every = Runs.of((a, b - a) for a, b in stretches)
        return (
            [(a, a + length) for a, length in every.intersect(secret)],
            [(a, a + length) for a, length in every.subtract(secret)],
        )

    def _claim(self, name: bytes) -> tuple[int, bool]:
        """The number of the chunk with this digest, and whether it is the caller's to make."""
        number = next(self._ids)
        if len(self._chunks) < _MOST_REMEMBERED:
            first = self._chunks.setdefault(name, number)
        else:
            first = self._chunks.get(name, number)
        return first, first == number

    def _encode(
        self, data: int, name: bytes, whole: bytes | memoryview, store: bool, vault: Vault | None, result: Encoded
    ) -> None:
        held = self._held(name) if self._held else None
        if held:
            result.chunks.append(NewChunk(data, name, len(whole), held.flags, held.stored_bytes, None))
            result.repeated_bytes += len(whole)
            return
        flags, stored = encode(whole, None if store else self._level, vault, name)
        result.chunks.append(NewChunk(data, name, len(whole), flags, len(stored), stored))

    def _map(
        self, pieces: list[Piece], places: list[int], low: int, high: int, data: int, offset: int, result: Encoded
    ) -> None:
        """Records for the buffer's clusters ``low .. high``, which lie in ``data`` from ``offset`` on."""
        first = max(0, bisect_right(places, low) - 1)  # the stretch may begin in a hole before the first piece
        place, start, count = pieces[first]
        if place <= low and high <= place + count:
            result.add_record(start + low - place, high - low, data, offset, self._unit)
            return
        for index in range(first, len(pieces)):
            place, start, count = pieces[index]
            if place >= high:
                break
            a, b = max(low, place), min(high, place + count)
            if a < b:
                result.add_record(start + a - place, b - a, data, offset + (a - low) * self._unit, self._unit)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces that follow each other both in the buffer and on the medium become one read."""
    joined: list[Piece] = []
    for place, start, count in pieces:
        if joined:
            at, first, clusters = joined[-1]
            if at + clusters == place and first + clusters == start:
                joined[-1] = (at, first, clusters + count)
                continue
        joined.append((place, start, count))
    return joined


def any_set(view: memoryview) -> bool:
    """Whether a buffer holds anything but zeros."""
    return bytes(view).count(0) != len(view)


def _clear(view: memoryview) -> None:
    view[:] = bytes(len(view))
