"""Makers of exFAT volumes: real ones by mkfs.exfat and exfat-fuse, and bare ones built field by field for hostile
cases."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from sqlimage.mount import loop
from sqlimage.mount.stack import Way, mount_device_file
from tests.conftest import run

END = 0xFFFFFFFF
BAD = 0xFFFFFFF7
DIRECTORY, ARCHIVE = 0x10, 0x20
CHAINED, CONTIGUOUS = 1, 3
"""GeneralSecondaryFlags."""


def make_volume(path: Path, size_bytes: int, *options: str, bytes_per_sector: int = 512) -> Path:
    """An empty volume by mkfs.exfat, on a sparse file."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    if bytes_per_sector == 512:
        run("mkfs.exfat", *options, path)
        return path
    device = loop.attach(str(path), writable=True, bytes_per_sector=bytes_per_sector)
    try:
        run("mkfs.exfat", *options, device)
    finally:
        assert loop.detach(device, str(path))
    return path


@contextlib.contextmanager
def mounted(path: Path, directory: Path, *, bytes_per_sector: int = 512, check: bool = True) -> Iterator[Path]:
    """The volume on a directory by exfat-fuse, writable; with ``check`` fsck.exfat finds no fault afterwards."""
    directory.mkdir(exist_ok=True)
    mount = mount_device_file(
        str(path),
        str(directory),
        kind="exfat",
        way=Way.EXFAT_FUSE,
        writable=True,
        bytes_per_sector=bytes_per_sector,
    )
    try:
        yield directory
    finally:
        assert mount.unmount()
    if check:
        run("fsck.exfat", "-n", path)


def fill(directory: Path, tree: dict[str, bytes]) -> None:
    """Write files, given as ``{"a/b.txt": bytes}``, below a directory."""
    for name, content in tree.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def fill_in_turns(directory: Path, tree: dict[str, bytes], piece: int) -> None:
    """Write files in pieces that lie between those of the others: fragmented ones."""
    with contextlib.ExitStack() as stack:
        files = [(stack.enter_context((directory / name).open("wb", buffering=0)), tree[name]) for name in tree]
        for at in range(0, max(map(len, tree.values()), default=0), piece):
            for file, content in files:
                if content[at : at + piece]:
                    file.write(content[at : at + piece])
                    os.fsync(file.fileno())


def rotated_sum(data: bytes, bits: int, left_out: tuple[int, ...] = ()) -> int:
    """BootChecksum and TableChecksum (32 bits), EntrySetChecksum and NameHash (16 bits) of the specification."""
    total = 0
    for index, byte in enumerate(data):
        if index not in left_out:
            total = ((1 << bits - 1 if total & 1 else 0) + (total >> 1) + byte) % (1 << bits)
    return total


def units_of(name: str) -> list[int]:
    """The UTF-16 units of a name, paired or not."""
    raw = name.encode("utf-16-le", "surrogatepass")
    return list(struct.unpack(f"<{len(raw) // 2}H", raw))


def ascii_upper(unit: int) -> int:
    return unit - 0x20 if 0x61 <= unit <= 0x7A else unit


UP_CASE = struct.pack("<30H", 0xFFFF, 0x61, *range(0x41, 0x5B), 0xFFFF, 0xFF85)
"""A compressed table of the letters of ASCII, and of nothing else."""


def sealed(entries: bytes) -> bytes:
    """An entry set with its right checksum."""
    return entries[:2] + struct.pack("<H", rotated_sum(entries, 16, (2, 3))) + entries[4:]


