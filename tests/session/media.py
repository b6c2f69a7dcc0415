"""Media for images at work, each made once in a process; tests work on copies of the images."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.conftest import run
from tests.images import noise, sample_volume, tool
from tests.make import fat

FAT_TREE = {"DATA/inside.txt": b"inside\n" * 300, "readme.txt": b"read me\n", "DATA/blob.bin": noise("blob", 200_000)}
PARTITIONS = ((2048, 8 << 20, "7"), (2048 + (16 << 11), 16 << 20, "e"))
"""First sector, bytes and type of each partition of :func:`disk`."""


@cache
def _work() -> Path:
    path = Path(tempfile.mkdtemp(prefix="session-media-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def ntfs() -> Path:
    """The NTFS volume that ships with the package."""
    return sample_volume(_work() / "sample.ntfs")


@cache
def fat_volume(bits: int) -> Path:
    """A FAT volume with a small tree; the smallest that mkfs.fat makes of its kind."""
    path = fat.make_volume(
        _work() / f"fat{bits}", {16: 16 << 20, 32: 36 << 20}[bits], bits, sectors_per_cluster={16: None, 32: 1}[bits]
    )
    fat.fill(path, FAT_TREE, _work() / f"tree{bits}")
    return path


@cache
def ext4() -> Path:
    """An ext4 volume, which is captured raw, with one file."""
    path, tree = _work() / "ext4", _work() / "ext4-tree"
    tree.mkdir()
    (tree / "hello").write_text("hello\n")
    with path.open("wb") as file:
        file.truncate(16 << 20)
    run("mke2fs", "-q", "-t", "ext4", "-d", tree, "-E", "root_owner=0:0", path)
    return path


@cache
def disk() -> Path:
    """A disk of two partitions: the NTFS volume and the FAT16 volume."""
    path = _work() / "disk"
    with path.open("wb") as file:
        file.truncate(34 << 20)
    lines = "".join(f"start={start}, size={length // 512}, type={kind}\n" for start, length, kind in PARTITIONS)
    run("sfdisk", "--quiet", path, input=f"label: dos\n{lines}".encode())
    with path.open("r+b") as file:
        for (start, _, _), volume in zip(PARTITIONS, (ntfs(), fat_volume(16)), strict=True):
            file.seek(start * 512)
            file.write(volume.read_bytes())
    return path


@cache
def plain(mebibytes: int = 8) -> Path:
    """Bytes without a file system, in part zeros."""
    path = _work() / f"plain{mebibytes}"
    content = bytearray(noise("plain", mebibytes << 20))
    content[1 << 20 : 2 << 20] = bytes(1 << 20)
    path.write_bytes(content)
    return path


@cache
def _captured(medium: Path) -> Path:
    image = _work() / f"{medium.name}.sqlimage"
    tool("capture", medium, image, "--preset", "fast")
    return image


def image_of(medium: Path, place: Path, name: str = "i.sqlimage") -> Path:
    """A fresh image of a medium."""
    return Path(shutil.copy(_captured(medium), place / name))
