"""The boot sector of an NTFS volume: parsed as it lies, then validated against itself and its medium."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.ntfs import layout

_SECTOR_BYTES = (256, 512, 1024, 2048, 4096)
_CLUSTER_BYTES_MAX = 2 << 20
_RECORD_BYTES = (512, 64 << 10)
_NEGATIVE_AS_POWER = 0x80


@dataclass(frozen=True, slots=True)
class BootSector:
    """The fields as they lie on the medium."""

    bytes_per_sector: int
    sectors_per_cluster_field: int
    """As stored: above 0x80 the negative power of two of larger clusters."""
    sectors_per_track: int
    number_of_heads: int
    hidden_sectors: int
    total_sectors: int
    mft_lcn: int
    mft2_lcn: int
    clusters_per_file_record: int
    clusters_per_index_block: int
    serial_number: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a valid boot sector says of the volume, in bytes and clusters."""

    boot: BootSector
    bytes_per_cluster: int
    bytes_per_record: int
    total_clusters: int
    size_bytes: int
    """The backup boot sector included where the medium has room for it."""

    @property
    def clusters_limit(self) -> int:
        """More clusters than this no stream can have: its bytes would not fit 63 bits."""
        return ((1 << 63) - 1) // self.bytes_per_cluster


def is_ntfs(boot_sector: bytes) -> bool:
    """Whether the first 512 bytes of a volume call themselves NTFS; says nothing about their being right."""
    at = layout.OEM_ID_AT
    return len(boot_sector) >= layout.BOOT_SECTOR_BYTES and boot_sector[at : at + 8] == layout.OEM_ID


def parse(sector: bytes) -> BootSector:
    """The fields of 512 bytes, unchecked."""
    bytes_per_sector, sectors_per_cluster = struct.unpack_from("<HB", sector, layout.BYTES_PER_SECTOR_AT)
    track, heads, hidden = struct.unpack_from("<HHI", sector, layout.SECTORS_PER_TRACK_AT)
    total, mft, mft2 = struct.unpack_from("<QQQ", sector, layout.TOTAL_SECTORS_AT)
    (per_record,) = struct.unpack_from("<b", sector, layout.CLUSTERS_PER_FILE_RECORD_AT)
    (per_index,) = struct.unpack_from("<b", sector, layout.CLUSTERS_PER_INDEX_BLOCK_AT)
    (serial,) = struct.unpack_from("<Q", sector, layout.SERIAL_NUMBER_AT)
    return BootSector(
        bytes_per_sector, sectors_per_cluster, track, heads, hidden, total, mft, mft2, per_record, per_index, serial
    )


def validate(sector: bytes, device_bytes: int) -> Geometry:
    """The geometry of the volume that starts with ``sector`` on a medium of ``device_bytes``.

    Raises :class:`~sqlimage.errors.InconsistentVolume` naming the field where one is out of its range.
    """
    if not is_ntfs(sector):
        raise _bad("OemId", repr(sector[3:11]), repr(layout.OEM_ID))
    boot = parse(sector)
    if boot.bytes_per_sector not in _SECTOR_BYTES:
        raise _bad("BytesPerSector", boot.bytes_per_sector, "a power of two from 256 to 4096")
    per_cluster = _sectors_per_cluster(boot)
    bytes_per_cluster = per_cluster * boot.bytes_per_sector
    total_clusters = boot.total_sectors // per_cluster
    if total_clusters == 0:
        raise _bad("TotalSectors", boot.total_sectors, f"at least one cluster of {per_cluster} sectors")
    used_bytes = boot.total_sectors * boot.bytes_per_sector
    if used_bytes > device_bytes:
        raise _bad("TotalSectors", boot.total_sectors, f"at most the {device_bytes} bytes of the medium")
    for name, lcn in (("MftStartLcn", boot.mft_lcn), ("Mft2StartLcn", boot.mft2_lcn)):
        if not 0 < lcn < total_clusters:
            raise _bad(name, lcn, f"a cluster from 1 to {total_clusters - 1}")
    bytes_per_record = _block_bytes("ClustersPerFileRecordSegment", boot.clusters_per_file_record, bytes_per_cluster)
    _block_bytes("DefaultClustersPerIndexAllocationBuffer", boot.clusters_per_index_block, bytes_per_cluster)
    if not _RECORD_BYTES[0] <= bytes_per_record <= _RECORD_BYTES[1]:
        raise _bad("ClustersPerFileRecordSegment", boot.clusters_per_file_record, "records of 512 to 65536 bytes")
    with_backup = used_bytes + boot.bytes_per_sector
    return Geometry(
        boot,
        bytes_per_cluster,
        bytes_per_record,
        total_clusters,
        with_backup if with_backup <= device_bytes else used_bytes,
    )


def _sectors_per_cluster(boot: BootSector) -> int:
    field = boot.sectors_per_cluster_field
    exponent = 256 - field if field > _NEGATIVE_AS_POWER else field.bit_length() - 1
    sectors = 1 << max(exponent, 0)
    whole = field > _NEGATIVE_AS_POWER or field == sectors
    if not whole or sectors * boot.bytes_per_sector > _CLUSTER_BYTES_MAX:
        raise _bad("SectorsPerCluster", field, "a power of two of sectors, at most 2 MiB in all")
    return sectors


def _block_bytes(name: str, field: int, bytes_per_cluster: int) -> int:
    """Bytes of a block counted in clusters, or as a negative power of two."""
    size = field * bytes_per_cluster if field > 0 else 1 << min(-field, 62)
    if field == 0 or size & (size - 1):
        raise _bad(name, field, "a power of two of clusters, or minus the logarithm of its bytes")
    return size


def _bad(field: str, found: object, allowed: str) -> InconsistentVolume:
    return InconsistentVolume(f"NTFS boot sector, {field}", f"is {found}, must be {allowed}", offset_bytes=0)
