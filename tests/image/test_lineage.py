"""A lineage as one map, against a list that is filled version by version."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sqlimage
from sqlimage.image import effective, flatmap, lineage
from sqlimage.image.chunks import Connections, connect
from sqlimage.image.edits import begin
from sqlimage.image.flatmap import FlatMap
from sqlimage.streams import cluster_map, control
from sqlimage.streams.database import Database
from tests.image.edits import SIZE, captured, content_of, medium
from tests.images import noise

UNIT = 512
WINDOW_CLUSTERS = 64
"""In place of the driver's 4,096, for maps that a test can look through cluster by cluster."""
LONGEST = 2 * WINDOW_CLUSTERS + 50
Backing = tuple[str, int, int] | None
"""File, data and place in it of a cluster; None for zeros."""


@dataclass(frozen=True)
class Generation:
    """One version: its file, its length in clusters, and its records (start, length, data or None, offset)."""

    file: int
    clusters: int
    records: list[tuple[int, int, int | None, int]]


@st.composite
def generations(draw: st.DrawFn) -> list[Generation]:
    made = []
    for _ in range(draw(st.integers(1, 5))):
        clusters = draw(st.sampled_from([LONGEST, LONGEST, LONGEST - 12, WINDOW_CLUSTERS + 5, 40]))
        records, at = [], 0
        for near, gap, length, data, offset in draw(
            st.lists(
                st.tuples(
                    st.sampled_from([0, 0, WINDOW_CLUSTERS - 6, 2 * WINDOW_CLUSTERS - 3]),
                    st.integers(0, 9),
                    st.integers(1, 12) | st.just(WINDOW_CLUSTERS),
                    st.none() | st.integers(1, 3),
                    st.integers(0, 5),
                ),
                max_size=6,
            )
        ):
            at = max(at, near) + gap
            length = min(length, clusters - at)
            if length > 0:
                records.append((at, length, data, offset * UNIT if data is not None else 0))
                at += length
        made.append(Generation(draw(st.integers(0, 2)), clusters, records))
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("lineage") / "template", medium(UNIT), UNIT).parent


def written(place: Path, made: list[Generation]) -> tuple[Database, control.Control, list[Backing]]:
    """The versions as rows of up to three files, and what each cluster of the last one must show."""
    model: list[Backing] = []
    for number in range(3):
        shutil.copy(place / "template", place / f"{number}.sqlimage")
    files = [Database.open(place / f"{number}.sqlimage", writable=True) for number in range(3)]
    pattern = control.versions(files[0])[0]
    found = pattern
    for file in files:
        for table in ("control", "volume", "cluster_map", "bitmap", "file", "extent", "property"):
            file.run(f"DELETE FROM {table}")
    parent: str | None = None
    for number, one in enumerate(made, 1):
        found = dataclasses.replace(
            pattern,
            version=number,
            uuid=control.new_uuid(),
            parent_uuid=parent,
            medium_bytes=one.clusters * UNIT - 7,
            label=None,
        )
        parent = found.uuid
        control.insert_control(files[one.file], found)
        model = (model + [None] * one.clusters)[: one.clusters]
        for start, length, data, offset in one.records:
            files[one.file].run(cluster_map.INSERT, [number, start, start + length - 1, data, offset])
            for n in range(length):
                name = f"{one.file}.sqlimage"
                model[start + n] = None if data is None else (name, data, offset + n * UNIT)
    for number, file in enumerate(files):
        if number != made[-1].file:
            file.close()
    return files[made[-1].file], found, model


