"""The digest of a content whose slabs are read by several workers at once, fed in the order of its bytes."""

from __future__ import annotations

import hashlib
import threading

_ZEROS = bytes(1 << 20)


class DigestChain:
    """SHA-256 of one content. Every slab is fed once, by any thread; :meth:`feed` waits for the slabs before it.

    Whoever cannot feed its slab MUST call :meth:`fail`, or the others would wait for ever.
    """

    def __init__(self, key: tuple[int, int], size_bytes: int, valid_bytes: int) -> None:
        self.key = key
        self.slabs = 0
        """How many slabs the plan has cut so far; each gets its turn from it."""
        self._size_bytes = size_bytes
        self._valid_bytes = min(valid_bytes, size_bytes)
        self._hash = hashlib.sha256()
        self._at = 0
        self._turn = 0
        self._failed = False
        self._changed = threading.Condition()

    def feed(self, turn: int, offset_bytes: int, content: memoryview, *, last: bool) -> bytes | None:
        """Add the slab that begins at ``offset_bytes``; the digest when it was the last one, else None.

        What lies between slabs, behind the valid bytes and up to the content's size counts as zeros.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._turn == turn)
            if self._failed:
                return None
        # Only the thread whose turn it is comes here; hashing outside the lock lets others finish theirs.
        self._zeros(min(offset_bytes, self._size_bytes))
        take = max(0, min(self._valid_bytes - offset_bytes, len(content)))
        self._hash.update(content[:take])
        self._at = max(self._at, offset_bytes + take if take else self._at)
        if last:
            self._zeros(self._size_bytes)
        with self._changed:
            self._turn += 1
            self._changed.notify_all()
        return self._hash.digest() if last else None

    def fail(self) -> None:
        """Give up: whoever waits returns at once."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def _zeros(self, end: int) -> None:
        while self._at < end:
            part = min(len(_ZEROS), end - self._at)
            self._hash.update(_ZEROS[:part])
            self._at += part
