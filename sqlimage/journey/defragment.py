"""A capture of volumes that are laid out anew on the way: the fix-up stream, and the proof before anything is kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sqlimage.image.medium import Medium, SourceVolume
from sqlimage.image.proof import Before, prove
from sqlimage.image.relayout import fixups_of, laid_out
from sqlimage.image.relocated import RelocatedDevice
from sqlimage.image.stored import StoredDevice
from sqlimage.image.uncommitted import Ancestors, stored_version
from sqlimage.journey.jobs import Key
from sqlimage.media.window import Window
from sqlimage.streams import fixups
from sqlimage.streams.database import Database


class Relayout:
    """What a capture does about the volumes of its medium that get another layout; nothing where none does."""

    def __init__(self, medium: Medium) -> None:
        self._source = medium
        self.medium = laid_out(medium)
        """As it is to be captured."""
        self.device = self.medium.device if isinstance(self.medium.device, RelocatedDevice) else None

    def begin(self, database: Database) -> None:
        """Write the fix-ups, within the transaction."""
        if self.device is not None:
            fixups.insert(database, fixups_of(self._source))

    def finish(self, database: Database) -> None:
        """When all was read: see that every fix-up was applied, and drop them."""
        if self.device is not None:
            self.device.check_applied()
            fixups.drop(database)

    def prove(
        self,
        database: Database,
        version: int,
        taken: Mapping[Key, bytes],
        threads: int | None,
        parent: Ancestors | None = None,
    ) -> None:
        """Read every volume again from what was stored, within the transaction that stores it. ``taken`` are digests
        of contents as they were read from the source.

        Raises :class:`~sqlimage.errors.DamagedError` where it is not what was planned, or does not hold what it held.
        """
        if self.device is None:
            return
        table, fetch = stored_version(database, version, parent)
        for volume in self.medium.volumes:
            if volume.relocation is None or volume.scan_before is None:
                continue
            before = Before(
                Window(self._source.device, volume.offset_bytes, volume.length_bytes),
                volume.scan_before,
                {row: digest for (number, row), digest in taken.items() if number == volume.number},
                _left_out(volume),
                taken_by_moves=True,
            )
            place = volume.offset_bytes, volume.length_bytes
            stored = StoredDevice(table, self.medium.bytes_per_cluster, fetch, *place)
            prove(stored, volume.relocation, before, threads=threads)


def _left_out(volume: SourceVolume) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
    """Contents of which clusters were not taken."""
    if not len(volume.left_out) or volume.scan is None:
        return None
    contents = volume.scan.contents
    ignored = np.zeros(len(contents), dtype=np.bool_)
    ignored[list(volume.paging_rows)] = True
    return ignored
