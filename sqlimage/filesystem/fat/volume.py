"""An opened FAT12, FAT16 or FAT32 volume.

A file is known by the place of its short directory entry: record = byte offset of the entry on the volume // 32. The
root directory, which has no entry, is record 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Scan, VolumeFacts
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import geometry_of, parse
from sqlimage.filesystem.fat.content import FatContent
from sqlimage.filesystem.fat.directory import first_cluster_of, label_in, label_text, names_something
from sqlimage.filesystem.fat.relocate import Source, relocate
from sqlimage.filesystem.fat.relocate_size import smallest_bytes
from sqlimage.filesystem.fat.table import Table, load, read_entries
from sqlimage.filesystem.fat.tree import DIRECTORY_BYTES_TOLERATED, TreeScanner, read_directory
from sqlimage.filesystem.fat.walk import Pages, walk
from sqlimage.filesystem.relocation import Relocation, Wish

ROOT_RECORD = 0


class FatVolume:
    """A :class:`~sqlimage.filesystem.contract.FileSystem` by the Microsoft FAT specification (2005), and
    :class:`~sqlimage.filesystem.relocation.Relocatable`.

    Opening reads the boot sector only, and raises :class:`InconsistentVolume` where it is not a FAT boot sector or
    where the volume is longer than ``device``. The device must not change while the volume is open.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._boot = parse(device.read(0, min(layout.BOOT_SECTOR_BYTES, device.size_bytes)))
        self._geometry = geometry_of(self._boot)
        if self._geometry.size_bytes > device.size_bytes:
            raise InconsistentVolume(
                "BPB_TotSec16/32", f"says {self._geometry.size_bytes} bytes, the medium has {device.size_bytes}"
            )

    @cached_property
    def facts(self) -> VolumeFacts:
        boot, geometry = self._boot, self._geometry
        return VolumeFacts(
            file_system=f"fat{geometry.fat_bits}",
            size_bytes=geometry.size_bytes,
            bytes_per_sector=geometry.bytes_per_sector,
            bytes_per_cluster=geometry.bytes_per_cluster,
            total_clusters=geometry.total_clusters,
            alignment_bytes=geometry.alignment_bytes,
            hidden_sectors=boot.BPB_HiddSec,
            sectors_per_track=boot.BPB_SecPerTrk or None,
            tracks_per_cylinder=boot.BPB_NumHeads or None,
            label=self._label(),
            serial=boot.serial,
            dirty=boot.dirty or self._table_says_dirty(),
        )

    def allocated(self) -> Runs:
        """All before and behind the clusters, and the clusters whose entry in the FAT is not zero (bad ones too)."""
        geometry = self._geometry
        clusters = self._table.allocated()
        outside = Runs.of([(0, geometry.heap_offset), (geometry.heap_end, geometry.size_bytes - geometry.heap_end)])
        size = geometry.bytes_per_cluster
        return Runs.from_arrays(
            np.concatenate((outside.start, (clusters.start - layout.FIRST_CLUSTER) * size + geometry.heap_offset)),
            np.concatenate((outside.length, clusters.length * size)),
        )

    def scan(self) -> Scan:
        """Every name and content. A file's runs are its whole chain, also beyond its size."""
        return TreeScanner(self._device, self._geometry, self._table).scan()

    def open(self, record: int, stream: str = "") -> FatContent:
        """The bytes of a file, or of a directory's entries.

        Raises :class:`NotFoundError` where no entry of a file or directory lies at the record, or for any stream but
        the main one; :class:`InconsistentVolume` where the chain ends before the file does.
        """
        geometry = self._geometry
        if stream:
            raise NotFoundError(f"record {record} has no stream {stream!r}: FAT has no streams")
        if record == ROOT_RECORD:
            if geometry.fat_bits != 32:
                size = geometry.root_entries * layout.ENTRY_BYTES
                return FatContent(self._device, [(geometry.root_offset, geometry.root_bytes)], size)
            return FatContent(self._device, self._runs_of_directory(geometry.root_cluster))
        if not self._may_hold_entry(record * layout.ENTRY_BYTES):
            raise NotFoundError(f"record {record} lies in no directory of the volume")
        raw = self._device.read(record * layout.ENTRY_BYTES, layout.ENTRY_BYTES)
        entry = np.frombuffer(raw, dtype=layout.DIRECTORY_ENTRY)
        if not names_something(entry)[0]:
            raise NotFoundError(f"record {record} is no entry of a file or directory")
        first = int(first_cluster_of(entry, geometry.fat_bits)[0])
        if int(entry["DIR_Attr"][0]) & layout.ATTR_DIRECTORY:
            return FatContent(self._device, self._runs_of_directory(first))
        size = int(entry["DIR_FileSize"][0])
        return FatContent(self._device, self._runs_of_file(first, size, record), size)

    def smallest_bytes(self, scan: Scan) -> int:
        """The smallest size that what is allocated fits into without the volume becoming another type of FAT."""
        return smallest_bytes(self._geometry, self._table.allocated(), self._table.bad)

    def relocate(self, scan: Scan, wish: Wish) -> Relocation:
        """The plan by which this volume is laid out anew; ``scan`` is its own.

        Raises :class:`~sqlimage.errors.RefusedError` where the size is too small for what is allocated or for the type
        of FAT, a field cannot hold what is asked for, or the volume is dirty; :class:`InconsistentVolume` where its
        FATs differ, chains meet or do not end, or a directory has two entries of one name.
        """
        return relocate(Source(self._device, self._boot, self._geometry, self._table, self.facts), scan, wish)

    @cached_property
    def _table(self) -> Table:
        return load(self._device, self._geometry)

    @cached_property
    def _pages(self) -> Pages:
        return Pages(self._device, self._geometry)

    def _runs_of_file(self, first: int, size: int, record: int) -> Iterator[tuple[int, int]]:
        """As much of the chain as the size asks for; what the chain does beyond is not looked at."""
        chain = self._runs(first)
        missing = size
        while missing > 0:
            run = next(chain, None)
            if run is None:
                raise InconsistentVolume(
                    "DIR_FileSize",
                    f"is {size}, but the chain ends {missing} bytes earlier",
                    offset_bytes=record * layout.ENTRY_BYTES,
                )
            yield run
            missing -= run[1]

    def _runs_of_directory(self, first: int) -> Iterator[tuple[int, int]]:
        held = 0
        for run in self._runs(first):
            yield run
            held += run[1]
            if held > DIRECTORY_BYTES_TOLERATED:
                raise InconsistentVolume("directory", f"takes more than the allowed {DIRECTORY_BYTES_TOLERATED} bytes")

    def _runs(self, first: int) -> Iterator[tuple[int, int]]:
        """The chain from ``first`` as (offset, length) in bytes, as lazily as :func:`walk`; cluster 0: none."""
        geometry = self._geometry
        if first:
            for cluster, count in walk(self._pages, first):
                yield geometry.offset_of(cluster), count * geometry.bytes_per_cluster

    def _may_hold_entry(self, offset: int) -> bool:
        """Whether the offset lies in the fixed root directory or in a cluster that is taken."""
        geometry = self._geometry
        if geometry.root_offset <= offset < geometry.root_offset + geometry.root_entries * layout.ENTRY_BYTES:
            return True
        if not geometry.heap_offset <= offset < geometry.heap_end:
            return False
        cluster = (offset - geometry.heap_offset) // geometry.bytes_per_cluster + layout.FIRST_CLUSTER
        entry = int(read_entries(self._device, geometry, cluster, 1)[0])
        return entry not in (0, layout.BAD_CLUSTER[geometry.fat_bits])

    def _label(self) -> str | None:
        """The root directory's label; the boot sector's where that has none."""
        geometry = self._geometry
        places = iter([(geometry.root_offset, geometry.root_entries * layout.ENTRY_BYTES)])
        if geometry.fat_bits == 32:
            places = self._runs_of_directory(geometry.root_cluster)
        for _, piece in read_directory(self._device, places):
            label = label_in(np.frombuffer(piece, dtype=layout.DIRECTORY_ENTRY))
            if label is not None:
                return label_text(label)
        return label_text(self._boot.label) if self._boot.label else None

    def _table_says_dirty(self) -> bool:
        in_order = layout.CLEAN_SHUT_AND_NO_ERROR.get(self._geometry.fat_bits)
        if in_order is None:
            return False
        return int(read_entries(self._device, self._geometry, 1, 1)[0]) & in_order != in_order
