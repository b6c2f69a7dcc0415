"""The algebra of runs agrees with sets of numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.extent import Runs, first_overlap

LIMIT = 60
pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=12)


def places(runs: Runs) -> set[int]:
    return {p for start, length in runs for p in range(start, start + length)}


def expected(given_pairs: list[tuple[int, int]]) -> set[int]:
    return {p for start, length in given_pairs for p in range(start, start + length)}


@given(pairs)
def test_runs_hold_exactly_the_given_places_once_in_order(a: list[tuple[int, int]]) -> None:
    runs = Runs.of(a)
    assert places(runs) == expected(a)
    assert runs.total == len(expected(a))
    assert all(runs.start[1:] > runs.end[:-1])
    assert runs == Runs.of(iter(runs))


@given(pairs, pairs)
def test_union_intersection_and_difference_are_those_of_sets(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    x, y = Runs.of(a), Runs.of(b)
    assert places(x.union(y)) == expected(a) | expected(b)
    assert places(x.intersect(y)) == expected(a) & expected(b)
    assert places(x.subtract(y)) == expected(a) - expected(b)
    assert x.covers(y) == (expected(b) <= expected(a))


@given(pairs, st.integers(0, 30), st.integers(30, LIMIT))
def test_clip_and_complement_stay_inside_their_range(a: list[tuple[int, int]], low: int, high: int) -> None:
    runs = Runs.of(a)
    assert places(runs.clip(low, high)) == expected(a) & set(range(low, high))
    assert places(runs.complement(LIMIT)) == set(range(LIMIT)) - expected(a)


@given(pairs, st.sampled_from([1, 2, 4, 8]))
def test_widening_covers_whole_cells(a: list[tuple[int, int]], unit: int) -> None:
    cells = {p // unit for p in expected(a)}
    assert places(Runs.of(a).widen(unit)) == {c * unit + k for c in cells for k in range(unit)}


@given(pairs)
def test_an_overlap_is_found_exactly_when_there_is_one(a: list[tuple[int, int]]) -> None:
    table = np.array(a, dtype=np.int64).reshape(-1, 2)
    place = first_overlap(table[:, 0], table[:, 1])
    assert (place is None) == (sum(length for _, length in a) == len(expected(a)))
    if place is not None:
        assert sum(start <= place < start + length for start, length in a) > 1
