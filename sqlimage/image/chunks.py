"""Decoded chunks of a lineage, fetched once and kept while they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from sqlimage.codec.chunk import decode
from sqlimage.errors import DamagedError
from sqlimage.image import elsewhere
from sqlimage.image.keys import Key
from sqlimage.image.lineage import Lineage
from sqlimage.image.scratch import Scratch
from sqlimage.streams import arrangement, data
from sqlimage.streams.arrangement import Rearranged
from sqlimage.streams.data import DataRow, StoredChunk
from sqlimage.streams.database import Database
from sqlimage.units import GIB, MIB


@dataclass(frozen=True, slots=True)
class Cache:
    """How much is kept of what was decoded."""

    memory_bytes: int = 32 * MIB
    scratch_bytes: int = 0
    """In a temporary file, of what memory has no room for; 0 keeps none."""


SMALL = Cache()
"""For a command that reads here and there."""
LARGE = Cache(128 * MIB, 4 * GIB)
"""For a program that works on an image as on a disk."""
_MOST_NAMED = 5
_CHANGES = "PRAGMA data_version"
"""Differs from what it was whenever another connection has committed."""


def content_of(chunk: StoredChunk) -> bytes:
    """A chunk decoded and verified. Raises :class:`~sqlimage.errors.DamagedError`."""
    if chunk.stored is None:
        raise DamagedError(f"data {chunk.id}: its bytes are in a parent or a segment that is not here", data=chunk.id)
    vault = chunk.vault() if chunk.vault else None
    return decode(chunk.stored, chunk.flags, chunk.length, chunk.digest, vault=vault, data=chunk.id)


class Connections:
    """One read-only connection for each thread that asks, all closed together."""

    def __init__(self, database: Database, arranged: object = None) -> None:
        """``arranged`` is what :func:`sqlimage.streams.arrangement.read` said when the lineage was resolved."""
        self._origin = database
        self._arranged = arranged
        self._local = threading.local()
        self._all: list[Database] = []
        self._lock = threading.Lock()
        self.is_closing = False
        """Set before those who ask are waited for: what is on its way from elsewhere is not waited for any more."""

    @property
    def path(self) -> str:
        return self._origin.path

    def mine(self) -> Database:
        """The calling thread's connection."""
        found: Database | None = getattr(self._local, "database", None)
        if found is None:
            found = self._local.database = self._origin.reader()
            self._local.seen = None
            with self._lock:
                self._all.append(found)
        return found

    def check(self) -> None:
        """To be called after something was read and before it is used: raises
        :class:`~sqlimage.streams.arrangement.Rearranged` where another process has moved contents since."""
        database = self.mine()
        seen = database.row(_CHANGES)
        if seen != self._local.seen:
            if arrangement.read(database) != self._arranged:
                raise Rearranged(database.path)
            self._local.seen = seen

    def close(self) -> None:
        with self._lock:
            for database in self._all:
                database.close()
            self._all.clear()


def connect(lineage: Lineage) -> list[Connections]:
    """Connections to every file of a lineage, in its order.

    Of an image that is encrypted as a whole the map must be the one that was sealed: raises
    :class:`~sqlimage.errors.DamagedError` where it is not, and :class:`~sqlimage.errors.LockedError` without its key.
    """
    for number, file in enumerate(lineage.files):
        if file.is_sealed:
            file.check_maps(lineage.in_file(number))
    return [Connections(file, told) for file, told in zip(lineage.files, lineage.arranged, strict=True)]


def read_row(connections: list[Connections], key: Key) -> DataRow:
    """What a file's data stream says of a content, without its bytes."""
    file, number = key
    row = data.describe(connections[file].mine(), number)
    connections[file].check()
    return row


def read_stored(connections: list[Connections], key: Key) -> StoredChunk:
    """A chunk as it is stored, with its bytes, from whichever file of the lineage has them.

    Raises :class:`~sqlimage.errors.DamagedError` where none has.
    """
    file, number = key
    try:
        chunk = data.read(connections[file].mine(), number)
    except DamagedError:
        connections[file].check()
        raise
    connections[file].check()
    if chunk.stored is not None:
        return chunk
    return read_missing(connections, chunk, file)


def read_missing(connections: list[Connections], chunk: StoredChunk, near: int | None = None) -> StoredChunk:
    """A chunk whose bytes its own file, ``near``, does not have, from whichever file of the lineage has them.

    Raises :class:`~sqlimage.errors.DamagedError` where none has.
    """
    for other in range(len(connections)):
        if other != near:
            found = data.find(connections[other].mine(), chunk.digest)
            if found is not None and found.stored is not None:
                return StoredChunk(chunk.id, chunk.digest, chunk.length, found.flags, found.stored, found.vault)
    for each in connections:
        arriving = _from_elsewhere(each, chunk.digest)
        if arriving is not None:
            return arriving
    for each in connections:
        each.check()
    paths = [each.path for each in connections]
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    where = "" if near is None else f"{connections[near].path}: "
    raise DamagedError(
        f"{where}the bytes of data {chunk.id} (SHA-256 {chunk.digest.hex()}) are in none of "
        + ", ".join(paths[:_MOST_NAMED])
        + more,
        data=chunk.id,
        hint="a parent was replaced by another file, or changed while this child was not known to it",
    )


