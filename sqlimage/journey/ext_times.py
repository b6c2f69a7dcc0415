"""The times of inodes put back: resize2fs gives those that it renumbers, and directories that name them, its own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import Entries
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.groups import Groups, read_groups
from sqlimage.filesystem.ext.mapping import inode_seed
from sqlimage.filesystem.ext.superblock import Geometry, read_geometry

_TIMES = slice(0x0C, 0x14)
"""i_ctime and i_mtime, the seconds of both; what they have behind 128 bytes is left alone."""
_GENERATION = slice(0x64, 0x68)


def keep_times(before: BlockDevice, was: Entries, after: WritableDevice, now: Entries) -> int:
    """Give every inode of the volume ``after`` that has a path the times that it had in ``before``; how many had
    others.

    Raises :class:`~sqlimage.errors.InconsistentVolume`.
    """
    numbers = dict(zip(was.path, was.record.tolist(), strict=True))
    new, first = np.unique(now.record, return_index=True)
    old = np.array([numbers.get(now.path[n], 0) for n in first.tolist()], dtype=np.int64)
    old, new = old[old > 0], new[old > 0]
    source, target = _Table(before), _Table(after)
    wanted = source.times(old)
    wrong = np.flatnonzero((target.times(new) != wanted).any(axis=1))
    for row in wrong.tolist():
        at = target.place(int(new[row]))
        raw = bytearray(after.read(at, target.geometry.bytes_per_inode))
        raw[_TIMES] = wanted[row].tobytes()
        if target.geometry.has_checksums:
            _seal(target.geometry, int(new[row]), raw)
        after.write(at, raw)
    return len(wrong)


class _Table:
    """The inodes of a volume by number."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self.geometry: Geometry = read_geometry(device)[0]
        self._groups: Groups = read_groups(device, self.geometry)

    def place(self, number: int) -> int:
        """In bytes from the start of the volume."""
        group, index = divmod(number - 1, self.geometry.inodes_per_group)
        table = int(self._groups.inode_table[group]) * self.geometry.bytes_per_block
        return table + index * self.geometry.bytes_per_inode

    def times(self, numbers: Int64s) -> NDArray[np.uint8]:
        """The bytes of the times of each, a row each."""
        size = self.geometry.bytes_per_inode
        found = np.zeros((len(numbers), _TIMES.stop - _TIMES.start), dtype=np.uint8)
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        group = (ordered - 1) // self.geometry.inodes_per_group
        edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(ordered)]
        for low, high in pairwise(edges):
            if low < high:
                first, last = int(ordered[low]), int(ordered[high - 1])
                raw = np.frombuffer(self._device.read(self.place(first), (last - first + 1) * size), dtype=np.uint8)
                found[order[low:high]] = raw.reshape(-1, size)[ordered[low:high] - first, _TIMES]
        return found


def _seal(geometry: Geometry, number: int, raw: bytearray) -> None:
    """Give an inode its right checksum, as the kernel's documentation of ext4 has it."""
    low, high, extra = layout.CHECKSUM_LO_AT, layout.CHECKSUM_HI_AT, layout.EXTRA_ISIZE_AT
    is_long = len(raw) > layout.OLD_INODE_BYTES
    has_high = is_long and int.from_bytes(raw[extra : extra + 2], "little") >= layout.CHECKSUM_HI_END
    raw[low : low + 2] = bytes(2)
    if has_high:
        raw[high : high + 2] = bytes(2)
    seed = inode_seed(geometry, number, int.from_bytes(raw[_GENERATION], "little"))
    right = crc32c(seed, bytes(raw)).to_bytes(4, "little")
    raw[low : low + 2] = right[:2]
    if has_high:
        raw[high : high + 2] = right[2:]
