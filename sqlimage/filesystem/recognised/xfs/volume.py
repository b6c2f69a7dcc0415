"""A volume of XFS: its files are not read, but where its free space lies, as far as that is safe to tell."""

from __future__ import annotations

from functools import cached_property

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import VolumeFacts
from sqlimage.filesystem.recognised.volume import uuid_text
from sqlimage.filesystem.recognised.xfs.log import is_clean
from sqlimage.filesystem.recognised.xfs.space import free_space
from sqlimage.filesystem.recognised.xfs.superblock import read_geometry

_ALL_COUNTS = "so all of the volume counts as allocated"


class XfsVolume:
    """A :class:`~sqlimage.filesystem.contract.Recognised` volume. Opening it reads the superblock only; the facts
    also need the log and the free space, because what keeps the latter from being told is among the notes.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where no superblock is right.
    """

    reason = "the files of XFS are not read"

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._geometry, self._problem = read_geometry(device)

    @cached_property
    def facts(self) -> VolumeFacts:
        geometry = self._geometry
        note = self._free_space[1]
        return VolumeFacts(
            file_system="xfs",
            size_bytes=geometry.size_bytes,
            bytes_per_sector=geometry.sector_bytes,
            bytes_per_cluster=geometry.block_bytes,
            total_clusters=geometry.size_bytes // geometry.block_bytes,
            alignment_bytes=geometry.block_bytes,
            label=geometry.label,
            serial=uuid_text(geometry.uuid),
            format_version=str(geometry.version),
            dirty=not self._is_clean,
            notes=(note,) if note else (),
        )

    def allocated(self) -> Runs | None:
        """All but the pieces that the B-trees of free space hold. None where the log may be newer than these, or
        where anything contradicts anything; the facts' notes say which."""
        free = self._free_space[0]
        return None if free is None else free.complement(self._geometry.size_bytes)

    def left_out(self) -> Runs:
        return Runs.empty()

    @cached_property
    def _is_clean(self) -> bool:
        return self._geometry.log_blocks > 0 and is_clean(self._device, self._geometry)

    @cached_property
    def _free_space(self) -> tuple[Runs | None, str | None]:
        """The free space, or why it is not told."""
        geometry = self._geometry
        if self._problem is not None:
            return None, f"its superblock is damaged ({self._problem}) and a copy was used, {_ALL_COUNTS}"
        if geometry.unusable:
            return None, f"{geometry.unusable}, {_ALL_COUNTS}"
        if geometry.log_blocks == 0:
            return None, f"its log lies on another device, {_ALL_COUNTS}"
        if not self._is_clean:
            return None, f"it was not unmounted, so its log is to be recovered, {_ALL_COUNTS}"
        try:
            return free_space(self._device, geometry), None
        except InconsistentVolume as problem:
            return None, f"its free space cannot be told ({problem}), {_ALL_COUNTS}"
