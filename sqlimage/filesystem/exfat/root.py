"""What only the root directory tells: where the Allocation Bitmap and the Up-case Table lie, and the volume's label."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.exfat import layout
from sqlimage.filesystem.exfat.boot import Geometry
from sqlimage.filesystem.exfat.names import decode_name
from sqlimage.filesystem.exfat.table import Ending, Table
from sqlimage.filesystem.exfat.upcase import TABLE_BYTES_MAX
from sqlimage.units import KIB

PIECE_BYTES = 64 * KIB


@dataclass(frozen=True, slots=True)
class TableEntry:
    """An Allocation Bitmap or Up-case Table directory entry. Its clusters are always a chain of the FAT."""

    record: int
    first_cluster: int
    size_bytes: int
    flags: int
    """BitmapFlags."""
    checksum: int
    """TableChecksum."""


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """The root directory."""

    clusters: int
    bitmap: TableEntry
    """Of the active Allocation Bitmap."""
    up_case: TableEntry
    label: str | None


def read_directory(device: BlockDevice, places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Pieces of a directory as (offset, bytes) up to its end mark, from the places (offset, bytes) it lies in."""
    for start, length in places:
        for offset in range(start, start + length, PIECE_BYTES):
            piece = device.read(offset, min(PIECE_BYTES, start + length - offset))
            end = piece[:: layout.ENTRY_BYTES].find(layout.END_OF_DIRECTORY)
            if end < 0:
                yield offset, piece
                continue
            if end:
                yield offset, piece[: end * layout.ENTRY_BYTES]
            return


def places_of(geometry: Geometry, start: Int64s, length: Int64s, size_bytes: int) -> list[tuple[int, int]]:
    """Runs of clusters as (offset, bytes), cut where ``size_bytes`` are reached."""
    places = []
    for cluster, count in zip(start.tolist(), length.tolist(), strict=True):
        held = min(count * geometry.bytes_per_cluster, size_bytes)
        places.append((geometry.offset_of(cluster), held))
        size_bytes -= held
    return places


def read_root(device: BlockDevice, geometry: Geometry, table: Table) -> Root:
    """Raises :class:`InconsistentVolume` where the root directory has no end, or lacks an entry it must have."""
    most = layout.DIRECTORY_BYTES_MAX // geometry.bytes_per_cluster
    chain = table.follow(np.array([geometry.root_cluster]), np.array([most + 1]))
    ending = Ending(int(chain.ending[0]))
    if ending == Ending.ENOUGH:
        raise InconsistentVolume("root directory", f"takes more than {layout.DIRECTORY_BYTES_MAX} bytes")
    if ending != Ending.END:
        raise InconsistentVolume("root directory", f"its chain in the FAT {ending.words}")
    clusters = chain.clusters(0)
    bitmaps: list[TableEntry] = []
    up_cases: list[TableEntry] = []
    label = None
    places = places_of(geometry, chain.start, chain.length, clusters * geometry.bytes_per_cluster)
    for offset, piece in read_directory(device, places):
        kinds = np.frombuffer(piece[:: layout.ENTRY_BYTES], dtype=np.uint8)
        wanted = (kinds >= layout.ALLOCATION_BITMAP) & (kinds <= layout.VOLUME_LABEL)
        for k in np.flatnonzero(wanted).tolist():
            at = k * layout.ENTRY_BYTES
            entry = piece[at : at + layout.ENTRY_BYTES]
            if entry[0] == layout.VOLUME_LABEL:
                label = label or _label(entry)
                continue
            found = bitmaps if entry[0] == layout.ALLOCATION_BITMAP else up_cases
            found.append(_table_entry(entry, offset + at))
            if len(found) > 2:
                raise InconsistentVolume("root directory", "it has too many Allocation Bitmaps or Up-case Tables")
    current = [entry for entry in bitmaps if entry.flags & layout.BITMAP_IDENTIFIER == geometry.active]
    for name, entries in (("active Allocation Bitmap", current), ("Up-case Table", up_cases)):
        if len(entries) != 1:
            raise InconsistentVolume("root directory", f"it has {len(entries)} entries of an {name}, must have one")
    needed = -(-geometry.total_clusters // 8)
    _check_table(geometry, "Allocation Bitmap", current[0], needed, geometry.heap_bytes)
    _check_table(geometry, "Up-case Table", up_cases[0], 2, TABLE_BYTES_MAX)
    return Root(clusters, current[0], up_cases[0], label)


def _table_entry(entry: bytes, offset: int) -> TableEntry:
    _, flags, _, checksum, _, first, size = layout.TABLE_ENTRY.unpack(entry)
    return TableEntry(offset // layout.ENTRY_BYTES, first, size, flags, checksum)


def _check_table(geometry: Geometry, name: str, entry: TableEntry, least: int, most: int) -> None:
    structure, offset = f"{name} Directory Entry", entry.record * layout.ENTRY_BYTES
    last = geometry.end_cluster - 1
    if not layout.FIRST_CLUSTER <= entry.first_cluster <= last:
        raise InconsistentVolume(
            structure, f"FirstCluster is {entry.first_cluster}, allowed are 2 to {last}", offset_bytes=offset
        )
    if not least <= entry.size_bytes <= most:
        raise InconsistentVolume(
            structure, f"DataLength is {entry.size_bytes}, allowed are {least} to {most}", offset_bytes=offset
        )


def _label(entry: bytes) -> str | None:
    """The label up to its first NUL; None where it is empty. No more than the entry holds, whatever it counts."""
    units = struct.unpack_from(f"<{min(entry[1], layout.LABEL_UNITS_MAX)}H", entry, layout.LABEL_AT)
    length = units.index(0) if 0 in units else len(units)
    return decode_name(entry[layout.LABEL_AT :][: length * 2]) if length else None
