"""Page, hibernation and swap files: allocated, but what they hold is not worth keeping."""

from __future__ import annotations

from dataclasses import dataclass

from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, EntryKind, FileSystem, Scan

_WINDOWS = frozenset({"/pagefile.sys", "/swapfile.sys", "/hiberfil.sys"})
_LONGEST = max(map(len, _WINDOWS))


@dataclass(frozen=True, slots=True)
class Paging:
    """The files, in the order of the scan."""

    paths: tuple[str, ...]
    rows: frozenset[int]
    """Of their contents."""
    left_out: Runs
    """Where that lies which need not be kept, in bytes of the volume."""


def find_paging_files(file_system: FileSystem, scan: Scan) -> Paging:
    """Page and hibernation files of Windows by their names."""
    paths, rows, runs = [], [], Runs.empty()
    kinds, contents = scan.entries.kind, scan.contents
    for number, path in enumerate(scan.entries.path):
        # The length test spares a casefold for nearly every path.
        if len(path) > _LONGEST or path.casefold() not in _WINDOWS or kinds[number] != EntryKind.FILE:
            continue
        row = int(scan.entries.content[number])
        if row < 0:
            continue
        part = slice(contents.first_run[row], contents.first_run[row + 1])
        start, length = contents.run_offset[part], contents.run_length[part]
        paths.append(path)
        rows.append(row)
        runs = runs.union(Runs.from_arrays(start[start != HOLE], length[start != HOLE]))
    return Paging(tuple(paths), frozenset(rows), runs)
