"""What a program in this process does to the files of one directory, event by event, syncs among them.

::

    with traced(directory) as trace:
        ...work, through SQLite or :mod:`os`...
        trace.mark(1)  # the first piece of work is acknowledged
    for state, marks in cuts(trace, 300, seed):
        ...
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.calls import Call, Kind, Really, watched
from tests.faults.events import DirectorySync, Entries, History, Mark, Sync, Truncate, Write
from tests.faults.powercut import replayed

_UNSEEN = "-shm"
"""SQLite's shared memory is made anew after a power cut; nothing depends on what it held."""


class Trace(History):
    """The history of a directory, being written."""

    kinds = frozenset(Kind) - {Kind.READ}

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory.resolve()
        self._numbers: dict[tuple[int, int], int] = {}
        self._count = 0
        # One call at a time, so that the events have the order of the calls; syncs may overlap with others.
        self._lock = threading.RLock()
        for path in sorted(self.directory.iterdir()):
            if path.is_file() and not path.name.endswith(_UNSEEN):
                self.names[path.name] = self._number(os.stat(path))
                self.contents.append(path.read_bytes())

    def mark(self, value: object) -> None:
        """Note, for instance, that a change was acknowledged."""
        with self._lock:
            self.events.append(Mark(value))

    def around(self, call: Call, really: Really) -> int:
        """Make a call and note what it did. For :func:`~tests.faults.calls.watched`."""
        if call.kind is Kind.SYNC:
            covers = len(self.events)
            result = really(0)
            with self._lock:
                if os.path.samestat(os.fstat(call.fd), os.stat(self.directory)):
                    self.events.append(DirectorySync(covers))
                elif (file := self._of(call.fd)) is not None:
                    self.events.append(Sync(file, covers))
            return result
        with self._lock:
            is_new = call.kind is Kind.OPEN and bool(call.flags & os.O_CREAT) and not os.path.lexists(call.path)
            result = really(call.length)
            self._note(call, result, is_new=is_new)
            return result

    def _note(self, call: Call, result: int, *, is_new: bool) -> None:
        match call.kind:
            case Kind.OPEN:
                self._note_open(call, result, is_new=is_new)
            case Kind.WRITE if (file := self._of(call.fd)) is not None:
                self.events.append(Write(file, call.offset, call.data[:result]))
            case Kind.TRUNCATE if (file := self._of(call.fd)) is not None:
                self.events.append(Truncate(file, call.length))
            case Kind.UNLINK if (name := self._name(call.path)) is not None:
                self.events.append(Entries(((name, None),)))
            case Kind.LINK | Kind.RENAME:
                self._note_moved(call)
            case _:
                pass

    def _note_open(self, call: Call, fd: int, *, is_new: bool) -> None:
        is_nameless = call.flags & os.O_TMPFILE == os.O_TMPFILE and os.path.realpath(call.path) == str(self.directory)
        name = self._name(call.path)
        if is_new or is_nameless:
            status = os.fstat(fd)
            # The number of a file that is gone is given out anew.
            self._numbers.pop((status.st_dev, status.st_ino), None)
            if is_nameless:
                self._number(status)
            elif name is not None:
                self.events.append(Entries(((name, self._number(status)),)))
        elif call.flags & os.O_TRUNC and (file := self._of(fd)) is not None:
            self.events.append(Truncate(file, 0))

    def _note_moved(self, call: Call) -> None:
        old, new = self._name(call.path), self._name(call.target)
        gone = ((old, None),) if old is not None and call.kind is Kind.RENAME else ()
        if new is not None:
            status = os.stat(call.target)
            assert (status.st_dev, status.st_ino) in self._numbers, f"{call.path} comes from elsewhere"
            self.events.append(Entries((*gone, (new, self._number(status)))))
        elif gone:
            self.events.append(Entries(gone))

    def _name(self, path: str) -> str | None:
        directory, name = os.path.split(path)
        inside = os.path.realpath(directory) == str(self.directory) and not name.endswith(_UNSEEN)
        return name if inside else None

    def _of(self, fd: int) -> int | None:
        status = os.fstat(fd)
        return self._numbers.get((status.st_dev, status.st_ino))

    def _number(self, status: os.stat_result) -> int:
        key = (status.st_dev, status.st_ino)
        if key not in self._numbers:
            self._numbers[key] = self._count
            self._count += 1
        return self._numbers[key]


@contextmanager
def traced(directory: Path) -> Iterator[Trace]:
    """Record the block. Fails at its end where the events do not add up to what is in the directory."""
    trace = Trace(directory)
    with watched(trace):
        yield trace
    found = {p.name: p.read_bytes() for p in trace.directory.iterdir() if not p.name.endswith(_UNSEEN)}
    told = replayed(trace)
    wrong = sorted(name for name in found.keys() | told.keys() if found.get(name) != told.get(name))
    assert not wrong, f"changed by ways that are not watched: {wrong}"
