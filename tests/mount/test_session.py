"""Whole mounts in the background: begun, used, ended, refused, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqlimage.errors import DeviceError, NotFoundError, RefusedError, UsageError
from sqlimage.mount import records
from sqlimage.mount.mountpoint import mounted_at, mounts
from sqlimage.mount.session import MountEnd, MountRequest, mount
from sqlimage.mount.unmount import unmount
from tests.conftest import run
from tests.images import noise, sample_volume
from tests.mount.conftest import Place
from tests.mount.serve import start
from tests.mount.volumes import WatchedDevice, make_volume

Start = Callable[..., dict[str, Any]]


@pytest.fixture
def begin(tmp_path: Path) -> Start:
    """Starts a mount in the background on ``mount``, which is made where it is not there."""

    def begin(*paths: Path, **request: Any) -> dict[str, Any]:
        directory = tmp_path / "mount"
        directory.mkdir(exist_ok=True)
        devices = {f"volume-{number}": path for number, path in enumerate(paths)}
        return start(directory, log=tmp_path / "log", devices=devices, **request)

    return begin


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def left(tmp_path: Path) -> list[str]:
    """What a mount should not leave: mounts, loop devices, files in the run directory, processes that serve."""
    found = [mount.directory for mount in mounts() if mount.directory.startswith(str(tmp_path))]
    run_directory = Path(records.run_directory())
    found += [str(path) for path in run_directory.iterdir()]
    listed = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").stdout.decode()
    return found + [line for line in listed.splitlines() if str(tmp_path) in line]


@pytest.mark.parametrize("kind", ["ntfs", "exfat", "ext", "xfs"])
def test_what_is_written_has_reached_the_device_when_unmount_comes_back(
    kind: str, begin: Start, tmp_path: Path
) -> None:
    path, directory = make_volume(tmp_path / "volume", kind), tmp_path / "mount"
    ready = begin(path, writable=True, image="disk.sqlimage")
    assert ready["directory"] == str(directory)
    assert [record.image for record in records.running()] == ["disk.sqlimage"]
    (directory / "file").write_bytes(noise(1, 2_000_000))
    outcome = unmount(directory)
    assert outcome["result"] == {"kept": True, "clean": True}
    assert (outcome["reason"], outcome["clean"], outcome["problems"]) == ("unmounted", True, [])
    assert left(tmp_path) == []
    begin(path)
    assert (directory / "file").read_bytes() == noise(1, 2_000_000)
    unmount(directory)
    assert left(tmp_path) == []


def test_discard_is_told_to_the_end(begin: Start, tmp_path: Path) -> None:
    begin(make_volume(tmp_path / "volume", "ntfs"), writable=True)
    assert unmount(tmp_path / "mount", discard=True)["result"] == {"kept": False, "clean": True}
    assert left(tmp_path) == []


def test_umount_ends_it_too_and_the_outcome_waits_to_be_read(begin: Start, tmp_path: Path) -> None:
    begin(make_volume(tmp_path / "volume", "ext"), writable=True)
    run("umount", tmp_path / "mount")
    until(lambda: not records.running())
    assert unmount(tmp_path / "mount")["result"] == {"kept": True, "clean": True}
    with pytest.raises(NotFoundError):
        unmount(tmp_path / "mount")


@pytest.mark.parametrize(
    ("number", "kept"),
    [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGHUP, True), (signal.SIGUSR1, False)],
)
def test_a_signal_ends_it_in_order(number: signal.Signals, kept: bool, begin: Start, tmp_path: Path) -> None:
    ready = begin(make_volume(tmp_path / "volume", "ext"), writable=True)
    (tmp_path / "mount" / "file").write_bytes(b"written")
    os.kill(ready["pid"], number)
    until(lambda: not records.running())
    outcome = unmount(tmp_path / "mount")
    assert (outcome["reason"], outcome["result"]) == (number.name, {"kept": kept, "clean": True})
    assert run("debugfs", "-R", "cat /file", tmp_path / "volume").stdout == b"written"
    assert left(tmp_path) == []


def test_a_mount_in_use_goes_on(begin: Start, tmp_path: Path) -> None:
    directory = tmp_path / "mount"
    begin(make_volume(tmp_path / "volume", "ntfs"), writable=True)
    with (directory / "file").open("wb") as file:
        with pytest.raises(RefusedError, match="is in use"):
            unmount(directory, discard=True)
        file.write(b"still here")
    assert unmount(directory)["result"] == {"kept": True, "clean": True}


def test_an_end_that_fails_is_told_to_who_unmounts(begin: Start, tmp_path: Path) -> None:
    begin(make_volume(tmp_path / "volume", "ntfs"), writable=True, end_fails=True)
    with pytest.raises(RefusedError, match="the end is refused; try again"):
        unmount(tmp_path / "mount")
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["ntfs", "ext", "exfat"])
def test_what_a_killed_mount_leaves_is_cleared(kind: str, begin: Start, tmp_path: Path) -> None:
    path = make_volume(tmp_path / "volume", kind)
    ends: list[Callable[[], dict[str, Any]]] = [lambda: unmount(tmp_path / "mount"), lambda: begin(path)]
    for end in ends:
        ready = begin(path, writable=True)
        os.kill(ready["pid"], signal.SIGKILL)
        until(lambda: not records.running())
        told = end()
        assert told.get("reason", "killed") == "killed"
    assert mounted_at(str(tmp_path / "mount")) is not None
    unmount(tmp_path / "mount")
    until(lambda: left(tmp_path) == [])


def test_a_driver_that_dies_ends_the_mount(begin: Start, tmp_path: Path) -> None:
    ready = begin(make_volume(tmp_path / "volume", "ntfs"), writable=True)
    children = Path(f"/proc/{ready['pid']}/task/{ready['pid']}/children").read_text().split()
    driver = [pid for pid in children if "ntfs-3g" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(int(driver[0]), signal.SIGKILL)
    until(lambda: not records.running())
    outcome = unmount(tmp_path / "mount")
    assert not outcome["clean"]
    assert outcome["result"] == {"kept": True, "clean": False}
    assert left(tmp_path) == []


def test_the_devices_can_be_shown_instead(begin: Start, tmp_path: Path) -> None:
    path, directory = make_volume(tmp_path / "volume", "fat"), tmp_path / "mount"
    ready = begin(path, writable=True, show_devices=True)
    assert ready["devices"] == ["volume-0"]
    run("mmd", "-i", directory / "volume-0", "::/made")
    unmount(directory)
    assert b"made" in run("mdir", "-b", "-i", path).stdout.lower()
    assert left(tmp_path) == []


def test_several_volumes_are_directories(begin: Start, tmp_path: Path) -> None:
    ext, fat = make_volume(tmp_path / "ext", "ext"), make_volume(tmp_path / "fat", "fat")
    nothing = tmp_path / "nothing"
    nothing.write_bytes(bytes(1 << 20))
    begin(sample_volume(tmp_path / "ntfs"), ext, fat, nothing)
    directory = tmp_path / "mount"
    assert sorted(os.listdir(directory)) == ["0", "1", "2", "3"]
    assert "Users" in os.listdir(directory / "0")
    assert os.listdir(directory / "1") == ["lost+found"]
    assert os.listdir(directory / "2") == os.listdir(directory / "3") == []
    outcome = unmount(directory)
    assert outcome["clean"]
    assert ["volume-3" in problem for problem in outcome["problems"]] == [True]
    assert left(tmp_path) == []


def test_a_mount_that_cannot_begin_says_why_and_leaves_nothing(begin: Start, tmp_path: Path) -> None:
    ntfs = make_volume(tmp_path / "ntfs", "ntfs")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(noise(1, 1 << 20))
    for paths, request, error in (
        ([ntfs], {"volume": "volume-7"}, UsageError),
        ([ntfs], {"way": "fuse2fs"}, UsageError),
        ([ntfs, ntfs], {"writable": True}, UsageError),
        ([garbage], {}, DeviceError),
        ([], {}, RefusedError),
    ):
        with pytest.raises(error):
            begin(*paths, **request)
        assert left(tmp_path) == []
    (tmp_path / "mount" / "file").write_text("")
    with pytest.raises(RefusedError, match="is not empty"):
        begin(ntfs)
    assert left(tmp_path) == []


def test_one_volume_of_several_is_mounted_alone(begin: Start, tmp_path: Path) -> None:
    paths = [make_volume(tmp_path / "fat", "fat"), sample_volume(tmp_path / "ntfs")]
    begin(*paths, volume="volume-1", way="reader")
    assert "Users" in os.listdir(tmp_path / "mount")
    assert unmount(tmp_path / "mount")["clean"]


def test_devices_are_flushed_before_the_end_is_told(place: Place) -> None:
    device, directory = WatchedDevice(bytes(1 << 20)), place("mount")
    ends: list[tuple[MountEnd, int]] = []

    def on_end(end: MountEnd) -> dict[str, Any]:
        ends.append((end, device.flushes))
        return {}

    def use(_ready: dict[str, Any]) -> None:
        def work() -> None:
            run("dd", "if=/dev/zero", f"of={directory}/medium", "conv=notrunc", "count=1", "status=none")
            device.failure = DeviceError("the disk is gone") if ends else None
            run("umount", directory)

        threading.Thread(target=work).start()

    for clean in (True, False):
        before = device.flushes
        outcome = mount({"medium": device}, MountRequest(str(directory), show_devices=True, writable=True),
                        on_end=on_end, on_ready=use, on_problem=lambda _text: None)  # fmt: skip
        assert outcome["clean"] is clean
        assert ends[-1][0].clean is clean
        assert not clean or ends[-1][1] > before
        assert clean or "the disk is gone" in ends[-1][0].problems[0]


def test_a_write_that_is_lost_makes_the_end_unclean(place: Place) -> None:
    device, directory = WatchedDevice(bytes(1 << 20)), place("mount")

    def use(_ready: dict[str, Any]) -> None:
        def work() -> None:
            device.failure = DeviceError("the disk is broken")
            argv = ["dd", "if=/dev/zero", f"of={directory}/medium", "conv=notrunc", "count=1"]
            assert subprocess.run(argv, capture_output=True, check=False).returncode == 1
            device.failure = None
            run("umount", directory)

        threading.Thread(target=work).start()

    request = MountRequest(str(directory), show_devices=True, writable=True)
    outcome = mount({"medium": device}, request, on_ready=use, on_problem=lambda _text: None)
    assert not outcome["clean"]
    assert "the disk is broken" in outcome["problems"]


def test_a_mount_for_reading_shows_no_device_that_can_be_written(begin: Start, tmp_path: Path) -> None:
    begin(make_volume(tmp_path / "volume", "fat"), show_devices=True)
    shown = tmp_path / "mount" / "volume-0"
    assert shown.stat().st_mode & 0o777 == 0o400
    with pytest.raises(OSError):
        shown.open("r+b")
    unmount(tmp_path / "mount")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ntfs", "ext"])
def test_a_signal_ends_a_mount_that_stays_in_use_and_says_that_it_is_not_clean(
    kind: str, begin: Start, tmp_path: Path
) -> None:
    path = make_volume(tmp_path / "volume", kind)
    ready = begin(path, writable=True)
    user = subprocess.Popen(["sh", "-c", f"exec 3>{tmp_path}/mount/file; echo written >&3; exec sleep 300"])
    try:
        until(lambda: (tmp_path / "mount" / "file").exists())
        os.kill(ready["pid"], signal.SIGTERM)
        end = time.monotonic() + 100
        while records.running() and time.monotonic() < end:
            time.sleep(0.1)
        outcome = unmount(tmp_path / "mount")
        assert (outcome["reason"], outcome["clean"]) == ("SIGTERM", False)
    finally:
        user.kill()
        user.wait()
    until(lambda: left(tmp_path) == [])
    begin(path)
    assert (tmp_path / "mount" / "file").exists()
    unmount(tmp_path / "mount")


def test_a_record_of_another_process_with_the_same_number_is_not_taken_for_it(tmp_path: Path) -> None:
    record = records.MountRecord(str(tmp_path), "image", False)
    assert record.is_running
    assert not records.MountRecord(str(tmp_path), "image", False, os.getpid(), record.process_started + 1).is_running
    assert not records.MountRecord(str(tmp_path), "image", False, 1 << 30).is_running


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"directory": 5, "x": 1}', "null"])
def test_a_file_in_the_run_directory_that_is_no_record_is_passed_over(content: str, tmp_path: Path) -> None:
    (Path(records.run_directory()) / "0.json").write_text(content)
    assert records.clear_leftovers() == []
    assert records.running() == []


def test_a_run_directory_that_others_can_write_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "other"))
    (tmp_path / "other" / "sqlimage").mkdir(parents=True)
    (tmp_path / "other" / "sqlimage").chmod(0o777)
    assert not records.run_directory().startswith(str(tmp_path))
