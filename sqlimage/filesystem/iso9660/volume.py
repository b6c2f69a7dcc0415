"""An opened ISO 9660 volume.

A file is known by the place of its Directory Record: record = byte offset of the record on the volume (of its first
section's; of the root directory's in the descriptor). What only El Torito names is known by the place of what names it.
"""

from __future__ import annotations

from functools import cached_property

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.content import Content, ContentRuns, InlineContent, RunContent
from sqlimage.filesystem.contract import EntryKind, Scan, VolumeFacts
from sqlimage.filesystem.iso9660 import layout
from sqlimage.filesystem.iso9660.descriptor import read_descriptors
from sqlimage.filesystem.iso9660.eltorito import Boot, BootFile, read_boot
from sqlimage.filesystem.iso9660.item import Item, Items, Tree
from sqlimage.filesystem.iso9660.record import Record, records_from
from sqlimage.filesystem.iso9660.tree import ASSOCIATED, choose_tree, root_item, scan
from sqlimage.filesystem.iso9660.zisofs import ZisofsContent

_SECTOR = layout.SECTOR_BYTES
_SESSION_ALIGNMENT = 16 * _SECTOR
"""Where sessions of DVDs and later media begin."""


class IsoVolume:
    """A :class:`~sqlimage.filesystem.contract.FileSystem` by ECMA-119 (ISO 9660), with Rock Ridge, Joliet, El Torito
    and zisofs. The session that begins with the device counts, as for every system that mounts an image file.

    Opening reads the volume descriptors only, and raises :class:`InconsistentVolume` where they cannot be. A medium
    that ends before the volume should is taken as long as nothing that is listed lies beyond; a note says so.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._descriptors = read_descriptors(device)
        self._geometry = self._descriptors.geometry

    @cached_property
    def facts(self) -> VolumeFacts:
        geometry, descriptors = self._geometry, self._descriptors
        return VolumeFacts(
            file_system="iso9660",
            size_bytes=geometry.size_bytes,
            bytes_per_sector=_SECTOR,
            bytes_per_cluster=geometry.bytes_per_block,
            total_clusters=geometry.size_bytes // geometry.bytes_per_block,
            alignment_bytes=geometry.bytes_per_block,
            label=descriptors.label,
            serial=descriptors.serial,
            format_version=descriptors.format_version,
            may_share=True,
            notes=(*descriptors.notes, *self._boot.notes, *self._sessions()),
        )

    def allocated(self) -> Runs:
        """All of the volume: nothing on it is free, and boot code or another session may lie where no file is."""
        return Runs.of([(0, self._geometry.size_bytes)])

    def scan(self) -> Scan:
        """Every name and content: of Rock Ridge, else of Joliet, else as recorded. Associated files are streams."""
        return scan(self._device, self._geometry, self._tree, self._boot)

    def open(self, record: int, stream: str = "") -> Content:
        """The bytes of a file, decompressed where zisofs is used, of a directory, or of a link's target.

        Raises :class:`NotFoundError` where no Directory Record of something that has bytes lies there.
        """
        if not stream and (boot := self._boot_file(record)) is not None:
            return self._content(boot.runs, boot.size_bytes)
        item = self._item(record)
        if (item.kind == EntryKind.STREAM) != (stream == ASSOCIATED) or stream not in ("", ASSOCIATED):
            raise NotFoundError(f"record {record} has no stream {stream!r}")
        if item.kind == EntryKind.SPECIAL:
            raise NotFoundError(f"record {record} is of a special file, which has no bytes")
        if item.kind == EntryKind.SYMLINK:
            return InlineContent((item.extra.target if item.extra else None) or b"")
        if item.kind == EntryKind.FILE and item.extra is not None and item.extra.zisofs is not None:
            runs = _content_runs(item.runs)
            return ZisofsContent(self._device, runs, item.stored_bytes, item.extra.zisofs, record)
        return self._content(item.runs, item.size_bytes)

    @cached_property
    def _tree(self) -> Tree:
        return choose_tree(self._device, self._descriptors)

    @cached_property
    def _boot(self) -> Boot:
        return read_boot(self._device, self._descriptors)

    def _boot_file(self, record: int) -> BootFile | None:
        return next((file for file in self._boot.files if file.record == record), None)

    def _item(self, record: int) -> Item:
        """What lies at a record."""
        tree = self._tree
        if record == tree.root.offset:
            return root_item(self._device, self._geometry, tree)
        first = self._record_at(record)
        items = Items(self._device, self._geometry, tree)
        if first.name == layout.SELF and first.flags & layout.FLAG_DIRECTORY:
            return items.directory(first)
        item = next(items.of(records_from(self._device, record, self._geometry.size_bytes)), None)
        if item is None or item.record != record:
            raise NotFoundError(f"record {record} is not of a file")
        return item

    def _record_at(self, record: int) -> Record:
        """The Directory Record at a byte offset."""
        if not 0 <= record < self._geometry.size_bytes:
            raise NotFoundError(f"record {record} lies outside the volume")
        try:
            found = next(records_from(self._device, record, self._geometry.size_bytes), None)
        except InconsistentVolume:
            found = None
        if found is None or found.name == layout.PARENT:
            raise NotFoundError(f"no Directory Record lies at byte {record}")
        return found

    def _content(self, runs: list[tuple[int, int]], size: int) -> RunContent:
        return RunContent(self._device, _content_runs(runs), size, size)

    def _sessions(self) -> list[str]:
        """A note where another session follows, as on a disc that was written to again."""
        end = self._geometry.total_blocks * self._geometry.bytes_per_block
        for start in (end, -(-end // _SESSION_ALIGNMENT) * _SESSION_ALIGNMENT):
            at = start + layout.SYSTEM_AREA_SECTORS * _SECTOR
            if at + _SECTOR <= self._device.size_bytes:
                head = self._device.read(at, layout.DESCRIPTOR_HEAD.size)
                if head[1:6] == layout.STANDARD_IDENTIFIER:
                    return [f"another session follows at byte {start}; its files are not listed"]
        return []


def _content_runs(runs: list[tuple[int, int]]) -> ContentRuns:
    at, begin = 0, []
    for _, length in runs:
        begin.append(at)
        at += length
    return ContentRuns(begin, [place for place, _ in runs], [length for _, length in runs])
