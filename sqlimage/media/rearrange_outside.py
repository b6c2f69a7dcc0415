"""What of a disk lies outside its partitions, and where it goes when they move: with the partition that follows it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sqlimage.extent import Runs
from sqlimage.fixup import Fixup
from sqlimage.media.rearrange_places import Block, Places
from sqlimage.moves import Moves


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The blocks of a disk, where they come to lie, and where the room for them ends."""

    blocks: Sequence[Block]
    places: Places
    end: int

    def shift_of(self, index: int) -> int:
        """By how much a block moves, or what lies behind them all: as the end of the last one does."""
        if index < len(self.blocks):
            return self.places[index][0] - self.blocks[index].start
        return sum(self.places[-1]) - self.blocks[-1].end if self.blocks else 0

    def place_of(self, start: int) -> tuple[int, int]:
        """New start and length of the block that started there."""
        return self.places[bisect_left(self.blocks, start, key=lambda block: block.start)]

    def new_place(self, old: int) -> int:
        """Of a byte outside the partitions, or the first of one."""
        return old + self.shift_of(bisect_right(self.blocks, old, key=lambda block: block.end))


def leads(starts: Sequence[int], ends: Sequence[int], kept: Runs, unit: int) -> list[int]:
    """Of each block, in whole units: how far before it the first of what is kept lies, behind the block before."""
    found = []
    behind = np.searchsorted(kept.start, [0, *ends][: len(starts)]).tolist()
    for start, index in zip(starts, behind, strict=True):
        first = int(kept.start[index]) if index < len(kept) else start
        found.append(max(start - first // unit * unit, 0))
    return found


def outside_moves(kept: Runs, arrangement: Arrangement) -> tuple[Moves, Runs]:
    """How what is kept outside the blocks moves, and what of it has no room any more (in old places)."""
    ends = np.array([block.end for block in arrangement.blocks], dtype=np.int64)
    shifts = np.array([arrangement.shift_of(index) for index in range(len(ends) + 1)], dtype=np.int64)
    shift = shifts[np.searchsorted(ends, kept.start, side="right")]
    length = np.clip(arrangement.end - kept.start - shift, 0, kept.length)
    dropped = Runs.from_arrays(kept.start + length, kept.length - length)
    return Moves.of(kept.start, kept.start + shift, length), dropped


def differences(old: bytes, new: bytes, place: int, reason: str) -> Iterator[Fixup]:
    """At most one fix-up: from the first to the last byte that differs. For places that are new ``old`` is zeros."""
    if old == new:
        return
    first, end = 0, len(old)
    while old[first] == new[first]:
        first += 1
    while old[end - 1] == new[end - 1]:
        end -= 1
    yield Fixup(place + first, old[first:end], new[first:end], reason)
