"""What is to be captured: the medium, its volumes, what each says of itself, and in which unit all of it is counted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs, first_overlap
from sqlimage.filesystem.contract import HOLE, Contents, EntryKind, Scan, VolumeFacts
from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.partition import Partition, PartitionTable, read_partition_table
from sqlimage.media.window import Window
from sqlimage.units import power_of_two_in

LARGEST_CLUSTER = 4096
"""The unit never exceeds what the page caches of operating systems write: a larger one would make each such write
read, change and store a whole cluster."""
PAGE_FILES = frozenset({"/pagefile.sys", "/swapfile.sys", "/hiberfil.sys"})
UNKNOWN = "no known file system"
_UNALIGNED = "its partitions do not begin at clusters of the image"


@dataclass(frozen=True, slots=True)
class SourceVolume:
    """One volume of the medium. Runs are in bytes from the start of the *volume*."""

    number: int
    offset_bytes: int
    length_bytes: int
    partition: Partition | None
    facts: VolumeFacts | None
    scan: Scan | None
    """None: the volume is taken raw, and ``raw_reason`` says why."""
    allocated: Runs
    left_out: Runs
    """Allocated, but not worth keeping: page and hibernation files."""
    left_out_paths: tuple[str, ...]
    raw_reason: str | None


@dataclass(frozen=True, slots=True)
class Medium:
    device: BlockDevice
    bytes_per_cluster: int
    table: PartitionTable | None
    table_problem: str | None
    volumes: tuple[SourceVolume, ...]

    @property
    def size_bytes(self) -> int:
        return self.device.size_bytes

    @property
    def total_clusters(self) -> int:
        return -(-self.size_bytes // self.bytes_per_cluster)

    def gaps(self) -> Runs:
        """Bytes of the medium that lie in no volume: partition tables, boot loaders, what nobody claims."""
        return Runs.of((v.offset_bytes, v.length_bytes) for v in self.volumes).complement(self.size_bytes)


def inspect(device: BlockDevice, *, partition: Partition | None = None, keep_page_files: bool = False) -> Medium:
    """Look at a medium: its partition table, and on each volume the file system's control information.

    ``partition`` tells that the device is that partition of a disk, so no table is looked for.

    What contradicts itself is not trusted: that volume is taken raw. Raises
    :class:`~sqlimage.errors.DeviceError` where the medium cannot be read.
    """
    table, problem = None, None
    try:
        table = read_partition_table(device) if partition is None else None
    except InconsistentVolume as contradiction:
        problem = str(contradiction)
    if table is None or not table.partitions:
        volumes = [_volume(device, 0, 0, device.size_bytes, partition, keep_page_files)]
    else:
        volumes = [
            _volume(
                Window(device, p.offset_bytes, p.length_bytes), n, p.offset_bytes, p.length_bytes, p, keep_page_files
            )
            for n, p in enumerate(table.partitions)
        ]
    return Medium(device, _unit(volumes, device.size_bytes), table, problem, tuple(volumes))


def _volume(
    device: BlockDevice, number: int, offset: int, length: int, partition: Partition | None, keep_page_files: bool
) -> SourceVolume:
    everything = Runs.of([(0, length)])
    facts = None
    try:
        file_system = open_file_system(device)
        if file_system is None:
            raise InconsistentVolume("volume", UNKNOWN)
        facts = file_system.facts
        if facts.size_bytes > length:
            raise InconsistentVolume("boot sector", f"the volume has {facts.size_bytes} bytes, the medium {length}")
        allocated = file_system.allocated()
        scan = file_system.scan()
        _check_places(scan.contents, allocated)
    except InconsistentVolume as contradiction:
        reason = UNKNOWN if contradiction.problem == UNKNOWN else str(contradiction)
        return SourceVolume(number, offset, length, partition, facts, None, everything, Runs.empty(), (), reason)
    beyond = everything.clip(facts.size_bytes, length)
    paths, left_out = ((), Runs.empty()) if keep_page_files else _page_files(scan)
    return SourceVolume(number, offset, length, partition, facts, scan, allocated.union(beyond), left_out, paths, None)


def _check_places(contents: Contents, allocated: Runs) -> None:
    """Every cluster of a file is allocated, and no two files share one."""
    backed = contents.run_offset != HOLE
    start, length = contents.run_offset[backed], contents.run_length[backed]
    place = first_overlap(start, length)
    if place is not None:
        raise InconsistentVolume("run list", "two files claim the same cluster", offset_bytes=place)
    stray = Runs.from_arrays(start, length).subtract(allocated)
    if len(stray):
        raise InconsistentVolume("bitmap", "a file lies on clusters marked free", offset_bytes=int(stray.start[0]))


def _page_files(scan: Scan) -> tuple[tuple[str, ...], Runs]:
    paths, runs = [], Runs.empty()
    kinds, rows, contents = scan.entries.kind, scan.entries.content, scan.contents
    for number, path in enumerate(scan.entries.path):
        # The length test spares a casefold for nearly every path.
        if len(path) <= 13 and path.casefold() in PAGE_FILES and kinds[number] == EntryKind.FILE and rows[number] >= 0:
            part = slice(contents.first_run[rows[number]], contents.first_run[rows[number] + 1])
            start, length = contents.run_offset[part], contents.run_length[part]
            paths.append(path)
            runs = runs.union(Runs.from_arrays(start[start != HOLE], length[start != HOLE]))
    return tuple(paths), runs


def _unit(volumes: list[SourceVolume], size_bytes: int) -> int:
    """The largest unit, up to ``LARGEST_CLUSTER``, that every border of every volume is a multiple of."""
    borders = [LARGEST_CLUSTER]
    for volume in volumes:
        borders.append(volume.offset_bytes)
        if volume.facts and volume.scan:
            borders.append(volume.facts.alignment_bytes)
        if volume.offset_bytes + volume.length_bytes < size_bytes:
            borders.append(volume.length_bytes)
    return max(512, power_of_two_in(int(np.bitwise_or.reduce(np.array(borders, dtype=np.int64)))))


def in_units_of(unit: int, medium: Medium) -> Medium:
    """The medium in the clusters of the image, which do not change. What a guest laid out finer than them is told in
    whole clusters; partitions that begin between them cannot be told, and the medium is one raw volume."""
    if all(volume.offset_bytes % unit == 0 for volume in medium.volumes):
        return dataclasses.replace(medium, bytes_per_cluster=unit)
    whole = Runs.of([(0, medium.size_bytes)])
    raw = SourceVolume(0, 0, medium.size_bytes, None, None, None, whole, Runs.empty(), (), _UNALIGNED)
    return dataclasses.replace(medium, bytes_per_cluster=unit, volumes=(raw,))
