"""Devices as files: what programs see, write and are told."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sqlimage.device import BlockDevice
from sqlimage.errors import DeviceError, SqlimageError, UsageError
from sqlimage.media.file import WritableFileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.mount.devices import DeviceFiles, serve_devices
from sqlimage.mount.mountpoint import mounted_at
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.images import noise
from tests.mount.conftest import Place
from tests.mount.volumes import WatchedDevice, make_volume, read_only


@contextlib.contextmanager
def served(directory: Path, **devices: BlockDevice) -> Iterator[list[str]]:
    """The devices mounted on a directory; gives the list to which problems are told."""
    told: list[str] = []
    server = serve_devices(devices, str(directory), on_problem=told.append)
    try:
        yield told
    finally:
        server.unmount()


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def refused(action: Callable[[], object]) -> int:
    """The error number an action fails with."""
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno is not None
    return caught.value.errno


def test_a_device_is_a_file_of_its_size_that_may_be_written_where_the_device_can(place: Place) -> None:
    directory = place("mount")
    here = os.getcwd()
    devices = {"medium": MemoryDevice(noise(1, MIB)), "locked": read_only(MemoryDevice(noise(2, 513)))}
    with served(directory, **devices):
        assert sorted(os.listdir(directory)) == ["locked", "medium"]
        assert {p.name: (p.stat().st_size, p.stat().st_mode & 0o777) for p in directory.iterdir()} == {
            "medium": (MIB, 0o600),
            "locked": (513, 0o400),
        }
        assert (directory / "medium").read_bytes() == noise(1, MIB)
        assert (directory / "locked").read_bytes() == noise(2, 513)
        assert refused(lambda: os.open(directory / "locked", os.O_RDWR)) == errno.EROFS
        assert refused(lambda: os.open(directory / "other", os.O_RDONLY)) == errno.ENOENT
        assert os.getcwd() == here
    assert mounted_at(str(directory)) is None


def test_a_mount_of_nothing_but_read_only_devices_is_read_only(place: Place) -> None:
    directory = place("mount")
    with served(directory, medium=read_only(MemoryDevice(bytes(512)))):
        found = mounted_at(str(directory))
        assert found is not None
        assert not found.writable


def test_what_is_written_by_position_is_what_is_read(place: Place) -> None:
    model = bytearray(noise(3, 300 * KIB + 17))
    device = MemoryDevice(bytearray(model))
    directory = place("mount")
    with served(directory, medium=device), opened(directory / "medium") as fd:
        for step in range(200):
            seed = int.from_bytes(noise(("step", step), 8), "big")
            at, length = seed % len(model), seed // 7 % 9000
            length = min(length, len(model) - at)
            if step % 2:
                model[at : at + length] = data = noise(step, length)
                assert os.pwrite(fd, data, at) == length
            else:
                assert os.pread(fd, length, at) == model[at : at + length]
    assert device.content == model


def test_fsync_flushes_the_device_and_so_does_the_close_after_a_write(place: Place) -> None:
    device, directory = WatchedDevice(bytes(MIB)), place("mount")
    with served(directory, medium=device):
        with opened(directory / "medium") as fd:
            os.fsync(fd)
            assert device.flushes == 1
            os.pwrite(fd, b"x", 5)
            os.fsync(fd)
            assert device.flushes == 2
        assert device.flushes == 2
        with opened(directory / "medium") as fd:
            os.pwrite(fd, b"x", 5)
        assert device.flushes == 3
        with opened(directory / "medium", os.O_RDONLY) as fd:
            os.pread(fd, 100, 0)
        assert device.flushes == 3


def test_a_file_keeps_its_length_and_the_directory_its_files(place: Place) -> None:
    device, directory = MemoryDevice(noise(4, 4096)), place("mount")
    path = directory / "medium"
    with served(directory, medium=device):
        assert refused(lambda: os.truncate(path, 0)) == errno.EPERM
        assert refused(lambda: os.truncate(path, 8192)) == errno.EPERM
        assert refused(lambda: os.open(path, os.O_WRONLY | os.O_TRUNC)) == errno.EPERM
        os.truncate(path, 4096)
        assert refused(lambda: os.open(directory / "new", os.O_WRONLY | os.O_CREAT)) == errno.EPERM
        assert os.listdir(directory) == ["medium"]
    assert device.content == noise(4, 4096)


def test_what_lies_behind_the_end_cannot_be_written(place: Place) -> None:
    device, directory = MemoryDevice(bytes(1000)), place("mount")
    with served(directory, medium=device), opened(directory / "medium") as fd:
        assert os.pwrite(fd, b"y" * 100, 950) == 50
        assert refused(lambda: os.pwrite(fd, b"z", 1000)) == errno.ENOSPC
        assert os.pread(fd, 100, 990) == b"y" * 10
        assert os.pread(fd, 100, 5000) == b""
    assert device.content == bytes(950) + b"y" * 50


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (DeviceError("the disk is broken"), errno.EIO),
        (ZeroDivisionError("nobody thought of this"), errno.EIO),
        (OSError(errno.ENOSPC, "no space"), errno.ENOSPC),
    ],
)
def test_a_device_that_fails_is_an_error_number_and_a_line(
    place: Place, capfd: pytest.CaptureFixture[str], failure: Exception, number: int
) -> None:
    device, directory = WatchedDevice(bytes(MIB)), place("mount")
    with served(directory, medium=device) as told:
        with opened(directory / "medium") as fd:
            device.failure = failure
            assert refused(lambda: os.pwrite(fd, b"x", 0)) == number
            assert refused(lambda: os.pread(fd, 10, 0)) == number
            assert refused(lambda: os.fsync(fd)) == number
            device.failure = None
            assert os.pwrite(fd, b"x", 0) == 1
        if not isinstance(failure, OSError) or isinstance(failure, SqlimageError):
            assert str(failure) in told[0]
    assert capfd.readouterr() == ("", "")


def test_the_reason_behind_an_error_of_a_device_is_what_programs_are_told(place: Place) -> None:
    full, directory = WatchedDevice(bytes(MIB)), place("mount")
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise DeviceError("writing failed") from None
    except DeviceError as problem:
        full.failure = problem
    with served(directory, medium=full) as told:
        with opened(directory / "medium") as fd:
            assert refused(lambda: os.pwrite(fd, b"x", 0)) == errno.ENOSPC
            full.failure = None
        assert told == ["writing failed"]


def test_holes_and_zeroed_ranges_become_zeros_of_the_device(place: Place) -> None:
    device, directory = WatchedDevice(b"\xff" * MIB), place("mount")
    with served(directory, medium=device):
        run("fallocate", "--punch-hole", "--offset", "4096", "--length", "8192", directory / "medium")
        run("fallocate", "--zero-range", "--offset", "65536", "--length", "100", directory / "medium")
        assert (directory / "medium").read_bytes() == bytes(device.content)
    assert device.zeroed == [(4096, 8192), (65536, 100)]
    assert device.content.count(0) == 8292


def test_reads_run_side_by_side(place: Place) -> None:
    both = threading.Barrier(2, timeout=20)

    class Slow(MemoryDevice):
        def read(self, offset_bytes: int, length_bytes: int) -> bytes:
            both.wait()
            return super().read(offset_bytes, length_bytes)

    directory = place("mount")
    with served(directory, one=Slow(noise(1, 4096)), two=Slow(noise(2, 4096))), ThreadPoolExecutor(2) as pool:
        read = list(pool.map(lambda name: (directory / name).read_bytes(), ("one", "two")))
    assert read == [noise(1, 4096), noise(2, 4096)]


def test_what_a_device_keeps_for_each_thread_is_kept(place: Place) -> None:
    """An image has one database connection for each thread: 300 reads must not open 300."""
    kept, made = threading.local(), []

    class ByThread(MemoryDevice):
        def read(self, offset_bytes: int, length_bytes: int) -> bytes:
            if not hasattr(kept, "connection"):
                kept.connection = object()
                made.append(kept.connection)
            return super().read(offset_bytes, length_bytes)

    directory = place("mount")
    with served(directory, medium=ByThread(bytes(300 * 128 * KIB))), opened(directory / "medium", os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(300):
            os.pread(fd, 4096, number * 128 * KIB)
    assert 1 <= len(made) <= 12


def test_a_loop_device_over_a_file_carries_a_file_system(place: Place, tmp_path: Path) -> None:
    path = make_volume(tmp_path / "volume", "ext")
    device = WritableFileDevice(path)
    directory, mount = place("mount"), place("ext")
    with served(directory, medium=device) as told:
        name = run("losetup", "--find", "--show", directory / "medium").stdout.decode().strip()
        try:
            run("mount", "-t", "ext4", name, mount)
            (mount / "file").write_bytes(noise(1, 3 * MIB))
            os.sync()
            run("umount", mount)
        finally:
            run("losetup", "--detach", name)
    device.close()
    assert told == []
    run("e2fsck", "-f", "-n", path)
    dumped = run("debugfs", "-R", "cat /file", path).stdout
    assert dumped == noise(1, 3 * MIB)


def test_programs_work_on_the_files(place: Place, tmp_path: Path) -> None:
    device = MemoryDevice(bytes(16 * MIB))
    directory = place("mount")
    source = tmp_path / "source"
    source.write_bytes(noise(9, 100_000))
    medium = directory / "medium"
    with served(directory, medium=device) as told:
        run("mkfs.fat", medium)
        run("mcopy", "-i", medium, source, "::/copy")
        assert run("mtype", "-i", medium, "::/copy").stdout == source.read_bytes()
        run("fsck.fat", "-n", medium)
        copied = run("dd", f"if={medium}", "bs=1M", "status=none").stdout
        assert copied == device.content
        run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "discard 2M 1M", "-c", "flush", medium)
        assert device.content[MIB : MIB + 64 * KIB] == b"\7" * 64 * KIB
        assert subprocess.run(["dd", "if=/dev/zero", f"of={medium}", "count=1"], capture_output=True).returncode == 1
        run("dd", "if=/dev/zero", f"of={medium}", "count=1", "conv=notrunc,fsync")
        assert device.content[:512] == bytes(512)
    assert told == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        DeviceFiles({name: MemoryDevice(b"")})
