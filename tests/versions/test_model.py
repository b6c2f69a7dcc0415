"""Versions made and rearranged in random orders, over many files, against every byte that each was made with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from sqlimage.image.edit import Edit
from tests.image.edits import SIZE, medium
from tests.images import noise
from tests.versions.arranging import ARRANGE, Arranging, Place, in_small_steps, run
from tests.versions.family import Made

_EDGES = [0, 511, 512, 4095, 4096, 4097, 65_536, SIZE // 2, SIZE - 4096, SIZE - 700]
_SIZES = [0, 1, 700, 4096, 100_000, SIZE - 4096, SIZE + 1, 77 * 4096, SIZE + 60_000]

Change = tuple[str, int, int, int]
"""What is done, where, how long, and from where or with which seed."""
kinds = st.sampled_from(["write", "zero", "copy", "move", "take", "scatter"])
places = st.one_of(st.sampled_from(_EDGES), st.integers(0, SIZE), st.integers(0, SIZE // 512).map(lambda n: n * 512))
lengths = st.one_of(st.sampled_from([1, 512, 4096, 12_288, 65_536]), st.integers(1, 20_000))
origins = st.one_of(st.integers(0, 3), places)
changes = st.lists(st.tuples(kinds, places, lengths, origins), max_size=5)
sizes = st.one_of(st.none(), st.none(), st.sampled_from(_SIZES))
MAKE = [*2 * ["edit", "child", "append"], "first"]


def writes(content: bytes, other: bytes, what: Sequence[Change], unit: int) -> Iterator[tuple[int, bytes]]:
    """What is written where, one after the other; ``other`` is a medium of which parts are taken, in place."""
    made = bytearray(content)
    for kind, place, length, origin in what:
        end = min(place + length, len(made))
        written = [(place, noise(origin % 4, max(0, end - place)))]
        if kind == "zero":
            written = [(place, bytes(max(0, end - place)))]
        elif kind == "take":
            written = [(place, other[place:end])]
        elif kind == "scatter":  # single clusters, of which the same ones come again elsewhere
            written = [(place // unit * unit + 3 * n * unit, noise((origin + n) % 16, unit)) for n in range(12)]
        elif kind != "write":
            part = bytes(made[origin : origin + end - place])
            written = [(origin, bytes(len(part))), (place, part)][kind == "copy" :]
        for at, part in written:
            part = part[: max(0, len(made) - at)]
            if part:
                made[at : at + len(part)] = part
                yield at, part


class Versions(Arranging):
    """Media of noise that are written to and cut anywhere."""

    unit = 4096
    changes: st.SearchStrategy[list[Change]] = changes
    sizes: st.SearchStrategy[int | None] = sizes

    def base(self) -> bytes:
        return medium(self.unit)

    @initialize(data=st.data(), ways=st.lists(st.sampled_from(MAKE), min_size=3, max_size=6))
    def first(self, data: st.DataObject, ways: list[str]) -> None:
        """One image, and a few versions on top of it."""
        self._captured(self.family.new_name(), None, self.base())
        for way in ways:
            self.make(data, way)

    @rule(data=st.data(), what=st.sampled_from([*MAKE, *ARRANGE]))
    def step(self, data: st.DataObject, what: str) -> None:
        """One rule, for of many each run leaves some out."""
        if what not in MAKE:
            self.arrange(data, what)
        elif self.can_grow():
            self.make(data, what)
        self.family.check()

    def make(self, data: st.DataObject, way: str) -> None:
        what, (_, other) = data.draw(self.changes, label="changes"), self.draw(data, "with")
        taken = self.family.made[other].content
        if way == "edit":
            is_into, is_kept = data.draw(st.booleans(), label="into"), data.draw(st.integers(0, 4), label="kept") > 0
            self._edit(self.draw(data, "on"), taken, what, is_into, is_kept)
            return
        size, content = data.draw(self.sizes, label="size"), self.family.made[self.draw(data, "of")[1]].content
        model = bytearray(content if size is None else content[:size].ljust(size, b"\xa5"))
        for at, part in writes(bytes(model), taken, what, self.unit):
            model[at : at + len(part)] = part
        parent = None if way == "first" else self.draw(data, "on")
        file = parent[0] if parent and way == "append" else self.family.new_name()
        self._captured(file, parent, bytes(model))

    def _captured(self, file: Path, parent: Place | None, content: bytes) -> None:
        report = self.capture(file, parent, content)
        assert report.parent_uuid == (parent[1] if parent else None)
        assert parent is None or report.bytes_per_cluster == self.family.made[parent[1]].unit
        self.family.add(file, report.uuid, report.parent_uuid, Made(content, report.bytes_per_cluster))

    def _edit(self, place: Place, taken: bytes, what: list[Change], is_into: bool, is_kept: bool) -> None:
        parent = self.family.made[place[1]]
        into, model = self.family.new_name() if is_into else None, bytearray(parent.content)

        def write(edit: Edit) -> None:
            for at, part in writes(bytes(model), taken, what, self.unit):
                if any(part):
                    edit.driver.write(at, part)
                else:
                    edit.driver.zero(at, len(part))
                model[at : at + len(part)] = part
                if at % 8192:
                    edit.driver.flush()

        uuid = self.edit(place, into, write, is_kept=is_kept)
        if uuid is not None:
            self.family.add(into or place[0], uuid, place[1], Made(bytes(model), parent.unit))


class VersionsOfSectors(Versions):
    unit = 512


class VersionsOfFewContents(Versions):
    """Media of a few clusters, in which the same few contents come again and again, in all files."""

    most_versions = 20
    changes = st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "write", "zero", "copy", "take"]),
            st.integers(0, 11).map(lambda n: n * 4096),
            st.sampled_from([4096, 4096, 8192, 12_288]),
            st.one_of(st.integers(0, 3), st.integers(0, 11).map(lambda n: n * 4096)),
        ),
        max_size=4,
    )
    sizes = st.one_of(*4 * [st.none()], st.sampled_from([4096, 5 * 4096, 16 * 4096]))

    def base(self) -> bytes:
        return noise("few", 10 * 4096) + bytes(2 * 4096)


@pytest.fixture(params=["as it is", "in small steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in small steps":
        in_small_steps(monkeypatch)


MACHINES = [Versions, VersionsOfSectors, VersionsOfFewContents]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_version_stays_what_it_is_whatever_is_done_to_its_files(machine: type[Versions], steps: None) -> None:
    run(machine, 4, 15)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", MACHINES)
def test_hundreds_of_runs_of_many_steps(machine: type[Versions], steps: None) -> None:
    run(machine, 150, 50)
