"""What is to be captured: the medium, its volumes, what each says of itself, and in which unit all of it is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs, first_overlap
from sqlimage.filesystem.contract import HOLE, Contents, FileSystem, Recognised, Scan, VolumeFacts
from sqlimage.filesystem.iso9660 import IsoVolume, is_iso9660
from sqlimage.filesystem.osinfo import OperatingSystem, find_system
from sqlimage.filesystem.probe import look_at, pool_beside
from sqlimage.filesystem.relocation import Relocation
from sqlimage.image.paging import find_paging_files
from sqlimage.media.partition import Partition, PartitionTable, read_partition_table
from sqlimage.media.window import Window
from sqlimage.units import power_of_two_in

LARGEST_CLUSTER = 4096
"""The unit never exceeds what the page caches of operating systems write: a larger one would make each such write
read, change and store a whole cluster."""
_PADDING = 2 << 20
"""By how much the partitions of a hybrid ISO 9660 image may be longer than its volume."""
UNKNOWN = "no known file system"
_UNWRITTEN = "extents that were never written"
_UNALIGNED = "its partitions do not begin at clusters of the image"


@dataclass(frozen=True, slots=True)
class SourceVolume:
    """One volume of the medium. Runs are in bytes from the start of the *volume*."""

    number: int
    offset_bytes: int
    length_bytes: int
    partition: Partition | None = None
    facts: VolumeFacts | None = None
    scan: Scan | None = None
    """None: its files are not read, and ``raw_reason`` says why."""
    allocated: Runs = dataclasses.field(default_factory=Runs.empty)
    left_out: Runs = dataclasses.field(default_factory=Runs.empty)
    """Allocated, but not worth keeping: page and hibernation files, swap, what was never written."""
    left_out_names: tuple[str, ...] = ()
    paging_rows: frozenset[int] = frozenset()
    """Rows of the contents that are page, hibernation or swap files, whether they are left out or not."""
    system: OperatingSystem | None = None
    captured_as: str = "raw"
    """``files``; ``blocks``, where the files are not read but it is known which clusters count; ``raw``."""
    raw_reason: str | None = None
    undigested: frozenset[int] = frozenset()
    """Rows of the contents of which no digest may be kept, for they are encrypted."""
    relocation: Relocation | None = None
    """How it is laid out anew; then all of the above tells of the new layout."""
    scan_before: Scan | None = None
    """Of the layout it has, where it is to have another one."""


Arrange = Callable[[FileSystem, SourceVolume], SourceVolume]
"""Lays out a volume anew whose files are read, or says why not."""


@dataclass(frozen=True, slots=True)
class Medium:
    device: BlockDevice
    bytes_per_cluster: int
    table: PartitionTable | None
    table_problem: str | None
    volumes: tuple[SourceVolume, ...]
    secret: Runs = dataclasses.field(default_factory=Runs.empty)
    """What is to be encrypted, in bytes of the medium."""

    @property
    def size_bytes(self) -> int:
        return self.device.size_bytes

    @property
    def total_clusters(self) -> int:
        return -(-self.size_bytes // self.bytes_per_cluster)

    def gaps(self) -> Runs:
        """Bytes of the medium that lie in no volume: partition tables, boot loaders, what nobody claims."""
        return Runs.of((v.offset_bytes, v.length_bytes) for v in self.volumes).complement(self.size_bytes)


def inspect(
    device: BlockDevice,
    *,
    partition: Partition | None = None,
    keep_page_files: bool = False,
    arrange: Arrange | None = None,
) -> Medium:
    """Look at a medium: its partition table, and on each volume the file system's control information.

    ``partition`` tells that the device is that partition of a disk, so no table is looked for. Where a partition table
    describes parts of an ISO 9660 volume (a hybrid image), the volume counts, and the partitions behind it. ``arrange``
    is asked about every volume whose files are read and whose free clusters are known.

    What contradicts itself is not trusted: that volume is taken raw. Raises
    :class:`~sqlimage.errors.DeviceError` where the medium cannot be read.
    """
    table, problem = None, None
    try:
        table = read_partition_table(device) if partition is None else None
    except InconsistentVolume as contradiction:
        problem = str(contradiction)
    places: list[tuple[int, int, Partition | None]] = []
    partitions = table.partitions if table is not None else ()
    hybrid_bytes = _hybrid_bytes(device, partitions)
    if hybrid_bytes is not None:
        partitions = tuple(part for part in partitions if part.offset_bytes >= hybrid_bytes)
        places.append((0, hybrid_bytes if partitions else device.size_bytes, None))
    elif not partitions:
        places.append((0, device.size_bytes, partition))
    places += [(part.offset_bytes, part.length_bytes, part) for part in partitions]
    volumes = [
        _with_what_it_says(
            device if length == device.size_bytes else Window(device, offset, length),
            SourceVolume(number, offset, length, part),
            keep_page_files,
            arrange,
        )
        for number, (offset, length, part) in enumerate(places)
    ]
    return Medium(device, _unit(volumes, device.size_bytes), table, problem, tuple(volumes))


def _hybrid_bytes(device: BlockDevice, partitions: Sequence[Partition]) -> int | None:
    """The size of the ISO 9660 volume that a medium begins with, where its partitions are parts of it or lie behind it.

    On a disk that was partitioned anew, where only the descriptors of an older image are left, they reach beyond it.
    """
    if not partitions or not is_iso9660(device):
        return None
    try:
        end = IsoVolume(device).facts.size_bytes
    except InconsistentVolume:
        return None
    for part in partitions:
        if part.offset_bytes < end and part.offset_bytes + part.length_bytes > end + _PADDING:
            return None
    return end


def _with_what_it_says(
    device: BlockDevice, bare: SourceVolume, keep_page_files: bool, arrange: Arrange | None
) -> SourceVolume:
    """A volume with what it says of itself."""
    raw = dataclasses.replace(bare, allocated=Runs.of([(0, bare.length_bytes)]))
    facts = None
    try:
        file_system, recognised = look_at(device)
        if file_system is not None:
            facts = _checked(file_system.facts, bare)
            if (pool := pool_beside(device)) is not None:
                return _with_all_kept(_with_files(file_system, facts, raw, True), raw, pool)
            found = _with_files(file_system, facts, raw, keep_page_files)
            return arrange(file_system, found) if arrange is not None else found
        if recognised is not None:
            facts = _checked(recognised.facts, bare)
            return _with_blocks(recognised, facts, raw, keep_page_files)
    except InconsistentVolume as contradiction:
        return dataclasses.replace(raw, facts=facts, raw_reason=str(contradiction))
    return dataclasses.replace(raw, raw_reason=UNKNOWN)


def _checked(facts: VolumeFacts, bare: SourceVolume) -> VolumeFacts:
    if facts.size_bytes > bare.length_bytes:
        problem = f"the volume has {facts.size_bytes} bytes, the medium {bare.length_bytes}"
        raise InconsistentVolume("boot sector", problem)
    return facts


def _with_files(file_system: FileSystem, facts: VolumeFacts, raw: SourceVolume, keep_page_files: bool) -> SourceVolume:
    allocated, scan = file_system.allocated(), file_system.scan()
    _check_places(scan.contents, allocated, facts.may_share)
    paging = find_paging_files(file_system, scan)
    unwritten = _unwritten(scan.contents)
    names = (*paging.paths, *((_UNWRITTEN,) if len(unwritten) else ()))
    is_kept = keep_page_files or facts.may_share  # what one file does not need may be another's
    return dataclasses.replace(
        raw,
        facts=facts,
        scan=scan,
        allocated=allocated.union(raw.allocated.clip(facts.size_bytes, raw.length_bytes)),
        left_out=Runs.empty() if is_kept else paging.left_out.union(unwritten),
        left_out_names=() if is_kept else names,
        paging_rows=frozenset() if facts.may_share else paging.rows,
        system=find_system(file_system, scan),
        captured_as="files",
    )


def _with_all_kept(found: SourceVolume, raw: SourceVolume, pool: Recognised) -> SourceVolume:
    """A volume with files, none of whose clusters is free: what the file system calls so may be the pool's."""
    assert found.facts is not None
    note = f"{pool.facts.file_system} is recognised beside {found.facts.file_system}: its free clusters are kept"
    facts = dataclasses.replace(found.facts, notes=(*found.facts.notes, note))
    return dataclasses.replace(found, facts=facts, allocated=raw.allocated, paging_rows=frozenset())


