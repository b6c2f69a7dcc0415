"""Whether the log of XFS ends with the record that unmounting writes, so that nothing is to be recovered.

Found as mounting finds it, by the cycle number that begins every 512 bytes of the log: in the written part it is one
more than behind it. The rest of the kernel's search mends what was torn; here whatever is not plain counts as unclean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.filesystem.recognised.xfs import layout
from sqlimage.filesystem.recognised.xfs.superblock import Geometry

Words = NDArray[np.uint32]


class _Log:
    """The log in blocks of 512 bytes, round and round."""

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        self._device = device
        self._at = geometry.place_of(geometry.log_ag, geometry.log_start)
        self.blocks = geometry.log_blocks * geometry.block_bytes // layout.LOG_BLOCK_BYTES

    def read(self, first: int, count: int = 1) -> bytes:
        """``count`` blocks from ``first``, beginning again behind the last one."""
        size = layout.LOG_BLOCK_BYTES
        first %= self.blocks
        before = min(count, self.blocks - first)
        raw = self._device.read(self._at + first * size, before * size)
        return raw + self._device.read(self._at, (count - before) * size) if before < count else raw

    def words(self, first: int, count: int = 1) -> tuple[Words, Words]:
        """The first number of each block, and its cycle, which is the second one in headers of records."""
        table = np.frombuffer(self.read(first, count), dtype=">u4").reshape(count, -1)[:, :2].astype(np.uint32)
        is_header = table[:, 0] == layout.XLOG_HEADER_MAGIC
        return table[:, 0], np.where(is_header, table[:, 1], table[:, 0])

    def cycle(self, block: int) -> int:
        return int(self.words(block)[1][0])


def is_clean(device: BlockDevice, geometry: Geometry) -> bool:
    """Whether nothing of the log needs recovery. Reads at most some 4 MiB, wherever the log is."""
    log = _Log(device, geometry)
    if log.blocks < 2:
        return False
    newest, oldest = log.cycle(0), log.cycle(log.blocks - 1)
    if newest == 0 or oldest not in (newest, newest - 1):
        return False
    head = log.blocks if oldest == newest else _first_of_older(log, newest)
    near = min(layout.XLOG_SCAN_BLOCKS, log.blocks // 2)
    numbers, cycles = log.words(head - near, near)
    expected = np.where(np.arange(head - near, head) < 0, oldest, newest)
    behind = min(near, log.blocks - head)
    if (cycles != expected).any() or (behind and (log.words(head, behind)[1] >= newest).any()):
        return False
    headers = np.flatnonzero(numbers == layout.XLOG_HEADER_MAGIC)
    return len(headers) > 0 and _is_unmount_record(log, geometry, head - near + int(headers[-1]), head)


def _first_of_older(log: _Log, newest: int) -> int:
    low, high = 0, log.blocks - 1  # low has the newest cycle, high has not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if log.cycle(middle) == newest else (low, middle)
    return high


def _is_unmount_record(log: _Log, geometry: Geometry, at: int, head: int) -> bool:
    """Whether the record at a block is that of unmounting, and ends where the log does."""
    header = np.frombuffer(log.read(at), dtype=layout.XLOG_HEADER)[0]
    version, size = int(header["h_version"]), int(header["h_size"])
    header_blocks = 1
    if version & layout.XLOG_VERSION_2 and size > layout.XLOG_HEADER_CYCLE_BYTES:
        header_blocks = -(-size // layout.XLOG_HEADER_CYCLE_BYTES)
    end = at + header_blocks - -int(header["h_len"]) // layout.LOG_BLOCK_BYTES
    place = int(header["h_lsn"])
    flags = log.read(at + header_blocks)[layout.XLOG_OP_FLAGS_AT]
    return (
        end == head
        and (place >> 32, place & 0xFFFFFFFF) == (int(header["h_cycle"]), at % log.blocks)
        and header["h_fs_uuid"].tobytes() == geometry.uuid
        and int(header["h_num_logops"]) == 1
        and bool(flags & layout.XLOG_UNMOUNT_TRANS)
    )
