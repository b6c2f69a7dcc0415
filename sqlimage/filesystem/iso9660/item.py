"""Directory Records made into files: sections joined, places checked, Rock Ridge applied."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import EntryKind
from sqlimage.filesystem.iso9660 import layout
from sqlimage.filesystem.iso9660.descriptor import Geometry
from sqlimage.filesystem.iso9660.record import Record, records_from
from sqlimage.filesystem.iso9660.rockridge import RockRidge, SystemUse

RECORDS_MAX = 600_000
"""Directory Records read in one scan: more than media of this kind hold, and what a few seconds suffice for."""
_FILE, _DIRECTORY, _STREAM = EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.STREAM
_SYMLINK, _SPECIAL = EntryKind.SYMLINK, EntryKind.SPECIAL
_KINDS = {
    stat.S_IFLNK: _SYMLINK,
    stat.S_IFCHR: _SPECIAL,
    stat.S_IFBLK: _SPECIAL,
    stat.S_IFIFO: _SPECIAL,
    stat.S_IFSOCK: _SPECIAL,
}
"""Types of a mode that make something else of what is recorded as a file."""
_TYPE_MASK = 0o170000
_TYPE_OF = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG, 0)
"""By kind: the type that a mode has to have; 0 where it says itself."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One of the directory trees of a volume, and how its records are to be read."""

    root: Record
    """In its descriptor."""
    has_rock_ridge: bool
    skip: int
    """LEN_SKP of its System Use fields."""
    name_of: Callable[[bytes, bool], str]
    """A File Identifier as a name; told whether it is a directory's."""


class Item(NamedTuple):
    """One file or directory."""

    record: int
    """Byte offset on the volume of its Directory Record: the first of several, or where a directory was moved, the
    one by which that names itself."""
    kind: EntryKind
    name: str
    size_bytes: int
    stored_bytes: int
    """How much of the runs is the file's; another number than its size where that is compressed."""
    runs: list[tuple[int, int]]
    """Offset and length in bytes, whole blocks."""
    stamp: bytes
    mode: int
    """0 where Rock Ridge tells none."""
    extra: RockRidge | None


