"""Names and directories made into paths, and inodes into contents: every entry of the volume."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from struct import Struct, unpack_from
from sys import getsizeof

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, first_overlap
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents, Entries, EntryKind, Scan
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.inode import Inodes
from sqlimage.filesystem.ext.mapping import inode_seed
from sqlimage.filesystem.ext.superblock import Geometry
from sqlimage.units import MIB

ORPHANS = "/$OrphanFiles"
"""Below which a file is listed that no directory names."""
PATH_LENGTH_MAX = 32767
PATHS_BYTES_BASE, PATHS_BYTES_MEAN = 64 * MIB, 512
"""All paths together: so much memory, and so much more for each entry: deep trees of long names are legal, but grow
with the square."""
_KINDS = {
    layout.REGULAR: EntryKind.FILE,
    layout.DIRECTORY: EntryKind.DIRECTORY,
    layout.SYMLINK: EntryKind.SYMLINK,
}
_HEAD = Struct("<IHBB")
_SAFE = str.maketrans({"/": "\u2215", "\0": "\u2400"})


def scan(device: BlockDevice, geometry: Geometry, inodes: Inodes) -> Scan:
    """Every name and every content. Raises :class:`~sqlimage.errors.InconsistentVolume`."""
    content = np.where(inodes.has_content, np.cumsum(inodes.has_content) - 1, -1)
    return Scan(_Tree(device, geometry, inodes, content).entries(), contents_of(geometry, inodes))


def contents_of(geometry: Geometry, inodes: Inodes) -> Contents:
    """A content for each file, directory and symbolic link, in the order of inodes."""
    rows = np.flatnonzero(inodes.has_content)
    row_of = np.full(len(inodes.number), -1, dtype=np.int64)
    row_of[rows] = np.arange(len(rows))
    size = inodes.size_bytes[rows]
    flags = np.where(inodes.type[rows] == layout.DIRECTORY, np.uint8(ContentFlag.INDEX), np.uint8(0))
    flags[inodes.flags[rows] & layout.ENCRYPT_FLAG != 0] |= np.uint8(ContentFlag.ENCRYPTED)
    inline = {int(row_of[row]): data for row, data in inodes.inline.items() if row_of[row] >= 0}
    flags[list(inline)] |= np.uint8(ContentFlag.INLINE)
    runs, block = inodes.runs, geometry.bytes_per_block
    owner, length = row_of[runs.owner], runs.count * block
    end = runs.logical * block + length
    # Holes: before the first run of a file, between two, and from the last one to the end of the file.
    gap = runs.logical * block
    is_next = owner[1:] == owner[:-1]
    gap[1:][is_next] -= end[:-1][is_next]
    whole = -(-size // block) * block
    whole[list(inline)] = 0
    reach = np.zeros(len(rows), dtype=np.int64)
    is_last = np.append(~is_next, True)[: len(owner)]
    reach[owner[is_last]] = end[is_last]
    tail = np.maximum(whole - reach, 0)
    del end
    counts = np.bincount(owner, minlength=len(rows)) + np.bincount(owner[gap > 0], minlength=len(rows)) + (tail > 0)
    first_run = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
    tails_before = np.cumsum(tail > 0) - (tail > 0)
    at = np.arange(len(owner)) + np.cumsum(gap > 0) + tails_before[owner]
    total = int(first_run[-1])
    run_offset, run_length = np.full(total, HOLE, dtype=np.int64), np.zeros(total, dtype=np.int64)
    run_offset[at], run_length[at] = runs.start * block, length
    run_length[at[gap > 0] - 1] = gap[gap > 0]
    run_length[first_run[1:][tail > 0] - 1] = tail[tail > 0]
    unwritten = None
    if runs.unwritten.any():
        unwritten = np.zeros(total, dtype=np.bool_)
        unwritten[at] = runs.unwritten
    return Contents(
        record=inodes.number[rows],
        stream=[""] * len(rows),
        size_bytes=size,
        valid_bytes=size,
        flags=flags,
        first_run=first_run,
        run_offset=run_offset,
        run_length=run_length,
        inline_digest={row: sha256(data).digest() for row, data in inline.items()},
        run_unwritten=unwritten,
    )


class _Tree:
    """Walks the directories level by level; used once."""

    def __init__(self, device: BlockDevice, geometry: Geometry, inodes: Inodes, content: Int64s) -> None:
        self._device = device
        self._geometry = geometry
        self._inodes = inodes
        self._content = content
        self._is_directory = (inodes.type == layout.DIRECTORY).tolist()
        self._first_run = np.searchsorted(inodes.runs.owner, np.arange(len(inodes.number) + 1))
        self._paths: list[str] = []
        self._rows: list[int] = []
        self._memory = 0
        self._in_root: set[str] = set()
        self._check_directories()

    def _check_directories(self) -> None:
        """No two directories lie in the same place: else a small volume could hold an endless list of names."""
        runs, inodes = self._inodes.runs, self._inodes
        mine = inodes.type[runs.owner] == layout.DIRECTORY
        if (place := first_overlap(runs.start[mine], runs.count[mine])) is not None:
            raise InconsistentVolume("directories", f"two of them claim block {place}")
        root = self._row_of(layout.ROOT_INODE)
        if root is None or not self._is_directory[root]:
            raise InconsistentVolume(f"inode {layout.ROOT_INODE}", "it is not the root directory")
        self._root: int = root

    def _row_of(self, inode: int) -> int | None:
        row = int(np.searchsorted(self._inodes.number, inode))
        return row if row < len(self._inodes.number) and self._inodes.number[row] == inode else None

    def entries(self) -> Entries:
        root = self._root
        self._take("/", root)
        reached = np.zeros(len(self._inodes.number), dtype=np.bool_)
        reached[root] = True
        level = [(root, "/")]
        self._in_root = {"/" + name for name, _ in self._names(root)}
        while level:
            following = []
            for row, before in level:
                for name, below in self._names(row):
                    path = before + name
                    self._take(path, below)
                    if self._is_directory[below]:
                        if reached[below]:
                            raise self._problem(below, f"the directory is reached again as {path!r}")
                        following.append((below, path + "/"))
                    reached[below] = True
            level = following
        self._take_metadata()
        self._take_orphans(reached)
        return self._result()

    def _take(self, path: str, row: int) -> None:
        self._memory += getsizeof(path)
        if len(path) > PATH_LENGTH_MAX or self._memory > PATHS_BYTES_BASE + PATHS_BYTES_MEAN * len(self._paths):
            raise InconsistentVolume("directories", "they are nested so deeply that paths outgrow the volume")
        self._paths.append(path)
        self._rows.append(row)

    def _names(self, row: int) -> list[tuple[str, int]]:
        """The names in a directory but ``.`` and ``..``, and the rows of their inodes."""
        number = int(self._inodes.number[row])
        shown: list[str] = []
        targets: list[int] = []
        for data, offset, is_block in self._blocks(row):
            self._parse(number, data, offset, is_block, shown, targets)
        names = list(zip(shown, self._rows_of(number, shown, targets), strict=True))
        if len({name for name, _ in names}) != len(names):
            names = _unique(names)
        return names

    def _rows_of(self, number: int, shown: list[str], targets: list[int]) -> list[int]:
        """Of the inodes that the names in a directory lead to."""
        target, known = np.array(targets, dtype=np.int64), self._inodes.number
        rows = np.minimum(np.searchsorted(known, target), len(known) - 1)
        wrong = np.flatnonzero((known[rows] != target) | (self._inodes.links[rows] == 0))
        if len(wrong):
            inode, largest = targets[wrong[0]], self._geometry.inodes_count
            what = f"inode {inode}, which is free" if inode <= largest else f"inode {inode} of {largest}"
            raise InconsistentVolume(f"directory, inode {number}", f"{shown[wrong[0]]!a} names {what}")
        return rows.tolist()  # type: ignore[no-any-return]

    def _blocks(self, row: int) -> Iterator[tuple[bytes, int, bool]]:
        """Stretches of a directory, where entries begin in each, and whether it is a block."""
        if row in self._inodes.inline:
            data = self._inodes.inline[row]
            field = layout.BLOCK_FIELD_BYTES
            yield data[:field], 4, False
            yield data[field:], 0, False
            return
        block, runs = self._geometry.bytes_per_block, self._inodes.runs
        size = int(self._inodes.size_bytes[row])
        number = int(self._inodes.number[row])
        seed = inode_seed(self._geometry, number, int(self._inodes.generation[row]))
        for n in range(int(self._first_run[row]), int(self._first_run[row + 1])):
            if runs.unwritten[n]:
                continue
            within = min(int(runs.count[n]), -(-size // block) - int(runs.logical[n]))
            for done in range(0, within, _RUN_BLOCKS):
                count = min(_RUN_BLOCKS, within - done)
                data = self._device.read((int(runs.start[n]) + done) * block, count * block)
                for at in range(0, len(data), block):
                    piece = data[at : at + block]
                    if self._geometry.has_checksums:
                        _check_block(number, seed, piece, is_first=int(runs.logical[n]) + done == 0 and at == 0)
                    yield piece, 0, True

    def _parse(self, number: int, data: bytes, at: int, is_block: bool, shown: list[str], targets: list[int]) -> None:
        """Add the names in a piece of a directory, and the numbers of their inodes."""
        end = len(data)
        while at + _HEAD.size <= end:
            inode, length, name_length, _ = _HEAD.unpack_from(data, at)
            if length == 0xFFFF and end == layout.LARGEST_BLOCK:
                length = end
            following = at + length
            if length < _HEAD.size + name_length or length & 3 or following > end:
                raise InconsistentVolume(f"directory, inode {number}", f"its entry of {length} bytes at {at} cannot be")
            if inode:
                raw = data[at + _HEAD.size : at + _HEAD.size + name_length]
                if raw not in (b".", b".."):
                    if not raw:
                        raise InconsistentVolume(f"directory, inode {number}", "one of its names is empty")
                    name = raw.decode("utf-8", "surrogateescape")
                    if b"/" in raw or b"\0" in raw:
                        name = name.translate(_SAFE)
                    shown.append(name)
                    targets.append(inode)
            at = following
        if is_block and at != end:
            raise InconsistentVolume(f"directory, inode {number}", "its entries do not fill a block")

    def _take_metadata(self) -> None:
        geometry = self._geometry
        user, group, project = geometry.quota_inodes
        known = {
            layout.BAD_INODE: "/$BadBlocks",
            geometry.journal_inode: "/$Journal",
            user: "/$UserQuota",
            group: "/$GroupQuota",
            project: "/$ProjectQuota",
            geometry.orphan_file_inode: "/$OrphanFile",
        }
        self._metadata_from = len(self._paths)
        taken = set(self._rows)
        for inode, path in known.items():
            row = self._row_of(inode) if inode else None
            if row is not None and row not in taken and self._inodes.size_bytes[row]:
                self._take(self._unused(path), row)
                taken.add(row)
        self._metadata_to = len(self._paths)

    def _take_orphans(self, reached: NDArray[np.bool_]) -> None:
        inodes = self._inodes
        lost = ~reached & (inodes.links > 0) & (inodes.number >= self._geometry.first_inode)
        lost &= (inodes.flags & layout.EA_INODE_FLAG) == 0
        lost[self._rows] = False
        below = self._unused(ORPHANS)
        for row in np.flatnonzero(lost).tolist():
            self._take(f"{below}/{inodes.number[row]}", row)

    def _unused(self, path: str) -> str:
        """A path in the root directory that no file has."""
        while path in self._in_root:
            path += "~"
        return path

    def _result(self) -> Entries:
        inodes, rows = self._inodes, np.array(self._rows, dtype=np.int64)
        kinds = np.full(len(rows), EntryKind.SPECIAL, dtype=np.uint8)
        for type_, kind in _KINDS.items():
            kinds[inodes.type[rows] == type_] = kind
        kinds[self._metadata_from : self._metadata_to] = EntryKind.METADATA
        return Entries(
            path=self._paths,
            kind=kinds,
            content=self._content[rows],
            record=inodes.number[rows],
            modified_ns=inodes.modified_ns[rows],
            attributes=inodes.mode[rows].astype(np.uint32),
        )

    def _problem(self, row: int, problem: str) -> InconsistentVolume:
        return InconsistentVolume(f"inode {self._inodes.number[row]}", problem)


_RUN_BLOCKS = 256


def _check_block(number: int, seed: int, block: bytes, *, is_first: bool) -> None:
    """A block of a directory matches its checksum: that in its tail, or that of a node of the hash tree."""
    if not _has_right_tail(seed, block) and not _is_right_node(seed, block, 0x20 if is_first else 0x8):
        raise InconsistentVolume(f"directory, inode {number}", "a block of it does not match its checksum")


def _has_right_tail(seed: int, block: bytes) -> bool:
    at = len(block) - layout.TAIL_BYTES
    if _HEAD.unpack_from(block, at) != (0, layout.TAIL_BYTES, 0, layout.TAIL_FILE_TYPE):
        return False
    return crc32c(seed, block[:at]) == int.from_bytes(block[-4:], "little")


def _is_right_node(seed: int, block: bytes, at: int) -> bool:
    """A node of the hash tree tells at ``at`` for how many entries it has room and how many it has; the checksum covers
    those it has, and stands behind the room."""
    limit, count = unpack_from("<HH", block, at)
    end = at + limit * 8
    if not 0 < count <= limit or end + 8 > len(block):
        return False
    right = crc32c(crc32c(seed, block[: at + count * 8]), block[end : end + 4] + bytes(4))
    return right == int.from_bytes(block[end + 4 : end + 8], "little")


def _unique(names: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The same names, those that were there already with ``~`` and a number."""
    taken, result = {name for name, _ in names}, []
    seen: dict[str, int] = {}
    for name, row in names:
        shown = name
        while name in seen and shown in taken:
            seen[name] += 1
            shown = f"{name}~{seen[name]}"
        seen.setdefault(name, 1)
        taken.add(shown)
        result.append((shown, row))
    return result
