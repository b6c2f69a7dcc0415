"""Every device of the media room, made with given content, for tests that hold for all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from sqlimage.device import BlockDevice
from sqlimage.media.compose import WritableComposedDisk, compose_disk
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.media.foreign import formats
from sqlimage.media.foreign.create import create
from sqlimage.media.foreign.source import open_source
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.moved import MovedVolume, WritableMovedVolume
from sqlimage.media.window import Window, WritableWindow
from sqlimage.nameless import NamelessFile
from tests.conftest import run

Maker = Callable[[bytes], AbstractContextManager[BlockDevice]]
_CELL = 4096
_MARGIN = 3 * 512
"""What lies around a window, and must stay as it is."""


def write_sparse(path: Path, content: bytes) -> None:
    """A file with holes where the content has whole cells of zeros."""
    with path.open("wb") as file:
        for at in range(0, len(content), _CELL):
            cell = content[at : at + _CELL]
            if any(cell):
                file.seek(at)
                file.write(cell)
        file.truncate(len(content))


@contextmanager
def temporary_file(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "device.raw"
        write_sparse(path, content)
        yield path


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    """A block device over a file. Skips the test where the kernel lets nobody but root make one."""
    if os.geteuid() != 0:
        pytest.skip("a loop device can only be made by root")
    assert shutil.which("losetup"), "losetup is missing: run tests/install-debian-packages.sh"
    name = run("losetup", "--find", "--show", *options, path).stdout.decode().strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)


@contextmanager
def _memory(content: bytes) -> Iterator[BlockDevice]:
    yield MemoryDevice(content)


@contextmanager
def _file(content: bytes) -> Iterator[BlockDevice]:
    with temporary_file(content) as path:
        device = FileDevice(path)
        yield device
        device.close()


@contextmanager
def _writable_file(content: bytes) -> Iterator[BlockDevice]:
    with temporary_file(content) as path:
        device = WritableFileDevice(path)
        yield device
        device.close()


@contextmanager
def _block_device(content: bytes) -> Iterator[BlockDevice]:
    with temporary_file(content) as path, loop_device(path) as name:
        device = WritableFileDevice(name)
        assert device.is_block_device
        yield device
        device.close()


@contextmanager
def _window(content: bytes) -> Iterator[BlockDevice]:
    with _file(bytes([0xEE]) * _MARGIN + content + bytes([0xEE]) * _MARGIN) as device:
        yield Window(device, _MARGIN, len(content))


@contextmanager
def _writable_window(content: bytes) -> Iterator[BlockDevice]:
    whole = MemoryDevice(bytes([0xEE]) * _MARGIN + content + bytes([0xEE]) * _MARGIN)
    yield WritableWindow(whole, _MARGIN, len(content))
    assert set(whole.content[:_MARGIN] + whole.content[-_MARGIN:]) == {0xEE}


@contextmanager
def _window_of_window(content: bytes) -> Iterator[BlockDevice]:
    with _writable_file(bytes(_MARGIN) + content + bytes(_MARGIN)) as device:
        assert isinstance(device, WritableFileDevice)
        outer = WritableWindow(device, 512, device.size_bytes - 512)
        yield WritableWindow(outer, _MARGIN - 512, len(content))


def _boot_sector_of(length: int) -> MemoryDevice:
    """A volume of zeros with the end mark of a boot sector, which is all that a moved volume looks for."""
    return MemoryDevice(bytearray(510) + b"\x55\xaa" + bytes(length - 512))


@contextmanager
def _moved_volume(content: bytes) -> Iterator[BlockDevice]:
    """The content has at byte 28 the number that is to be shown, what lies behind has another."""
    shown = int.from_bytes(content[28:32], "little")
    stored = bytearray(content)
    stored[28:32], stored[510:512] = b"\xee" * 4, b"\x55\xaa"
    device = MemoryDevice(stored)
    moved = MovedVolume(device, "ntfs", shown)
    assert moved.fields_offset_bytes == (28,)
    device.write(510, content[510:512])
    yield moved


@contextmanager
def _writable_moved_volume(content: bytes) -> Iterator[BlockDevice]:
    moved = WritableMovedVolume(_boot_sector_of(len(content)), "ntfs", int.from_bytes(content[28:32], "little"))
    moved.write(0, content)
    assert moved.fields_offset_bytes == (28,)
    yield moved


@contextmanager
def _composed_volume(content: bytes) -> Iterator[BlockDevice]:
    with _file(content) as volume:
        disk = compose_disk(volume, file_system="ext4")
        yield Window(disk, disk.partition_offset_bytes, len(content))


@contextmanager
def _composed_disk(content: bytes) -> Iterator[BlockDevice]:
    """The guest's own content from the first byte to the last: boot record, gap, volume and padding."""
    volume = _boot_sector_of(len(content) - 63 * 512 - 3 * 4096 + 512)
    disk = compose_disk(volume, file_system="fat16", hidden_sectors=63, alignment_bytes=len(content))
    assert isinstance(disk, WritableComposedDisk)
    disk.write(0, content)
    yield disk


@contextmanager
def _foreign(content: bytes) -> Iterator[BlockDevice]:
    """The disk in a qcow2 of small clusters."""
    with temporary_file(content) as path:
        target = path.with_suffix(".qcow2")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", path, target)
        device = open_source(target)
        yield device
        device.close()


@contextmanager
def _writable_foreign(content: bytes) -> Iterator[BlockDevice]:
    """The disk in a container in the making."""
    kind = formats.by_name("qcow2")
    assert kind is not None
    with tempfile.TemporaryDirectory() as directory, NamelessFile(Path(directory) / "device.qcow2") as file:
        device = create(file, kind, len(content))
        for at in range(0, len(content), _CELL):
            if any(content[at : at + _CELL]):
                device.write(at, content[at : at + _CELL])
        yield device
        device.close()


KINDS: dict[str, Maker] = {
    "memory": _memory,
    "file": _file,
    "writable-file": _writable_file,
    "block-device": _block_device,
    "window": _window,
    "writable-window": _writable_window,
    "window-of-window": _window_of_window,
    "moved-volume": _moved_volume,
    "writable-moved-volume": _writable_moved_volume,
    "composed-volume": _composed_volume,
    "composed-disk": _composed_disk,
    "foreign": _foreign,
    "writable-foreign": _writable_foreign,
}
_READ_ONLY = ("file", "window", "moved-volume", "composed-volume", "foreign")
WRITABLE = [kind for kind in KINDS if kind not in _READ_ONLY]
