"""Where the partitions of a disk come to lie on a smaller or larger one. Numbers only, in bytes.

A disk is a row of blocks. Each has a *lead* before it that goes along: extended boot records and whatever else lies in
the gap. What of the gap is neither may close::

    | head   | block 1      |   free   | lead | block 2          | free | end
             stays here                       moves only where it must
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlimage.units import MIB, power_of_two_in


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch that keeps its place in the row. All numbers are multiples of a sector."""

    start: int
    length: int
    smallest: int
    """From 1 to ``length``."""
    can_grow: bool
    can_move: bool
    """False for the first one at least."""
    lead: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def alignment(self) -> int:
        """Of new places and new lengths: what the old place had, at most 1 MiB."""
        return min(power_of_two_in(self.start), MIB)

    @property
    def shortest(self) -> int:
        """``smallest`` in whole units of the alignment, where that is not longer than it is now."""
        return min(_up(self.smallest, self.alignment), self.length)

    def keeping(self, spare: int) -> int:
        """Its length with at most ``spare`` bytes above its smallest one."""
        wanted = self.smallest + spare
        return self.length if wanted >= self.length else max(_down(wanted, self.alignment), self.shortest)


Places = list[tuple[int, int]]
"""New start and length of each block."""


def least_end(blocks: Sequence[Block]) -> int:
    """Where the last of the blocks ends when each is as short, and as near to the one before, as it can be."""
    return _packed_end(blocks, [block.shortest for block in blocks])


def fit(blocks: Sequence[Block], end: int) -> Places:
    """The blocks within ``end``, which is not less than :func:`least_end`.

    Free space goes first, what lies furthest behind before the rest; then length, from those that have most to spare.
    """
    lengths = [block.length for block in blocks]
    if _packed_end(blocks, lengths) > end:
        fixed = _last_fixed(blocks)  # those before it cannot help by being shorter
        lengths[fixed:] = _shortened(blocks[fixed:], end)
    places: Places = []
    for block, length in zip(reversed(blocks), reversed(lengths), strict=True):
        start = min(block.start, _down(end - length, block.alignment)) if block.can_move else block.start
        places.append((start, length))
        end = start - block.lead
    return places[::-1]


def grow(blocks: Sequence[Block], extra: int) -> Places:
    """The blocks when there are ``extra`` more bytes at the end: the longest that can grow gets them (of several the
    last one), and those behind it move on together. Blocks before one that cannot move do not grow."""
    places = [(block.start, block.length) for block in blocks]
    candidates = [index for index in range(_last_fixed(blocks), len(blocks)) if blocks[index].can_grow]
    if not candidates:
        return places
    chosen = max(candidates, key=lambda index: (blocks[index].length, index))
    block, behind = blocks[chosen], blocks[chosen + 1 :]
    by = _down(extra, max((other.alignment for other in behind), default=1))
    length = _down(block.length + by, block.alignment)
    if length <= block.length:
        return places
    places[chosen] = block.start, length
    places[chosen + 1 :] = [(other.start + by, other.length) for other in behind]
    return places


def _last_fixed(blocks: Sequence[Block]) -> int:
    return max((index for index, block in enumerate(blocks) if not block.can_move), default=0)


def _packed_end(blocks: Sequence[Block], lengths: Sequence[int]) -> int:
    end = 0
    for block, length in zip(blocks, lengths, strict=True):
        start = _up(end + block.lead, block.alignment) if block.can_move else block.start
        end = start + length
    return end


def _shortened(blocks: Sequence[Block], end: int) -> list[int]:
    """Lengths that just fit: each block keeps what it has to spare up to a level, the highest that is possible."""

    def fits(lengths: Sequence[int]) -> bool:
        return _packed_end(blocks, lengths) <= end

    level = _last(max(block.length for block in blocks), lambda n: fits([block.keeping(n) for block in blocks]))
    lengths = [block.keeping(level) for block in blocks]
    # whole units leave a rest, of which some can still have one more
    longer = [block.keeping(level + block.alignment) for block in blocks]
    count = _last(len(blocks), lambda n: fits(longer[:n] + lengths[n:]))
    return longer[:count] + lengths[count:]


def _last(limit: int, holds: Callable[[int], bool]) -> int:
    """The last number below ``limit`` for which something holds that holds for 0 and, from some number on, no more."""
    low, high = 0, limit
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _down(number: int, unit: int) -> int:
    return number // unit * unit
