"""An NTFS volume, versions 3.0 and 3.1, read-only and untrusted."""

from __future__ import annotations

from functools import cached_property
from struct import unpack_from

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Content, Scan, VolumeFacts
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.bitmap import allocated_clusters
from sqlimage.filesystem.ntfs.boot import is_ntfs, validate
from sqlimage.filesystem.ntfs.entries import list_entries
from sqlimage.filesystem.ntfs.index import find_name
from sqlimage.filesystem.ntfs.mft import scan_mft
from sqlimage.filesystem.ntfs.reader import RecordReader
from sqlimage.filesystem.ntfs.record import damaged, decode_name
from sqlimage.filesystem.ntfs.relocate import relocate
from sqlimage.filesystem.ntfs.relocate_size import demand_of, least_bytes
from sqlimage.filesystem.relocation import Relocation, Wish

__all__ = ["NtfsVolume", "is_ntfs"]


class NtfsVolume:
    """The :class:`~sqlimage.filesystem.contract.FileSystem` of an NTFS volume that fills ``device`` from its start, and
    :class:`~sqlimage.filesystem.relocation.Relocatable`.

    Constructing one reads the boot sector only. Everything else raises
    :class:`~sqlimage.errors.InconsistentVolume` where the structures it needs are damaged. Streams have their plain
    names, a directory's index is ``$I30``, and every other attribute is ``$TYPE`` or ``$TYPE:name``.
    """

    def __init__(self, device: BlockDevice) -> None:
        if device.size_bytes < layout.BOOT_SECTOR_BYTES:
            raise InconsistentVolume("NTFS boot sector", f"the medium has {device.size_bytes} bytes")
        self._device = device
        self._geometry = validate(device.read(0, layout.BOOT_SECTOR_BYTES), device.size_bytes)

    @cached_property
    def _reader(self) -> RecordReader:
        return RecordReader(self._device, self._geometry)

    @cached_property
    def facts(self) -> VolumeFacts:
        """The boot sector's, and those of $Volume and the hibernation file."""
        geometry, boot = self._geometry, self._geometry.boot
        label, version, flags = self._volume_information()
        return VolumeFacts(
            file_system="ntfs",
            size_bytes=geometry.size_bytes,
            bytes_per_sector=boot.bytes_per_sector,
            bytes_per_cluster=geometry.bytes_per_cluster,
            total_clusters=geometry.total_clusters,
            alignment_bytes=geometry.bytes_per_cluster,
            clusters_per_record=boot.clusters_per_file_record,
            hidden_sectors=boot.hidden_sectors,
            sectors_per_track=boot.sectors_per_track,
            tracks_per_cylinder=boot.number_of_heads,
            label=label,
            serial=f"{boot.serial_number:016X}",
            format_version=version,
            dirty=bool(flags & layout.VOLUME_DIRTY),
            hibernated=self._is_hibernated(),
        )

    def _volume_information(self) -> tuple[str | None, str, int]:
        """Label, version and flags."""
        information = self._reader.system_stream(layout.VOLUME_RECORD, "$VOLUME_INFORMATION").value
        if information is None or len(information) < layout.VOLUME_INFORMATION_AT_LEAST:
            raise damaged(layout.VOLUME_RECORD, "its $VOLUME_INFORMATION is too short")
        major, minor, flags = unpack_from("<BBH", information, layout.MAJOR_VERSION_AT)
        return self._label(), f"{major}.{minor}", flags

    def _label(self) -> str | None:
        try:
            name = self._reader.stream(layout.VOLUME_RECORD, "$VOLUME_NAME").value or b""
        except NotFoundError:
            return None
        return decode_name(name[: len(name) & ~1]) or None

    def _is_hibernated(self) -> bool:
        record = find_name(self._reader, layout.ROOT_RECORD, layout.HIBERNATION_FILE)
        if record is None:
            return False
        try:
            return self.open(record).read(0, 4) in layout.HIBERNATED
        except NotFoundError:
            return False

    def allocated(self) -> Runs:
        """Set bits of $Bitmap, the boot sector's cluster, and what lies behind the last whole cluster."""
        bitmap = self._reader.content(self._reader.system_stream(layout.BITMAP_RECORD, ""))
        geometry = self._geometry
        unit = geometry.bytes_per_cluster
        clusters = allocated_clusters(bitmap, geometry.total_clusters)
        heap_end = geometry.total_clusters * unit
        return Runs(clusters.start * unit, clusters.length * unit).union(
            Runs.of([(0, unit), (heap_end, geometry.size_bytes - heap_end)])
        )

    def scan(self) -> Scan:
        """Every name and every content, by one pass over the MFT; directories are not read.

        A file that no directory holds is listed below ``/$OrphanFiles``, one without a name by its number.
        """
        scanned = scan_mft(self._reader)
        return Scan(list_entries(scanned), scanned.contents)

    def open(self, record: int, stream: str = "") -> Content:
        """A stream by its name in ``Contents.stream``; any other attribute by its ``$TYPE``, also a resident one.

        Raises :class:`~sqlimage.errors.NotFoundError` where the record or the stream does not exist.
        """
        return self._reader.content(self._reader.stream(record, stream))

    def smallest_bytes(self, scan: Scan) -> int:
        """The smallest partition for what is allocated: whole clusters, and a sector for the backup boot sector."""
        return least_bytes(self._geometry, demand_of(self._geometry, scan.contents, self.allocated()))

    def relocate(self, scan: Scan, wish: Wish) -> Relocation:
        """The plan for a volume as wished.

        Raises :class:`~sqlimage.errors.RefusedError` where it is too small, dirty, hibernated, of a version before 3.0,
        or its log is not clean; :class:`~sqlimage.errors.InconsistentVolume` where it contradicts itself;
        :class:`~sqlimage.errors.UsageError` where a field cannot hold what is wished, or ``scan`` is another volume's.
        """
        return relocate(self._reader, self.facts, self.allocated(), scan, wish)
