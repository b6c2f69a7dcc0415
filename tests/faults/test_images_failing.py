"""An image on a failing disk: one clear error, the old data still readable, and the image whole afterwards."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sqlimage
from tests.faults.calls import Kind
from tests.faults.failing import SHORT, Fault, every_fault
from tests.faults.powercut import cuts
from tests.faults.trace import traced
from tests.images import noise

NAME = "i.sqlimage"
LONG = "n" * 20_000
FAILURES = [
    (Kind.WRITE, errno.EIO),
    (Kind.WRITE, errno.ENOSPC),
    (Kind.SYNC, errno.EIO),
    (Kind.SYNC, errno.ENOSPC),
    (Kind.UNLINK, errno.EIO),
]
ONCE_OR_FOREVER = pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("captured")
    (place / "raw").write_bytes(noise("failing", 60_000))
    sqlimage.capture(str(place / "raw"), str(place / NAME))
    return place / NAME


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def set_property(path: Path) -> None:
    with sqlimage.open(str(path), writable=True) as image:
        image.version().set_property("note", LONG)


def check(path: Path, expected: bytes) -> bool:
    """That an image is whole and has its bytes; whether it has the property, and then its audit row too."""
    with sqlimage.open(str(path)) as image:
        driver = image.version().driver()
        assert driver.read(0, len(expected)) == expected
        driver.close()
        assert sqlimage.verify(image).is_whole
        note = image.version().properties().get("note")
        assert note in (None, LONG)
        audited = [row for row in image.audit() if row.action == "property"]
        assert len(audited) == (note is not None)
        return note is not None


def each(
    captured: Path, path: Path, kind: Kind, error: int, *, forever: bool, work: Callable[[Path], None]
) -> list[tuple[Fault, sqlimage.SqlimageError | None, bool]]:
    """Do work on a fresh copy under every fault: the fault, the error of ours if any, and whether it took effect.

    Anything but an error of ours fails the test.
    """
    results = []
    for fault in every_fault(path.parent, kind, error, forever=forever):
        for left in path.parent.iterdir():
            left.unlink()
        shutil.copy(captured, path)
        raised = None
        with fault:
            try:
                work(path)
            except sqlimage.SqlimageError as problem:
                raised = problem
        sqlimage.recover(str(path))
        results.append((fault, raised, check(path, captured.with_name("raw").read_bytes())))
    return results


@ONCE_OR_FOREVER
@pytest.mark.parametrize(("kind", "error"), FAILURES)
def test_a_property_that_cannot_be_written_is_one_error_and_no_change(
    captured: Path, path: Path, kind: Kind, error: int, forever: bool
) -> None:
    results = each(captured, path, kind, error, forever=forever, work=set_property)
    assert any(raised for _, raised, _ in results)
    for fault, raised, has_changed in results:
        if raised is None:
            assert has_changed, fault
        else:
            # The last sync may be that of the directory, after the removal of the journal: what fails then is the
            # promise that the change will stay, not the change.
            assert not has_changed or kind is Kind.SYNC, fault
            assert isinstance(raised, sqlimage.DeviceError), (fault, raised)
            assert raised.exit_code == 6
            assert str(path) in str(raised)


@ONCE_OR_FOREVER
def test_a_read_that_fails_is_one_error_and_no_change(captured: Path, path: Path, forever: bool) -> None:
    for fault, raised, has_changed in each(captured, path, Kind.READ, errno.EIO, forever=forever, work=set_property):
        assert has_changed == (raised is None), fault
        # SQLite itself tells EIO in a read as corruption once a statement runs, and keeps the number to itself.
        assert raised is None or isinstance(raised, sqlimage.DeviceError | sqlimage.FormatError), (fault, raised)


@ONCE_OR_FOREVER
def test_an_image_that_cannot_be_opened_is_one_error_and_no_change(captured: Path, path: Path, forever: bool) -> None:
    for fault, raised, has_changed in each(captured, path, Kind.OPEN, errno.EIO, forever=forever, work=set_property):
        assert has_changed == (raised is None), fault
        # What cannot be opened for writing, SQLite opens for reading: the write is refused then.
        assert raised is None or isinstance(raised, sqlimage.DeviceError | sqlimage.RefusedError), (fault, raised)


@ONCE_OR_FOREVER
@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE])
def test_calls_that_move_half_of_the_bytes_are_gone_on_with(
    captured: Path, path: Path, kind: Kind, forever: bool
) -> None:
    for fault, raised, has_changed in each(captured, path, kind, SHORT, forever=forever, work=set_property):
        assert raised is None, (fault, raised)
        assert has_changed


def test_a_verification_of_what_can_no_longer_be_read_never_calls_it_whole(captured: Path, path: Path) -> None:
    def verify(path: Path) -> None:
        with sqlimage.open(str(path)) as image:
            if not sqlimage.verify(image).is_whole:
                raise sqlimage.DamagedError("it says so")

    *hit, last = each(captured, path, Kind.READ, errno.EIO, forever=True, work=verify)
    assert last[1] is None
    for fault, raised, _ in hit:
        assert raised is not None, fault


@pytest.fixture(scope="module")
def interrupted(captured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that a change began to grow, with the journal that takes it back."""
    place = tmp_path_factory.mktemp("interrupted")
    shutil.copy(captured, place)
    with traced(place) as trace:
        set_property(place / NAME)
    for state, _ in cuts(trace, 1000, 5):
        journal, image = state / f"{NAME}-journal", state / NAME
        is_hot = journal.exists() and journal.read_bytes()[:8] == b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
        if is_hot and image.stat().st_size > captured.stat().st_size:
            return Path(shutil.copytree(state, place / "state")) / NAME
    raise AssertionError("no power cut leaves such an image")


@ONCE_OR_FOREVER
@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE, Kind.SYNC, Kind.TRUNCATE, Kind.UNLINK])
def test_a_recovery_that_fails_can_be_repeated(
    captured: Path, interrupted: Path, path: Path, kind: Kind, forever: bool
) -> None:
    for fault in every_fault(path.parent, kind, errno.EIO, forever=forever):
        for place in (interrupted, interrupted.with_name(f"{NAME}-journal")):
            shutil.copy(place, path.parent)
        with fault:
            try:
                sqlimage.recover(str(path))
            except sqlimage.SqlimageError as problem:
                assert fault.is_hit, problem
        sqlimage.recover(str(path))
        assert not check(path, captured.with_name("raw").read_bytes()), fault
