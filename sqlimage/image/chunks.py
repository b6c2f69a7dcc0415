"""Decoded chunks of an image, fetched once and kept while they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict

from sqlimage.codec.chunk import decode
from sqlimage.errors import DamagedError
from sqlimage.streams import data
from sqlimage.streams.data import StoredChunk
from sqlimage.streams.database import Database

CACHE_BYTES = 32 << 20


def content_of(chunk: StoredChunk) -> bytes:
    """A chunk decoded and verified. Raises :class:`~sqlimage.errors.DamagedError`."""
    if chunk.stored is None:
        raise DamagedError(f"data {chunk.id}: its bytes are in a parent or a segment that is not here", data=chunk.id)
    return decode(chunk.stored, chunk.flags, chunk.length, chunk.digest, data=chunk.id)


class Connections:
    """One read-only connection for each thread that asks, all closed together."""

    def __init__(self, database: Database) -> None:
        self._origin = database
        self._local = threading.local()
        self._all: list[Database] = []
        self._lock = threading.Lock()

    def mine(self) -> Database:
        """The calling thread's connection."""
        found: Database | None = getattr(self._local, "database", None)
        if found is None:
            found = self._local.database = self._origin.reader()
            with self._lock:
                self._all.append(found)
        return found

    def close(self) -> None:
        with self._lock:
            for database in self._all:
                database.close()
            self._all.clear()


class ChunkCache:
    """The chunks used last, up to ``CACHE_BYTES`` of content; safe from any thread."""

    def __init__(self, connections: Connections, limit_bytes: int = CACHE_BYTES) -> None:
        self._connections = connections
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, number: int) -> bytes:
        """The content of a ``data`` row, verified when it was decoded."""
        with self._lock:
            content = self._held.get(number)
            if content is not None:
                self._held.move_to_end(number)
                return content
        content = content_of(data.read(self._connections.mine(), number))
        with self._lock:
            if number not in self._held:
                self._held[number] = content
                self._held_bytes += len(content)
                while self._held_bytes > self._limit_bytes and len(self._held) > 1:
                    self._held_bytes -= len(self._held.popitem(last=False)[1])
        return content
