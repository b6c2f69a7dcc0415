"""An edit on a failing disk: a flush says so, what was flushed before stays readable, and the next flush brings all."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.image.edit import Edit
from sqlimage.image.edit_driver import EditDriver
from sqlimage.image.edits import begin, resume
from tests.conftest import run
from tests.faults.calls import Kind
from tests.faults.failing import SHORT, every_fault
from tests.image.edits import check_whole, content_of
from tests.images import noise

NAME = "i.sqlimage"
UNIT = 4096
SIZE = 30 * UNIT + 100
CONTENT = noise("failing", SIZE)
FLUSHED, LATER = noise("flushed", 5 * UNIT), noise("later", 7 * UNIT)
FAILURES = [
    (Kind.WRITE, errno.EIO),
    (Kind.WRITE, errno.ENOSPC),
    (Kind.SYNC, errno.EIO),
    (Kind.SYNC, errno.ENOSPC),
]
ONCE_OR_FOREVER = pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("captured")
    sqlimage.capture(sqlimage.MemoryDevice(CONTENT), place / NAME)
    return place / NAME


def expected(*, is_later_there: bool) -> bytes:
    content = bytearray(CONTENT)
    content[UNIT : UNIT + len(FLUSHED)] = FLUSHED
    if is_later_there:
        content[3 * UNIT : 3 * UNIT + len(LATER)] = LATER
        content[20 * UNIT : 22 * UNIT] = bytes(2 * UNIT)
    return bytes(content)


def begun(image: Path, place: Path) -> Edit:
    """An edit with something flushed, and something that is not."""
    for left in place.iterdir():
        left.unlink()
    shutil.copy(image, place)
    edit = begin(str(place / NAME))
    edit.driver.write(UNIT, FLUSHED)
    edit.driver.flush()
    edit.driver.write(3 * UNIT, LATER)
    edit.driver.zero(20 * UNIT, 2 * UNIT)
    return edit


@ONCE_OR_FOREVER
@pytest.mark.parametrize(("kind", "error"), FAILURES)
def test_a_flush_that_fails_says_so_loses_nothing_and_succeeds_when_the_disk_is_well_again(
    image: Path, tmp_path: Path, kind: Kind, error: int, forever: bool
) -> None:
    failures = 0
    for fault in every_fault(tmp_path, kind, error, forever=forever):
        edit = begun(image, tmp_path)
        with fault:
            try:
                edit.driver.flush()
            except sqlimage.DeviceError as problem:
                failures += 1
                assert str(tmp_path / NAME) in str(problem)
            assert edit.driver.read(0, SIZE) == expected(is_later_there=True), fault
        edit.driver.flush()
        edit.close()
        with contextlib.closing(resume(str(tmp_path / NAME))) as again:
            assert again.driver.read(0, SIZE) == expected(is_later_there=True), fault
            again.commit()
        check_whole(tmp_path / NAME)
    assert failures


@pytest.mark.parametrize(("kind", "error"), FAILURES)
def test_what_was_flushed_before_a_failure_is_there_after_a_crash(
    image: Path, tmp_path: Path, kind: Kind, error: int
) -> None:
    for fault in every_fault(tmp_path, kind, error, forever=True):
        edit = begun(image, tmp_path)
        is_told = True
        with fault:
            try:
                edit.driver.flush()
            except sqlimage.DeviceError:
                is_told = False
        place = tmp_path.with_name(tmp_path.name + "-crashed")
        place.mkdir()
        for name in (NAME, f"{NAME}-wal"):
            shutil.copy(tmp_path / name, place)
        edit.close()
        with contextlib.closing(resume(str(place / NAME))) as again:
            found = again.driver.read(0, SIZE)
            assert found == expected(is_later_there=True) or (
                not is_told and found == expected(is_later_there=False)
            ), fault
            again.commit()
        check_whole(place / NAME)
        shutil.rmtree(place)


@ONCE_OR_FOREVER
@pytest.mark.parametrize(("kind", "error"), [*FAILURES, pytest.param(Kind.READ, errno.EIO, marks=pytest.mark.slow)])
def test_a_commit_that_fails_leaves_the_edit_to_be_resumed_or_the_version_sealed(
    image: Path, tmp_path: Path, kind: Kind, error: int, forever: bool
) -> None:
    raised = 0
    for fault in every_fault(tmp_path, kind, error, forever=forever):
        edit = begun(image, tmp_path)
        edit.driver.flush()
        with fault:
            try:
                edit.commit()
            except sqlimage.SqlimageError:
                raised += 1
            finally:
                with contextlib.suppress(sqlimage.SqlimageError):
                    edit.close()
        sqlimage.recover(str(tmp_path / NAME))
        with sqlimage.open(str(tmp_path / NAME)) as opened:
            is_sealed = opened.versions()[-1].control.state == "sealed"
            assert [row.action for row in opened.audit()].count("edit-commit") == is_sealed
        if not is_sealed:
            with contextlib.closing(resume(str(tmp_path / NAME))) as again:
                again.commit()
        assert content_of(tmp_path / NAME, "2") == expected(is_later_there=True), fault
        check_whole(tmp_path / NAME)
    assert raised


def test_writes_that_move_half_of_the_bytes_are_gone_on_with(image: Path, tmp_path: Path) -> None:
    for fault in every_fault(tmp_path, Kind.WRITE, SHORT):
        edit = begun(image, tmp_path)
        with fault:
            edit.driver.flush()
        edit.commit()
        assert content_of(tmp_path / NAME) == expected(is_later_there=True), fault


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place)
    yield place
    run("umount", "-l", place)


def fill_up(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def test_an_edit_that_finds_no_room_to_begin_or_resume_is_one_error_and_can_be_tried_again(
    image: Path, small: Path
) -> None:
    begun(image, small).close()
    fill_up(small)
    for _ in range(2):
        with contextlib.suppress(sqlimage.DeviceError):
            resume(str(small / NAME)).close()
    (small / "filler").unlink()
    resume(str(small / NAME)).commit()
    check_whole(small / NAME)


def test_a_disk_that_is_full_and_then_has_room_again_loses_nothing(image: Path, small: Path) -> None:
    edit = begun(image, small)
    fill_up(small)
    with pytest.raises(sqlimage.DeviceError) as caught:
        edit.driver.flush()
    assert "no space left" in str(caught.value).lower() or "full" in str(caught.value).lower()
    assert edit.driver.read(0, SIZE) == expected(is_later_there=True)
    (small / "filler").unlink()
    edit.driver.flush()
    edit.commit()
    assert content_of(small / NAME) == expected(is_later_there=True)
    check_whole(small / NAME)


def test_on_a_full_disk_writes_are_refused_before_memory_fills_up(image: Path, small: Path) -> None:
    begun(image, small).close()
    edit = resume(str(small / NAME), write_back_bytes=8 * UNIT)
    fill_up(small)
    driver: EditDriver = edit.driver
    refused = 0
    for turn in range(60):
        try:
            driver.write((turn % 25) * UNIT, noise(turn, 4 * UNIT))
        except sqlimage.DeviceError:
            refused += 1
        assert driver._overlay.held_bytes <= 2 * 8 * UNIT + 4 * 200
    assert refused > 20
    (small / "filler").unlink()
    driver.flush()
    edit.discard()
    check_whole(small / NAME)