def file_set(
    name: str,
    cluster: int = 0,
    size: int = 0,
    *,
    valid: int | None = None,
    attributes: int = ARCHIVE,
    flags: int = CHAINED,
    modified: tuple[int, int, int] = (0, 0, 0),
    name_length: int | None = None,
    name_hash: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A File directory entry set. ``modified`` is (LastModifiedTimestamp, 10msIncrement, UtcOffset), ``extra`` are
    further secondary entries."""
    units = units_of(name)
    upper = b"".join(struct.pack("<H", ascii_upper(unit)) for unit in units)
    stream = struct.pack(
        "<BBBBHHQIIQ",
        0xC0,
        flags,
        0,
        len(units) & 0xFF if name_length is None else name_length,
        rotated_sum(upper, 16) if name_hash is None else name_hash,
        0,
        size if valid is None else valid,
        0,
        cluster,
        size,
    )
    names = b""
    for at in range(0, max(len(units), 1), 15):
        part = units[at : at + 15]
        names += struct.pack("<BB15H", 0xC1, 0, *part, *[0] * (15 - len(part)))
    timestamp, increment, zone = modified
    count = 1 + len(names) // 32 + len(extra) // 32
    head = struct.pack("<BBHHHIIIBBBBB7x", 0x85, count, 0, attributes, 0, 0, timestamp, 0, 0, increment, 0, zone, 0)
    return sealed(head + stream + names + extra)


def directory(name: str, cluster: int, size: int = 512, flags: int = CONTIGUOUS) -> bytes:
    return file_set(name, cluster, size, attributes=DIRECTORY, flags=flags)


def table_entry(kind: int, cluster: int, size: int, *, flags: int = 0, checksum: int = 0) -> bytes:
    """An Allocation Bitmap (0x81) or Up-case Table (0x82) directory entry."""
    return struct.pack("<BB2xI12xIQ", kind, flags, checksum, cluster, size)


def label_entry(text: str, count: int | None = None) -> bytes:
    raw = text.encode("utf-16-le")
    return struct.pack("<BB30s", 0x83, len(raw) // 2 if count is None else count, raw)


class BareVolume:
    """A volume in memory, built field by field: nothing stops a test from contradicting itself.

    One sector a cluster unless told otherwise. The bitmap begins at cluster 2, the up-case table and the root
    directory (one cluster) follow; ``free`` is the first cluster after them. :meth:`seal` writes the boot regions.
    """

    def __init__(
        self,
        clusters: int,
        *,
        sector_shift: int = 9,
        cluster_shift: int = 0,
        fats: int = 1,
        up_case: bytes = UP_CASE,
    ) -> None:
        self.clusters = clusters
        self.bytes_per_sector = 1 << sector_shift
        self.bytes_per_cluster = self.bytes_per_sector << cluster_shift
        self.fat_bytes = -(-(clusters + 2) * 4 // self.bytes_per_sector) * self.bytes_per_sector
        self.fat_offset = 24 * self.bytes_per_sector
        self.heap_offset = self.fat_offset + fats * self.fat_bytes
        self.size_bytes = self.heap_offset + clusters * self.bytes_per_cluster
        self.content = self.allocate()
        self.up_case = up_case
        self.bitmap_bytes = -(-clusters // 8)
        bitmap_clusters = -(-self.bitmap_bytes // self.bytes_per_cluster)
        self.bitmap = 2
        self.up_case_at = self.bitmap + bitmap_clusters
        self.root = self.up_case_at + -(-len(up_case) // self.bytes_per_cluster)
        self.free = self.root + 1
        self.fields = {
            "PartitionOffset": 0,
            "VolumeLength": self.size_bytes // self.bytes_per_sector,
            "FatOffset": 24,
            "FatLength": self.fat_bytes // self.bytes_per_sector,
            "ClusterHeapOffset": self.heap_offset // self.bytes_per_sector,
            "ClusterCount": clusters,
            "FirstClusterOfRootDirectory": self.root,
            "VolumeSerialNumber": 0x1234ABCD,
            "FileSystemRevision": 0x0100,
            "VolumeFlags": 0,
            "BytesPerSectorShift": sector_shift,
            "SectorsPerClusterShift": cluster_shift,
            "NumberOfFats": fats,
        }
        for first, last in (
            (self.bitmap, self.up_case_at),
            (self.up_case_at, self.root),
            (self.root, self.free),
        ):
            self.chain(*range(first, last))
        self.write(self.up_case_at, up_case)
        self.write_root()
        self.seal()

    def allocate(self) -> bytearray:
        return bytearray(self.size_bytes)

    def seal(self, *, backup: bool = True) -> BareVolume:
        """Write the boot regions from ``fields``, with their checksums."""
        for start in (0, 12 * self.bytes_per_sector)[: 2 if backup else 1]:
            region = bytearray(11 * self.bytes_per_sector)
            region[:11] = b"\xeb\x76\x90EXFAT   "
            struct.pack_into("<QQIIIIIIHHBBB", region, 64, *self.fields.values())
            region[510:512] = b"\x55\xaa"
            self.put(start, bytes(region))
            self.seal_region(start)
        return self

    def seal_region(self, start: int = 0) -> None:
        """Make the checksum of the boot region that begins there right."""
        size = self.bytes_per_sector
        total = rotated_sum(self.get(start, 11 * size), 32, (106, 107, 112))
        self.put(start + 11 * size, struct.pack("<I", total) * (size // 4))

    def link(self, cluster: int, following: int, fat: int = 0) -> None:
        self.put(self.fat_offset + fat * self.fat_bytes + cluster * 4, struct.pack("<I", following))

    def use(self, *clusters: int, bitmap: int | None = None) -> None:
        """Set the bits of clusters."""
        start = self.offset_of(self.bitmap if bitmap is None else bitmap)
        for cluster in clusters:
            at = start + (cluster - 2) // 8
            self.put(at, bytes([self.get(at, 1)[0] | 1 << (cluster - 2) % 8]))

    def chain(self, *clusters: int, fat: int = 0) -> int:
        """Link the clusters in this order, end the chain and set their bits; the first one."""
        for here, following in zip(clusters, (*clusters[1:], END), strict=True):
            self.link(here, following, fat)
        self.use(*clusters)
        return clusters[0]

    def offset_of(self, cluster: int) -> int:
        return self.heap_offset + (cluster - 2) * self.bytes_per_cluster

    def write(self, cluster: int, data: bytes) -> None:
        self.put(self.offset_of(cluster), data)

    def put(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def get(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    @property
    def root_entries(self) -> bytes:
        """The entries that a root directory must have."""
        return table_entry(0x81, self.bitmap, self.bitmap_bytes) + table_entry(
            0x82, self.up_case_at, len(self.up_case), checksum=rotated_sum(self.up_case, 32)
        )

    def write_root(self, *entries: bytes) -> int:
        """Write the root directory, those it must have before the given ones; the offset of the first of these."""
        self.write(self.root, self.root_entries + b"".join(entries))
        return self.offset_of(self.root) + 64


class SparseVolume(BareVolume):
    """The same in a sparse file, of any size; ``content`` is empty."""

    def __init__(self, path: Path, clusters: int, **shape: int) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        super().__init__(clusters, **shape)  # type: ignore[arg-type]

    def allocate(self) -> bytearray:
        os.truncate(self._fd, self.size_bytes)
        return bytearray()

    def put(self, offset: int, data: bytes) -> None:
        os.pwrite(self._fd, data, offset)

    def get(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        os.close(self._fd)
