"""Changes to a FAT volume by the mtools, where the kernel has no driver: the same operations as on a mounted volume."""

from __future__ import annotations

import os
import re

from sqlimage.device import BlockDevice
from sqlimage.errors import DeviceError, NotFoundError, RefusedError, UsageError
from sqlimage.filesystem.contract import EntryKind
from sqlimage.filesystem.probe import open_file_system
from sqlimage.mount.inside import ChangeReport, parts_of
from sqlimage.mount.program import last_line, run_program

_ENVIRONMENT = {
    "MTOOLS_SKIP_CHECK": "1",  # volumes that mtools find odd are what is in images
    "MTOOLSRC": os.devnull,
    "TZ": "UTC",  # as the reader takes them: FAT tells no zone
}
_PATTERN = re.compile(r"([\\\[\]*?])")
_NOT_IN_NAMES = set('\\:*?"<>|') | {chr(code) for code in range(32)}
_LARGEST_FILE = (1 << 32) - 1


class FatByMtools:
    """The FAT volume in a device file. ``device`` is the same volume, read to see what there is.

    A path may differ from what is there in case, as always on FAT.
    """

    def __init__(self, path: str, device: BlockDevice) -> None:
        self._path = path
        self._device = device
        self._known: dict[str, tuple[str, str]] | None = None

    def kind(self, path: str) -> str | None:
        """``file`` or ``directory``; None where nothing has the path."""
        return self._find(path)[1] or None

    def write_file(self, source_fd: int, path: str, report: ChangeReport) -> None:
        """Make or replace a file with what lies behind a descriptor of a regular file, which gives its time too."""
        size = os.fstat(source_fd).st_size
        if size > _LARGEST_FILE:
            raise RefusedError(f"{path}: FAT holds no file of 4 GiB or more")
        kind = self.kind(path)
        if kind == "directory":
            raise UsageError(f"{path}: is a directory")
        if kind is not None:
            self._run("mdel", self._existing(path))
        self._run("mcopy", "-Q", "-o", "-m", f"/proc/{os.getpid()}/fd/{source_fd}", self._new(path))
        self._add(path, "file")
        report.files += 1
        report.total_bytes += size

    def write_link(self, _target: str, path: str, report: ChangeReport) -> None:
        """FAT has none: told as skipped."""
        report.skipped.append((path, "the volume holds no symbolic links"))

    def make_directory(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> int:
        """Make a directory, with those above it where ``parents``: how many were made."""
        parts, made = parts_of(path), 0
        for count in range(1 if parents else max(1, len(parts)), len(parts) + 1):
            part = "/" + "/".join(parts[:count])
            kind = self.kind(part)
            if kind is None:
                self._run("mmd", self._new(part))
                self._add(part, "directory")
                made += 1
            elif kind != "directory" or (count == len(parts) and not exist_ok):
                raise RefusedError(f"{part}: exists already")
        return made

    def set_time(self, _path: str, _modified_ns: int) -> None:
        """No tool sets the time of a directory."""

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, an empty directory, or with ``recursive`` one with all below it."""
        if not parts_of(path):
            raise RefusedError("/ cannot be removed", hint="name what is below it")
        actual, kind = self._must(path)
        if (
            kind == "directory"
            and not recursive
            and any(name.startswith(actual.casefold() + "/") for name in self._all())
        ):
            raise RefusedError(f"{path}: is a directory with something in it", hint="remove it with all below")
        self._run("mdeltree" if kind == "directory" else "mdel", self._existing(path))
        self._known = None

    def move(self, old: str, new: str) -> None:
        """Give a file or directory another path, which nothing may have yet."""
        if not parts_of(old) or not parts_of(new):
            raise RefusedError("/ cannot be moved")
        self._must(old)
        if self.kind(new) is not None:
            raise RefusedError(f"{new}: exists already", hint="remove it first")
        before, after = self._existing(old), self._new(new)
        if (new + "/").casefold().startswith(old.rstrip("/").casefold() + "/"):
            raise UsageError(f"{old}: cannot be moved into itself")
        self._run("mmove", before, after)
        self._known = None

    def _run(self, program: str, *arguments: str) -> None:
        """One of the mtools on the volume; raises what it says."""
        argv = [program, "-i", self._path, *arguments]
        done = run_program(argv, package="mtools", environment=_ENVIRONMENT)
        if done.returncode != 0:
            if b"full" in done.stderr.lower():
                raise DeviceError("the volume is full")
            raise DeviceError(f"{program} failed ({last_line(done.stderr)})")

    def _all(self) -> dict[str, tuple[str, str]]:
        """Every path in lower case: as it is, and its kind."""
        if self._known is None:
            volume = open_file_system(self._device)
            if volume is None:
                raise DeviceError("the volume is not FAT any more")
            entries = volume.scan().entries
            kinds = {int(EntryKind.FILE): "file", int(EntryKind.DIRECTORY): "directory"}
            self._known = {
                path.casefold(): (path, kinds[kind])
                for path, kind in zip(entries.path, entries.kind.tolist(), strict=True)
                if kind in kinds
            }
        return self._known

    def _find(self, path: str) -> tuple[str, str]:
        return self._all().get(("/" + "/".join(parts_of(path))).casefold(), ("", ""))

    def _must(self, path: str) -> tuple[str, str]:
        found = self._find(path)
        if not found[1]:
            raise NotFoundError(f"{path}: there is no such file or directory in the volume")
        return found

    def _add(self, path: str, kind: str) -> None:
        """Remember what was made: a scan for each file of a tree would take longer than all the rest."""
        parts = parts_of(path)
        above = self._must("/" + "/".join(parts[:-1]))[0].rstrip("/")
        self._all()[f"{above}/{parts[-1]}".casefold()] = (f"{above}/{parts[-1]}", kind)

    def _existing(self, path: str) -> str:
        return "::" + _PATTERN.sub(r"\\\1", self._must(path)[0])

    def _new(self, path: str) -> str:
        """A path to be made: what is above it is a pattern to mtools, its own name is not."""
        parts = parts_of(path)
        name = parts[-1]
        if not _NOT_IN_NAMES.isdisjoint(name) or name[-1] in ". ":
            raise UsageError(
                f"{name!r} cannot be a name on FAT", hint='leave out \\ : * ? " < > | and a dot at the end'
            )
        above = self._must("/" + "/".join(parts[:-1]))
        if above[1] != "directory":
            raise UsageError(f"{path}: leads through a file")
        parent = "" if above[0] == "/" else _PATTERN.sub(r"\\\1", above[0])
        return f"::{parent}/{name}"
