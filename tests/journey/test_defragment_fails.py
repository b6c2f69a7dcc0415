"""Whatever goes wrong while a volume is laid out anew: no image, no new version, no litter; and one clear line."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import sqlimage
from sqlimage.codec import chunk
from sqlimage.filesystem.contract import Scan
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.fixup import Fixup
from sqlimage.image import proof, relayout
from sqlimage.image.relocated import RelocatedDevice
from sqlimage.journey import defragment, encode
from sqlimage.journey.write import Writer
from sqlimage.media.memory import MemoryDevice
from sqlimage.moves import Moves
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.image.edits import content_of
from tests.images import noise, run_tool, tool
from tests.journey.test_interruption import kill_at_random_moments, seconds_it_takes, started
from tests.make.defragmented import Fat, check_at_rest, torn

Patch = Callable[[pytest.MonkeyPatch], None]
SHAPE = Fat(12, 1440 * KIB, 1)
OLDER = noise("older", MIB)
HINT = "this is a defect of sqlimage: report it"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SHAPE.make(tmp_path_factory.mktemp("fails") / "v.img")


def planned(change: Callable[[Relocation], Relocation]) -> Patch:
    """The plan of the volume is another one."""
    really = FatVolume.relocate

    def relocate(self: FatVolume, scan: Scan, wish: Wish) -> Relocation:
        return change(really(self, scan, wish))

    return lambda patch: patch.setattr(FatVolume, "relocate", relocate)


def two_files_change_places(plan: Relocation) -> Relocation:
    """Of the moves of one cluster, the first two."""
    both = np.flatnonzero((plan.moved_length == 512) & (plan.moved_from != plan.moved_to))[:2]
    moved_from = plan.moved_from.copy()
    moved_from[both] = moved_from[both[::-1]]
    return dataclasses.replace(plan, moved_from=moved_from)


def one_move_is_forgotten(plan: Relocation) -> Relocation:
    kept = np.arange(len(plan.moved_to)) != len(plan.moved_to) // 2
    columns = (column[kept] for column in (plan.moved_from, plan.moved_to, plan.moved_length))
    moved_from, moved_to, moved_length = columns
    return dataclasses.replace(plan, moved_from=moved_from, moved_to=moved_to, moved_length=moved_length)


def one_move_is_a_cluster_off(plan: Relocation) -> Relocation:
    moved_from = plan.moved_from.copy()
    moved_from[len(moved_from) // 2] += 512
    return dataclasses.replace(plan, moved_from=moved_from)


def one_change_is_forgotten(plan: Relocation) -> Relocation:
    return dataclasses.replace(plan, fixups=plan.fixups[:-1])


def one_change_is_another(plan: Relocation) -> Relocation:
    wrong = plan.fixups[-1]
    at = next(n for n, byte in enumerate(wrong.original) if byte != wrong.replacement[n])
    replacement = bytes([*wrong.replacement[:at], wrong.replacement[at] ^ 1, *wrong.replacement[at + 1 :]])
    return dataclasses.replace(plan, fixups=(*plan.fixups[:-1], wrong._replace(replacement=replacement)))


def one_change_expects_other_bytes(plan: Relocation) -> Relocation:
    wrong = plan.fixups[0]
    original = bytes([wrong.original[0] ^ 1, *wrong.original[1:]])
    return dataclasses.replace(plan, fixups=(wrong._replace(original=original), *plan.fixups[1:]))


def a_changed_byte_is_not_read(patch: pytest.MonkeyPatch) -> None:
    """A fix-up of which nobody takes notice is one that was not applied."""
    patch.setattr(RelocatedDevice, "_fix", lambda self, offset, view: None)


def two_files_are_read_from_each_others_place(patch: pytest.MonkeyPatch) -> None:
    """So that their digests are of each other's bytes, too."""

    def swapped(device: sqlimage.BlockDevice, size: int, moves: Moves, fixups: Sequence[Fixup]) -> RelocatedDevice:
        both = np.flatnonzero((moves.length == 512) & (moves.old != moves.new))[:2]
        old = moves.old.copy()
        old[both] = old[both[::-1]]
        return RelocatedDevice(device, size, dataclasses.replace(moves, old=old), fixups)

    patch.setattr(relayout, "RelocatedDevice", swapped)


