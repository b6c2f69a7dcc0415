"""Random disks on disks of other sizes: whatever the table, the contract holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.media import layout
from sqlimage.media.rearrange import Rearranged, Room, rearrange
from sqlimage.media.rearrange_chain import lone_ebrs, read_containers
from sqlimage.units import MIB
from tests.media.built import Extended, Logical, gpt_disk, mbr_disk
from tests.media.rearranged import SparseDisk, rearranged, smallest, table_of

COUNT = st.one_of(
    st.integers(1, 9000), st.integers(1, 40).map(lambda n: n * 2048), st.integers(1, 9).map(lambda n: n * 63)
)
GAP = st.one_of(st.just(0), COUNT)
UNITS = st.sampled_from([512, 4096])


@st.composite
def gpt_disks(draw: st.DrawFn) -> SparseDisk:
    unit = draw(UNITS)
    entries, entry_bytes = draw(st.sampled_from([(128, 128), (4, 128), (12, 512), (130, 256)]))
    at = 2 + -(-entries * entry_bytes // unit)
    at += draw(st.sampled_from([0, -at % 2048, 5]))
    parts = []
    numbers = draw(st.permutations(range(1, min(entries, 9) + 1)))
    for number in numbers[: draw(st.integers(0, min(entries, 8)))]:
        at += draw(GAP)
        size = draw(COUNT)
        parts.append((number, at, size))
        at += size
    at += draw(GAP) + -(-entries * entry_bytes // unit) + 2
    size_bytes = at * unit + draw(st.sampled_from([0, 0, unit - 1]))
    return gpt_disk(size_bytes, parts, unit=unit, entries=entries, entry_bytes=entry_bytes)


@st.composite
def extended_partitions(draw: st.DrawFn, start: int) -> Extended:
    logicals, gaps = [], []
    for number in range(draw(st.integers(1, 5))):
        gaps.append(draw(GAP) if number else 0)
        size = draw(st.one_of(st.just(0), COUNT, COUNT))
        logicals.append(Logical(draw(st.sampled_from([1, 2, 63, 2048])) if size else 1, size))
    order = [0, *draw(st.permutations(range(1, len(logicals))))]
    return Extended(start, logicals, gaps, draw(GAP), order)


@st.composite
def mbr_disks(draw: st.DrawFn) -> SparseDisk:
    unit = draw(UNITS)
    at = draw(st.sampled_from([1, 63, 2048]))
    records: list[tuple[int, int] | Extended] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            records.append(draw(extended_partitions(at)))
            at = records[-1].end  # type: ignore[union-attr]
        else:
            records.append((at, draw(COUNT)))
            at += records[-1][1]  # type: ignore[index]
        at += draw(GAP)
    return mbr_disk(at * unit, draw(st.permutations(records)), unit=unit)


@st.composite
def with_rooms(draw: st.DrawFn, disks: st.SearchStrategy[SparseDisk]) -> tuple[SparseDisk, list[Room]]:
    """The disk, with something in its gaps, and what its partitions may become."""
    disk = draw(disks)
    table = table_of(disk)
    unit = table.bytes_per_sector
    taken = Runs.of((p.offset_bytes, p.length_bytes) for p in table.partitions).union(disk.data())
    if table.scheme == "gpt":
        header = layout.GPT_HEADER.unpack(disk.read(unit, layout.GPT_HEADER.size))
        usable = Runs.of([(header[7] * unit, (header[8] + 1 - header[7]) * unit)])
        taken = taken.union(usable.complement(disk.size_bytes))
    for start, length in taken.widen(unit).complement(disk.size_bytes // unit * unit):
        if draw(st.integers(0, 3)) == 0:
            disk.write(start + draw(st.integers(0, length // unit - 1)) * unit, b"something")
    rooms = []
    for partition in table.partitions:
        least = draw(st.one_of(st.just(partition.length_bytes), st.integers(0, partition.length_bytes * 5 // 4)))
        rooms.append(Room(least, draw(st.booleans()), can_move=draw(st.integers(0, 9)) > 0))
    return disk, rooms


def check(disk: SparseDisk, rooms: list[Room], draw: st.DataObject) -> None:
    table, old = table_of(disk), disk.size_bytes
    least = smallest(disk, rooms)
    unit = table.bytes_per_sector
    with pytest.raises(RefusedError, match=rf"need .* \({least} bytes\), there are .* \({least - unit} bytes\)"):
        rearrange(disk, table, rooms, least - unit, kept=disk.data())
    same, _ = rearranged(disk, rooms, old)
    assert same.fixups == ()
    assert (same.moved_from == same.moved_to).all()
    assert [(p.offset_bytes, p.length_bytes) for p in table.partitions] == list(same.places)
    sizes = {least, least + draw.draw(st.integers(0, 40 * MIB)), old + draw.draw(st.integers(1, 40 * MIB))}
    for size in sorted(sizes):
        plan, new = rearranged(disk, rooms, size)
        check_followers(disk, plan)
        if size > old:
            check_growth(disk, rooms, plan)
        elif size >= least:
            check_shortening(disk, rooms, plan)
        # what was brought to another size is at home there
        again, _ = rearranged(new, [Room(length, False) for _, length in plan.places], size)
        assert again.places == plan.places
        assert again.fixups == ()


def check_followers(disk: SparseDisk, plan: Rearranged) -> None:
    """What lies before a partition moves with it, unless an extended boot record between them keeps its own place."""
    table = table_of(disk)
    partitions, unit = table.partitions, table.bytes_per_sector
    if table.scheme == "gpt" or not partitions:
        return
    shift = {p.offset_bytes: start - p.offset_bytes for p, (start, _) in zip(partitions, plan.places, strict=True)}
    alone = [lba * unit for lba in lone_ebrs(read_containers(disk, table), unit)]
    for old, new in zip(plan.moved_from.tolist(), plan.moved_to.tolist(), strict=True):
        following = min((start for start in (*shift, *alone) if start >= old), default=None)
        if following in shift:
            assert new - old == shift[following]


def check_growth(disk: SparseDisk, rooms: list[Room], plan: Rearranged) -> None:
    partitions = table_of(disk).partitions
    grown = [n for n, p in enumerate(partitions) if plan.places[n][1] != p.length_bytes]
    assert len(grown) <= 1
    for number in grown:
        assert rooms[number].can_grow
        assert all(rooms[n].can_move for n in range(number + 1, len(rooms)))
        for before in range(number):
            assert plan.places[before] == (partitions[before].offset_bytes, partitions[before].length_bytes)
        shifts = {plan.places[n][0] - partitions[n].offset_bytes for n in range(number + 1, len(partitions))}
        assert len(shifts) <= 1
        others = [n for n, room in enumerate(rooms) if room.can_grow and all(r.can_move for r in rooms[n + 1 :])]
        assert all(partitions[n].length_bytes <= partitions[number].length_bytes for n in others)


def check_shortening(disk: SparseDisk, rooms: list[Room], plan: Rearranged) -> None:
    """Nobody was shortened while another had more left to give, but for the units that lengths are told in; and
    nobody before one that cannot move, which would not help."""
    fixed = max((n for n, room in enumerate(rooms) if not room.can_move), default=0)
    spare = [
        (length - min(room.smallest_bytes, p.length_bytes), length < p.length_bytes)
        for room, p, (_, length) in zip(rooms, table_of(disk).partitions, plan.places, strict=True)
    ]
    assert not any(was for _, was in spare[:fixed])
    shortened = [left for left, was in spare if was]
    if shortened:
        assert max(left for left, _ in spare[fixed:]) < min(shortened) + 2 * MIB


@settings(max_examples=25, deadline=None)
@given(with_rooms(st.one_of(gpt_disks(), mbr_disks())), st.data())
def test_disks_of_any_layout(made: tuple[SparseDisk, list[Room]], draw: st.DataObject) -> None:
    check(*made, draw)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(with_rooms(gpt_disks()), st.data())
def test_many_gpt_disks(made: tuple[SparseDisk, list[Room]], draw: st.DataObject) -> None:
    check(*made, draw)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(with_rooms(mbr_disks()), st.data())
def test_many_mbr_disks(made: tuple[SparseDisk, list[Room]], draw: st.DataObject) -> None:
    check(*made, draw)
