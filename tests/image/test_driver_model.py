"""The driver of an edit against a bytearray, and versions against a dictionary of what they were sealed with."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import sqlimage
from sqlimage.image import flatmap, store
from sqlimage.image.chunks import Cache
from sqlimage.image.edit import Edit
from sqlimage.image.edits import begin, resume
from tests.image.edits import SIZE, captured, check_extents, check_whole, content_of, medium
from tests.images import noise

WRITE_BACK_BYTES = 96 * 1024
_EDGES = [0, 1, 511, 512, 4095, 4096, 4097, 65_536, SIZE // 2, SIZE - 4096, SIZE - 700, SIZE - 1]

places = st.one_of(st.sampled_from(_EDGES), st.integers(0, SIZE - 1))
lengths = st.one_of(st.sampled_from([1, 512, 4096, 8192, 65_536, SIZE]), st.integers(1, 20_000))
fillings = st.sampled_from(["noise", "again", "zeros", "medium"])


class Editing(RuleBasedStateMachine):
    """One image, edited, sealed, edited on, on top of any version, in any of its files."""

    unit = 4096

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="editing-"))
        self.image = captured(self.place / "0.sqlimage", medium(self.unit), self.unit)
        self.sealed: dict[tuple[Path, int], bytes] = {(self.image, 1): medium(self.unit)}
        self.turn = 0
        self.edit: Edit

    @initialize()
    def first(self) -> None:
        self._begin(self.image, 1, into=None)

    def _begin(self, image: Path, version: int, into: Path | None) -> None:
        self.edit = begin(str(image), str(version), into=into, write_back_bytes=WRITE_BACK_BYTES)
        self.image = into or image
        self.model = bytearray(self.sealed[image, version])
        self.is_flushed = True
        self.has_written = self.may_have_lost = False
        self.since_flush: defaultdict[int, set[bytes]] = defaultdict(set)

    def _cluster(self, number: int) -> bytes:
        return bytes(self.model[number * self.unit : (number + 1) * self.unit])

    def _change(self, offset: int, content: bytes) -> None:
        touched = range(offset // self.unit, (offset + len(content) - 1) // self.unit + 1)
        for number in touched:
            self.since_flush[number].add(self._cluster(number))
        self.model[offset : offset + len(content)] = content
        for number in touched:
            self.since_flush[number].add(self._cluster(number))
        self.has_written = True

    @rule(offset=places, length=lengths, filling=fillings)
    def write(self, offset: int, length: int, filling: str) -> None:
        length = min(length, SIZE - offset)
        self.turn += filling == "noise"
        content = {
            "noise": noise(self.turn, length),
            "again": noise(1, length),
            "zeros": bytes(length),
            "medium": medium(self.unit)[offset : offset + length],
        }[filling]
        self.edit.driver.write(offset, content)
        self._change(offset, content)

    @rule(offset=places, length=lengths)
    def zero(self, offset: int, length: int) -> None:
        length = min(length, SIZE - offset)
        self.edit.driver.zero(offset, length)
        self._change(offset, bytes(length))

    @rule()
    def flush(self) -> None:
        self.edit.driver.flush()
        self.since_flush.clear()

    @rule(offset=places, length=lengths)
    def read(self, offset: int, length: int) -> None:
        length = min(length, SIZE - offset)
        assert self.edit.driver.read(offset, length) == self.model[offset : offset + length]
        check_extents(self.edit.driver, self.model, offset, length)

    @rule()
    def beyond_the_end_is_refused(self) -> None:
        with pytest.raises(sqlimage.DeviceError):
            self.edit.driver.write(SIZE - 1, b"ab")
        with pytest.raises(sqlimage.DeviceError):
            self.edit.driver.zero(SIZE, 1)

    @rule()
    def let_go_and_resume(self) -> None:
        """What was not flushed is as it was then or as it came to be later, cluster by cluster."""
        self.edit.close()
        self.edit = resume(str(self.image), str(self.edit.number), write_back_bytes=WRITE_BACK_BYTES)
        found = self.edit.driver.read(0, SIZE)
        for number in range(-(-SIZE // self.unit)):
            there = found[number * self.unit : (number + 1) * self.unit]
            assert there in (self.since_flush.get(number) or {self._cluster(number)}), number
        self.may_have_lost |= bool(self.since_flush)
        self.model[:] = found
        self.since_flush.clear()

    @rule(data=st.data(), into=st.booleans(), is_restored=st.booleans())
    def commit_and_begin_again(self, data: st.DataObject, into: bool, is_restored: bool) -> None:
        expected = bytes(self.model)
        report = self.edit.commit()
        if not self.may_have_lost:
            assert (report.version is not None) == self.has_written
        if report.version is not None:
            self.sealed[self.image, report.version] = expected
            if is_restored:
                with sqlimage.open(str(self.image)) as image:
                    sqlimage.restore(image.version(str(report.version)), self.place / "copy", force=True)
                assert (self.place / "copy").read_bytes() == expected
        self._look_at_the_file()
        self._begin_somewhere(data, into)

    @rule(data=st.data(), into=st.booleans())
    def discard_and_begin_again(self, data: st.DataObject, into: bool) -> None:
        self.edit.discard()
        self._look_at_the_file()
        self._begin_somewhere(data, into)

    def _look_at_the_file(self) -> None:
        if any(image == self.image for image, _ in self.sealed):
            check_whole(self.image)
        else:
            self.image.unlink(missing_ok=True)  # a child in which nothing was sealed

    def _begin_somewhere(self, data: st.DataObject, into: bool) -> None:
        image, version = data.draw(st.sampled_from(list(self.sealed)))
        self.turn += 1
        self._begin(image, version, self.place / f"child{self.turn}.sqlimage" if into else None)

    @precondition(lambda self: len(self.sealed) > 1)
    @rule(data=st.data())
    def a_sealed_version_never_changes(self, data: st.DataObject) -> None:
        image, version = data.draw(st.sampled_from(list(self.sealed)))
        assert content_of(image, str(version)) == self.sealed[image, version]

    @invariant()
    def no_more_is_held_than_was_promised(self) -> None:
        if hasattr(self, "edit"):
            assert self.edit.driver._overlay.held_bytes <= 2 * WRITE_BACK_BYTES + SIZE * 2

    def teardown(self) -> None:
        if hasattr(self, "edit"):
            self.edit.close()
            for image, version in self.sealed:
                assert content_of(image, str(version)) == self.sealed[image, version]
            for image in {image for image, _ in self.sealed}:
                check_whole(image)
        shutil.rmtree(self.place)


class EditingSectors(Editing):
    unit = 512


@pytest.mark.parametrize("machine", [Editing, EditingSectors])
def test_an_edit_reads_like_a_bytearray_through_every_way_it_can_go(machine: type[Editing]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=15, stateful_step_count=25, deadline=None))


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Editing, EditingSectors])
def test_hundreds_of_runs_of_hundreds_of_steps(machine: type[Editing]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=200, stateful_step_count=200, deadline=None))


@pytest.mark.parametrize("unit", [512, 4096])
def test_readers_beside_a_writer_see_the_old_or_the_new_of_each_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int
) -> None:
    """The small bounds have chunks removed and map windows dropped all the time."""
    monkeypatch.setattr(store, "_GARBAGE_ROWS", 16)
    monkeypatch.setattr(flatmap, "_MOST_RECORDS", 64)
    clusters = 60
    image = captured(tmp_path / "i.sqlimage", medium(unit), unit)
    wrong: list[str] = []
    acknowledged = [0] * clusters
    """What each cluster holds at least: the writer counts up."""
    written = [0] * clusters
    done = threading.Event()
    with begin(str(image), write_back_bytes=8 * unit, cache=Cache(unit * 8, unit * 16)) as edit:
        edit.driver.write(0, b"".join(_numbered(n, 0, unit) for n in range(clusters)))

        def read(seed: int) -> None:
            dice = random.Random(seed)
            try:
                while not done.is_set():
                    first = dice.randrange(clusters)
                    count = dice.randint(1, min(20, clusters - first))
                    lowest = acknowledged[first : first + count]
                    found = edit.driver.read(first * unit, count * unit)
                    highest = written[first : first + count]
                    for n in range(count):
                        cluster = found[n * unit : (n + 1) * unit]
                        turn = int.from_bytes(cluster[4:8], "little")
                        if cluster != _numbered(first + n, turn, unit) or not lowest[n] <= turn <= highest[n]:
                            wrong.append(f"cluster {first + n}: {lowest[n]} <= {turn} <= {highest[n]}")
            except BaseException as problem:
                wrong.append(repr(problem))
                raise

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for reader in readers:
            reader.start()
        dice = random.Random(9)
        for turn in range(1, 121):
            if wrong:
                break
            first = dice.randrange(clusters)
            count = dice.randint(1, min(8, clusters - first))
            written[first : first + count] = [turn] * count
            edit.driver.write(first * unit, b"".join(_numbered(first + n, turn, unit) for n in range(count)))
            acknowledged[first : first + count] = [turn] * count
            if dice.random() < 0.2:
                edit.driver.flush()
        done.set()
        for reader in readers:
            reader.join()
    assert not wrong, wrong[:3]
    check_whole(image)


def _numbered(cluster: int, turn: int, unit: int) -> bytes:
    return (cluster.to_bytes(4, "little") + turn.to_bytes(4, "little")) * (unit // 8)
