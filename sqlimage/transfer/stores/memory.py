"""A store in memory: what the contract means, in the fewest words."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from sqlimage.transfer.stores.asking import check_part, check_published, missing, reference, referred, too_long
from sqlimage.transfer.stores.contract import Bytes, check_name


class MemoryStore:
    """Objects that live as long as this does."""

    def __init__(self, where: str = "mem:") -> None:
        self._where = where
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}

    @property
    def where(self) -> str:
        return self._where

    def put(self, name: str, content: Bytes) -> bool:
        check_name(name)
        whole = bytes(content)
        with self._lock:
            self._objects[name] = whole
        return True

    def get(self, name: str, most_bytes: int) -> bytes:
        found = self._find(name)
        if len(found) > most_bytes:
            raise too_long(self.where, name, most_bytes)
        return found

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        check_part(offset_bytes, length_bytes)
        return self._find(name)[offset_bytes : offset_bytes + length_bytes]

    def head(self, name: str) -> int | None:
        check_name(name)
        with self._lock:
            found = self._objects.get(name)
        return None if found is None else len(found)

    def list(self, prefix: str = "") -> Iterator[str]:
        with self._lock:
            names = [name for name in self._objects if name.startswith(prefix)]
        return iter(names)

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        check_published(name, segment, keep)
        with self._lock:
            for needed in (segment, *keep):
                if needed not in self._objects:
                    raise missing(self.where, needed)
            self._objects[name] = reference(segment)

    def first(self, name: str) -> str:
        return referred(self, name)

    def close(self) -> None:
        pass

    def _find(self, name: str) -> bytes:
        check_name(name)
        with self._lock:
            found = self._objects.get(name)
        if found is None:
            raise missing(self.where, name)
        return found
