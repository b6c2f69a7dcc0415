"""What is written last wins, against a dictionary that says the same slowly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sqlimage.extent import Runs
from sqlimage.image.overlay import Overlay

UNIT = 512
LAST = 60
ZERO = b""
Steps = list[tuple[bool, int, int]]
"""Whether it zeroes, and the first and last cluster."""

clusters = st.integers(0, LAST)
steps = st.lists(
    st.tuples(st.booleans(), clusters, clusters).map(lambda s: (s[0], min(s[1:]), max(s[1:]))), max_size=12
)


def made(overlay: Overlay, steps: Steps, mark: int) -> dict[int, bytes]:
    """Do the steps; the model of them: zeroed clusters are empty bytes, untouched ones are not in it."""
    model: dict[int, bytes] = {}
    for number, (is_zeroing, first, last) in enumerate(steps):
        covered = range(first, last + 1)
        if is_zeroing:
            overlay.zero(first, last)
            model.update(dict.fromkeys(covered, ZERO))
        else:
            written = {cluster: bytes([mark, number]) * (UNIT // 2) for cluster in covered}
            overlay.data.update(written)
            model.update(written)
    return model


def shown(overlay: Overlay, first: int = 0, last: int = LAST) -> dict[int, bytes]:
    zeroed = {n: ZERO for start, end in overlay.zeros_within(first, last) for n in range(start, end)}
    return zeroed | {n: content for n, content in overlay.data.items() if first <= n <= last}


def numbers(runs: Runs) -> set[int]:
    return {n for start, length in runs for n in range(start, start + length)}


@given(steps, clusters, clusters)
def test_every_cluster_reads_as_what_was_done_to_it_last(steps: Steps, a: int, b: int) -> None:
    overlay = Overlay(UNIT)
    model = made(overlay, steps, 1)
    assert shown(overlay) == model
    first, last = min(a, b), max(a, b)
    assert shown(overlay, first, last) == {n: content for n, content in model.items() if first <= n <= last}
    assert bool(overlay) == bool(model)


@given(steps)
def test_zeroed_stretches_are_in_order_apart_and_within_the_range_asked_for(steps: Steps) -> None:
    overlay = Overlay(UNIT)
    made(overlay, steps, 1)
    at = -1
    for start, end in overlay.zeros_within(3, LAST - 3):
        assert 3 <= start < end <= LAST - 2
        assert start > at, "two that touch are one"
        at = end


@given(steps)
def test_written_and_zeroed_clusters_are_told_apart(steps: Steps) -> None:
    overlay = Overlay(UNIT)
    model = made(overlay, steps, 1)
    assert numbers(overlay.written()) == {n for n, content in model.items() if content}
    assert numbers(overlay.zeros()) == {n for n, content in model.items() if not content}


@given(steps, steps)
def test_one_overlay_under_a_newer_one_reads_like_both_done_in_turn(older: Steps, newer: Steps) -> None:
    below, above = Overlay(UNIT), Overlay(UNIT)
    model = made(below, older, 1) | made(above, newer, 2)
    kept = dict(above.data)
    below.put_under(above)
    assert shown(below) == model
    assert above.data == kept


@given(steps, st.sets(clusters), clusters, clusters)
def test_data_shows_through_where_nothing_was_zeroed_over_it(steps: Steps, mapped: set[int], a: int, b: int) -> None:
    overlay = Overlay(UNIT)
    model = made(overlay, steps, 1)
    first, last = min(a, b), max(a, b)
    beneath = Runs.of((n, 1) for n in mapped if first <= n <= last)
    expected = {n for n in range(first, last + 1) if (bool(model[n]) if n in model else n in mapped)}
    assert numbers(overlay.shown_by(first, last, beneath)) == expected


@given(steps)
def test_what_it_holds_is_counted_and_zeros_cost_next_to_nothing(steps: Steps) -> None:
    overlay = Overlay(UNIT)
    made(overlay, steps, 1)
    assert overlay.held_bytes >= len(overlay.data) * UNIT
    overlay.zero(0, 1 << 40)
    assert not overlay.data
    assert overlay.held_bytes < UNIT
