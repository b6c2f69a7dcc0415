"""Directory entries and long names, taken from many directories at once.

Microsoft FAT specification (2005), "FAT Directory Structure" and "FAT Long Directory Entries". What the directories
say is hostile until proven: names are made safe to print and to join into a path, places are checked by whoever
follows them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s
from sqlimage.filesystem.fat import layout
from sqlimage.units import NO_TIME

Structured = NDArray[np.void]

_UNSAFE = re.compile(r"[\x00-\x1f/\x7f-\x9f]")
_SAFE = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_SAFE |= {0x7F: 0x2421, ord("/"): 0x2215}
_DOTS = {"": "_", ".": "\u2024", "..": "\u2024\u2024"}
"""Names that would not be a component of a path."""


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The files and directories that some directories name, one row each, in the order they lie in."""

    directory: Int64s
    """Which of the directories, by number."""
    offset: Int64s
    """Of the short entry, bytes from the start of the volume."""
    name: list[str]
    attributes: NDArray[np.uint8]
    first_cluster: Int64s
    size_bytes: Int64s
    modified_ns: Int64s


def names_something(entries: Structured) -> NDArray[np.bool_]:
    """Which entries are files or directories: not free, no piece of a long name, no label, not ``.`` or ``..``."""
    name, attributes = entries["DIR_Name"], entries["DIR_Attr"]
    wanted: NDArray[np.bool_] = (name[:, 0] != layout.NAME_END) & (name[:, 0] != layout.NAME_FREE)
    wanted &= (attributes & layout.ATTR_VOLUME_ID) == 0  # set in pieces of long names too
    dotted = np.flatnonzero(wanted & (name[:, 0] == ord(".")))
    for dot in (layout.NAME_DOT, layout.NAME_DOTDOT):
        wanted[dotted[(name[dotted] == np.frombuffer(dot, dtype=np.uint8)).all(axis=1)]] = False
    return wanted


def label_in(entries: Structured) -> bytes | None:
    """The 11 bytes of the first volume label, as far as there is one."""
    name, attributes = entries["DIR_Name"], entries["DIR_Attr"]
    wanted = (attributes & (layout.ATTR_VOLUME_ID | layout.ATTR_DIRECTORY)) == layout.ATTR_VOLUME_ID
    wanted &= (attributes & layout.ATTR_LONG_NAME_MASK) != layout.ATTR_LONG_NAME
    wanted &= name[:, 0] != layout.NAME_FREE
    found = np.flatnonzero(wanted)
    return name[found[0]].tobytes() if len(found) else None


def label_text(label: bytes) -> str | None:
    """A label as it is shown; None where nothing but spaces is in it."""
    if label[0] == layout.NAME_KANJI:
        label = bytes((layout.NAME_FREE,)) + label[1:]
    text = label.decode("cp437").rstrip(" \0")
    return _safe(text) if text else None


def first_cluster_of(entries: Structured, fat_bits: int) -> Int64s:
    """FAT12 and FAT16 keep other things in the upper half."""
    low: Int64s = entries["DIR_FstClusLO"].astype(np.int64)
    return low | entries["DIR_FstClusHI"].astype(np.int64) << 16 if fat_bits == 32 else low


def list_entries(entries: Structured, directory: Int64s, offset: Int64s, fat_bits: int) -> Listing:
    """What the entries name. ``directory`` and ``offset`` tell for each entry where it was read."""
    row = np.flatnonzero(names_something(entries))
    short = entries[row]
    return Listing(
        directory=directory[row],
        offset=offset[row],
        name=_names(entries, directory, row),
        attributes=short["DIR_Attr"].copy(),
        first_cluster=first_cluster_of(short, fat_bits),
        size_bytes=short["DIR_FileSize"].astype(np.int64),
        modified_ns=times(short["DIR_WrtDate"], short["DIR_WrtTime"]),
    )


