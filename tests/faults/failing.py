"""The k-th read, write, sync, truncation, opening or removal in one directory fails, once or from then on.

::

    for fault in every_fault(directory, Kind.WRITE, errno.EIO):
        with fault:
            ...work that may fail as the product may...
        ...what must hold now...
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.faults.calls import Call, Kind, Really, watched

SHORT = 0
"""In place of an error number: the call moves half of the bytes, which is no failure, and the caller must go on."""
_MOST_CALLS = 2000


class Fault:
    """One planned failure. Within the context, calls of one kind on files in the directory are counted from 1, and
    the one that is number ``at`` (``forever``: that and all later ones) fails with the error number."""

    def __init__(self, directory: Path, kind: Kind, error: int, at: int, *, forever: bool = False) -> None:
        self.kinds = frozenset({kind})
        self.error, self.at, self.forever = error, at, forever
        self.is_hit = False
        """Whether there were that many calls."""
        self._directory = str(directory.resolve())
        self._calls = 0
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()

    def around(self, call: Call, really: Really) -> int:
        """Make a call, or let it fail. For :func:`~tests.faults.calls.watched`."""
        if not self._is_due(call):
            return really(call.length)
        if self.error == SHORT:
            return really(max(1, call.length // 2))
        raise OSError(self.error, os.strerror(self.error), call.path or None)

    def _is_due(self, call: Call) -> bool:
        path = call.path or os.readlink(f"/proc/self/fd/{call.fd}")
        if path != self._directory and not path.startswith(self._directory + "/"):
            return False
        with self._lock:
            self._calls += 1
            is_due = self._calls == self.at or (self.forever and self._calls > self.at)
            self.is_hit |= is_due
            return is_due

    def __enter__(self) -> Fault:
        self._undo.enter_context(watched(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __repr__(self) -> str:
        (kind,), what = self.kinds, os.strerror(self.error) if self.error else "short"
        return f"{kind.value} {self.at}{' and all later' if self.forever else ''}: {what}"


def every_fault(directory: Path, kind: Kind, error: int, *, forever: bool = False) -> Iterator[Fault]:
    """Faults at call 1, 2, 3, ... until the work makes fewer calls than that; each told on the standard output.

    The last one is not hit, so the work inside it succeeds. Fails where not even the first was hit.
    """
    for at in itertools.count(1):
        assert at < _MOST_CALLS, "the work makes ever more calls"
        fault = Fault(directory, kind, error, at, forever=forever)
        print(fault)
        yield fault
        if not fault.is_hit:
            assert at > 1, f"the work makes no call of this kind: {fault}"
            return
