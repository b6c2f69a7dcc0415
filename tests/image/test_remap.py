"""New records cut into a map: every cluster shows the newest record over it, through SQLite as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sqlimage.image import remap
from sqlimage.streams import cluster_map
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.database import Database
from tests.image.edits import captured, medium

UNIT = 4096
SPAN = 90
VERSION = 7
Seen = tuple[int | None, int]
"""Data and the place in it that a cluster shows."""


@st.composite
def maps(draw: st.DrawFn) -> list[MapRecord]:
    """Sorted, disjoint records; some touch, some are far apart, some are zeros."""
    records, at = [], 0
    for gap, length, data, offset in draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 1, 2, 17, 30]),
                st.integers(1, 5) | st.integers(40, 90),
                st.none() | st.integers(1, 5),
                st.integers(0, 3),
            ),
            max_size=8,
        )
    ):
        at += gap
        records.append(MapRecord(at, at + length - 1, data, 0 if data is None else offset * UNIT))
        at += length
    return records


def shown(records: Iterable[MapRecord]) -> dict[int, Seen]:
    """Cluster by cluster. Fails where two records cover one."""
    model: dict[int, Seen] = {}
    for record in records:
        for cluster in range(record.start_cluster, record.end_cluster + 1):
            assert cluster not in model, "records overlap"
            offset = record.data_offset + (cluster - record.start_cluster) * UNIT
            model[cluster] = (record.data, offset if record.data is not None else 0)
    return model


@given(maps(), maps())
def test_what_stays_of_a_record_is_what_no_new_one_covers(own: list[MapRecord], new: list[MapRecord]) -> None:
    touched = remap.cut(own, new, UNIT)
    covered = shown(new).keys()
    for record, stay in touched:
        expected = {cluster: seen for cluster, seen in shown([record]).items() if cluster not in covered}
        assert shown(stay) == expected
        assert len(expected) < record.end_cluster - record.start_cluster + 1
    untouched = [record for record in own if record not in [record for record, _ in touched]]
    assert not shown(untouched).keys() & covered


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    image = captured(tmp_path_factory.mktemp("remap") / "i.sqlimage", medium(UNIT), UNIT)
    with Database.open(image, writable=True) as opened:
        yield opened


@contextmanager
def rolled_back(database: Database) -> Iterator[None]:
    try:
        yield
    finally:
        database.run("ROLLBACK")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rounds=st.lists(maps(), min_size=1, max_size=5),
    window=st.sampled_from([0, 8, 40, 4096]),
    most=st.integers(1, 3),
    taken_back=st.none() | maps(),
)
@example(  # the last record drops the windows at hand before those ahead of it are in the database
    rounds=[[MapRecord(n, n + 7 * (n == 118), None, 0) for n in (0, 40, 80, 118)], [MapRecord(80, 80, None, 0)]],
    window=40,
    most=3,
    taken_back=None,
)
def test_a_map_that_is_written_over_and_over_shows_the_newest_of_every_cluster(
    database: Database, rounds: list[list[MapRecord]], window: int, most: int, taken_back: list[MapRecord] | None
) -> None:
    """With and without a memory of what is covered, which may be too small, and may know of what was rolled back."""
    cover = remap.Cover(database, VERSION) if window else None
    database.run("BEGIN")
    with pytest.MonkeyPatch.context() as patch, rolled_back(database):
        patch.setattr(remap, "_WINDOW_CLUSTERS", window or 4096)
        patch.setattr(remap, "_MOST_WINDOWS", most)
        patch.setattr(remap, "_LONG_CLUSTERS", 4 * (window or 4096))
        if taken_back:
            database.run("SAVEPOINT one")
            remap.store(database, VERSION, taken_back, UNIT, cover)
            database.run("ROLLBACK TO one")
        model: dict[int, Seen] = {}
        for new in rounds:
            before = {seen[0] for seen in model.values()}
            lost = remap.store(database, VERSION, new, UNIT, cover)
            covered = shown(new)
            assert lost == {data for n, (data, _) in model.items() if n in covered and data is not None}
            assert lost <= before
            model |= covered
            assert shown(cluster_map.in_range(database, VERSION, 0, 1 << 40)) == model


def test_records_that_lie_far_apart_are_not_looked_up_as_one_range(database: Database) -> None:
    """Two writes at both ends of a medium must not read the whole map between them."""
    seen: list[tuple[int, int]] = []

    def in_range(_: Database, __: int, start: int, end: int) -> list[MapRecord]:
        seen.append((start, end))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_map, "in_range", in_range)
        database.run("BEGIN")
        remap.store(database, VERSION, [MapRecord(1, 2, None, 0), MapRecord(10**9, 10**9, None, 0)], UNIT)
        database.run("ROLLBACK")
    assert seen == [(1, 2), (10**9, 10**9)]


def test_the_images_of_other_versions_are_left_alone(database: Database, tmp_path: Path) -> None:
    other = cluster_map.in_range(database, 1, 0, 1 << 40)
    database.run("BEGIN")
    remap.store(database, VERSION, [MapRecord(0, SPAN, None, 0)], UNIT)
    assert cluster_map.in_range(database, 1, 0, 1 << 40) == other
    database.run("ROLLBACK")
