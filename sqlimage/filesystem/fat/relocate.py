"""A FAT volume laid out anew: the plan, put together from its parts. What each part writes down is a fix-up."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import Contents, Scan, VolumeFacts
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import BootSector, Geometry, parse
from sqlimage.filesystem.fat.relocate_boot import fix_boot_sectors, fix_fsinfo, new_fields, with_fields
from sqlimage.filesystem.fat.relocate_chains import sound_chains
from sqlimage.filesystem.fat.relocate_directory import fix_directories, parents
from sqlimage.filesystem.fat.relocate_layout import ClusterMoves, directory_order, move_clusters
from sqlimage.filesystem.fat.relocate_ledger import Ledger
from sqlimage.filesystem.fat.relocate_moves import Moves, allocated_bytes, byte_moves
from sqlimage.filesystem.fat.relocate_size import new_size, resized, smallest_bytes
from sqlimage.filesystem.fat.relocate_table import NewTable, fix_tables
from sqlimage.filesystem.fat.table import Table
from sqlimage.filesystem.relocation import Relocation, Wish

PIECES_MAX = 1 << 21
"""Of chains, and of bad clusters between them: what can be planned within some seconds and half a GiB."""
SYSLINUX = b"SYSLINUX"
"""BS_OEMName. Its boot code knows by their sectors where the file of this name lies:"""
SYSLINUX_FILE = "/ldlinux.sys"


class Source(NamedTuple):
    """The volume as it is."""

    device: BlockDevice
    boot: BootSector
    geometry: Geometry
    table: Table
    facts: VolumeFacts


def relocate(source: Source, scan: Scan, wish: Wish) -> Relocation:
    """As :meth:`Relocatable.relocate` says."""
    device, boot, old, table, facts = source
    if facts.dirty:
        raise RefusedError(
            "the volume is marked as in use or as having had errors", hint="unmount it, or check it with fsck.fat"
        )
    if (pieces := len(table.start) + len(table.bad)) > PIECES_MAX:
        raise RefusedError(f"the volume is in {pieces} pieces, more than {PIECES_MAX} are not laid out anew")
    _check_names(scan)
    smallest = smallest_bytes(old, table.allocated(), table.bad)
    size = new_size(old, boot, wish.size_bytes, smallest, table.bad)
    new = resized(old, boot, size)
    sound = sound_chains(old, table, scan.contents)
    parent = parents(scan)
    pinned = _known_by_place(boot, scan)
    order = directory_order(scan.contents, parent) if wish.defragment else None
    clusters = move_clusters(old, new, sound, table.bad, pinned, order)
    moves = byte_moves(boot, old, new, clusters)
    first, new_first = sound.first, clusters.first(sound.contents)
    if old.fat_bits == 32:
        new = replace(new, root_cluster=int(new_first[0]))

    ledger = Ledger()
    boot_sector = device.read(0, layout.BOOT_SECTOR_BYTES)
    fields = new_fields(boot, old, new, wish)
    fix_boot_sectors(device, boot, old, boot_sector, fields, ledger)
    if new != old or wish.defragment:
        fix_fsinfo(device, boot, old, new, clusters, ledger)
    fix_tables(device, boot, old, new, NewTable(clusters, sound.end_mark, old.fat_bits), ledger)
    fix_directories(device, old, scan, parent, first, new_first, moves, ledger)

    notes = [size.note] if size.note else []
    shift = (new.heap_offset - old.heap_offset) // old.bytes_per_cluster
    if (np.isin(clusters.chain, pinned) & (clusters.old - shift != clusters.new)).any():
        notes.append("SYSLINUX will not start from it until it is installed anew: ldlinux.sys has moved")
    return Relocation(
        facts=_new_facts(facts, parse(with_fields(boot_sector, fields)), new, notes),
        moved_from=moves.old,
        moved_to=moves.new,
        moved_length=moves.length,
        fixups=ledger.in_order(),
        allocated=allocated_bytes(new, clusters),
        scan=_new_scan(new, scan, clusters, moves),
    )


def _check_names(scan: Scan) -> None:
    """The reader tells entries of one name apart by their places, which are about to change."""
    known = set(scan.entries.path)
    for path, record in zip(scan.entries.path, scan.entries.record.tolist(), strict=True):
        end = f"~{record}"
        if path.endswith(end) and path[: -len(end)] in known:
            raise InconsistentVolume(
                f"directory entry {path[: -len(end)]!r}",
                "is there twice",
                offset_bytes=record * layout.ENTRY_BYTES,
            )


def _known_by_place(boot: BootSector, scan: Scan) -> Int64s:
    """The contents that the boot code finds by their places."""
    if boot.BS_OEMName != SYSLINUX:
        return np.empty(0, dtype=np.int64)
    return np.array([row for row, path in enumerate(scan.entries.path) if path.lower().endswith(SYSLINUX_FILE)], "i8")


def _new_facts(facts: VolumeFacts, boot: BootSector, new: Geometry, notes: list[str]) -> VolumeFacts:
    return replace(
        facts,
        size_bytes=new.size_bytes,
        total_clusters=new.total_clusters,
        alignment_bytes=new.alignment_bytes,
        hidden_sectors=boot.BPB_HiddSec,
        sectors_per_track=boot.BPB_SecPerTrk or None,
        tracks_per_cylinder=boot.BPB_NumHeads or None,
        notes=(*facts.notes, *notes),
    )


def _new_scan(new: Geometry, scan: Scan, clusters: ClusterMoves, moves: Moves) -> Scan:
    """The rows stay; places of entries and of runs are new."""
    count = len(scan.contents)
    record = scan.contents.record.copy()
    record[1:] = moves.locate(record[1:] * layout.ENTRY_BYTES) // layout.ENTRY_BYTES
    ours = np.flatnonzero(clusters.chain < count)
    ours = ours[np.argsort(clusters.chain[ours], kind="stable")]
    row = clusters.chain[ours]
    offset = new.heap_offset + (clusters.new[ours] - layout.FIRST_CLUSTER) * new.bytes_per_cluster
    length = clusters.length[ours] * new.bytes_per_cluster
    if new.fat_bits != 32:
        row = np.concatenate(([0], row))
        offset, length = np.concatenate(([new.root_offset], offset)), np.concatenate(([new.root_bytes], length))
    begins = np.ones(len(row), dtype=np.bool_)
    begins[1:] = (row[1:] != row[:-1]) | (offset[1:] != offset[:-1] + length[:-1])
    head = np.flatnonzero(begins)
    contents: Contents = replace(
        scan.contents,
        record=record,
        first_run=np.searchsorted(row[head], np.arange(count + 1)),
        run_offset=offset[head],
        run_length=np.add.reduceat(length, head) if len(head) else length,
    )
    return Scan(replace(scan.entries, record=record), contents)
