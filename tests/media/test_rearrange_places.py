"""Who gives and who gets when a disk becomes smaller or larger, in numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.media.rearrange_places import Block, fit, grow, least_end
from sqlimage.units import MIB


def block(start: int, length: int, spare: int = 0, *, lead: int = 0, move: bool = True, grows: bool = True) -> Block:
    """In MiB; the first of a row never moves."""
    return Block(start * MIB, length * MIB, max(length - spare, 1) * MIB, grows, move and start > 1, lead * MIB)


def in_mib(places: list[tuple[int, int]]) -> list[tuple[float, float]]:
    return [(start / MIB, length / MIB) for start, length in places]


EFI, ROOT, HOME, RECOVERY = block(1, 100), block(101, 300, 200), block(401, 500, 400), block(901, 10)
ROW = [EFI, ROOT, HOME, RECOVERY]


def test_what_fits_stays() -> None:
    assert in_mib(fit(ROW, 911 * MIB)) == [(1, 100), (101, 300), (401, 500), (901, 10)]
    assert in_mib(fit(ROW, 5000 * MIB)) == [(1, 100), (101, 300), (401, 500), (901, 10)]


def test_free_space_goes_first_and_no_more_of_it_moves_than_must() -> None:
    row = [block(1, 100, 99), block(201, 100, 99), block(401, 100, 99), block(601, 100, 99)]
    assert in_mib(fit(row, 701 * MIB - 1))[:3] == [(1, 100), (201, 100), (401, 100)]
    assert in_mib(fit(row, 701 * MIB - 1))[3] == (600, 100)
    assert in_mib(fit(row, 600 * MIB)) == [(1, 100), (201, 100), (400, 100), (500, 100)]
    assert in_mib(fit(row, 401 * MIB)) == [(1, 100), (101, 100), (201, 100), (301, 100)]


def test_the_one_with_most_to_spare_gives_first() -> None:
    assert in_mib(fit(ROW, 811 * MIB)) == [(1, 100), (101, 300), (401, 400), (801, 10)]
    assert in_mib(fit(ROW, 711 * MIB)) == [(1, 100), (101, 300), (401, 300), (701, 10)]


def test_then_all_keep_the_same_above_their_smallest() -> None:
    assert in_mib(fit(ROW, 611 * MIB)) == [(1, 100), (101, 250), (351, 250), (601, 10)]
    assert in_mib(fit(ROW, 511 * MIB)) == [(1, 100), (101, 200), (301, 200), (501, 10)]


def test_the_least() -> None:
    assert least_end(ROW) == 311 * MIB
    assert in_mib(fit(ROW, 311 * MIB)) == [(1, 100), (101, 100), (201, 100), (301, 10)]


def test_an_odd_rest_is_given_to_one() -> None:
    row = [block(1, 100, 50), block(101, 100, 50), block(201, 100, 50)]
    places = in_mib(fit(row, 300 * MIB))
    assert sorted(length for _, length in places) == [99, 100, 100]
    assert sum(places[-1]) == 300


def test_a_partition_that_is_not_shortened_keeps_an_odd_length() -> None:
    odd = replace(block(401, 50), length=50 * MIB + 512, smallest=50 * MIB + 512)
    assert fit([EFI, ROOT, odd], 300 * MIB) == [(MIB, 100 * MIB), (101 * MIB, 148 * MIB), (249 * MIB, odd.length)]


def test_new_lengths_are_whole_units_and_never_shorter_than_asked() -> None:
    one = Block(MIB, 10 * MIB, 3 * MIB + 1, True, False, 0)
    assert fit([one], 4 * MIB + MIB) == [(MIB, 4 * MIB)]
    assert least_end([one]) == 5 * MIB
    sector = Block(63 * 512, 10 * MIB, 3 * MIB + 1, True, False, 0)
    assert least_end([sector]) == 63 * 512 + 3 * MIB + 512


def test_what_goes_before_a_partition_keeps_its_room() -> None:
    row = [block(1, 10), block(101, 10, lead=3), block(201, 10, lead=90)]
    assert least_end(row) == (1 + 10 + 3 + 10 + 90 + 10) * MIB
    assert in_mib(fit(row, 150 * MIB)) == [(1, 10), (40, 10), (140, 10)]


def test_places_keep_the_alignment_they_had() -> None:
    finer = Block(64 * MIB + 65536, 10 * MIB, 10 * MIB, True, True, 0)
    assert fit([block(1, 10), finer], 40 * MIB - 1) == [(MIB, 10 * MIB), (30 * MIB - 65536, 10 * MIB)]
    row = [block(1, 10), finer, block(100, 10)]
    assert fit(row, 60 * MIB - 1) == [(MIB, 10 * MIB), (39 * MIB, 10 * MIB), (49 * MIB, 10 * MIB)]


def test_one_that_cannot_move_holds_the_rest_apart() -> None:
    row = [block(1, 10, 5), block(101, 10, 5, move=False), block(201, 10, 5)]
    assert least_end(row) == 111 * MIB
    assert in_mib(fit(row, 120 * MIB)) == [(1, 10), (101, 10), (111, 9)]
    assert in_mib(fit(row, 111 * MIB)) == [(1, 10), (101, 5), (106, 5)]


def test_the_longest_that_can_grow_gets_all() -> None:
    assert in_mib(grow(ROW, 1000 * MIB)) == [(1, 100), (101, 300), (401, 1500), (1901, 10)]
    fixed = [EFI, ROOT, replace(HOME, can_grow=False), RECOVERY]
    assert in_mib(grow(fixed, 1000 * MIB)) == [(1, 100), (101, 1300), (1401, 500), (1901, 10)]
    assert in_mib(grow([replace(one, can_grow=False) for one in ROW], 1000 * MIB)) == in_mib(fit(ROW, 911 * MIB))


def test_of_the_longest_the_last_grows() -> None:
    assert in_mib(grow([block(1, 10), block(11, 10), block(21, 5)], MIB)) == [(1, 10), (11, 11), (22, 5)]


def test_nobody_before_one_that_cannot_move_grows() -> None:
    row = [block(1, 100), block(201, 10, move=False), block(301, 5)]
    assert in_mib(grow(row, 7 * MIB)) == [(1, 100), (201, 17), (308, 5)]


def test_gaps_are_kept_when_growing() -> None:
    assert in_mib(grow([block(1, 10), block(50, 5)], 7 * MIB)) == [(1, 17), (57, 5)]


@pytest.mark.parametrize("extra", [1, 512, MIB - 1])
def test_less_than_a_unit_more_changes_nothing(extra: int) -> None:
    assert grow([block(1, 10), block(50, 5)], extra) == [(MIB, 10 * MIB), (50 * MIB, 5 * MIB)]


def test_growing_is_in_whole_units() -> None:
    odd = Block(MIB, 10 * MIB + 512, MIB, True, False, 0)
    assert grow([odd], MIB - 512) == [(MIB, 11 * MIB)]
    assert grow([odd], MIB - 1024) == [(MIB, 10 * MIB + 512)]
    assert grow([odd, block(50, 5)], 3 * MIB + 5) == [(MIB, 13 * MIB), (53 * MIB, 5 * MIB)]


def test_nothing_to_place() -> None:
    assert fit([], 0) == []
    assert grow([], MIB) == []
    assert least_end([]) == 0


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 29)), min_size=1, max_size=4), st.data())
def test_the_level_is_the_highest_possible(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    """In whole units: against trying every level."""
    row, at = [], 1
    for length, spare in sizes:
        row.append(block(at, length, min(spare, length - 1)))
        at += length
    end = data.draw(st.integers(least_end(row) // MIB, at))
    lengths = [length // MIB for _, length in fit(row, end * MIB)]
    best = max(level for level in range(31) if sum(one.keeping(level * MIB) for one in row) <= (end - 1) * MIB)
    floor = [one.keeping(best * MIB) // MIB for one in row]
    assert sum(lengths) == min(end, at) - 1
    assert all(0 <= length - least <= 1 for length, least in zip(lengths, floor, strict=True))


def test_nobody_moves_for_room_that_nobody_can_take() -> None:
    finer = Block(64 * MIB + 65536, 10 * MIB, 10 * MIB, False, True, 0)
    assert grow([block(1, 10), finer], MIB - 1) == [(MIB, 10 * MIB), (finer.start, finer.length)]


def test_an_odd_length_is_kept_whole_where_there_is_just_room_for_it() -> None:
    odd = Block(MIB, 10 * MIB + 512, 5 * MIB, True, False, 0)
    assert odd.keeping(5 * MIB + 512) == odd.length
    assert odd.keeping(5 * MIB + 511) == 10 * MIB
