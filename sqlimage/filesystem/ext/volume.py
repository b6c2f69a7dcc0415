"""An ext2, ext3 or ext4 volume, read-only and untrusted."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.content import Content, ContentRuns, InlineContent, RunContent
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents, Scan, VolumeFacts
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.groups import Groups, allocated_blocks, read_groups
from sqlimage.filesystem.ext.inode import read_all, read_one
from sqlimage.filesystem.ext.journal import Recovered, Recovery, read_journal
from sqlimage.filesystem.ext.superblock import Geometry, is_ext, read_geometry, uuid_text, validate
from sqlimage.filesystem.ext.tree import contents_of, scan
from sqlimage.filesystem.ext.xattr import check_attribute_blocks

__all__ = ["ExtVolume", "is_ext"]


class _Journal(NamedTuple):
    """What the journal holds, where it needs recovery; or why that cannot be told."""

    recovery: Recovery | None
    problem: InconsistentVolume | None


class ExtVolume:
    """The :class:`~sqlimage.filesystem.contract.FileSystem` of an ext2, ext3 or ext4 volume that fills ``device`` from
    its start, by the kernel's documentation of ext4. A record is an inode.

    Constructing one reads the superblock, or a backup where that is damaged. A journal that needs recovery is read, and
    the volume is told as it will be once that is done; the volume itself is not changed. Everything raises
    :class:`~sqlimage.errors.InconsistentVolume` where the structures it needs are damaged.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._raw = device
        self._first_geometry, self._damage = read_geometry(device)

    @cached_property
    def facts(self) -> VolumeFacts:
        geometry, state = self._geometry, self._first_geometry.state
        return VolumeFacts(
            file_system=geometry.file_system,
            size_bytes=geometry.size_bytes,
            bytes_per_sector=self._raw.bytes_per_sector,
            bytes_per_cluster=geometry.bytes_per_cluster,
            total_clusters=geometry.total_clusters,
            alignment_bytes=geometry.bytes_per_block,
            label=geometry.label.decode("utf-8", "replace") or None,
            serial=uuid_text(geometry.uuid),
            format_version=geometry.revision,
            dirty=self._needs_recovery or not state & layout.STATE_VALID or bool(state & layout.STATE_ERROR),
            may_share=geometry.has_shared_blocks,
            notes=tuple(self._notes()),
        )

    def allocated(self) -> Runs:
        """Blocks that the bitmaps call used, before the journal's recovery or after it; all of them where that cannot
        be told for sure."""
        geometry, size = self._geometry, self._geometry.bytes_per_block
        if self._is_unsure:
            return Runs.of([(0, geometry.size_bytes)])
        blocks = allocated_blocks(self._device, geometry, self._groups)
        if self._needs_recovery:
            before = self._first_geometry
            with suppress(InconsistentVolume):  # descriptors half written say nothing
                groups = read_groups(self._raw, before, as_they_lie=True)
                blocks = blocks.union(allocated_blocks(self._raw, before, groups)).clip(0, geometry.blocks_count)
        return Runs(blocks.start * size, blocks.length * size)

    def scan(self) -> Scan:
        """Every name and every content; files that no directory names are listed below ``/$OrphanFiles``."""
        inodes = read_all(self._device, self._geometry, self._groups)
        check_attribute_blocks(self._device, self._geometry, inodes)
        found = scan(self._device, self._geometry, inodes)
        if (recovery := self._journal.recovery) is not None:
            self._mark_pending(found.contents, recovery)
        return found

    def open(self, record: int, stream: str = "") -> Content:
        """The bytes of an inode: a file's, a directory's, a symbolic link's target.

        Raises :class:`~sqlimage.errors.NotFoundError` where it is not in use, or has no bytes.
        """
        if stream:
            raise NotFoundError(f"inode {record} has no stream {stream!r}: ext has no streams")
        found = read_one(self._device, self._geometry, self._groups, record)
        if found is None or not found.has_content[0]:
            raise NotFoundError(f"the volume has no file with inode {record}")
        if 0 in found.inline:
            return InlineContent(found.inline[0])
        contents = contents_of(self._geometry, found)
        place = contents.run_offset
        if contents.run_unwritten is not None:
            place = np.where(contents.run_unwritten, HOLE, place)
        runs = ContentRuns(contents.run_place().tolist(), place.tolist(), contents.run_length.tolist())
        size = int(found.size_bytes[0])
        return RunContent(self._device, runs, size, size)

    def _mark_pending(self, contents: Contents, recovery: Recovery) -> None:
        """A content of which the journal holds blocks does not lie in its runs as it reads; it is told as compressed,
        so that nobody takes its digest from there."""
        size = self._geometry.bytes_per_block
        pending = np.array(sorted(recovery.places), dtype=np.int64) * size
        end = contents.run_offset + contents.run_length
        held = np.searchsorted(pending, contents.run_offset) < np.searchsorted(pending, end)
        contents.flags[contents.run_owner()[held & (contents.run_offset != HOLE)]] |= np.uint8(ContentFlag.COMPRESSED)

    @cached_property
    def _geometry(self) -> Geometry:
        """What the superblock will say after the journal's recovery."""
        before, recovery = self._first_geometry, self._journal.recovery
        if recovery is None or before.superblock_block not in recovery.places:
            return before
        raw = self._device.read(layout.SUPERBLOCK_AT, layout.SUPERBLOCK_BYTES)
        return validate(raw, self._raw.size_bytes, 0)

    @cached_property
    def _groups(self) -> Groups:
        return read_groups(self._device, self._geometry)

    @cached_property
    def _journal(self) -> _Journal:
        """A backup of the superblock does not tell whether the journal needs recovery: then the journal does."""
        geometry = self._first_geometry
        if not geometry.journal_inode or not (geometry.needs_recovery or self._damage):
            return _Journal(None, None)
        try:
            groups = read_groups(self._raw, geometry, as_they_lie=True)
            found = read_one(self._raw, geometry, groups, geometry.journal_inode)
            if found is None or not len(found.runs.owner):
                raise InconsistentVolume("journal", f"its inode {geometry.journal_inode} is not in use")
            return _Journal(read_journal(self._raw, geometry, found.runs, int(found.size_bytes[0])), None)
        except InconsistentVolume as problem:
            return _Journal(None, problem)

    @cached_property
    def _device(self) -> BlockDevice:
        recovery = self._journal.recovery
        if recovery is None or not recovery.places:
            return self._raw
        return Recovered(self._raw, self._first_geometry, recovery)

    @property
    def _needs_recovery(self) -> bool:
        recovery = self._journal.recovery
        return self._first_geometry.needs_recovery or (recovery is not None and recovery.is_pending)

    @cached_property
    def _is_unsure(self) -> bool:
        """Whether more may be in use than the bitmaps tell: by changes pending that are not followed, or since the
        backup of the superblock or of the descriptors that was read is not known to be of the present."""
        if self._damage is not None and not is_ext(self._raw.read(0, min(self._raw.size_bytes, 2048))):
            return True
        recovery = self._journal.recovery
        if recovery is None:
            return self._needs_recovery or self._journal.problem is not None or self._groups.is_stale
        return recovery.has_fast_commits or self._groups.is_stale

    def _notes(self) -> list[str]:
        notes = []
        if self._damage is not None:
            group = self._first_geometry.copy_in_group
            notes.append(
                f"its first superblock is damaged ({self._damage}); the backup in block group {group} was read"
            )
        recovery, problem = self._journal
        if problem is not None:
            notes.append(f"its journal cannot be recovered ({problem}); files are listed as they lie")
        elif self._needs_recovery and recovery is None:
            notes.append("its journal is on another device and needs recovery; files are listed as they lie")
        elif self._needs_recovery:
            notes.append("its journal needs recovery: it was in use; files are listed as they will be after that")
        if recovery is not None and recovery.has_fast_commits:
            notes.append("its journal holds fast commits, which are not read: the last changes are not listed")
        return notes
