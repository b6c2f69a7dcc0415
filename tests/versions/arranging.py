"""What can be done to a family of images, in random orders, and what must be said of it: shared by the machines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

import sqlimage
from sqlimage.image import driver, edit_driver, effective, flatmap
from sqlimage.image.edit import Edit
from sqlimage.versions import compact, reading, removal, squash
from tests.versions.family import GONE, Family, Made, differing_clusters

ARRANGE = [*2 * ["merge", "squash", "rebase", "compact", "look"], "prune", "flatten"]
"""What is done to versions that are there, as often as each stands here."""
Place = tuple[Path, str]
"""A file and a version in it, by UUID."""


class Arranging(RuleBasedStateMachine):
    """One directory of images, all of whose versions stay what they are, whatever is done to the files."""

    most_versions = 14

    def __init__(self) -> None:
        super().__init__()
        self.work = Path(tempfile.mkdtemp(prefix="versions-"))
        (self.work / "images").mkdir()
        self.family = Family(self.work / "images")

    def can_grow(self) -> bool:
        return len(self.family.versions()) < self.most_versions

    def draw(self, data: st.DataObject, what: str, among: Sequence[Place] = ()) -> Place:
        """One of some versions, or of all."""
        known = among or self.family.versions()
        return known[data.draw(st.integers(0, len(known) - 1), label=what)]

    def capture(self, file: Path, parent: Place | None, content: bytes, **options: object) -> sqlimage.CaptureReport:
        """A new version of a medium with that content: ``file`` is new, or that of the parent."""
        device = sqlimage.MemoryDevice(content)
        if parent is None:
            return sqlimage.capture(device, file, preset="fast", **options)  # type: ignore[arg-type]
        if parent[0] == file:
            told = {"append": True, "parent_version": parent[1], **options}
            return sqlimage.capture(device, file, preset="fast", **told)  # type: ignore[arg-type]
        before, told = parent[0].read_bytes(), {"parent": parent[0], "parent_version": parent[1], **options}
        report = sqlimage.capture(device, file, preset="fast", **told)  # type: ignore[arg-type]
        assert parent[0].read_bytes() == before
        return report

    def edit(self, place: Place, into: Path | None, write: Callable[[Edit], object], *, is_kept: bool) -> str | None:
        """Begin an edit, have it written to, and end it; the UUID of the new version, if there is one."""
        with sqlimage.open(str(place[0]), writable=True) as image:
            edit = image.edit(place[1], into=into)
            write(edit)
            if is_kept:
                return edit.commit().uuid
            edit.discard()
            return None

    def arrange(self, data: st.DataObject, what: str) -> None:
        """Mostly what can be done, and sometimes what is to be refused."""
        is_likely = data.draw(st.integers(0, 4), label="likely") > 0
        getattr(self, f"_{what}")(data, is_likely)

    def _merge(self, data: st.DataObject, is_likely: bool) -> None:
        """Whoever has all its versions over there can go, and everybody reads on."""
        family, files = self.family, self.family.files
        pairs = [(into, child) for into in files for child in family.children(into)]
        if is_likely and pairs:
            into, child = pairs[data.draw(st.integers(0, len(pairs) - 1), label="into and child")]
        else:
            into, child = self.draw(data, "into")[0], self.draw(data, "child")[0]
        arriving = {uuid: parent for uuid, parent in files[child].items() if uuid not in files[into]}
        known = set(files[into])
        while ready := {uuid for uuid, parent in arriving.items() if parent in known} - known:
            known |= ready
        before = child.read_bytes()
        done = family.attempt(lambda: sqlimage.merge(child, into), child, into)
        assert child.read_bytes() == before or child == into
        if isinstance(done, sqlimage.RefusedError):
            assert child == into or arriving.keys() - known, done
            return
        assert child != into
        assert arriving.keys() <= known
        assert {one.uuid for one in done.versions} == arriving.keys()
        assert set(done.present) == files[child].keys() - arriving.keys()
        for one in done.versions:
            assert arriving[one.uuid] in files[into], "a parent comes before its children"
            family.add(into, one.uuid, arriving[one.uuid], family.made[one.uuid])
        if not done.present and data.draw(st.booleans(), label="removed"):
            child.unlink()
            family.remove(child, list(files[child]))

    def _squash(self, data: st.DataObject, is_likely: bool) -> None:
        family, files = self.family, self.family.files
        long = [
            (file, uuid)
            for file, uuid in family.versions()
            if len(line := family.line_in(file, uuid)) > 1 and not family.needs(file, {line[1]}, but=uuid)
        ]
        file, last = self.draw(data, "to", long if is_likely else ())
        line = family.line_in(file, last)
        first = self.draw(data, "from", [(file, uuid) for uuid in line[1:]] if is_likely else ())[1]
        if first not in files[file] or first == last:
            with pytest.raises((sqlimage.NotFoundError, sqlimage.UsageError)):
                sqlimage.squash(file, first, last)
            return
        doomed = line[1 : line.index(first) + 1] if first in line else []
        done = family.attempt(lambda: sqlimage.squash(file, first, last), file)
        if not self._is_refused(done, not doomed or family.needs(file, {*doomed}, but=last), file):
            files[file][last] = files[file][first]
            family.remove(file, doomed)

    def _prune(self, data: st.DataObject, is_likely: bool) -> None:
        family, files = self.family, self.family.files
        leaves = [one for one in family.versions() if len(files[one[0]]) > 1 and not family.needs(one[0], {one[1]})]
        file, uuid = self.draw(data, "version", leaves if is_likely else ())
        known = list(files[file])
        doomed = {uuid, *(data.draw(st.lists(st.sampled_from(known), max_size=2), label="more"))}
        done = family.attempt(lambda: sqlimage.prune(file, sorted(doomed)), file)
        if not self._is_refused(done, family.needs(file, doomed) or len(doomed) == len(known), file):
            family.remove(file, doomed)

    def _is_refused(self, done: object, is_needed: bool, file: Path) -> bool:
        """Whether it was, which is right exactly where something builds on what would be gone."""
        if isinstance(done, sqlimage.RefusedError):
            assert is_needed or (GONE in str(done) and self.family.is_leaned_on(file)), done
            return True
        assert not is_needed
        return False

    def _rebase(self, data: st.DataObject, is_likely: bool) -> None:
        (file, uuid), (onto_file, onto) = self.draw(data, "version"), self.draw(data, "onto")
        family, held = self.family, self.family.files[file]
        before, above = onto_file.read_bytes(), family.ancestors(onto)
        is_same_unit = family.made[uuid].unit == family.made[onto].unit
        done = family.attempt(
            lambda: sqlimage.rebase(file, onto_file, version=uuid, onto_version=onto), *{file, onto_file}
        )
        assert onto_file == file or onto_file.read_bytes() == before
        if isinstance(done, sqlimage.RefusedError):
            if uuid not in above and is_same_unit:
                assert GONE in str(done), done
                assert family.would_lose(uuid, file, onto), done
            return
        assert is_same_unit
        assert uuid not in above or family.has_copies(above)
        assert (done.parent_before, done.parent_uuid) == (held[uuid], onto)
        held[uuid] = onto

    def _flatten(self, data: st.DataObject, is_likely: bool) -> None:
        if not self.can_grow():
            return
        file, uuid = self.draw(data, "version")
        with sqlimage.open(str(file)) as image:
            with pytest.raises(sqlimage.RefusedError):
                sqlimage.flatten(image.version(uuid), file)
            report = sqlimage.flatten(image.version(uuid), made := self.family.new_name())
        assert report.flattened_uuid == uuid
        self.family.add(made, report.uuid, None, self.family.made[uuid])

    def _compact(self, data: st.DataObject, is_likely: bool) -> None:
        file, _ = self.draw(data, "file")
        report = sqlimage.compact(file)
        assert report.bytes_after == file.stat().st_size

    def _look(self, data: st.DataObject, is_likely: bool) -> None:
        (file, uuid), other = self.draw(data, "version"), self.draw(data, "other")
        with sqlimage.open(str(file)) as image:
            self._restore(image.version(uuid))
            self._show(image, file)
            self._diff(image.version(uuid), *other)

    def _restore(self, version: sqlimage.Version) -> None:
        sqlimage.restore(version, self.work / "copy", force=True)
        assert (self.work / "copy").read_bytes() == self.family.made[version.control.uuid].content

    def _show(self, image: sqlimage.Image, file: Path) -> None:
        tree, held = sqlimage.version_tree(image), self.family.files[file]
        assert {branch.uuid: branch.parent_uuid for branch in tree.branches} == held
        for branch in tree.branches:
            assert branch.depth == len(self.family.line_in(file, branch.uuid)) - 1
            assert (branch.parent_file is None) == (branch.parent_uuid is None or branch.parent_uuid in held)
        assert {str(child) for child in self.family.children(file)} <= {child.path for child in tree.child_files}

    def _diff(self, before: sqlimage.Version, file: Path, uuid: str) -> None:
        a, b = self.family.made[before.control.uuid], self.family.made[uuid]
        with sqlimage.open(str(file)) as opened:
            after = (before.image if str(file) == before.image.path else opened).version(uuid)
            if a.unit != b.unit:
                with pytest.raises(sqlimage.RefusedError):
                    sqlimage.diff(before, after, clusters=True)
                return
            found = sqlimage.diff(before, after, clusters=True)
        named = [n for run in found.clusters or () for n in range(run.start_cluster, run.end_cluster + 1)]
        assert named == sorted(differing_clusters(a.content, b.content, a.unit))
        assert found.differing_bytes == len(named) * a.unit
        assert (found.medium_bytes_before, found.medium_bytes_after) == (len(a.content), len(b.content))
        self.check_changes(found, a, b)

    def check_changes(self, found: sqlimage.Difference, before: Made, after: Made) -> None:
        """What is told by file."""

    def teardown(self) -> None:
        shutil.rmtree(self.work)


def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is done piece by piece is done in many pieces of small media."""
    for module in (flatmap, driver, edit_driver):
        monkeypatch.setattr(module, "WINDOW_CLUSTERS", 32)
    for module, name, value in (
        (effective, "_STEP_CLUSTERS", 40),
        (reading, "_STEP_CLUSTERS", 28),
        (squash, "_RECORDS_AT_A_TIME", 3),
        (removal, "_AT_A_TIME", 2),
        (compact, "_STEP_BYTES", 16_384),
        (compact, "_ROWS_AT_A_TIME", 2),
        (compact, "_MUCH_DUST", 2),
    ):
        monkeypatch.setattr(module, name, value)


def run(machine: type[Arranging], examples: int, count: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=count, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
