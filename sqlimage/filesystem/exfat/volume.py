"""An opened exFAT volume.

A file is known by the place of its File directory entry: record = byte offset of the entry on the volume // 32. The
root directory, which has no entry, is record 0; the Allocation Bitmap and the Up-case Table have entries of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.content import ContentRuns, RunContent
from sqlimage.filesystem.contract import Scan, VolumeFacts
from sqlimage.filesystem.exfat import layout
from sqlimage.filesystem.exfat.bitmap import allocated_clusters
from sqlimage.filesystem.exfat.boot import read_boot
from sqlimage.filesystem.exfat.directory import Batch, Listing, list_entries
from sqlimage.filesystem.exfat.root import Root, TableEntry, read_root
from sqlimage.filesystem.exfat.table import Ending, Table
from sqlimage.filesystem.exfat.tree import TreeScanner
from sqlimage.filesystem.exfat.upcase import decode

ROOT_RECORD = 0


class ExfatVolume:
    """A :class:`~sqlimage.filesystem.contract.FileSystem` by Microsoft's exFAT file system specification 1.00.

    Opening reads the boot regions only, and raises :class:`InconsistentVolume` where neither the main nor the backup
    one holds or where the volume is longer than ``device``. The device must not change while the volume is open.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._boot = read_boot(device)
        self._geometry = self._boot.geometry
        self._table = Table(device, self._geometry)

    @cached_property
    def facts(self) -> VolumeFacts:
        sector, geometry, flags = self._boot.sector, self._geometry, self._boot.volume_flags
        notes = self._boot.notes
        if flags & layout.MEDIA_FAILURE:
            notes += ("VolumeFlags tells that the medium has failed before (MediaFailure)",)
        return VolumeFacts(
            file_system="exfat",
            size_bytes=geometry.size_bytes,
            bytes_per_sector=geometry.bytes_per_sector,
            bytes_per_cluster=geometry.bytes_per_cluster,
            total_clusters=geometry.total_clusters,
            alignment_bytes=geometry.alignment_bytes,
            hidden_sectors=sector.PartitionOffset,
            label=self._root.label,
            serial=f"{sector.VolumeSerialNumber:08X}",
            format_version=f"{sector.FileSystemRevision >> 8}.{sector.FileSystemRevision & 0xFF}",
            dirty=bool(flags & layout.VOLUME_DIRTY),
            notes=notes,
        )

    def allocated(self) -> Runs:
        """All before and behind the cluster heap, and the clusters whose bit in the active bitmap is set."""
        geometry = self._geometry
        clusters = allocated_clusters(self._bitmap, geometry.total_clusters)
        outside = Runs.of([(0, geometry.heap_offset), (geometry.heap_end, geometry.size_bytes - geometry.heap_end)])
        size = geometry.bytes_per_cluster
        return Runs.from_arrays(
            np.concatenate((outside.start, (clusters.start - layout.FIRST_CLUSTER) * size + geometry.heap_offset)),
            np.concatenate((outside.length, clusters.length * size)),
        )

    def scan(self) -> Scan:
        """Every name and content. A file's runs are as many clusters as its DataLength needs."""
        entry = self._root.up_case
        up_case = decode(self._table_content(entry).read(0, entry.size_bytes), entry.checksum)
        return TreeScanner(self._device, self._geometry, self._table, self._root, up_case).scan()

    def open(self, record: int, stream: str = "") -> RunContent:
        """The bytes of a file, of a directory's entries, of the Allocation Bitmap or the Up-case Table.

        Raises :class:`NotFoundError` where no entry of these lies at the record, or for any stream but the main one;
        :class:`InconsistentVolume` where its entry set is damaged, or its chain ends before the file does.
        """
        root = self._root
        if stream:
            raise NotFoundError(f"record {record} has no stream {stream!r}: exFAT has no streams")
        if record == ROOT_RECORD:
            size = root.clusters * self._geometry.bytes_per_cluster
            return self._content(self._geometry.root_cluster, size, size)
        for entry in (root.bitmap, root.up_case):
            if record == entry.record:
                return self._table_content(entry)
        found = self._read_set(record)
        return self._content(
            int(found.first_cluster[0]),
            int(found.size_bytes[0]),
            int(found.valid_bytes[0]),
            contiguous=bool(found.contiguous[0]),
        )

    @cached_property
    def _root(self) -> Root:
        return read_root(self._device, self._geometry, self._table)

    @cached_property
    def _bitmap(self) -> RunContent:
        return self._table_content(self._root.bitmap)

    def _table_content(self, entry: TableEntry) -> RunContent:
        return self._content(entry.first_cluster, entry.size_bytes, entry.size_bytes)

    def _content(self, first: int, size: int, valid: int, *, contiguous: bool = False) -> RunContent:
        geometry = self._geometry
        clusters = geometry.clusters_for(size)
        starts, lengths = ([first], [clusters]) if clusters else ([], [])
        if clusters and not contiguous:
            chain = self._table.follow(np.array([first]), np.array([clusters]))
            if chain.ending[0] != Ending.ENOUGH:
                words = Ending(int(chain.ending[0])).words
                raise InconsistentVolume("FAT", f"the chain that begins at cluster {first} {words} too early")
            starts, lengths = chain.start.tolist(), chain.length.tolist()
        at, places, end = [], [], 0
        lengths = [count * geometry.bytes_per_cluster for count in lengths]
        for start, length in zip(starts, lengths, strict=True):
            at.append(end)
            places.append(geometry.offset_of(start))
            end += length
        return RunContent(self._device, ContentRuns(at, places, lengths), size, valid)

    def _read_set(self, record: int) -> Listing:
        """The File directory entry set at a record. Its directory is not known, so a set that goes on in another
        cluster may do so in the next one or in the one the FAT names: its checksum tells."""
        offset = record * layout.ENTRY_BYTES
        if not self._may_hold_entry(offset):
            raise NotFoundError(f"record {record} lies in no cluster of the volume that is in use")
        kind, secondary_count = self._device.read(offset, 2)
        if kind != layout.FILE:
            raise NotFoundError(f"record {record} is no entry of a file or directory")
        size = (secondary_count + 1) * layout.ENTRY_BYTES
        problem: InconsistentVolume | None = None
        for raw, offsets in self._candidates(offset, size):
            batch = Batch(raw, np.zeros(len(offsets), dtype=np.int64), offsets)
            try:
                found, _ = list_entries(batch, self._geometry, None, more=False)
            except InconsistentVolume as damage:
                problem = problem or damage
                continue
            if len(found.offset) == 1:
                return found
        raise problem or InconsistentVolume("File Directory Entry", "its set is not whole", offset_bytes=offset)

    def _candidates(self, offset: int, size: int) -> Iterator[tuple[bytes, Int64s]]:
        """What may be the ``size`` bytes of an entry set, and where each of its entries lies."""
        ways = (lambda cluster: cluster + 1, self._table.successor)
        geometry = self._geometry
        for way in ways:
            cluster: int | None = (offset - geometry.heap_offset) // geometry.bytes_per_cluster + layout.FIRST_CLUSTER
            at, missing = offset, size
            parts, offsets = [], []
            while missing and cluster is not None and cluster < geometry.end_cluster:
                count = min(geometry.offset_of(cluster + 1) - at, missing)
                parts.append(self._device.read(at, count))
                offsets.append(np.arange(at, at + count, layout.ENTRY_BYTES, dtype=np.int64))
                missing -= count
                if missing:
                    cluster = way(cluster)
                    at = geometry.offset_of(cluster) if cluster is not None else 0
            if not missing:
                yield b"".join(parts), np.concatenate(offsets)
            if len(parts) == 1 and not missing:
                return  # it lies in one cluster

    def _may_hold_entry(self, offset: int) -> bool:
        """Whether the offset lies in a cluster whose bit in the bitmap is set."""
        geometry = self._geometry
        if not geometry.heap_offset <= offset < geometry.heap_end:
            return False
        index = (offset - geometry.heap_offset) // geometry.bytes_per_cluster
        return bool(self._bitmap.read(index // 8, 1)[0] >> index % 8 & 1)
