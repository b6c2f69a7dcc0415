"""Applies a relocation to a copy of a volume, and holds it to its contract while doing so."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.extent import Int64s, Runs, first_overlap
from sqlimage.filesystem.relocation import Relocation
from sqlimage.units import MIB


def apply(source: BlockDevice, plan: Relocation, target: Path) -> Path:
    """The new volume, in a sparse file: what moves, then the fix-ups, zeros elsewhere."""
    check_moves(plan, source.size_bytes)
    target.unlink(missing_ok=True)
    with target.open("w+b") as file:
        file.truncate(plan.facts.size_bytes)
        for old, new, length in zip(
            plan.moved_from.tolist(), plan.moved_to.tolist(), plan.moved_length.tolist(), strict=True
        ):
            for at in range(0, length, MIB):
                block = source.read(old + at, min(MIB, length - at))
                if block.count(0) < len(block):
                    file.seek(new + at)
                    file.write(block)
        for fixup in plan.fixups:
            file.seek(fixup.offset_bytes)
            assert file.read(len(fixup.original)) == fixup.original, fixup.reason
            file.seek(fixup.offset_bytes)
            file.write(fixup.replacement)
    return target


def check_moves(plan: Relocation, source_bytes: int) -> None:
    """What the contract says of moves and fix-ups, whatever the file system."""
    size = plan.facts.size_bytes
    assert (plan.moved_length > 0).all()
    assert (np.diff(plan.moved_to) > 0).all()
    for places, limit in ((plan.moved_from, source_bytes), (plan.moved_to, size)):
        assert first_overlap(places, plan.moved_length) is None
        assert Runs.of([(0, limit)]).covers(Runs.from_arrays(places, plan.moved_length))
    assert plan.allocated.covers(Runs.from_arrays(plan.moved_to, plan.moved_length))

    reached = 0
    for fixup in plan.fixups:
        assert fixup.offset_bytes >= reached, fixup.reason
        reached = fixup.offset_bytes + len(fixup.original)
        assert len(fixup.original) == len(fixup.replacement) > 0
        assert fixup.original != fixup.replacement, fixup.reason
        assert fixup.reason
    assert reached <= size
    place = np.array([fixup.offset_bytes for fixup in plan.fixups], dtype=np.int64)
    length = np.array([len(fixup.original) for fixup in plan.fixups], dtype=np.int64)
    fixed = Runs.from_arrays(place, length)
    assert plan.allocated.covers(fixed)
    for start, count in fixed.subtract(Runs.from_arrays(plan.moved_to, plan.moved_length)):
        at = int(np.searchsorted(place, start, side="right")) - 1
        original = plan.fixups[at].original[start - int(place[at]) :][:count]
        assert not any(original), plan.fixups[at].reason


def moved(plan: Relocation, place: Int64s) -> Int64s:
    """Where bytes of the old volume lie in the new one; -1 where they are not kept."""
    order = np.argsort(plan.moved_from)
    at = order[np.searchsorted(plan.moved_from[order], place, side="right") - 1]
    inside = (place >= plan.moved_from[at]) & (place < plan.moved_from[at] + plan.moved_length[at])
    return np.where(inside, place + plan.moved_to[at] - plan.moved_from[at], -1)