class Items:
    """Makes items of records of one tree."""

    def __init__(self, device: BlockDevice, geometry: Geometry, tree: Tree) -> None:
        self._device = device
        self._geometry = geometry
        self._tree = tree
        self._system_use = SystemUse(device, geometry, tree.skip) if tree.has_rock_ridge else None
        self._records_left = RECORDS_MAX

    def of(self, records: Iterator[Record]) -> Iterator[Item]:
        """Every file that the records name. A directory that Rock Ridge moved is where it came from, not here.

        Raises :class:`InconsistentVolume`, also for what is not supported: interleaved files, files on another volume
        of a set, files of several sections that do not fill their blocks, more than ``RECORDS_MAX`` records.
        """
        read = self._system_use.read if self._system_use else None
        for record in records:
            self._count()
            if record.name == layout.SELF or record.name == layout.PARENT:
                continue
            extra = None
            if read is not None:
                extra = read(record)
                if extra.is_relocated:
                    continue
                if extra.child_block is not None:
                    yield self._moved(record, extra, extra.child_block)
                    continue
            is_directory = record.flags & layout.FLAG_DIRECTORY != 0
            if record.flags & layout.FLAG_MULTI_EXTENT:
                size, runs = self._sections(record, records)
            else:
                size, runs = record.size_bytes, self._runs(record)
            yield self._item(record, is_directory, self._name(record, extra, is_directory), size, runs, extra)

    def directory(self, record: Record) -> Item:
        """The directory that a record tells of which has no name: the root's, or a ``.``."""
        extra = self._system_use.read(record) if self._system_use else None
        return self._item(record, True, "", record.size_bytes, self._runs(record), extra)

    def dot(self, place: int, end: int) -> Record:
        """The ``.`` record with which a directory begins at byte ``place``."""
        record = next(records_from(self._device, place, end), None)
        if record is None or record.name != layout.SELF or not record.flags & layout.FLAG_DIRECTORY:
            raise InconsistentVolume("Directory", "does not begin with the record of itself", offset_bytes=place)
        return record

    def _count(self) -> None:
        self._records_left -= 1
        if self._records_left < 0:
            raise InconsistentVolume("directories", f"they hold more than the {RECORDS_MAX} records that are read")

    def _moved(self, record: Record, extra: RockRidge, block: int) -> Item:
        geometry = self._geometry
        place = block * geometry.bytes_per_block
        if place >= geometry.size_bytes:
            raise InconsistentVolume("CL", f"leads to block {block}, out of the volume", offset_bytes=record.offset)
        dot = self.dot(place, geometry.size_bytes)
        if dot.block != block:
            raise InconsistentVolume("CL", f"leads into the middle of a directory at block {block}")
        return self.directory(dot)._replace(name=self._name(record, extra, True))

    def _item(
        self,
        record: Record,
        is_directory: bool,
        name: str,
        size: int,
        runs: list[tuple[int, int]],
        extra: RockRidge | None,
    ) -> Item:
        kind, mode, stamp, stored = _FILE, 0, record.stamp, size
        if extra is not None:
            mode, stamp = extra.mode or 0, extra.stamp or stamp
            kind = _KINDS.get(mode & _TYPE_MASK, _FILE)
            if not mode and extra.target is not None:
                kind = _SYMLINK
            elif extra.zisofs is not None:
                size = extra.zisofs.size_bytes
        if is_directory:
            kind, size = _DIRECTORY, stored
        elif record.flags & layout.FLAG_ASSOCIATED:
            kind, size = _STREAM, stored
        elif kind is _SYMLINK:
            size, runs = len(extra.target or b"") if extra else 0, []
        elif kind is _SPECIAL:
            size, runs = 0, []
        if mode and (type_ := _TYPE_OF[kind]):  # PX may tell another type than the record does
            mode = mode & ~_TYPE_MASK | type_
        return Item(record.offset, kind, name, size, stored, runs, stamp, mode, extra)

    def _name(self, record: Record, extra: RockRidge | None, is_directory: bool) -> str:
        if extra is not None and extra.name is not None:
            return extra.name.decode("utf-8", "surrogateescape")
        return self._tree.name_of(record.name, is_directory)

    def _runs(self, record: Record) -> list[tuple[int, int]]:
        """Where the data of one record lies, the last block whole."""
        if record.size_bytes == 0:
            return []
        geometry = self._geometry
        block = geometry.bytes_per_block
        if record.unit_size or record.gap_size:
            raise InconsistentVolume("File Unit Size", "interleaved files are not read", offset_bytes=record.offset)
        if geometry.set_size > 1 and record.sequence_number != geometry.sequence_number:
            raise InconsistentVolume(
                "Volume Sequence Number",
                f"the file lies on volume {record.sequence_number} of its set",
                offset_bytes=record.offset,
            )
        place = (record.block + record.attribute_blocks) * block
        length = -(-record.size_bytes // block) * block
        if place + length > geometry.size_bytes:
            raise InconsistentVolume(
                "Location of Extent",
                f"leads to bytes {place} to {place + length}, the volume has {geometry.size_bytes}",
                offset_bytes=record.offset,
            )
        return [(place, length)]

    def _sections(self, record: Record, records: Iterator[Record]) -> tuple[int, list[tuple[int, int]]]:
        """Size and places of a file of several sections: the records that follow have the same name."""
        runs = self._runs(record)
        size, first = record.size_bytes, record
        if record.flags & layout.FLAG_DIRECTORY:
            raise self._problem(record, "a directory has several sections")
        while record.flags & layout.FLAG_MULTI_EXTENT:
            if not record.size_bytes or record.size_bytes % self._geometry.bytes_per_block:
                raise self._problem(record, f"a section of {record.size_bytes} bytes does not fill its blocks")
            following = next(records, None)
            self._count()
            if following is None or following.name != first.name or not _is_next(following, record):
                raise self._problem(first, "its last section is not there")
            record = following
            if (record.flags ^ first.flags) & (layout.FLAG_DIRECTORY | layout.FLAG_ASSOCIATED):
                raise self._problem(record, "its sections are of different kinds")
            size += record.size_bytes
            if size > self._geometry.size_bytes:
                raise self._problem(first, "its sections are larger than the volume")
            for place, length in self._runs(record):
                if runs[-1][0] + runs[-1][1] == place:
                    runs[-1] = (runs[-1][0], runs[-1][1] + length)
                else:
                    runs.append((place, length))
        return size, runs

    def _problem(self, record: Record, problem: str) -> InconsistentVolume:
        return InconsistentVolume("File Section", problem, offset_bytes=record.offset)


def _is_next(following: Record, record: Record) -> bool:
    """Whether no sector without records lies between them."""
    return following.offset // layout.SECTOR_BYTES - record.offset // layout.SECTOR_BYTES <= 1


def primary_name(identifier: bytes, is_directory: bool) -> str:
    """Without the version 1, and without the dot of a file that has no extension."""
    text = identifier.decode("utf-8", "surrogateescape")
    return text if is_directory else text.removesuffix(";1").removesuffix(".")


def joliet_name(identifier: bytes, is_directory: bool) -> str:
    text = identifier.decode("utf-16-be", "replace")
    return text if is_directory else text.removesuffix(";1")


def enhanced_name(identifier: bytes, is_directory: bool) -> str:
    return identifier.decode("utf-8", "surrogateescape")
