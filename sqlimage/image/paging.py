"""Page, hibernation and swap files: allocated, but what they hold is not worth keeping."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, Contents, EntryKind, FileSystem, Scan
from sqlimage.filesystem.recognised import swap_header

_WINDOWS = frozenset({"/pagefile.sys", "/swapfile.sys", "/hiberfil.sys"})
_WITH_PAGE_FILES = frozenset({"fat12", "fat16", "fat32", "exfat", "ntfs"})
_LINUX = re.compile(r"/(?:var/)?(?:swap/)?swap(?:-?file)?\d{0,2}(?:\.img|\.swap)?", re.IGNORECASE)
"""Where distributions and their users put a swap file; others are named in fstab."""
_FIRST_LETTERS, _LONGEST = frozenset("pPsShH"), max(map(len, _WINDOWS))
_SURROGATE = re.compile("[\ud800-\udfff]")
_FSTAB, _FSTAB_BYTES, _SWAPS_IN_FSTAB = "/etc/fstab", 64 << 10, 32
_HEADER_BYTES = 64 << 10
_WITH_SWAP_FILES = frozenset({"ext2", "ext3", "ext4"})


@dataclass(frozen=True, slots=True)
class Paging:
    """The files, in the order of the scan."""

    paths: tuple[str, ...]
    """As they can be shown and stored: what is not Unicode is U+FFFD."""
    rows: frozenset[int]
    """Of their contents."""
    left_out: Runs
    """Where that lies which need not be kept, in bytes of the volume."""


def find_paging_files(file_system: FileSystem, scan: Scan) -> Paging:
    """Page and hibernation files of Windows by their names; swap files of Linux by the names they usually have or that
    fstab gives them, and by their header, which is kept, so that the system can swap to them again."""
    is_linux = file_system.facts.file_system in _WITH_SWAP_FILES
    is_windows = file_system.facts.file_system in _WITH_PAGE_FILES
    named = frozenset(_named_in_fstab(file_system, scan)) if is_linux else frozenset()
    paths, rows, runs = [], [], Runs.empty()
    # The first letter, or the word, spares the rest for nearly every path.
    if is_windows:
        likely = [
            n for n, path in enumerate(scan.entries.path) if path[1:2] in _FIRST_LETTERS and len(path) <= _LONGEST
        ]
    else:
        likely = [n for n, path in enumerate(scan.entries.path) if "swap" in path.lower() or path in named]
    for number in likely:
        path, row = scan.entries.path[number], int(scan.entries.content[number])
        if row < 0 or scan.entries.kind[number] != EntryKind.FILE or row in rows:
            continue
        places = None
        if is_windows and path.casefold() in _WINDOWS:
            places = _places(scan.contents, row, 0, None)
        elif is_linux and (path in named or _LINUX.fullmatch(path)):
            places = _swap_pages(file_system, scan.contents, row)
        if places:  # else there is nothing to leave out
            paths.append(_SURROGATE.sub("\ufffd", path))
            rows.append(row)
            runs = runs.union(places)
    return Paging(tuple(paths), frozenset(rows), runs)


def _swap_pages(file_system: FileSystem, contents: Contents, row: int) -> Runs | None:
    """Where the pages of a swap file lie; None where it is none that can be swapped to."""
    try:
        head = file_system.open(int(contents.record[row])).read(0, _HEADER_BYTES)
    except (InconsistentVolume, NotFoundError):
        return None
    area = swap_header(head, int(contents.size_bytes[row]))
    return None if area is None else _places(contents, row, area.page_bytes, area.size_bytes)


def _places(contents: Contents, row: int, start: int, end: int | None) -> Runs:
    """Where the bytes ``start .. end`` of a content lie (to the end of its runs where that is None)."""
    part = slice(int(contents.first_run[row]), int(contents.first_run[row + 1]))
    place, length = contents.run_offset[part], contents.run_length[part]
    at = np.cumsum(length) - length
    low = np.maximum(at, start)
    high = at + length if end is None else np.minimum(at + length, end)
    backed = (place != HOLE) & (high > low)
    return Runs.from_arrays((place + low - at)[backed], (high - low)[backed])


def _named_in_fstab(file_system: FileSystem, scan: Scan) -> Iterator[str]:
    """The swap files that /etc/fstab names."""
    try:
        number = scan.entries.path.index(_FSTAB)
        text = file_system.open(int(scan.entries.record[number])).read(0, _FSTAB_BYTES)
    except (ValueError, InconsistentVolume, NotFoundError):
        return
    found = 0
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        words = line.split()
        if len(words) >= 3 and words[0].startswith("/") and words[2] == "swap" and found < _SWAPS_IN_FSTAB:
            found += 1
            yield words[0]
