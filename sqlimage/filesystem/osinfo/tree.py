"""The names of a volume as an operating system on it would see them, and bounded reads of its files."""

from __future__ import annotations

from contextlib import suppress

from sqlimage.errors import SqlimageError
from sqlimage.filesystem.contract import Content, EntryKind, FileSystem, Scan

_HOPS = 8
"""Symbolic links followed on the way to one file."""
_TARGET_BYTES = 4096


class Tree:
    """Look-ups over one scan. Nothing here raises for what a volume holds: what cannot be read is None."""

    def __init__(self, file_system: FileSystem, scan: Scan) -> None:
        self._file_system = file_system
        self._entries = scan.entries
        self._row = dict(zip(scan.entries.path, range(len(scan.entries)), strict=True))

    def ignoring_case(self, path: str) -> str | None:
        """The first entry that has this path when case does not count; links are not followed."""
        if path in self._row:
            return path
        wanted, length = path.lower(), len(path)
        return next((p for p in self._entries.path if len(p) == length and p.lower() == wanted), None)

    def resolve(self, path: str) -> str | None:
        """The entry an absolute path leads to over symbolic links, 8 at most; None where it leads nowhere."""
        at, hops = "", 0
        ahead = path.split("/")[::-1]
        while ahead:
            part = ahead.pop()
            if part == "..":
                at = at.rpartition("/")[0]
            if part in ("", ".", ".."):
                continue
            here = f"{at}/{part}"
            row = self._row.get(here)
            if row is None:
                return None
            if self._entries.kind[row] != EntryKind.SYMLINK:
                at = here
                continue
            target = self._read(row, _TARGET_BYTES)
            hops += 1
            if not target or hops > _HOPS:
                return None
            link = target.rstrip(b"\0").decode("utf-8", "surrogateescape")
            if link.startswith("/"):
                at = ""
            ahead += link.split("/")[::-1]
        return at or "/"

    def children(self, path: str, kind: EntryKind) -> list[str]:
        """The names of one kind in the directory a path leads to, sorted."""
        directory = self.resolve(path)
        if directory is None:
            return []
        before, kinds = directory.rstrip("/") + "/", self._entries.kind
        rows = [row for row, p in enumerate(self._entries.path) if p.startswith(before)]
        names = [self._entries.path[row][len(before) :] for row in rows if kinds[row] == kind]
        return sorted(name for name in names if name and "/" not in name)

    def open(self, path: str) -> Content | None:
        """The content of the file a path leads to."""
        row = self._file(path)
        return None if row is None else self._open(row)

    def read(self, path: str, most_bytes: int) -> bytes | None:
        """The first bytes of a file, ``most_bytes`` at most."""
        row = self._file(path)
        return None if row is None else self._read(row, most_bytes)

    def _file(self, path: str) -> int | None:
        row = self._row.get(self.resolve(path) or "")
        return row if row is not None and self._entries.kind[row] == EntryKind.FILE else None

    def _open(self, row: int) -> Content | None:
        with suppress(SqlimageError):
            return self._file_system.open(int(self._entries.record[row]))
        return None

    def _read(self, row: int, most_bytes: int) -> bytes | None:
        content = self._open(row)
        if content is not None:
            with suppress(SqlimageError):
                return content.read(0, most_bytes)
        return None