def _with_blocks(recognised: Recognised, facts: VolumeFacts, raw: SourceVolume, keep_page_files: bool) -> SourceVolume:
    allocated, left_out = recognised.allocated(), recognised.left_out()
    beyond = raw.allocated.clip(facts.size_bytes, raw.length_bytes)
    is_swap = len(left_out) > 0 and not keep_page_files
    return dataclasses.replace(
        raw,
        facts=facts,
        allocated=raw.allocated if allocated is None else allocated.union(beyond),
        left_out=left_out if is_swap else Runs.empty(),
        left_out_names=("the pages of the swap area",) if is_swap else (),
        captured_as="raw" if allocated is None and not is_swap else "blocks",
        raw_reason=f"{facts.file_system} area, kept whole" if keep_page_files and len(left_out) else recognised.reason,
    )


def _check_places(contents: Contents, allocated: Runs, may_share: bool) -> None:
    """Every cluster of a file is allocated, and no two files share one unless the file system lets them."""
    backed = contents.run_offset != HOLE
    start, length = contents.run_offset[backed], contents.run_length[backed]
    place = None if may_share else first_overlap(start, length)
    if place is not None:
        raise InconsistentVolume("run list", "two files claim the same cluster", offset_bytes=place)
    stray = Runs.from_arrays(start, length).subtract(allocated)
    if len(stray):
        raise InconsistentVolume("bitmap", "a file lies on clusters marked free", offset_bytes=int(stray.start[0]))


def _unwritten(contents: Contents) -> Runs:
    """Clusters that are a file's, but read as zeros whatever they hold."""
    if contents.run_unwritten is None:
        return Runs.empty()
    return Runs.from_arrays(contents.run_offset[contents.run_unwritten], contents.run_length[contents.run_unwritten])


def _unit(volumes: list[SourceVolume], size_bytes: int) -> int:
    """The largest unit, up to ``LARGEST_CLUSTER``, that every border of every volume is a multiple of."""
    borders = [LARGEST_CLUSTER]
    for volume in volumes:
        borders.append(volume.offset_bytes)
        if volume.facts and volume.captured_as != "raw":
            borders.append(volume.facts.alignment_bytes)
        if volume.offset_bytes + volume.length_bytes < size_bytes:
            borders.append(volume.length_bytes)
    return max(512, power_of_two_in(int(np.bitwise_or.reduce(np.array(borders, dtype=np.int64)))))


def in_units_of(unit: int, medium: Medium) -> Medium:
    """The medium in the clusters of the image, which do not change. What a guest laid out finer than them is told in
    whole clusters; partitions that begin between them cannot be told, and the medium is one raw volume."""
    if all(volume.offset_bytes % unit == 0 for volume in medium.volumes):
        return dataclasses.replace(medium, bytes_per_cluster=unit)
    raw = SourceVolume(0, 0, medium.size_bytes, allocated=Runs.of([(0, medium.size_bytes)]), raw_reason=_UNALIGNED)
    return dataclasses.replace(medium, bytes_per_cluster=unit, volumes=(raw,))