def bytes_of_a_file_are_stored_wrong(patch: pytest.MonkeyPatch) -> None:
    """After they were digested."""

    def broken(content: bytes | memoryview, level: int | None, vault: None, name: bytes) -> tuple[int, bytes]:
        whole = bytearray(content)
        whole[0] ^= 1
        return chunk.encode(whole, level, vault, name)

    patch.setattr(encode, "encode", broken)


def some_clusters_are_mapped_to_the_data_of_others(patch: pytest.MonkeyPatch) -> None:
    really = Writer._write_records

    def wrong(self: Writer) -> None:
        if self._records:
            with_data = [record for record in self._records if record[2] is not None]
            shortest, *_, longest = sorted(with_data, key=lambda record: record[1] - record[0])
            self._records[self._records.index(shortest)] = (*shortest[:2], *longest[2:])
        really(self)

    patch.setattr(Writer, "_write_records", wrong)


def the_proof_finds_something(patch: pytest.MonkeyPatch) -> None:
    def prove(*_: object, **__: object) -> int:
        raise sqlimage.DamagedError("the volume laid out anew is not what was planned: a test says so", hint=HINT)

    patch.setattr(defragment, "prove", prove)


def the_file_system_turns_out_damaged_while_it_is_proven(patch: pytest.MonkeyPatch) -> None:
    def open_file_system(_: object) -> None:
        raise sqlimage.InconsistentVolume("boot sector", "a test says so", offset_bytes=3)

    patch.setattr(proof, "open_file_system", open_file_system)


FAULTS: dict[str, Patch] = {
    change.__name__: planned(change)
    for change in (
        two_files_change_places,
        one_move_is_forgotten,
        one_move_is_a_cluster_off,
        one_change_is_forgotten,
        one_change_is_another,
        one_change_expects_other_bytes,
    )
} | {
    patch.__name__: patch
    for patch in (
        a_changed_byte_is_not_read,
        two_files_are_read_from_each_others_place,
        bytes_of_a_file_are_stored_wrong,
        some_clusters_are_mapped_to_the_data_of_others,
        the_proof_finds_something,
        the_file_system_turns_out_damaged_while_it_is_proven,
    )
}


