"""The algebra of runs agrees with sets of numbers."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.extent import Overlap, Runs, first_overlap, joined, overlaps, stretches

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


@given(st.lists(st.booleans(), max_size=30))
def test_stretches_of_a_mask_are_its_runs(mask: list[bool]) -> None:
    found = stretches(np.array(mask, dtype=np.bool_))
    assert {n for start, end in found for n in range(start, end)} == {n for n, is_set in enumerate(mask) if is_set}
    assert all(start < end for start, end in found)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(found))


@st.composite
def disjoint(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Sorted ranges, none empty, that may follow each other closely."""
    at, found = 0, []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8)), max_size=8)):
        found.append((at + gap, length))
        at += gap + length
    return found


def met(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> Overlap:
    first, second = (np.array(table, dtype=np.int64).reshape(-1, 2) for table in (a, b))
    return overlaps(first[:, 0], first[:, 1], second[:, 0], second[:, 1])


@given(pairs, disjoint())
def test_overlaps_are_every_place_that_two_ranges_share_in_the_order_of_the_first_table(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    found = met(a, b)
    rows = list(zip(*(column.tolist() for column in found), strict=True))
    shared = [(i, j, a[i][0] + into, b[j][0] + at, length) for i, j, into, at, length in rows]
    assert all(place == other and length > 0 for _, _, place, other, length in shared)
    assert [(i, j, place + k) for i, j, place, _, length in shared for k in range(length)] == [
        (i, j, place)
        for i, (start, length) in enumerate(a)
        for j, (at, count) in enumerate(b)
        for place in range(max(start, at), min(start + length, at + count))
    ]
    assert len({(i, j) for i, j, *_ in shared}) == len(shared), "two ranges meet once"


def test_overlaps_of_nothing_or_with_nothing_are_none() -> None:
    for a, b in (([], []), ([(0, 5)], []), ([], [(0, 5)]), ([(3, 0), (5, 0)], [(0, 9)]), ([(5, 3)], [(0, 5), (8, 1)])):
        assert [len(column) for column in met(a, b)] == [0] * 5


def test_overlaps_reach_to_the_end_of_large_media() -> None:
    end = (1 << 63) - 1
    assert [column.tolist() for column in met([(end - 10, 10)], [(0, 5), (end - 4, 4)])] == [[0], [1], [6], [0], [4]]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)), max_size=9))
def test_runs_of_one_owner_that_go_on_are_one_and_nothing_else_changes(steps: list[tuple[int, int, int, int]]) -> None:
    rows, ends = [], dict.fromkeys(range(3), (0, 0))
    for owner, hole, gap, length in sorted(steps, key=lambda step: step[0]):
        place, at = ends[owner][0] + hole // 2, ends[owner][1] + gap // 2
        rows.append((owner, place, at, length))
        ends[owner] = (place + length, at + length)
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    found = list(zip(*(column.tolist() for column in joined(*table.T)), strict=True))
    assert [(o, p + k, a + k) for o, p, a, n in found for k in range(n)] == [
        (o, p + k, a + k) for o, p, a, n in rows for k in range(n)
    ]
    for one, other in itertools.pairwise(found):
        assert (one[0], one[1] + one[3], one[2] + one[3]) != other[:3]
