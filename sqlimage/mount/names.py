"""Every name of a volume as a path that a file tree can have, for a reader's list that nobody vouches for."""

from __future__ import annotations

from collections import Counter

from sqlimage.filesystem.contract import EntryKind, Scan

SHOWN = (EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK)
"""What a mount shows. Metadata files are the file system's own, and of special files no reader tells what they are."""
_MOST_NAME_BYTES = 255
_MOST_XATTR_NAME_BYTES = 255
"""linux/limits.h: XATTR_NAME_MAX."""
STREAM_PREFIX = "user.stream."
SYNTHETIC = -1
"""The row of a directory that entries lie in but that has none of its own, as NTFS's files without a directory do."""


class Names:
    """The names of one scan. ``row`` maps a shown path to a row of the scan's entries (``/`` too), ``children`` a
    shown directory to the names in it, ``links`` a record to how many shown names it has, and ``streams`` a record to
    its named streams: name of the extended attribute to row of the scan's contents."""

    def __init__(self, scan: Scan) -> None:
        self.row: dict[str, int] = {"/": SYNTHETIC}
        self.children: dict[str, list[str]] = {"/": []}
        self.links: Counter[int] = Counter()
        self.streams: dict[int, dict[str, int]] = {}
        self._shown = {"": "/"}
        entries = scan.entries
        kinds, records = entries.kind.tolist(), entries.record.tolist()
        # a directory's path is shorter than that of all it holds, so it comes first
        for row in sorted(range(len(entries)), key=lambda row: len(entries.path[row])):
            path, kind = entries.path[row], kinds[row]
            if path == "/":
                self.row["/"] = row
            elif kind == EntryKind.STREAM:
                self._add_stream(
                    records[row], scan.contents.stream[int(entries.content[row])], int(entries.content[row])
                )
            elif kind in SHOWN:
                placed = self._place(path, row)
                if placed and kind == EntryKind.DIRECTORY:
                    self._shown[path] = placed
                    self.children[placed] = []
                elif placed:
                    self.links[records[row]] += 1

    def _place(self, path: str, row: int) -> str:
        """Where an entry is shown; empty where its directory is not."""
        parent, _, name = path.rpartition("/")
        at = self._shown.get(parent)
        if at is None:
            above, _, own = parent.rpartition("/")
            if above:
                return ""
            at = self._name_in("/", own, SYNTHETIC)
            self._shown[parent] = at
            self.children[at] = []
        return self._name_in(at, name, row)

    def _name_in(self, directory: str, name: str, row: int) -> str:
        safe = wanted = safe_name(name)
        before = "/" if directory == "/" else directory + "/"
        number = 1
        while before + safe in self.row:
            number += 1
            safe = f"{_cut(wanted, _MOST_NAME_BYTES - 12)}~{number}"
        self.row[before + safe] = row
        self.children[directory].append(safe)
        return before + safe

    def _add_stream(self, record: int, name: str, content: int) -> None:
        attribute = STREAM_PREFIX + name.encode("utf-8", "replace").decode()
        if "\0" not in name and len(attribute.encode()) <= _MOST_XATTR_NAME_BYTES:
            self.streams.setdefault(record, {}).setdefault(attribute, content)


def safe_name(name: str) -> str:
    """The name as one component of a path: never empty, ``.``, ``..``, with a slash or NUL, or over 255 bytes."""
    safe = name.encode("utf-8", "replace").decode().replace("/", "\u2215").replace("\0", "\u2400")
    if safe in ("", ".", ".."):
        return safe.replace(".", "\u2024") or "_"
    return _cut(safe, _MOST_NAME_BYTES)


def _cut(name: str, most_bytes: int) -> str:
    return name.encode()[:most_bytes].decode("utf-8", "ignore")
