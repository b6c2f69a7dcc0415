"""File systems over device files: which driver is chosen, and what it does to the device."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.errors import DeviceError, RefusedError, UsageError
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.mount import loop, program, stack
from sqlimage.mount.devices import serve_devices
from sqlimage.mount.mountpoint import mounted_at, mounts
from sqlimage.mount.signature import file_system_kind
from sqlimage.mount.stack import MountedVolume, Way, choose, mount_device_file
from tests.conftest import run
from tests.images import noise, sample_volume
from tests.mount.conftest import Place
from tests.mount.volumes import MAKERS, is_same_tree, make_volume, read_only

MOUNTABLE = [
    ("ntfs", Way.NTFS_3G),
    ("exfat", Way.EXFAT_FUSE),
    ("ext", Way.KERNEL),
    ("ext", Way.FUSE2FS),
    ("xfs", Way.KERNEL),
    ("btrfs", Way.KERNEL),
]


@contextlib.contextmanager
def mounted(place: Place, path: Path, kind: str, way: Way, *, writable: bool) -> Iterator[tuple[Path, MountedVolume]]:
    """A volume over its device file; unmounting must be clean."""
    files = place(f"files-{os.urandom(4).hex()}")
    directory = place(f"mount-{os.urandom(4).hex()}")
    device = WritableFileDevice(path) if writable else read_only(FileDevice(path))
    server = serve_devices({"volume": device}, str(files))
    try:
        volume = mount_device_file(str(files / "volume"), str(directory), kind=kind, way=way, writable=writable)
        try:
            yield directory, volume
        finally:
            assert volume.unmount()
    finally:
        assert server.unmount()
        device.close()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", MAKERS)
def test_every_file_system_is_told_by_its_magic_number(kind: str, tmp_path: Path) -> None:
    device = FileDevice(make_volume(tmp_path / "volume", kind))
    assert file_system_kind(device) == kind
    device.close()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1081, 65536 + 70])
def test_a_device_without_a_file_system_has_none(size: int) -> None:
    assert file_system_kind(MemoryDevice(bytes(size))) is None
    assert file_system_kind(MemoryDevice(b"\xff" * size)) is None


@pytest.mark.parametrize(("kind", "way"), MOUNTABLE)
def test_what_is_written_is_there_when_it_is_mounted_again(kind: str, way: Way, place: Place, tmp_path: Path) -> None:
    path = make_volume(tmp_path / "volume", kind)
    with mounted(place, path, kind, way, writable=True) as (directory, volume):
        assert (volume.way, volume.is_mounted, volume.is_alive) == (way, True, True)
        (directory / "file").write_bytes(noise(1, 1_000_000))
    before = digest(path)
    with mounted(place, path, kind, way, writable=False) as (directory, volume):
        assert (directory / "file").read_bytes() == noise(1, 1_000_000)
        with pytest.raises(OSError):
            (directory / "other").write_bytes(b"")
        found = mounted_at(str(directory))
        assert found is not None
        options = run("findmnt", "-n", "-o", "OPTIONS", "--mountpoint", directory).stdout.decode().strip().split(",")
        assert {"nosuid", "nodev"} <= set(options)
    assert digest(path) == before
    assert not volume.is_mounted


def test_a_read_only_mount_replays_no_journal(place: Place, tmp_path: Path) -> None:
    path, crashed = make_volume(tmp_path / "volume", "ext"), tmp_path / "crashed"
    with mounted(place, path, "ext", Way.KERNEL, writable=True) as (directory, _):
        (directory / "file").write_bytes(noise(1, 5000))
        os.sync()
        crashed.write_bytes(path.read_bytes())
    features = run("dumpe2fs", "-h", crashed).stdout
    assert b"needs_recovery" in features
    before = digest(crashed)
    for way in (Way.KERNEL, Way.FUSE2FS):
        with mounted(place, crashed, "ext", way, writable=False):
            assert digest(crashed) == before


def test_an_ntfs_volume_that_sleeps_is_not_mounted_writable(place: Place, tmp_path: Path) -> None:
    path = make_volume(tmp_path / "volume", "ntfs")
    with mounted(place, path, "ntfs", Way.NTFS_3G, writable=True) as (directory, _):
        (directory / "hiberfil.sys").write_bytes(b"hibr".ljust(4096, b"\0"))
    before = digest(path)
    with pytest.raises((RefusedError, DeviceError)), mounted(place, path, "ntfs", Way.NTFS_3G, writable=True):
        pass
    assert digest(path) == before


@pytest.mark.parametrize(("kind", "way"), MOUNTABLE)
def test_a_volume_that_the_driver_refuses_leaves_nothing_mounted(
    kind: str, way: Way, place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "volume"
    path.write_bytes(noise(1, 1 << 20))
    told = pytest.raises(DeviceError, match="does not mount the volume")
    with told, mounted(place, path, kind, way, writable=False):
        pass
    assert not any(mount.directory.startswith(str(tmp_path)) for mount in mounts())
    assert str(tmp_path).encode() not in run("losetup", "--list", "--raw", "--output", "BACK-FILE").stdout


def test_the_kernel_comes_first_then_a_driver_then_our_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: set[str] = set()
    programs: set[str] = set()
    monkeypatch.setattr(stack, "_kernel_knows", lambda name: name in kernel)
    monkeypatch.setattr(stack, "which", lambda name: name if name in programs else None)
    assert choose("ntfs", writable=False) == Way.READER
    with pytest.raises(DeviceError, match="install the Debian package ntfs-3g"):
        choose("ntfs", writable=True)
    programs.add("ntfs-3g")
    assert choose("ntfs", writable=True) == choose("ntfs", writable=False) == Way.NTFS_3G
    kernel.add("ntfs3")
    assert choose("ntfs", writable=True) == choose("ntfs", writable=False) == Way.KERNEL
    assert choose("ntfs", writable=False, wanted="reader") == Way.READER
    assert choose("ext", writable=False) == choose("iso9660", writable=False) == Way.READER
    with pytest.raises(DeviceError, match="fuse2fs"):
        choose("ext", writable=True)


@pytest.mark.parametrize(
    ("kind", "writable", "wanted"),
    [
        ("ntfs", True, "reader"),
        ("ntfs", False, "fuse2fs"),
        ("ext", False, "magic"),
        (None, False, "kernel"),
    ],
)
def test_a_driver_that_cannot_is_refused_by_name(kind: str | None, writable: bool, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        choose(kind, writable=writable, wanted=wanted)


def test_a_volume_of_an_unknown_kind_has_no_driver() -> None:
    with pytest.raises(DeviceError, match="without a file system that is known"):
        choose(None, writable=False)


def test_what_a_program_says_is_one_printable_line() -> None:
    assert program.last_line(b"") == "it says nothing"
    assert program.last_line(b"first\nlast \x1b[31m\xff\n\n") == "last ?[31m\N{REPLACEMENT CHARACTER}"
    assert len(program.last_line(b"x" * 10_000)) == 300


def test_a_captured_image_is_mounted_by_a_driver(place: Place, tmp_path: Path) -> None:
    volume = sample_volume(tmp_path / "volume")
    sqlimage.capture(str(volume), str(tmp_path / "image"), keep_page_files=True)
    files, ours, theirs = place("files"), place("ours"), place("theirs")
    options = {"kind": "ntfs", "way": Way.NTFS_3G, "writable": False}
    with sqlimage.open(str(tmp_path / "image")) as image:
        driver = image.driver()
        server = serve_devices({"medium": driver}, str(files))
        one = mount_device_file(str(files / "medium"), str(ours), **options)  # type: ignore[arg-type]
        other = mount_device_file(str(volume), str(theirs), **options)  # type: ignore[arg-type]
        assert is_same_tree(ours, theirs)
        assert one.unmount()
        assert other.unmount()
        assert server.unmount()
        driver.close()


def test_a_loop_device_that_closes_late_is_detached_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second time could hit the device that another process has been given meanwhile."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    asked: list[list[str]] = []

    def count(argv: list[str], *, package: str) -> object:
        asked.append(argv)
        return program.run_program(argv, package=package)

    name = loop.attach(str(path), writable=True)
    held = os.open(name, os.O_RDONLY)
    later = threading.Timer(0.3, os.close, [held])
    later.start()
    monkeypatch.setattr(loop, "run_program", count)
    assert loop.detach(name, str(path))
    later.join()
    assert asked == [["losetup", "--detach", name]]
    assert loop.backing_file(name) != str(path)