def content(image: Path) -> bytes:
    """All bytes of an image, but for the two counters by which SQLite tells that somebody began to write."""
    whole = bytearray(image.read_bytes())
    whole[24:28] = whole[92:96] = bytes(4)
    return bytes(whole)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_no_image_and_the_older_one_as_it_was(source: Path, tmp_path: Path, fault: str) -> None:
    older = tmp_path / "older.sqlimage"
    sqlimage.capture(MemoryDevice(OLDER), older)
    before, names = content(older), sorted(os.listdir(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[fault](patch)
        for image, options in (
            (tmp_path / "new.sqlimage", {}),
            (tmp_path / "child.sqlimage", {"parent": older}),
            (older, {"append": True}),
        ):
            with pytest.raises(sqlimage.SqlimageError) as raised:
                sqlimage.capture(source, image, defragment=True, **options)
            assert "\n" not in str(raised.value)
            assert sorted(os.listdir(tmp_path)) == names
            assert content(older) == before
    check_at_rest(older)
    sqlimage.capture(source, older, append=True, defragment=True)
    check_at_rest(older)
    assert torn(older) == []


def test_what_went_wrong_is_told_as_a_defect_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(two_files_change_places)(monkeypatch)
    with pytest.raises(sqlimage.DamagedError, match="a file's clusters are not its own; this is a defect of sqlimage"):
        sqlimage.capture(source, tmp_path / "i.sqlimage", defragment=True)


def test_a_source_that_changes_while_it_is_captured_is_found(source: Path, tmp_path: Path) -> None:
    """Whoever has the volume mounted writes to it: between the look at it and the reading, or after that."""

    class Changing(MemoryDevice):
        """One byte of every sector of the FATs is another from the nth reading on."""

        reads, after = 0, 0

        def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
            super().read_into(offset_bytes, buffer)
            self.reads += 1
            if self.reads > self.after and offset_bytes < 18 * 1024 and len(buffer) > 4096:
                buffer[4000] ^= 1

    device = Changing(source.read_bytes())
    device.after = 1 << 30
    sqlimage.capture(device, tmp_path / "i.sqlimage", defragment=True)
    found = 0
    for after in range(0, device.reads, max(1, device.reads // 12)):
        changing = Changing(source.read_bytes())
        changing.after = after
        try:
            report = sqlimage.capture(changing, tmp_path / "n.sqlimage", defragment=True)
        except (sqlimage.DamagedError, sqlimage.InconsistentVolume):
            found += 1
            assert os.listdir(tmp_path) == ["i.sqlimage"]
        else:
            check_at_rest(tmp_path / "n.sqlimage")
            assert report.volumes[0].moved_bytes is None or changing.reads <= device.reads
            (tmp_path / "n.sqlimage").unlink()
    assert found


def test_a_file_that_is_written_to_after_it_was_taken_ends_it_and_the_hint_says_what_to_do(
    source: Path, tmp_path: Path
) -> None:
    volume = FatVolume(MemoryDevice(source.read_bytes()))
    contents = volume.scan().contents
    row = int(np.flatnonzero(contents.size_bytes > 512)[-1])
    place = int(contents.run_offset[contents.first_run[row]])

    class Written(MemoryDevice):
        """The first byte of one file is another whenever it is read again."""

        reads = 0

        def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
            super().read_into(offset_bytes, buffer)
            if offset_bytes <= place < offset_bytes + len(buffer):
                buffer[place - offset_bytes] ^= self.reads
                self.reads = 1

    with pytest.raises(sqlimage.DamagedError) as raised:
        sqlimage.capture(Written(source.read_bytes()), tmp_path / "i.sqlimage", defragment=True)
    assert raised.value.hint == f"capture it while nobody writes to it; if nobody did, {HINT}"
    assert os.listdir(tmp_path) == []


def test_killed_at_random_moments_it_leaves_no_image_or_a_whole_one_and_no_litter(source: Path, tmp_path: Path) -> None:
    target, dice = tmp_path / "i.sqlimage", random.Random(1)
    whole = seconds_it_takes("capture", source, target, "--defragment")
    target.unlink()
    for _ in range(2):
        process = started("capture", source, target, "--defragment")
        time.sleep(dice.uniform(0.5, 0.9) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(os.listdir(tmp_path)) <= {target.name}
        if target.exists():
            check_at_rest(target)
            target.unlink()


def kill_while_it_appends(source: Path, place: Path, tries: int) -> set[int]:
    """Kill it again and again while it adds a version; how many versions there were afterwards."""
    older, image, dice, seen = place / "older.sqlimage", place / "i.sqlimage", random.Random(6), set()
    sqlimage.capture(MemoryDevice(OLDER), older)
    shutil.copy(older, image)
    whole = seconds_it_takes("capture", source, image, "--append", "--defragment")
    for _ in range(tries):
        shutil.copy(older, image)
        process = started("capture", source, image, "--append", "--defragment")
        time.sleep(dice.uniform(0.4, 1.1) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        tool("verify", image, "--recover")
        # The file whose lock tells others that somebody writes may stay: the next writer takes it over.
        assert set(os.listdir(place)) <= {"older.sqlimage", "i.sqlimage", "i.sqlimage-edit"}
        with sqlimage.open(str(image)) as opened:
            seen.add(len(opened.versions()))
            assert content_of(image, "1") == OLDER
        check_at_rest(image)
    return seen


@pytest.mark.slow
def test_killed_while_it_adds_a_version_the_image_is_as_it_was_or_has_it_whole(source: Path, tmp_path: Path) -> None:
    assert kill_while_it_appends(source, tmp_path, 3) <= {1, 2}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_many_times(source: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "append").mkdir()
    target = tmp_path / "new" / "i.sqlimage"
    there = kill_at_random_moments(target, 50, 2, "capture", source, target, "--defragment")
    assert any(there) and not all(there)
    assert kill_while_it_appends(source, tmp_path / "append", 50) == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_interruption_leaves_nothing(source: Path, tmp_path: Path, how: int) -> None:
    target = tmp_path / "i.sqlimage"
    whole = seconds_it_takes("capture", source, target, "--defragment")
    target.unlink()
    process = started("capture", source, target, "--defragment")
    time.sleep(whole * 0.7)
    process.send_signal(how)
    assert process.wait(timeout=20) in (0, 130, -how)
    assert set(os.listdir(tmp_path)) <= {"i.sqlimage"}


@pytest.mark.parametrize("kilobytes", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_a_file_system_that_fills_up_loses_nothing(source: Path, tmp_path: Path, kilobytes: int) -> None:
    place = tmp_path / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place)
    try:
        done = run_tool("capture", source, place / "i.sqlimage", "--defragment")
        assert (done.returncode, done.stderr.count("\n")) == (6, 1), done
        assert "No space left" in done.stderr or "no space left" in done.stderr
        assert os.listdir(place) == []
    finally:
        run("umount", place)
