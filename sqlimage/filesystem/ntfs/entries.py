"""Names and parents made into paths: every entry of the volume, whatever its directories claim."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import Entries, EntryKind
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.mft import Scanned

ORPHANS = "/$OrphanFiles/"
"""Where a file is listed whose parent directory does not exist, is another one by now, or lies within the file."""
_NOWHERE = -1
_DIRECTORY = np.uint32(layout.FILE_ATTRIBUTE_DIRECTORY)
_PATHS_CHARACTERS = 32 << 20
_PATHS_CHARACTERS_PER_ENTRY = 1024
"""All paths together may have so many: deep trees of long names are legal, but grow with the square."""


def list_entries(scanned: Scanned) -> Entries:
    """All entries; the root directory comes first, then the others by record number, streams last.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where there is no root directory, or the tree is so deep that
    its paths would not fit into memory.
    """
    return _Tree(scanned).entries()


class _Tree:
    """Rows of names, by record; a file without a name has a row too, without a parent."""

    def __init__(self, scanned: Scanned) -> None:
        self._scanned = scanned
        records = scanned.records
        self._is_file = records.in_use & (records.base == 0)
        self._is_directory = self._is_file & records.is_directory
        if not self._is_directory[layout.ROOT_RECORD]:
            raise InconsistentVolume("MFT record 5", "it is not the root directory")
        self._take_names()
        self._characters_left = max(_PATHS_CHARACTERS, _PATHS_CHARACTERS_PER_ENTRY * len(self._name))
        self._find_directories()

    def _take_names(self) -> None:
        names, own = self._scanned.names, self._scanned.own_names
        owner = names.owner[own]
        own = own[self._is_file[owner] & (owner != layout.ROOT_RECORD)]
        nameless = self._is_file.copy()
        nameless[: layout.FIRST_USER_RECORD] = False
        nameless[names.owner[own]] = False
        extra = np.flatnonzero(nameless)
        record = np.concatenate((names.owner[own], extra))
        parent = np.concatenate((names.parent[own], np.full(len(extra), _NOWHERE)))
        sequence = np.concatenate((names.parent_sequence[own], np.zeros_like(extra)))
        text = [names.text[i] for i in own.tolist()] + [""] * len(extra)
        order = np.argsort(record, kind="stable")
        self._record, parent, sequence = record[order], parent[order], sequence[order]
        self._name = [text[i] for i in order.tolist()]
        exists = (parent >= 0) & (parent < len(self._is_directory))
        parent = np.where(exists, parent, 0)
        same = (sequence == 0) | (self._scanned.records.sequence[parent] == sequence)
        self._parent = np.where(exists & self._is_directory[parent] & same, parent, _NOWHERE)

    def _find_directories(self) -> None:
        """What stands before the names in each directory; one whose parents lead nowhere, or back to itself, or too
        deep, is an orphan, and what is in it hangs below it."""
        self._before = {layout.ROOT_RECORD: "/"}
        self._metadata = np.zeros(len(self._is_directory) + 1, dtype=np.bool_)
        """By record number; the last is for those who have no parent."""
        self._metadata[layout.EXTEND_RECORD] = True
        rows = np.flatnonzero(self._is_directory[self._record])
        numbers = self._record[rows]
        parents = self._parent[rows].tolist()
        self._row_of: dict[int, int] = {}
        parent_of: dict[int, int] = {}
        for number, row, parent in zip(numbers.tolist(), rows.tolist(), parents, strict=True):
            if number not in parent_of:
                parent_of[number] = parent
                self._row_of[number] = row
        for start in parent_of:
            chain: dict[int, None] = {}
            number = start
            while number not in self._before and number not in chain and number in parent_of:
                chain[number] = None
                number = parent_of[number]
            for directory in reversed(chain):
                self._place(directory, parent_of[directory])
        placed = np.zeros(len(self._is_directory) + 1, dtype=np.bool_)
        placed[list(self._before)] = True
        self._parent[~placed[self._parent]] = _NOWHERE

    def _place(self, directory: int, parent: int) -> None:
        name = self._name[self._row_of[directory]]
        path = self._before.get(parent, "") + name
        if parent not in self._before or len(path) > layout.PATH_UNITS_MAX:
            path = _orphan(directory, name)
        self._spend(len(path))
        self._before[directory] = path + "/"
        if self._metadata[parent]:
            self._metadata[directory] = True

    def _spend(self, characters: int) -> None:
        self._characters_left -= characters
        if self._characters_left < 0:
            raise InconsistentVolume("MFT", "its directories are nested so deeply that paths outgrow the volume")

    def entries(self) -> Entries:
        """All of them, streams last."""
        scanned = self._scanned
        paths = self._paths()
        record = np.append(np.int64(layout.ROOT_RECORD), self._record)
        kind = np.append(np.uint8(EntryKind.DIRECTORY), self._kinds())
        content = np.where(self._is_directory[record], scanned.index_row[record], scanned.data_row[record])
        streams = self._streams(paths, record, kind)
        if streams:
            stream_paths, rows, owners = zip(*streams, strict=True)
            of_metadata = kind[list(owners)] == EntryKind.METADATA
            paths += stream_paths
            kind = np.append(kind, np.where(of_metadata, EntryKind.METADATA, EntryKind.STREAM).astype(np.uint8))
            content = np.append(content, np.array(rows, dtype=np.int64))
            record = np.append(record, record[list(owners)])
        attributes = scanned.records.attributes[record]
        attributes[: 1 + len(self._name)][self._is_directory[record[: 1 + len(self._name)]]] |= _DIRECTORY
        _make_unique(paths, record)
        return Entries(paths, kind, content, record, scanned.records.modified_ns[record], attributes)

    def _paths(self) -> list[str]:
        """Of the root directory and of every row."""
        parents, counts = np.unique(self._parent, return_counts=True)
        for parent, count in zip(parents.tolist(), counts.tolist(), strict=True):
            self._spend(count * len(self._before.get(parent, ORPHANS)))
        before = {**self._before, _NOWHERE: ""}
        paths = [before[parent] + name for parent, name in zip(self._parent.tolist(), self._name, strict=True)]
        for row in np.flatnonzero(self._parent == _NOWHERE).tolist():
            paths[row] = _orphan(int(self._record[row]), self._name[row])
        for directory, row in self._row_of.items():
            paths[row] = self._before[directory][:-1]
        longest = max(map(len, paths), default=0)
        if longest > layout.PATH_UNITS_MAX:
            for row, path in enumerate(paths):
                if len(path) > layout.PATH_UNITS_MAX:
                    paths[row] = _orphan(int(self._record[row]), self._name[row])
        return ["/", *paths]

    def _kinds(self) -> NDArray[np.uint8]:
        record = self._record
        kind = np.where(self._is_directory[record], np.uint8(EntryKind.DIRECTORY), np.uint8(EntryKind.FILE))
        special = self._scanned.records.special[record]
        kind = np.where(special != 0, special, kind)
        kind[(record < layout.FIRST_USER_RECORD) | self._metadata[self._parent]] = EntryKind.METADATA
        return kind

    def _streams(self, paths: list[str], record: Int64s, kind: NDArray[np.uint8]) -> list[tuple[str, int, int]]:
        """Path, content and the file's row of each named stream, beside the first name its file has."""
        first: dict[int, int] = {}
        wanted = {number for _, number, _ in self._scanned.user_streams}
        for row in np.flatnonzero(np.isin(record, np.array(list(wanted), dtype=np.int64))).tolist():
            first.setdefault(int(record[row]), row)
        streams = []
        for content, number, name in self._scanned.user_streams:
            if number in first:
                row = first[number]
                self._spend(len(paths[row]) + len(name))
                streams.append((f"{paths[row]}:{name}", content, row))
        return streams


def _orphan(record: int, name: str) -> str:
    return f"{ORPHANS}{record}-{name}" if name else f"{ORPHANS}{record}"


def _make_unique(paths: list[str], record: Int64s) -> None:
    """Give each path that an earlier row has already the number of its record, and a further one where needed."""
    if len(set(paths)) == len(paths):
        return
    taken = set()
    again: list[int] = []
    for row, path in enumerate(paths):
        if path in taken:
            again.append(row)
        taken.add(path)
    counts: Counter[str] = Counter()
    for row in again:
        base = f"{paths[row]}~{record[row]}"
        path = base
        while path in taken:
            counts[base] += 1
            path = f"{base}~{counts[base]}"
        taken.add(path)
        paths[row] = path