def _from_elsewhere(connections: Connections, digest: bytes) -> StoredChunk | None:
    """A content of which a file has the name only, from where the image itself comes from."""
    origin = elsewhere.of(connections.path)
    chunk = data.find(connections.mine(), digest) if origin is not None else None
    if origin is None or chunk is None:
        return None
    row = data.describe(connections.mine(), chunk.id)
    stored = origin.fetch(chunk.id, row.stored_bytes, lambda: connections.is_closing)
    return None if stored is None else replace(chunk, stored=stored, forget=partial(origin.forget, chunk.id))


def fetch(connections: list[Connections], key: Key) -> bytes:
    """The content of a chunk, decoded and verified."""
    return _fetch(connections, key)[1]


def _fetch(connections: list[Connections], key: Key) -> tuple[StoredChunk, bytes]:
    chunk = read_stored(connections, key)
    try:
        return chunk, content_of(chunk)
    except DamagedError:
        if chunk.forget is None:
            raise
        chunk.forget()  # a line, or what was kept of it, may have lost a bit; asked once more it may not
        chunk = read_stored(connections, key)
        return chunk, content_of(chunk)


class ChunkCache:
    """The chunks used last, in memory, and those that fell out of it in a temporary file; safe from any thread."""

    def __init__(self, connections: list[Connections], limits: Cache = SMALL) -> None:
        self._connections = connections
        self._limit_bytes = limits.memory_bytes
        self._held: OrderedDict[Key, bytes] = OrderedDict()
        self._held_bytes = 0
        self._scratch = Scratch(limits.scratch_bytes)
        self._encrypted: set[Key] = set()
        """What of it no other file may hold in plain."""
        self._used: dict[Key, int] = {}
        """Bytes that were asked for of what is in memory. A chunk that was read whole is not kept in the scratch file:
        who reads a medium from end to end does not come back."""
        self._coming: dict[Key, Future[bytes]] = {}
        self._falling: dict[Key, bytes] = {}
        """On their way from memory into the scratch file."""
        self._falling_bytes = 0
        self._to_write: deque[Key] = deque()
        self._writing = threading.Lock()
        self._lock = threading.Lock()

    def peek(self, key: Key) -> bool:
        """Whether a chunk is at hand."""
        return key in self._held or key in self._scratch or key in self._falling

    def copy(self, key: Key, offset_bytes: int, view: memoryview) -> bool:
        """Fill a buffer with bytes of a chunk, verified when it was decoded; False where it has not so many."""
        content = self._held.get(key) or self._falling.get(key)
        if content is None and self._scratch.read_into(key, offset_bytes, view):
            return True
        content = self.get(key)
        if offset_bytes < 0 or offset_bytes + len(view) > len(content):
            return False
        view[:] = memoryview(content)[offset_bytes : offset_bytes + len(view)]
        if key in self._held:
            self._used[key] = self._used.get(key, 0) + len(view)
        return True

    def get(self, key: Key) -> bytes:
        """The content of a chunk, verified."""
        with self._lock:
            content = self._held.get(key)
            if content is not None:
                self._held.move_to_end(key)
                return content
            if key in self._falling:
                return self._falling[key]
            coming = self._coming.get(key)
            if coming is None:
                mine = self._coming[key] = Future()
        if coming is not None:
            return coming.result()
        try:
            chunk, content = _fetch(self._connections, key)
        except BaseException as problem:
            with self._lock:
                del self._coming[key]
            mine.set_exception(problem)
            raise
        fallen = []
        with self._lock:
            del self._coming[key]
            self._held[key] = content
            if chunk.vault is not None:
                self._encrypted.add(key)
            self._held_bytes += len(content)
            while self._held_bytes > self._limit_bytes and len(self._held) > 1:
                gone, old = self._held.popitem(last=False)
                self._held_bytes -= len(old)
                is_wanted = self._used.pop(gone, 0) < len(old) and self._scratch.is_usable
                if gone in self._encrypted:
                    self._encrypted.discard(gone)
                    is_wanted = False
                # Where the disk is slower than we are, what it cannot take in time is decoded again when it is needed.
                if is_wanted and self._falling_bytes + len(old) <= self._limit_bytes // 2:
                    fallen.append(gone)
                    self._falling[gone] = old
                    self._falling_bytes += len(old)
        mine.set_result(content)
        if fallen:
            self._let_fall(fallen)
        return content

    def _let_fall(self, fallen: list[Key]) -> None:
        """Into the scratch file, by whoever is not doing it already: nobody waits for another one's writing."""
        self._to_write.extend(fallen)
        while self._to_write and self._writing.acquire(blocking=False):
            try:
                while self._to_write:
                    key = self._to_write.popleft()
                    self._scratch.put(key, self._falling[key])
                    with self._lock:
                        self._falling_bytes -= len(self._falling.pop(key))
            finally:
                self._writing.release()

    def begin(self, keys: Iterable[Key], pool: ThreadPoolExecutor) -> None:
        """Have chunks fetched by ``pool``, so that :meth:`get` finds them at hand or on their way."""
        for key in keys:
            if key not in self._coming and not self.peek(key):
                pool.submit(self._fetch_ahead, key)

    def _fetch_ahead(self, key: Key) -> None:
        if self.peek(key):
            return  # somebody had it meanwhile, and it may have fallen out of memory already
        with suppress(Exception):  # whoever needs it will be told
            self.get(key)

    def close(self) -> None:
        self._scratch.close()
