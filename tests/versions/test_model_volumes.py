"""Volumes captured, edited and rearranged in random orders: a version of a medium reads, lists and maps exactly as a
fresh capture of that medium does, whatever it was captured on top of and whatever became of its ancestors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

import sqlimage
from sqlimage.image.edit import Edit
from sqlimage.streams.properties import Value, is_reserved
from tests.versions.arranging import ARRANGE, Arranging, Place, run
from tests.versions.family import Made
from tests.versions.volumes import State, Told, check_told, fat_media, ntfs_media, others, states, told

MAKE = [*2 * ["edit", "child", "append"], "first"]
Properties = dict[str, Value]
GIVEN: list[Properties] = [{}, {"site": "Berlin"}, {"site": 1, "by.hand": None}]


class Volumes(Arranging):
    """Versions are of media that are known; the first of them is a volume."""

    most_versions = 9
    known: list[State]

    def __init__(self) -> None:
        super().__init__()
        self.properties: dict[str, Properties] = {}
        """By UUID, what holds for a version."""
        self.turns: dict[str, int] = {}
        """By UUID, which of the media it is."""

    @initialize(ways=st.lists(st.sampled_from(["append", "append", "edit", "child"]), min_size=3, max_size=6))
    def first(self, ways: list[str]) -> None:
        """A line of versions in which the volume becomes what it became when it was made, step by step."""
        self._captured(self.family.new_name(), None, 0, {})
        for turn, way in enumerate(ways, 1):
            place = self.family.versions()[-1]
            if way == "edit":
                self._edit(place, turn, is_into=False)
            else:
                self._captured(place[0] if way == "append" else self.family.new_name(), place, turn, {})

    @rule(data=st.data(), what=st.sampled_from([*MAKE, *ARRANGE]))
    def step(self, data: st.DataObject, what: str) -> None:
        if what not in MAKE:
            self.arrange(data, what)
        elif self.can_grow():
            self.make(data, what)
        self.family.check()

    def make(self, data: st.DataObject, way: str) -> None:
        place = self.draw(data, "on")
        following = min(self.turns[place[1]] + 1, len(self.known) - 1)
        turn = data.draw(st.one_of(st.just(following), st.integers(0, len(self.known) - 1)), label="medium")
        if way == "first":
            turn = turn if self.known[turn].is_read_by_files else 0
            self._captured(self.family.new_name(), None, turn, {})
        elif way == "edit":
            self._edit(place, turn, data.draw(st.booleans(), label="into"))
        else:
            values = data.draw(st.sampled_from(GIVEN), label="properties")
            self._captured(place[0] if way == "append" else self.family.new_name(), place, turn, values)

    def _captured(self, file: Path, parent: Place | None, turn: int, values: Properties) -> None:
        state = self.known[turn]
        report = self.capture(file, parent, state.medium, property_values=values)
        inherited = self.properties[parent[1]] if parent else {}
        expected = {name: value for name, value in inherited.items() if not is_reserved(name)}
        expected.update(dict(state.told["property"]))  # type: ignore[arg-type]
        expected.update(values)
        held: Properties = {name: value for name, value in expected.items() if value is not None}
        made = self._made(state, held, report.bytes_per_cluster, is_edit=False)
        self.family.add(file, report.uuid, report.parent_uuid, made)
        self.properties[report.uuid], self.turns[report.uuid] = held, turn

    def _edit(self, place: Place, turn: int, is_into: bool) -> None:
        """Write what differs, cluster by cluster; a medium of another length cannot come of it."""
        parent, state = self.family.made[place[1]], self.known[turn]
        if len(parent.content) != len(state.medium):
            return
        into = self.family.new_name() if is_into else None

        def write(edit: Edit) -> None:
            for at in range(0, len(state.medium), parent.unit):
                part = state.medium[at : at + parent.unit]
                if part != parent.content[at : at + parent.unit]:
                    edit.driver.write(at, part)

        uuid = self.edit(place, into, write, is_kept=True)
        if uuid is not None:
            held = self.properties[uuid] = self.properties[place[1]]
            self.turns[uuid] = turn
            self.family.add(into or place[0], uuid, place[1], self._made(state, held, parent.unit, is_edit=True))

    def _made(self, state: State, properties: Properties, unit: int, *, is_edit: bool) -> Made:
        expected: Told = {**state.told, "property": sorted(properties.items(), key=repr)}

        def check(version: sqlimage.Version) -> None:
            found = told(version)
            check_told(state.without_digests(found) if is_edit else found, expected)

        return Made(state.medium if is_edit else state.kept, unit, check)

    def _flatten(self, data: st.DataObject, is_likely: bool) -> None:
        before = set(self.family.made)
        super()._flatten(data, is_likely)
        for uuid in set(self.family.made) - before:
            original = next(one for one in before if self.family.made[one] is self.family.made[uuid])
            self.properties[uuid], self.turns[uuid] = self.properties[original], self.turns[original]


@pytest.fixture(scope="module")
def fat_states(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    work = tmp_path_factory.mktemp("fat")
    media = fat_media(work / "made")
    return states([*media, *others(media[0])], work)


@pytest.fixture(scope="module")
def ntfs_states(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    work = tmp_path_factory.mktemp("ntfs")
    media = ntfs_media(work / "made")
    return states([*media, *others(media[0])], work)


def test_a_fat_volume_is_told_as_a_fresh_capture_tells_it(fat_states: list[State]) -> None:
    run(type("FatVolumes", (Volumes,), {"known": fat_states}), 4, 12)


def test_an_ntfs_volume_is_told_as_a_fresh_capture_tells_it(ntfs_states: list[State]) -> None:
    run(type("NtfsVolumes", (Volumes,), {"known": ntfs_states}), 3, 10)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("last", [2, 3, 4])
def test_a_name_that_went_and_came_back_for_another_content_hides_the_first_one_for_good(
    fat_states: list[State], first: int, last: int, tmp_path: Path
) -> None:
    image = tmp_path / "i.sqlimage"
    for turn in range(last + 1):
        sqlimage.capture(sqlimage.MemoryDevice(fat_states[turn].medium), image, append=turn > 0)
    sqlimage.squash(image, str(first + 1), str(last + 1))
    with sqlimage.open(str(image)) as opened:
        found = told(opened.version())
        for name in ("file", "extent", "bitmap"):
            assert found[name] == fat_states[last].told[name]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["fat_states", "ntfs_states"])
def test_hundreds_of_runs_over_volumes(name: str, request: pytest.FixtureRequest) -> None:
    run(type("ManyVolumes", (Volumes,), {"known": request.getfixturevalue(name)}), 100, 40)