@settings(max_examples=50, deadline=None)
@given(made=generations())
def test_every_cluster_comes_from_the_nearest_version_that_says_something_of_it(
    place: Path, made: list[Generation]
) -> None:
    database, version, model = written(place, made)
    with opened(database, version) as (line, connections), pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatmap, "WINDOW_CLUSTERS", WINDOW_CLUSTERS)
        names = [os.path.basename(file.path) for file in line.files]
        # Read window by window, as a driver does.
        flat = FlatMap(line, connections)
        seen: list[Backing] = [None] * version.total_clusters
        for number in range(-(-version.total_clusters // WINDOW_CLUSTERS)):
            window = flat.window(number)
            for row in range(len(window.start)):
                for cluster in range(window.start[row], window.end[row]):
                    offset = window.offset[row] + (cluster - window.start[row]) * UNIT
                    seen[cluster] = (names[window.file[row]], window.data[row], offset)
        assert seen == model
        mapped = {n for start, end in flat.mapped(0, version.total_clusters - 1) for n in range(start, end)}
        assert mapped == {n for n, backing in enumerate(model) if backing}
        for first, last in ((3, 20), (WINDOW_CLUSTERS - 2, WINDOW_CLUSTERS + 1), (30, LONGEST)):
            last = min(last, version.total_clusters - 1)
            found = {n for start, end in flat.mapped(first, last) for n in range(start, end)}
            assert found == {n for n in mapped if first <= n <= last}


@settings(max_examples=50, deadline=None)
@given(made=generations(), step=st.sampled_from([7, WINDOW_CLUSTERS, 1 << 10]))
def test_in_bulk_it_is_the_same_map(place: Path, made: list[Generation], step: int) -> None:
    database, version, model = written(place, made)
    seen: list[Backing] = [None] * version.total_clusters
    with opened(database, version) as (line, connections), pytest.MonkeyPatch.context() as patch:
        patch.setattr(effective, "_STEP_CLUSTERS", step)
        names = [os.path.basename(file.path) for file in line.files]
        at = -1
        for table in effective.pages(line, connections):
            for start, end, data, offset in zip(table.start, table.end, table.data, table.data_offset, strict=True):
                assert start > at
                at = end
                if data:
                    file, number = effective.key_of(int(data))
                    for n in range(int(end - start) + 1):
                        seen[start + n] = (names[file], number, int(offset) + n * UNIT)
    assert seen == model


class opened:
    """A resolved lineage and its connections, closed afterwards."""

    def __init__(self, database: Database, version: control.Control) -> None:
        self._database = database
        self._line = lineage.resolve(database, version)
        self._connections = connect(self._line)

    def __enter__(self) -> tuple[lineage.Lineage, list[Connections]]:
        return self._line, self._connections

    def __exit__(self, *_: object) -> None:
        for connections in self._connections:
            connections.close()
        self._line.close()
        self._database.close()


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[Path, Path, bytes]]:
    """A parent, a child in another directory, and what the child must read as."""
    content = bytearray(medium(4096))
    for name in ("parents", "children"):
        (tmp_path / name).mkdir()
    parent = captured(tmp_path / "parents" / "golden.sqlimage", bytes(content), 4096)
    child = tmp_path / "children" / "mine.sqlimage"
    with begin(str(parent), into=child) as edit:
        edit.driver.write(5000, b"the child's own")
    content[5000:5015] = b"the child's own"
    yield parent, child, bytes(content)


def test_a_parent_is_found_by_its_uuid_whatever_it_is_called(family: tuple[Path, Path, bytes]) -> None:
    parent, child, content = family
    parent.rename(child.with_name("renamed.sqlimage"))
    assert content_of(child) == content


def test_a_parent_is_looked_for_where_the_caller_and_the_environment_say(
    family: tuple[Path, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child, content = family
    with sqlimage.Image.open(child, search=[str(parent.parent)]) as image:
        driver = image.driver()
        assert driver.read(0, SIZE) == content
        driver.close()
    monkeypatch.setenv(lineage.SEARCH_VARIABLE, f"/nowhere:{parent.parent}")
    assert content_of(child) == content


def test_a_parent_that_is_nowhere_is_one_error_with_its_uuid_its_name_and_the_places(
    family: tuple[Path, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child, _ = family
    with sqlimage.open(str(parent)) as image:
        uuid = image.version().control.uuid
    monkeypatch.setenv(lineage.SEARCH_VARIABLE, "/nowhere")
    with sqlimage.open(str(child)) as image:
        for use in (image.version().driver, image.version().allocated, image.version().properties):
            with pytest.raises(sqlimage.NotFoundError) as caught:
                use()
            for told in (uuid, "golden.sqlimage", str(child.parent), "/nowhere", lineage.SEARCH_VARIABLE):
                assert told in str(caught.value)


def test_another_image_under_the_parents_name_is_not_taken_for_it(family: tuple[Path, Path, bytes]) -> None:
    parent, child, content = family
    impostor = child.with_name(parent.name)
    sqlimage.capture(sqlimage.MemoryDevice(noise("impostor", SIZE)), impostor)
    with pytest.raises(sqlimage.NotFoundError), sqlimage.open(str(child)) as image:
        image.driver()
    shutil.copy(parent, child.with_name("zz.sqlimage"))
    assert content_of(child) == content


def test_a_lineage_over_thirty_files_reads_lists_and_seals_like_one(tmp_path: Path) -> None:
    content = bytearray(medium(4096))
    newest = captured(tmp_path / "0.sqlimage", bytes(content), 4096)
    for number in range(1, 31):
        child = tmp_path / f"{number}.sqlimage"
        with begin(str(newest), into=child) as edit:
            edit.driver.write(4096 * number, noise(number, 4096))
        content[4096 * number : 4096 * (number + 1)] = noise(number, 4096)
        newest = child
    assert content_of(newest) == content
    with sqlimage.open(str(newest)) as image:
        assert image.version().allocated().total == image.version().control.total_clusters
        assert image.version().properties()["capture.tool"]