def times(date: NDArray[np.uint16], time: NDArray[np.uint16]) -> Int64s:
    """DIR_WrtDate and DIR_WrtTime as Unix nanoseconds, taken as UTC; ``NO_TIME`` where no clock shows them."""
    year, month, day = date >> 9, date >> 5 & 15, (date & 31).astype(np.int64)
    hour, minute, second = time >> 11, time >> 5 & 63, (time & 31) * 2
    months = ((year.astype(np.int64) + 10) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    seconds = days.astype(np.int64) * 86400 + hour.astype(np.int64) * 3600 + minute.astype(np.int64) * 60 + second
    possible = (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == months)
    possible &= (hour < 24) & (minute < 60) & (second < 60)
    return np.where(possible, seconds * 1_000_000_000, NO_TIME)


def _names(entries: Structured, directory: Int64s, row: Int64s) -> list[str]:
    """The name of each short entry in ``row``: its long one where all pieces of it lie right before."""
    names: list[str | None] = [None] * len(row)
    long = entries.view(layout.LONG_NAME_ENTRY)
    is_long = (long["LDIR_Attr"] & layout.ATTR_LONG_NAME_MASK) == layout.ATTR_LONG_NAME
    is_long &= long["LDIR_Ord"] != layout.NAME_FREE
    checksum = _checksum(entries["DIR_Name"][row])
    waiting = np.arange(len(row))
    for order in range(1, layout.LONG_ENTRIES_MAX + 1):
        piece = row[waiting] - order
        fits = piece >= 0
        fits &= is_long[piece] & (directory[piece] == directory[row[waiting]])
        fits &= (long["LDIR_Ord"][piece] & layout.LONG_ORDER_MASK) == order
        fits &= long["LDIR_Chksum"][piece] == checksum[waiting]
        waiting, piece = waiting[fits], piece[fits]
        whole = (long["LDIR_Ord"][piece] & layout.LAST_LONG_ENTRY) != 0
        if whole.any():
            _put_long_names(names, long, waiting[whole], row, order)
        waiting = waiting[~whole]
        if len(waiting) == 0:
            break
    without = np.array([k for k, name in enumerate(names) if not name], dtype=np.int64)
    for k, name in zip(without.tolist(), _short_names(entries[row[without]]), strict=True):
        names[k] = name
    joined = "".join(name or "" for name in names)
    unsafe = _UNSAFE.search(joined) is not None
    return [_safe(name or "") if unsafe or not name or name[0] == "." else name for name in names]


def _put_long_names(names: list[str | None], long: Structured, which: Int64s, row: Int64s, pieces: int) -> None:
    """Decode names of equally many pieces; an undecodable unit becomes U+FFFD."""
    width = pieces * layout.UNITS_PER_LONG_ENTRY
    units = np.empty((len(which), width + 1), dtype="<u2")
    units[:, width] = 0
    for order in range(1, pieces + 1):
        piece = long[row[which] - order]
        at = (order - 1) * layout.UNITS_PER_LONG_ENTRY
        units[:, at : at + 5] = piece["LDIR_Name1"]
        units[:, at + 5 : at + 11] = piece["LDIR_Name2"]
        units[:, at + 11 : at + 13] = piece["LDIR_Name3"]
    length = (units == 0).argmax(axis=1)
    raw, stride = units.tobytes(), units.strides[0]
    for k, (name, size) in enumerate(zip(which.tolist(), (length * 2).tolist(), strict=True)):
        names[name] = raw[k * stride : k * stride + size].decode("utf-16-le", "replace")


def _short_names(entries: Structured) -> list[str]:
    """Names of 8.3 characters in code page 437, in the case that ``DIR_NTRes`` tells."""
    name = np.ascontiguousarray(entries["DIR_Name"])
    name[name[:, 0] == layout.NAME_KANJI, 0] = layout.NAME_FREE
    text = name.tobytes().decode("cp437")
    names = []
    for k, case in enumerate(entries["DIR_NTRes"].tolist()):
        base, extension = text[k * 11 : k * 11 + 8].rstrip(" "), text[k * 11 + 8 : k * 11 + 11].rstrip(" ")
        if case & layout.NTRES_LOWER_BASE:
            base = base.lower()
        if case & layout.NTRES_LOWER_EXTENSION:
            extension = extension.lower()
        names.append(f"{base}.{extension}" if extension else base)
    return names


def _checksum(name: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``ChkSum`` of each short name: rotated right by one bit and added, byte by byte."""
    total = np.zeros(len(name), dtype=np.uint8)
    for k in range(name.shape[1]):
        total = np.add(total >> 1 | total << 7, name[:, k], dtype=np.uint8)
    return total


def _safe(name: str) -> str:
    """A component of a path that is neither empty nor ``.`` or ``..`` and holds no ``/`` and no control character."""
    return _DOTS.get(name, name) if _UNSAFE.search(name) is None else name.translate(_SAFE)
