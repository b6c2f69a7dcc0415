"""Containers in the making: whole and as QEMU reads them, or not there."""

from __future__ import annotations

import errno
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sqlimage.device import WritableDevice
from sqlimage.errors import DeviceError, RefusedError
from sqlimage.media.foreign import client, formats
from sqlimage.media.foreign.create import create
from sqlimage.media.foreign.device import WritableForeignDevice
from sqlimage.media.foreign.formats import Format
from sqlimage.nameless import NamelessFile
from tests.conftest import run
from tests.images import noise
from tests.media.foreign import WRITABLE, disk


def kind(name: str) -> Format:
    found = formats.by_name(name)
    assert found is not None
    return found


def filled(path: Path, name: str, content: bytes) -> Path:
    """A container with the content in it, written in disorder, from several threads."""
    with NamelessFile(path) as file:
        device = create(file, kind(name), len(content))
        assert isinstance(device, WritableDevice)
        cells = [at for at in range(0, len(content), 4096) if any(content[at : at + 4096])]
        random.Random(name).shuffle(cells)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda at: device.write(at, content[at : at + 4096]), cells))
        device.finish()
        device.close()
        assert not path.exists()
        file.publish()
    return path


@pytest.mark.parametrize("name", WRITABLE)
def test_qemu_finds_in_it_what_was_written(name: str, tmp_path: Path) -> None:
    path = filled(tmp_path / f"disk.{name}", name, disk())
    (tmp_path / "raw").write_bytes(disk())
    run("qemu-img", "compare", "-f", "raw", "-F", WRITABLE[name], tmp_path / "raw", path)
    if name not in ("qcow", "vhd"):  # those QEMU cannot check
        run("qemu-img", "check", "-f", WRITABLE[name], path)
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, "raw"}


def test_vdi_is_written_by_one_request_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU writes down how many blocks are allocated after it has let go of the lock over them."""
    under_way, most, write = [0], [0], client.Client.write

    def slow(self: client.Client, offset_bytes: int, data: memoryview) -> None:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        write(self, offset_bytes, data)
        time.sleep(0.01)
        under_way[0] -= 1

    monkeypatch.setattr(client.Client, "write", slow)
    filled(tmp_path / "in turn", "vdi", disk()[: 1 << 20])
    assert most == [1]
    filled(tmp_path / "at once", "qcow2", disk()[: 1 << 20])
    assert most[0] > 1


@pytest.mark.parametrize("name", WRITABLE)
def test_what_was_not_written_takes_no_space(name: str, tmp_path: Path) -> None:
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind(name), 64 << 20)
        device.write(40 << 20, noise(1, 8192))
        device.finish()
        device.close()
        assert os.fstat(file.fd).st_blocks * 512 < 4 << 20


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("size", [512, 1000, 3 << 20, (5 << 30) + 512, 200 << 30])
def test_the_disk_is_as_large_as_was_asked_for_up_to_a_sector(name: str, size: int, tmp_path: Path) -> None:
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind(name), size)
        assert device.size_bytes == -(-size // 512) * 512
        device.finish()
        device.close()
        file.publish()
    shown = run("qemu-img", "info", "-f", WRITABLE[name], "--output=json", tmp_path / "disk").stdout.decode()
    assert f'"virtual-size": {-(-size // 512) * 512},' in shown


@pytest.mark.parametrize("name", ["plain.vmdk", 'a"b\nRW 1 FLAT "x.vmdk', "-o.vmdk", "json:{}", "ü"])
def test_a_vmdk_holds_its_own_name_where_that_does_no_harm(name: str, tmp_path: Path) -> None:
    path = filled(tmp_path / name, "vmdk", disk())
    named = name if name == "plain.vmdk" else "disk.vmdk"
    assert path.read_bytes().count(b"RW ") == 1
    assert f'SPARSE "{named}"'.encode() in path.read_bytes()


def test_a_disk_too_large_for_the_format_is_refused_in_the_words_of_qemu(tmp_path: Path) -> None:
    with (
        pytest.raises(RefusedError, match=r"disk: cannot be made as vhd, with a disk of \d+ bytes: .*") as caught,
        NamelessFile(tmp_path / "disk") as file,
    ):
        create(file, kind("vhd"), 1 << 42)
    assert "/tmp/sqlimage" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_zeroing_makes_holes(tmp_path: Path) -> None:
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind("qcow2"), 1 << 20)
        device.write(0, noise(1, 1 << 20))
        device.zero(0, 1 << 19)
        assert not any(extent.is_data for extent in device.extents(0, 1 << 19))
        assert device.read(0, 1 << 20) == bytes(1 << 19) + noise(1, 1 << 20)[1 << 19 :]
        device.close()


def test_zeros_are_written_where_the_server_cannot_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind("vdi"), 1 << 20)
        device.write(0, noise(1, 1 << 20))
        monkeypatch.setattr(device, "_flags", 1)
        device.zero(100, 70000)
        assert device.read(0, 1 << 20) == noise(1, 1 << 20)[:100] + bytes(70000) + noise(1, 1 << 20)[70100:]
        device.close()


def test_a_flush_reaches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind("qcow2"), 1 << 20)
        device.write(0, b"content")
        device.flush()
        assert synced == [file.fd]
        assert b"content" in os.pread(file.fd, 1 << 20, 0)
        device.close()


def test_without_the_end_there_is_no_file(tmp_path: Path) -> None:
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind("vhdx"), 1 << 20)
        device.write(0, b"content")
        device.close()
    assert list(tmp_path.iterdir()) == []


def test_after_the_end_nothing_can_be_written(tmp_path: Path) -> None:
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind("vhdx"), 1 << 20)
        device.finish()
        with pytest.raises(DeviceError, match="it is finished"):
            device.write(0, b"content")
        device.close()


def test_a_full_file_system_is_told_as_such(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    run("mount", "-t", "tmpfs", "-o", "size=2m", "none", place)
    try:
        with NamelessFile(place / "disk") as file:
            device = create(file, kind("qcow2"), 8 << 20)
            with pytest.raises(DeviceError, match=os.strerror(errno.ENOSPC)):
                device.write(0, noise(1, 8 << 20))
            device.close()
        assert list(place.iterdir()) == []
    finally:
        run("umount", place)


def test_a_server_that_does_not_end_well_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NamelessFile(tmp_path / "disk") as file:
        device = create(file, kind("qcow2"), 1 << 20)
        assert isinstance(device, WritableForeignDevice)
        device._server.kill()
        with pytest.raises(DeviceError, match="writing failed"):
            device.finish()
        device.close()
        monkeypatch.setattr(client, "REQUEST_S", 1.0)
        device = create(file, kind("qcow2"), 1 << 20)
        monkeypatch.setattr(device, "_flags", 1)
        device._server.kill()
        with pytest.raises(DeviceError, match="did not end well"):
            device.finish()
        device.close()
