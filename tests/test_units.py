"""Sizes are written and read the way people do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import UsageError
from sqlimage.units import format_size, format_time, parse_size, power_of_two_in


@pytest.mark.parametrize(
    ("text", "length"), [("4096", 4096), ("64K", 65536), ("64KiB", 65536), ("1.5 GiB", 3 << 29), ("2tb", 2 << 40)]
)
def test_sizes_are_read_with_their_units(text: str, length: int) -> None:
    assert parse_size(text) == length


@pytest.mark.parametrize("text", ["", "many", "-1", "1 XB", "9999999999999 TiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.integers(0, 1 << 60))
def test_a_printed_size_reads_back_within_its_rounding(length: int) -> None:
    assert abs(parse_size(format_size(length)) - length) <= length * 0.05 + 1


def test_times_without_a_calendar_date_are_none() -> None:
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert format_time(-(1 << 63)) is None


@given(st.integers(1, 1 << 62))
def test_the_power_of_two_divides_and_twice_it_does_not(number: int) -> None:
    power = power_of_two_in(number)
    assert number % power == 0
    assert number % (2 * power) != 0
