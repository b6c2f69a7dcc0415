"""Volumes for the tests of the mount room: made by their own programs, in files."""

from __future__ import annotations

import os
from pathlib import Path

from sqlimage.device import BlockDevice, Buffer
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.window import Window
from sqlimage.units import MIB
from tests.conftest import run

MAKERS = {
    "ntfs": (("mkntfs", "-F", "-Q", "-q"), 16),
    "fat": (("mkfs.fat",), 16),
    "exfat": (("mkfs.exfat",), 16),
    "ext": (("mke2fs", "-F", "-q", "-t", "ext4"), 16),
    "xfs": (("mkfs.xfs", "-q"), 320),
    "btrfs": (("mkfs.btrfs", "-q"), 128),
}


def make_volume(path: Path, kind: str) -> Path:
    """An empty volume of a kind that :func:`file_system_kind` names."""
    command, mebibytes = MAKERS[kind]
    with path.open("wb") as file:
        file.truncate(mebibytes * MIB)
    run(*command, path)
    return path


def read_only(device: BlockDevice) -> BlockDevice:
    """The same device without its write side."""
    return Window(device, 0, device.size_bytes)


class WatchedDevice(MemoryDevice):
    """Counts what it is told, and fails as it is told."""

    def __init__(self, content: bytes | bytearray) -> None:
        super().__init__(content)
        self.flushes = 0
        self.zeroed: list[tuple[int, int]] = []
        self.failure: BaseException | None = None

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        self._fail()
        return super().read(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        self._fail()
        super().write(offset_bytes, data)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self._fail()
        self.zeroed.append((offset_bytes, length_bytes))
        super().zero(offset_bytes, length_bytes)

    def flush(self) -> None:
        self._fail()
        self.flushes += 1


def is_same_tree(one: Path, other: Path) -> bool:
    """Whether two directories hold the same names with the same bytes; symbolic links by where they lead."""
    return _listed(one) == _listed(other)


def _listed(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for directory, directories, names in os.walk(top):
        for name in [*directories, *names]:
            path = os.path.join(directory, name)
            key = os.path.relpath(path, top)
            if os.path.islink(path):
                found[key] = os.readlink(path)
            else:
                found[key] = None if os.path.isdir(path) else Path(path).read_bytes()
    return found
