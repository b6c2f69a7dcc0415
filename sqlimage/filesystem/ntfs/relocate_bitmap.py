"""The new $Bitmap, block by block: never as a whole, for it may have half a GiB."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.extent import Runs
from sqlimage.filesystem.content import ContentRuns
from sqlimage.filesystem.ntfs.relocate_fixups import differences_in
from sqlimage.fixup import Fixup

_BLOCK_BYTES = 64 << 10
_REASON = "$Bitmap"


def bits_of(in_use: Runs, first_byte: int, count: int) -> bytes:
    """``count`` bytes of a bitmap of runs."""
    begin, end = first_byte * 8, (first_byte + count) * 8
    low = int(np.searchsorted(in_use.end, begin, "right"))
    high = int(np.searchsorted(in_use.start, end, "left"))
    if low >= high:
        return bytes(count)
    starts = np.maximum(in_use.start[low:high], begin) - begin
    ends = np.minimum(in_use.end[low:high], end) - begin
    if high - low == 1 and int(ends[0] - starts[0]) == count * 8:
        return b"\xff" * count
    change = np.zeros(count * 8 + 1, dtype=np.int8)
    change[starts] = 1
    change[ends] -= 1
    return np.packbits(np.cumsum(change[:-1], dtype=np.int8).view(np.bool_), bitorder="little").tobytes()


def bitmap_fixups(
    device: BlockDevice,
    old: ContentRuns,
    new: ContentRuns,
    in_use: Runs,
    clusters: int,
    size_bytes: int,
    *,
    resized: bool,
) -> Iterator[Fixup]:
    """From the bitmap at ``old`` to that of the clusters ``in_use``, at ``new``, of ``size_bytes``.

    Bits that stand for no cluster are set where it has been ``resized``, as NTFS has them, else left as they are.
    """
    end = new.end if resized else -(-clusters // 8)
    kept = min(old.end, new.end)
    behind = Runs.of([(clusters, size_bytes * 8 - clusters)])
    wanted = in_use.union(behind) if resized else in_use
    borders = sorted({*range(0, end, _BLOCK_BYTES), min(kept, end), end})
    for at, until in pairwise(borders):
        bits = bits_of(wanted, at, until - at)
        before = bytearray(until - at)
        if at < kept:
            old.read_into(device, at, memoryview(before))
        if not resized and until == end and clusters % 8:
            mask = (1 << clusters % 8) - 1
            bits = bits[:-1] + bytes([bits[-1] & mask | before[-1] & ~mask])
        yield from differences_in(bytes(before), bits, at, new, _REASON)
