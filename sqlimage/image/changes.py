"""What an edit did to the files of one volume: the old rows beside the new ones."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from sqlimage.image.describe import FileColumns

Stream = tuple[int, str]
"""Record and stream of a content."""
Extent = tuple[int, str, int, int, int]
"""Record and stream of a content, place in it, start and length in clusters."""
_DIRECTORY, _METADATA = "directory", "metadata"


@dataclass(frozen=True, slots=True)
class Change:
    """One file that an edit created, changed, deleted or renamed; sizes in bytes, None where there is none."""

    action: str
    """``created``, ``changed``, ``deleted`` or ``renamed``."""
    volume: int
    path: str
    kind: str
    bytes_before: int | None
    bytes_after: int | None
    old_path: str | None = None
    what: tuple[str, ...] = ()
    """Of a changed file: ``content``, ``size``, ``modified_at``, ``attributes``, ``kind``."""

    def on_its_volume(self) -> Change:
        """The same with paths as a medium of several volumes has them: ``/1/path``."""
        old = None if self.old_path is None else f"/{self.volume}{self.old_path}"
        return replace(self, path=f"/{self.volume}{self.path}", old_path=old)


ACTIONS = ("created", "changed", "deleted", "renamed")


def count_actions(changes: Iterable[Change]) -> dict[str, int]:
    """How many changes there are of each kind."""
    counted = Counter(change.action for change in changes)
    return {action: counted[action] for action in ACTIONS}


class Places:
    """Where all contents of a volume lie, by content and by place in it."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self.extents = sorted(extents)

    def of(self, content: Stream) -> list[tuple[int, int, int]]:
        """The extents of a content: place in it, start and length in clusters. Empty where it has none."""
        at, found = bisect_left(self.extents, content), []
        while at < len(self.extents) and self.extents[at][:2] == content:
            found.append(self.extents[at][2:])
            at += 1
        return found

    def contents(self) -> set[Stream]:
        """Those that lie anywhere."""
        return {extent[:2] for extent in self.extents}

    def moved_since(self, before: Places) -> set[Stream]:
        """The contents whose extents differ, those that are new or gone included."""
        return {extent[:2] for extent in set(self.extents) ^ set(before.extents)}


@dataclass(frozen=True, slots=True)
class Side:
    """The files of a volume before or after: rows by path, extents by content."""

    rows: dict[str, FileColumns]
    """The column of the version does not count: it is 0."""
    places: Places

    @classmethod
    def empty(cls) -> Side:
        return cls({}, Places([]))

    def content(self, row: FileColumns) -> list[tuple[int, int, int]]:
        """Where the content of a name lies."""
        return self.places.of((row[6], row[7])) if row[6] is not None else []


def changed_rows(
    before: Side, after: Side, touched: Collection[Stream], moved: Collection[Stream]
) -> dict[str, FileColumns]:
    """Path and new row of every name that is new or differs, by path. ``touched`` are contents that were written to,
    ``moved`` those that lie elsewhere."""
    changed = dict(after.rows.items() - before.rows.items())
    if moved or touched:
        for path, row in after.rows.items():
            content = (row[6], row[7])
            # One that was written to and has no digest that could tell counts, too.
            if content in moved or (content in touched and row[9] is None and row[3] != _DIRECTORY):
                changed[path] = row
    return dict(sorted(changed.items()))


def story(before: Side, after: Side, changed: Mapping[str, FileColumns], touched: Collection[Stream]) -> list[Change]:
    """The changes as a person tells them, by path; the file system's own files are left out."""
    gone = {path: row for path, row in before.rows.items() if path not in after.rows and row[3] != _METADATA}
    new = {path: row for path, row in changed.items() if path not in before.rows and row[3] != _METADATA}
    renamed = _renamed(before, after, gone, new)
    followed: set[str] = set()
    """Changed files whose directory was renamed."""
    told = [
        Change("renamed", row[1], path, row[3], gone[old][4], row[4], old_path=old)
        for path, old in renamed.items()
        for row in (new[path],)
        if not _moved_with_its_directory(path, old, renamed)
    ]
    moved_away = set(renamed.values())
    for path, row in new.items():
        old = _path_before(path, renamed) if path not in renamed else None
        if old in gone and old not in moved_away and gone[old][3] == row[3] != _DIRECTORY:
            what = _differences(gone[old], row, True)
            told.append(Change("changed", row[1], path, row[3], gone[old][4], row[4], old_path=old, what=what))
            moved_away.add(old)
            followed.add(path)
    told += [
        Change("deleted", row[1], path, row[3], row[4], None) for path, row in gone.items() if path not in moved_away
    ]
    told += [
        Change("created", row[1], path, row[3], None, row[4])
        for path, row in new.items()
        if path not in renamed and path not in followed
    ]
    for path, row in changed.items():
        if path in before.rows and row[3] not in (_DIRECTORY, _METADATA):
            old_row = before.rows[path]
            what = _differences(old_row, row, (row[6], row[7]) in touched)
            if what:
                told.append(Change("changed", row[1], path, row[3], old_row[4], row[4], what=what))
    return sorted(told, key=lambda change: change.path)


def _differences(old: FileColumns, new: FileColumns, was_written: bool) -> tuple[str, ...]:
    what = []
    if old[9] != new[9] or (new[9] is None and was_written):
        what.append("content")
    what += [name for name, n in (("kind", 3), ("size", 4), ("modified_at", 5), ("attributes", 8)) if old[n] != new[n]]
    return tuple(what)


def _renamed(
    before: Side, after: Side, gone: Mapping[str, FileColumns], new: Mapping[str, FileColumns]
) -> dict[str, str]:
    """New path to old path: the same content in the same place of the volume, or (it is empty, or lies in its record)
    in the same record. A file that was renamed and changed is told as deleted and created: records and clusters are
    used again soon, so nothing less than equal content proves that it is the same one."""
    known: dict[tuple[object, ...], list[str]] = {}
    for path, row in gone.items():
        known.setdefault(_identity(before, row), []).append(path)
    found: dict[str, str] = {}
    for path, row in new.items():
        names = known.get(_identity(after, row))
        if names:
            # Of several names of one content, the one that only changed its directory.
            same = [old for old in names if old.rpartition("/")[2] == path.rpartition("/")[2]]
            found[path] = (same or names)[0]
            names.remove(found[path])
    return found


def _identity(side: Side, row: FileColumns) -> tuple[object, ...]:
    places = side.content(row)
    where: object = places[0][1] if places else (row[6], row[7])
    # A directory has no digest, but renaming leaves its own time alone.
    return (row[3], where, row[4], row[5] if row[3] == _DIRECTORY else row[9])


def _path_before(path: str, renamed: Mapping[str, str]) -> str | None:
    """Where a path was before the nearest directory above it that was renamed."""
    at = len(path)
    while (at := path.rfind("/", 0, at)) > 0:
        if path[:at] in renamed:
            return renamed[path[:at]] + path[at:]
    return None


def _moved_with_its_directory(path: str, old: str, renamed: Mapping[str, str]) -> bool:
    """Whether a directory above it was renamed and says it all."""
    at = len(path)
    while (at := path.rfind("/", 0, at)) > 0:
        rest = path[at:]
        if old.endswith(rest) and renamed.get(path[:at]) == old[: len(old) - len(rest)]:
            return True
    return False
