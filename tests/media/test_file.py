"""Raw files and block devices: holes, files that change under us, and what is not a disk at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqlimage.device import DeviceExtent
from sqlimage.errors import DeviceError, NotFoundError, RefusedError
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.window import Window
from sqlimage.units import MIB
from tests.conftest import run
from tests.media.kinds import loop_device


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """4 MiB: a hole, 1 MiB of ones, a hole."""
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        file.seek(MIB)
        file.write(b"\1" * MIB)
        file.truncate(4 * MIB)
    return path


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_holes_are_told(sparse: Path) -> None:
    assert list(FileDevice(sparse).extents(0, 4 * MIB)) == [
        DeviceExtent(0, MIB, is_data=False),
        DeviceExtent(MIB, MIB, is_data=True),
        DeviceExtent(2 * MIB, 2 * MIB, is_data=False),
    ]


def test_holes_are_clipped_to_the_range_asked_for(sparse: Path) -> None:
    #        | hole      | data      | hole              |
    #        0           1M          2M                  4M
    # asked:      |-----------------------|
    assert list(FileDevice(sparse).extents(MIB // 2, 2 * MIB)) == [
        DeviceExtent(MIB // 2, MIB // 2, is_data=False),
        DeviceExtent(MIB, MIB, is_data=True),
        DeviceExtent(2 * MIB, MIB // 2, is_data=False),
    ]
    window = Window(FileDevice(sparse), MIB + 512, MIB)
    assert list(window.extents(512, MIB - 512)) == [
        DeviceExtent(512, MIB - 1024, is_data=True),
        DeviceExtent(MIB - 512, 512, is_data=False),
    ]


def test_files_that_know_no_holes_are_data(monkeypatch: pytest.MonkeyPatch, sparse: Path) -> None:
    device = FileDevice(sparse)

    def refuse(fd: int, at: int, whence: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    assert list(device.extents(512, MIB)) == [DeviceExtent(512, MIB, is_data=True)]


def test_zero_punches_a_hole(sparse: Path) -> None:
    device = WritableFileDevice(sparse)
    before = allocated_bytes(sparse)
    device.zero(MIB, MIB // 2)
    device.flush()
    assert before - allocated_bytes(sparse) >= MIB // 2
    assert device.read(MIB, MIB) == bytes(MIB // 2) + b"\1" * (MIB // 2)
    assert sparse.stat().st_size == 4 * MIB


def test_zero_writes_where_no_hole_can_be_punched(monkeypatch: pytest.MonkeyPatch, sparse: Path) -> None:
    def refuse(fd: int, offset_bytes: int, length_bytes: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("sqlimage.media.file._punch_hole", refuse)
    device = WritableFileDevice(sparse)
    device.zero(MIB + 5, MIB - 10)
    device.zero(3, 3 * MIB // 2)
    assert device.read(0, 4 * MIB) == bytes(2 * MIB - 5) + b"\1" * 5 + bytes(2 * MIB)


def test_zero_on_a_block_device_gives_space_back(sparse: Path) -> None:
    with loop_device(sparse) as name:
        device = WritableFileDevice(name)
        before = allocated_bytes(sparse)
        device.zero(MIB, MIB // 2)
        device.zero(MIB + MIB // 2 + 3, 7)
        device.flush()
        assert device.read(MIB, MIB) == bytes(MIB // 2) + b"\1" * 3 + bytes(7) + b"\1" * (MIB // 2 - 10)
        assert before - allocated_bytes(sparse) >= MIB // 2
        device.close()


def test_resize_adds_a_hole_and_cuts(sparse: Path) -> None:
    device = WritableFileDevice(sparse)
    device.resize(8 * MIB)
    assert device.size_bytes == 8 * MIB
    assert device.read(7 * MIB, MIB) == bytes(MIB)
    device.resize(MIB)
    with pytest.raises(DeviceError):
        device.read(MIB, 1)


def test_a_block_device_cannot_be_resized(sparse: Path) -> None:
    with loop_device(sparse) as name:
        device = WritableFileDevice(name)
        with pytest.raises(DeviceError, match="cannot be made"):
            device.resize(MIB)
        device.close()


@pytest.mark.parametrize("kind", [FileDevice, WritableFileDevice])
def test_a_file_cut_under_us_is_an_error_not_zeros(kind: type[FileDevice], sparse: Path) -> None:
    device = kind(sparse)
    os.truncate(sparse, MIB + 100)
    assert device.read(MIB, 100) == b"\1" * 100
    with pytest.raises(DeviceError, match=f"ends at byte {MIB + 100}"):
        device.read(MIB, 4096)
    with pytest.raises(DeviceError, match="cut while being read"):
        device.read(3 * MIB, 512)
    with pytest.raises(DeviceError, match="cut while being read"):
        list(device.extents(0, 4 * MIB))
    with pytest.raises(DeviceError, match="cut while being read"):
        list(device.extents(3 * MIB, MIB))


def test_an_empty_file_is_an_empty_device(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    device = FileDevice(path)
    assert device.size_bytes == 0
    assert device.read(0, 0) == b""
    assert list(device.extents(0, 0)) == []


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


def _character_device(path: Path) -> Path:
    return Path("/dev/null")


def _below_a_file(path: Path) -> Path:
    path.touch()
    return path / "below"


@pytest.mark.parametrize("kind", [FileDevice, WritableFileDevice])
@pytest.mark.parametrize("make", [_directory, _fifo, _socket, _character_device, _below_a_file])
def test_what_is_no_disk_is_named(kind: type[FileDevice], make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "odd")
    with pytest.raises(DeviceError, match=str(path)):
        kind(path)


@pytest.mark.parametrize("kind", [FileDevice, WritableFileDevice])
def test_a_missing_path_is_not_found(kind: type[FileDevice], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file") as caught:
        kind(tmp_path / "missing")
    assert isinstance(caught.value, FileNotFoundError)


def test_failing_to_open_leaks_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(DeviceError):
            FileDevice(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_device_refuses(sparse: Path) -> None:
    device = WritableFileDevice(sparse)
    device.close()
    with pytest.raises(DeviceError):
        device.read(0, 512)
    with pytest.raises(DeviceError):
        device.write(0, bytes(512))
    with pytest.raises(DeviceError):
        device.flush()


def test_a_full_device_says_so(monkeypatch: pytest.MonkeyPatch, sparse: Path) -> None:
    def refuse(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")

    device = WritableFileDevice(sparse)
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(DeviceError, match=r"writing at byte 512 failed \(No space left on device\)"):
        device.write(512, b"data")


def test_short_reads_and_writes_are_continued(monkeypatch: pytest.MonkeyPatch, sparse: Path) -> None:
    device = WritableFileDevice(sparse)
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:700]], at))
    data = bytes(range(256)) * 64
    device.write(333, data)
    assert device.read(333, len(data)) == data


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[str]:
    """A loop device with a mounted ext4."""
    image, place = tmp_path / "ext4.img", tmp_path / "mnt"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    run("mke2fs", "-q", "-t", "ext4", image)
    with loop_device(image) as name:
        run("mount", name, place)
        yield name
        run("umount", place)


def test_a_mounted_device_is_refused_for_writing(mounted: str) -> None:
    with pytest.raises(RefusedError, match="mounted or in use; unmount it first"):
        WritableFileDevice(mounted)
    device = FileDevice(mounted)
    assert device.read(1024 + 56, 2) == b"\x53\xef"
    device.close()


def test_a_read_only_block_device_is_not_called_mounted(sparse: Path) -> None:
    with loop_device(sparse, "--read-only") as name, pytest.raises(DeviceError) as caught:
        WritableFileDevice(name).write(0, b"x")
    assert not isinstance(caught.value, RefusedError)


def test_block_devices_tell_their_sector_size(sparse: Path) -> None:
    with loop_device(sparse, "--sector-size", "4096") as name:
        device = FileDevice(name)
        assert device.bytes_per_sector == 4096
        assert device.size_bytes == 4 * MIB
        assert Window(device, 4096, 8192).bytes_per_sector == 4096
        device.close()


@pytest.mark.parametrize(("offset", "length"), [(0, 1025), (1024, 1), (-512, 512), (512, -1), (1 << 63, 1)])
def test_a_window_must_lie_within_its_device(offset: int, length: int) -> None:
    with pytest.raises(DeviceError, match="window"):
        Window(MemoryDevice(bytes(1024)), offset, length)


def test_closing_a_window_leaves_its_device_open() -> None:
    device = MemoryDevice(b"abcd")
    Window(device, 1, 2).close()
    assert device.read(0, 4) == b"abcd"
