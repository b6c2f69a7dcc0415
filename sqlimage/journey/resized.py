"""The layout that a restore writes, with what it was planned from at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from sqlimage.device import BlockDevice
from sqlimage.errors import DamagedError, FormatError, InconsistentVolume, RefusedError, UsageError
from sqlimage.filesystem.probe import open_file_system
from sqlimage.image.chunks import Cache
from sqlimage.image.image import Version
from sqlimage.image.proof import Before, prove, prove_files, prove_in_place
from sqlimage.journey.relaid import Layout, check_fixups
from sqlimage.journey.resizable import WITH_HIDDEN_SECTORS, Target
from sqlimage.journey.resize import plan_volume
from sqlimage.journey.resize_disk import plan_disk
from sqlimage.journey.unpack import Part
from sqlimage.media.partition import read_partition_table
from sqlimage.media.window import Window
from sqlimage.streams import files
from sqlimage.units import MIB

_HIDDEN_SECTORS_MAX = (1 << 32) - 1


_CACHE = Cache(128 * MIB)
"""Control information is read several times: the MFT of 100,000 files has 100 MiB."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout, and the part of the medium as it was captured; open while it is used."""

    version: Version
    source: BlockDevice | None
    layout: Layout
    digests: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """See :meth:`look_up_digests`; what is not told is read from the image again."""

    def prove(self, target: BlockDevice, threads: int | None) -> int:
        """Read again all that was laid out anew; how many contents were compared.

        Raises :class:`~sqlimage.errors.DamagedError` where something is not what was planned or held.
        """
        compared = 0
        check_fixups(target, self.layout.fixups)
        if self.layout.partitions is not None:
            self._check_table(target, self.layout.partitions)
        for volume in self.layout.volumes:
            assert self.source is not None
            old = Window(self.source, volume.offset_before, volume.length_before)
            new = Window(target, volume.offset_bytes, volume.length_bytes)
            if volume.stays:
                prove_in_place(new, volume.facts)
                continue
            before = Before(old, volume.scan_before, self.digests.get(volume.number, {}))
            if volume.relocation is not None:
                compared += prove(new, volume.relocation, before, threads=threads)
            else:
                assert volume.resized is not None
                volume.resized.check_control(new)
                compared += prove_files(new, before, threads=threads)
        return compared

    def _check_table(self, target: BlockDevice, places: Sequence[tuple[int, int]]) -> None:
        """That the new table tells the places that were planned."""
        assert self.source is not None
        if target.bytes_per_sector != self.source.bytes_per_sector:
            return  # a file that holds a disk of larger sectors
        try:
            table = read_partition_table(target)
        except InconsistentVolume as contradiction:
            raise _table_differs(str(contradiction)) from None
        found = table.partitions if table is not None else ()
        if [(partition.offset_bytes, partition.length_bytes) for partition in found] != list(places):
            raise _table_differs("its partitions lie elsewhere")

    def look_up_digests(self) -> None:
        """Have at hand what the file table says of the contents that will be read again: by volume and row of the scan,
        to be called before the disk is busy."""
        self.version.image.attach_parents(self.version.control)
        for volume in self.layout.volumes:
            if not volume.stays:
                told = files.every_digest(self.version.image.database, self.version.number, volume.number)
                entries = volume.scan_before.entries
                digests = map(told.get, entries.path)
                pairs = zip(entries.content.tolist(), digests, strict=True)
                self.digests[volume.number] = {row: digest for row, digest in pairs if digest is not None and row >= 0}


def _table_differs(what: str) -> DamagedError:
    return DamagedError(
        f"the new partition table is not what was planned: {what}", hint="this is a defect of sqlimage: report it"
    )


@contextmanager
def planned(version: Version, volume: int | None, part: Part, target: Target) -> Iterator[Plan]:
    """Plan a restore. Raises :class:`~sqlimage.errors.RefusedError` where the destination's wishes cannot be met."""
    if not 0 <= (target.hidden_sectors or 0) <= _HIDDEN_SECTORS_MAX:
        raise UsageError(f"{target.hidden_sectors} hidden sectors are not possible, allowed are 0 to 4294967295")
    allocated = part.bytes_of(version.allocated())
    is_disk = volume is None and version.control.partition_scheme is not None
    as_captured = Layout.as_captured(part.length_bytes, allocated)
    if target.is_as_captured and (is_disk or target.begins_at is None):
        yield Plan(version, None, as_captured)
        return
    with ExitStack() as open_files:
        driver = version.driver(cache=_CACHE)
        open_files.callback(driver.close)
        source = Window(driver, part.start_cluster * part.bytes_per_cluster, part.length_bytes)
        try:
            if is_disk:
                layout = plan_disk(source, allocated, target, open_files)
            elif target.is_as_captured:
                layout = _where_it_begins(source, as_captured, target, volume or 0, open_files)
            else:
                wanted = target if target.hidden_sectors is not None else _with_place(source, target)
                layout = plan_volume(source, allocated, wanted, volume or 0, open_files)
        except InconsistentVolume as problem:
            raise FormatError(f"{version.image.path}: {problem}") from None
        yield Plan(version, source, layout)


def _with_place(source: BlockDevice, target: Target) -> Target:
    """The target with the hidden sectors of the place it is, where the boot sector tells others."""
    try:
        file_system = open_file_system(source)
    except InconsistentVolume:
        return target
    if file_system is None or file_system.facts.file_system not in WITH_HIDDEN_SECTORS:
        return target
    place = target.begins_at
    return target if place in (None, file_system.facts.hidden_sectors) else replace(target, hidden_sectors=place)


def _where_it_begins(
    source: BlockDevice, as_captured: Layout, target: Target, number: int, open_files: ExitStack
) -> Layout:
    """A volume as it was captured, but for what its boot sector says of its place, where that can be changed."""
    wanted = _with_place(source, target)
    if wanted.hidden_sectors is None or as_captured.size_bytes > (target.room_bytes or as_captured.size_bytes):
        return as_captured
    try:
        layout = plan_volume(source, as_captured.allocated, wanted, number, open_files)
    except (RefusedError, InconsistentVolume) as refused:
        note = f"its boot sector does not say that {wanted.hidden_sectors} sectors lie before it: {refused.message}"
        return replace(as_captured, notes=(note,))
    if layout.volumes[0].facts.hidden_sectors != wanted.hidden_sectors:
        note = f"its boot sector cannot say that {wanted.hidden_sectors} sectors lie before it"
    else:
        note = f"its boot sector says that {wanted.hidden_sectors} sectors lie before it, as there do"
    return replace(layout, notes=(*layout.notes, note))
