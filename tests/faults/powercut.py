"""The states in which a power cut can leave a directory, made from a trace of what a program did to it.

What was synced is there. Of what came later, each write, truncation and change of a name is kept, or lost, or (a
write) kept in some sectors only; a later one kept where an earlier is lost is what reordering looks like afterwards.
POSIX promises no more, and that is the model: a name is on the medium when its directory was synced, not before.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.faults.events import DirectorySync, Entries, Event, History, Mark, Sync, Truncate, Write

SECTOR_BYTES = 512
"""Written whole or not at all: the least that every disk promises."""
_SHARES_KEPT = (0.0, 0.1, 0.5, 0.9, 1.0)
_TORN_SHARE = 0.3


def cuts(trace: History, count: int, seed: int) -> Iterator[tuple[Path, tuple[object, ...]]]:
    """``count`` states after a cut at a random event, and the values of the marks that came before it.

    Half of the cuts come just before a sync, when most is at stake, or just after a mark. A state is a fresh
    directory, named after seed and event, and gone when the next one is asked for. Every cut is told on the standard
    output, so that a failing test shows its seed.
    """
    dice = random.Random(seed)
    places = sorted(_places(trace.events, count, dice))
    disk, marks, done = _Disk(trace), [], 0
    with tempfile.TemporaryDirectory(prefix="powercut-") as scratch:
        for turn, place in enumerate(places):
            for event in trace.events[done:place]:
                disk.take(event)
                if isinstance(event, Mark):
                    marks.append(event.value)
            done = place
            print(f"power cut {turn} of {count}, seed {seed}, before event {place} of {len(trace.events)}")
            state = Path(scratch) / f"seed-{seed}-event-{place}-cut-{turn}"
            state.mkdir()
            for file, content in disk.after_cut(random.Random(state.name)).items():
                (state / file).write_bytes(content)
            yield state, tuple(marks)
            shutil.rmtree(state)


def _places(events: list[Event], count: int, dice: random.Random) -> Iterator[int]:
    anywhere = range(len(events) + 1)
    before_syncs = [n for n, event in enumerate(events) if isinstance(event, Sync | DirectorySync)]
    after_marks = [n + 1 for n, event in enumerate(events) if isinstance(event, Mark)]
    for _ in range(count):
        yield dice.choice(dice.choice((anywhere, anywhere, before_syncs, after_marks)) or anywhere)


def replayed(trace: History) -> dict[str, bytes]:
    """What the directory holds when every event has reached the medium."""
    disk = _Disk(trace)
    for event in trace.events:
        disk.take(event)
    return disk.all_kept()


class _Disk:
    """What is on the medium for certain, and what may or may not be."""

    def __init__(self, trace: History) -> None:
        self._files = {number: bytearray(content) for number, content in enumerate(trace.contents)}
        self._names = dict(trace.names)
        self._changes: dict[int, list[tuple[int, Write | Truncate]]] = {}
        self._entries: list[tuple[int, Entries]] = []
        self._taken = 0

    def take(self, event: Event) -> None:
        """The next event happens."""
        match event:
            case Write() | Truncate():
                self._changes.setdefault(event.file, []).append((self._taken, event))
            case Entries():
                self._entries.append((self._taken, event))
            case Sync(file, covers):
                pending = self._changes.pop(file, [])
                for _, change in (p for p in pending if p[0] < covers):
                    _apply(self._files.setdefault(file, bytearray()), change)
                self._changes[file] = [p for p in pending if p[0] >= covers]
            case DirectorySync(covers):
                for _, entries in (p for p in self._entries if p[0] < covers):
                    _name(self._names, entries)
                self._entries = [p for p in self._entries if p[0] >= covers]
            case Mark():
                pass
        self._taken += 1

    def all_kept(self) -> dict[str, bytes]:
        names = dict(self._names)
        for _, entries in self._entries:
            _name(names, entries)
        contents = {}
        for name, file in names.items():
            content = bytearray(self._files.get(file, b""))
            for _, change in self._changes.get(file, []):
                _apply(content, change)
            contents[name] = bytes(content)
        return contents

    def after_cut(self, dice: random.Random) -> dict[str, bytes]:
        """One of the states in which the medium can be found, by name."""
        names, share = dict(self._names), dice.choice(_SHARES_KEPT)
        for _, entries in self._entries:
            if dice.random() < share:
                _name(names, entries)
        return {name: self._file_after_cut(file, dice) for name, file in names.items()}

    def _file_after_cut(self, file: int, dice: random.Random) -> bytes:
        content = bytearray(self._files.get(file, b""))
        share, torn = dice.choice(_SHARES_KEPT), dice.choice((0.0, _TORN_SHARE, 1.0))
        # A file system that notes a new length before the bytes shows what lay on the disk there before.
        old = dice.randbytes(SECTOR_BYTES) if dice.random() < 0.25 else bytes(SECTOR_BYTES)
        for _, change in self._changes.get(file, []):
            if dice.random() < share:
                _apply(content, change)
            elif isinstance(change, Write) and dice.random() < torn:
                _apply_torn(content, change, dice, old)
        return bytes(content)


def _name(names: dict[str, int], entries: Entries) -> None:
    for name, file in entries.changes:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _apply(content: bytearray, change: Write | Truncate) -> None:
    match change:
        case Write(_, offset, data):
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        case Truncate(_, length):
            content.extend(bytes(max(0, length - len(content))))
            del content[length:]


def _apply_torn(content: bytearray, write: Write, dice: random.Random, old: bytes) -> None:
    """Each sector of the write reaches the disk or not; where the file ended before, what was there is ``old``."""
    end = write.offset + len(write.data)
    first_missing = len(content)
    missing = old * (max(0, end - first_missing) // len(old) + 1)
    content.extend(missing[: max(0, end - first_missing)])
    at = write.offset
    while at < end:
        beyond = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if dice.random() < 0.5:
            content[at:beyond] = write.data[at - write.offset : beyond - write.offset]
        at = beyond
