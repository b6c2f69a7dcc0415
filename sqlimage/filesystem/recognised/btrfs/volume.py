"""A device of btrfs: its files are not read, but which parts of it no chunk takes, as far as that is safe to tell."""

from __future__ import annotations

from functools import cached_property

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import VolumeFacts
from sqlimage.filesystem.recognised.btrfs import layout
from sqlimage.filesystem.recognised.btrfs.chunks import chunks_on_device
from sqlimage.filesystem.recognised.btrfs.superblock import read_superblock
from sqlimage.filesystem.recognised.volume import uuid_text

_ALL_COUNTS = "so all of the volume counts as allocated"


class BtrfsVolume:
    """A :class:`~sqlimage.filesystem.contract.Recognised` volume. Opening it reads the superblock only; the facts
    also need the chunk tree, because what keeps its chunks from being told is among the notes.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where no superblock is right.
    """

    reason = "the files of btrfs are not read"

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._superblock, self._problem = read_superblock(device)

    @cached_property
    def facts(self) -> VolumeFacts:
        superblock = self._superblock
        notes = [self._chunks[1]]
        if superblock.devices > 1:
            notes.append(f"it is one of {superblock.devices} devices of a btrfs, which is whole only with all of them")
        return VolumeFacts(
            file_system="btrfs",
            size_bytes=superblock.size_bytes,
            bytes_per_sector=superblock.sector_bytes,
            bytes_per_cluster=superblock.sector_bytes,
            total_clusters=superblock.size_bytes // superblock.sector_bytes,
            alignment_bytes=superblock.sector_bytes,
            label=superblock.label,
            serial=uuid_text(superblock.fsid),
            dirty=superblock.has_log_tree,
            notes=tuple(note for note in notes if note),
        )

    def allocated(self) -> Runs | None:
        """The first MiB, the superblocks, and whatever lies in chunks, free inside them or not. None where there is a
        log tree or where anything contradicts anything; the facts' notes say which."""
        chunks = self._chunks[0]
        if chunks is None:
            return None
        fixed = [(0, layout.RESERVED_BYTES), *((at, layout.SUPERBLOCK_BYTES) for at in layout.SUPERBLOCKS_AT)]
        sector, size = self._superblock.sector_bytes, self._superblock.size_bytes
        return chunks.union(Runs.of(fixed).widen(sector)).clip(0, size)

    def left_out(self) -> Runs:
        return Runs.empty()

    @cached_property
    def _chunks(self) -> tuple[Runs | None, str | None]:
        """Where chunks lie, or why that is not told."""
        superblock = self._superblock
        if self._problem is not None:
            return None, f"its superblock is damaged ({self._problem}) and a mirror was used, {_ALL_COUNTS}"
        if superblock.unusable:
            return None, f"{superblock.unusable}, {_ALL_COUNTS}"
        if superblock.has_log_tree:
            return None, f"it was not unmounted, so its log tree is to be replayed, {_ALL_COUNTS}"
        try:
            return chunks_on_device(self._device, superblock), None
        except InconsistentVolume as problem:
            return None, f"its chunks cannot be told ({problem}), {_ALL_COUNTS}"
