"""The layout that a restore writes, with what it was planned from at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.errors import FormatError, InconsistentVolume
from sqlimage.image.image import Version
from sqlimage.image.proof import Before, prove
from sqlimage.journey.relaid import Layout, RelaidVolume
from sqlimage.journey.resize import Target, plan_volume
from sqlimage.journey.resize_disk import plan_disk
from sqlimage.journey.unpack import Part
from sqlimage.media.window import Window
from sqlimage.streams import files


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout, and the part of the medium as it was captured; open while it is used."""

    version: Version
    source: BlockDevice | None
    layout: Layout

    def prove(self, target: BlockDevice, threads: int | None) -> int:
        """Read again all that was laid out anew; how many contents were compared.

        Raises :class:`~sqlimage.errors.DamagedError` where something is not what was planned or held.
        """
        compared = 0
        for volume in self.layout.volumes:
            assert self.source is not None
            old = Window(self.source, volume.offset_before, volume.length_before)
            new = Window(target, volume.offset_bytes, volume.length_bytes)
            before = Before(old, volume.scan_before, self._digests(volume))
            compared += prove(new, volume.relocation, before, threads=threads)
        return compared

    def _digests(self, volume: RelaidVolume) -> dict[int, bytes]:
        """What the file table says of contents, by row of the scan."""
        self.version.image.attach_parents(self.version.control)
        rows = files.every_row(self.version.image.database, self.version.number, volume.number)
        told = {row[2]: row[9] for row in rows if row[9] is not None}
        entries = volume.scan_before.entries
        found = {}
        for path, row in zip(entries.path, entries.content.tolist(), strict=True):
            digest = told.get(path)
            if row >= 0 and isinstance(digest, bytes):
                found[row] = digest
        return found


@contextmanager
def planned(version: Version, volume: int | None, part: Part, target: Target) -> Iterator[Plan]:
    """Plan a restore. Raises :class:`~sqlimage.errors.RefusedError` where the destination's wishes cannot be met."""
    allocated = part.bytes_of(version.allocated())
    if target.is_as_captured:
        yield Plan(version, None, Layout.as_captured(part.length_bytes, allocated))
        return
    driver = version.driver()
    try:
        start = part.start_cluster * part.bytes_per_cluster
        source = Window(driver, start, part.length_bytes)
        try:
            if volume is None and version.control.partition_scheme is not None:
                layout = plan_disk(source, allocated, target)
            else:
                layout = plan_volume(source, allocated, target, volume or 0)
        except InconsistentVolume as problem:
            raise FormatError(f"{version.image.path}: {problem}") from None
        yield Plan(version, source, layout)
    finally:
        driver.close()
