"""Moves of bytes agree with a medium on which every byte is carried over by itself."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.extent import Int64s, Runs
from sqlimage.moves import Moves

SIZE = 96
"""Of the old medium and the new one; bytes."""

Rows = list[tuple[int, int, int]]
"""Old place, new place, length."""
few = settings(max_examples=30, deadline=None)
ranges = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 20)), max_size=6)


@st.composite
def rows_of_moves(draw: st.DrawFn) -> Rows:
    """Moves in any order, disjoint in both places, some of them empty, many going on where others end."""
    lengths = draw(st.lists(st.integers(0, 9), max_size=9))
    chance = random.Random(draw(st.integers(0, 1 << 32)))
    room = SIZE - sum(lengths)
    places: list[dict[int, int]] = []
    for _ in range(2):
        order, at, left = list(range(len(lengths))), 0, room
        if chance.random() < 0.6:
            chance.shuffle(order)
        found = {}
        for n in order:
            gap = chance.choice([0, 0, 0, chance.randint(0, left)])
            at, left = at + gap, left - gap
            found[n] = at
            at += lengths[n]
        places.append(found)
    rows = [(places[0][n], places[1][n], length) for n, length in enumerate(lengths)]
    chance.shuffle(rows)
    return rows


def columns(rows: Rows | list[tuple[int, int]], width: int = 3) -> list[Int64s]:
    table = np.array(rows, dtype=np.int64).reshape(-1, width)
    return [table[:, n] for n in range(width)]


def moves_of(rows: Rows) -> Moves:
    old, new, length = columns(rows)
    return Moves.of(old, new, length)


def came_from(rows: Rows) -> dict[int, int]:
    """For every byte of the new place that comes from somewhere, where it lay."""
    return {new + k: old + k for old, new, length in rows for k in range(length)}


def told(moves: Moves) -> dict[int, int]:
    return came_from(list(zip(moves.old.tolist(), moves.new.tolist(), moves.length.tolist(), strict=True)))


@few
@given(rows_of_moves())
def test_they_carry_exactly_the_given_bytes_in_as_few_moves_as_can_be_by_new_place(rows: Rows) -> None:
    moves = moves_of(rows)
    assert told(moves) == came_from(rows)
    assert (moves.length > 0).all()
    assert (np.diff(moves.new) > 0).all()
    goes_on = (moves.new[1:] == (moves.new + moves.length)[:-1]) & (moves.old[1:] == (moves.old + moves.length)[:-1])
    assert not goes_on.any()
    assert len(moves) == len(moves.new) == len(moves.old) == len(moves.length)
    assert moves.moved_bytes == sum(length for old, new, length in rows if old != new)


@few
@given(rows_of_moves(), st.integers(1, 4))
def test_parts_joined_are_the_whole(rows: Rows, parts: int) -> None:
    whole, joined = moves_of(rows), Moves.joined(moves_of(rows[n::parts]) for n in range(parts))
    for name in ("old", "new", "length"):
        assert np.array_equal(getattr(whole, name), getattr(joined, name)), name
        assert getattr(joined, name).dtype == np.int64


def test_nothing_joined_is_nothing() -> None:
    for none in (Moves.joined([]), Moves.joined([moves_of([]), moves_of([(5, 9, 0)])])):
        assert (len(none), none.moved_bytes, len(none.by_old())) == (0, 0, 0)
        assert none.carry(Runs.of([(0, 9)])) == Runs.empty()
        start, length = columns([(0, 9)], 2)
        assert len(none.come(start, length)[1]) == len(none.leave(start, length)[1]) == 0


@few
@given(ranges, st.integers(0, 30))
def test_runs_that_all_move_the_same_way(pairs: list[tuple[int, int]], by: int) -> None:
    runs = Runs.of(pairs)
    moves = Moves.of_runs(runs, by)
    assert told(moves) == {place + by: place for start, length in runs for place in range(start, start + length)}
    assert moves.moved_bytes == (runs.total if by else 0)
    assert moves.carry(runs) == runs.shift(by)


@few
@given(rows_of_moves())
def test_by_old_place_they_are_the_same_moves(rows: Rows) -> None:
    moves = moves_of(rows)
    by_old = moves.by_old()
    assert told(by_old) == told(moves)
    assert (np.diff(by_old.old) > 0).all()


@few
@given(rows_of_moves(), ranges)
def test_of_ranges_of_the_old_place_every_kept_byte_is_told_where_it_comes_to_lie(
    rows: Rows, asked: list[tuple[int, int]]
) -> None:
    start, length = columns(asked, 2)
    goes_to = {old: new for new, old in came_from(rows).items()}
    met, place = moves_of(rows).by_old().leave(start, length)
    pieces = zip(met.a.tolist(), met.into_a.tolist(), place.tolist(), met.length.tolist(), strict=True)
    found = [(a, into + k, new + k) for a, into, new, count in pieces for k in range(count)]
    assert found == [
        (a, k, goes_to[first + k])
        for a, (first, count) in enumerate(asked)
        for k in range(count)
        if first + k in goes_to
    ]


@few
@given(rows_of_moves(), ranges)
def test_of_ranges_of_the_new_place_every_byte_is_told_where_it_lay(rows: Rows, asked: list[tuple[int, int]]) -> None:
    start, length = columns(asked, 2)
    origin = came_from(rows)
    met, place = moves_of(rows).come(start, length)
    pieces = zip(met.a.tolist(), met.into_a.tolist(), place.tolist(), met.length.tolist(), strict=True)
    found = [(a, into + k, old + k) for a, into, old, count in pieces for k in range(count)]
    assert found == [
        (a, k, origin[first + k]) for a, (first, count) in enumerate(asked) for k in range(count) if first + k in origin
    ]


@few
@given(rows_of_moves(), ranges)
def test_runs_are_carried_to_where_their_bytes_come_to_lie(rows: Rows, asked: list[tuple[int, int]]) -> None:
    runs, moves = Runs.of(asked), moves_of(rows)
    there = {place for start, length in runs for place in range(start, start + length)}
    carried = moves.carry(runs)
    found = {place for start, length in carried for place in range(start, start + length)}
    assert found == {new for new, old in came_from(rows).items() if old in there}
    assert all(carried.start[1:] > carried.end[:-1])
    assert moves.carry(Runs.of([(0, SIZE)])) == Runs.from_arrays(moves.new, moves.length)


@few
@given(rows_of_moves(), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_on_a_larger_medium_they_are_the_same_moves_further_on(rows: Rows, old_by: int, new_by: int) -> None:
    moves = moves_of(rows).shift(old_by, new_by)
    assert told(moves) == {new + new_by: old + old_by for new, old in came_from(rows).items()}


@few
@given(rows_of_moves(), st.binary(min_size=SIZE, max_size=SIZE))
def test_a_medium_moved_there_and_back_is_as_it_was_where_it_was_kept(rows: Rows, medium: bytes) -> None:
    moves, there, back = moves_of(rows), bytearray(SIZE), bytearray(SIZE)
    for old, new, length in zip(moves.old.tolist(), moves.new.tolist(), moves.length.tolist(), strict=True):
        there[new : new + length] = medium[old : old + length]
    reverse = Moves.of(moves.new, moves.old, moves.length)
    for old, new, length in zip(reverse.old.tolist(), reverse.new.tolist(), reverse.length.tolist(), strict=True):
        back[new : new + length] = there[old : old + length]
    kept = set(came_from(rows).values())
    assert back == bytes(byte if place in kept else 0 for place, byte in enumerate(medium))
