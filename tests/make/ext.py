"""ext2, ext3 and ext4 volumes made by mke2fs and filled through the kernel."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise

UUID = "6b3a1f02-8c55-4d1e-9f7a-0123456789ab"
needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="only root mounts ext4 by a loop device"
)
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)
"""EXT4_IOC_SHUTDOWN: from here on nothing is written, not even the log."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


@contextmanager
def in_memory() -> Iterator[Path]:
    """A directory that no disk is waited for: unmounting syncs."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(prefix="sqlimage-ext-", dir=place) as name:
        yield Path(name)


def make_volume(path: Path, size_bytes: int, *options: str | Path) -> Path:
    """An empty volume on a sparse file; options are those of mke2fs."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run("mke2fs", "-qF", "-U", UUID, *options, path)
    return path


@contextmanager
def mounted(image: Path, options: str = "") -> Iterator[Path]:
    """The volume's root directory, by the kernel's ext4; unmounted when this ends."""
    place = image.with_name(image.name + ".mnt")
    place.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", "-o", f"loop,{options}", image, place)
    try:
        yield place
    finally:
        run("umount", place)
        place.rmdir()


def crash(root: Path) -> None:
    """Cut a mounted volume off its medium: what is not written now never will be."""
    fd = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
    finally:
        os.close(fd)


def settle(root: Path) -> None:
    """Write what is pending: data to its place, metadata to the journal at least."""
    run("sync", "-f", root)


def commit(root: Path) -> None:
    """Commit what is pending to the journal, and write no more to its place than has to be."""
    fd = os.open(root, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fill(root: Path, *, names: int = 300, holes: int = 200) -> None:
    """A tree with everything that the volume allows: files, links, special files, attributes, names and times."""
    block = os.statvfs(root).f_bsize
    fill_contents(root, block, holes)
    fill_names(root, names)
    for path in (root / "doomed", *(root / f"d{n}" for n in range(6))):
        path.mkdir()
        for n in range(20):
            (path / f"{n}").write_bytes(noise(n, 3000 * (n % 3)))
    run("rm", "-r", root / "doomed", *(root / f"d{k}" / f"{n}" for k in range(6) for n in range(1, 20, 2)))
    (root / "after").write_bytes(noise("after", 50_000))


def fill_contents(root: Path, block: int, holes: int) -> None:
    place = root / "contents"
    place.mkdir()
    for size in (0, 1, 59, 60, 61, 100, 160, 800, 1023, 1024, 1025, 4095, 4096, 4097, 70_000):
        (place / f"of {size}").write_bytes(noise(size, size))
    with (place / "sparse").open("wb") as file:
        for at in (0, 3, 11, 12, 40, 12 + block // 4, 2000, 40_000):
            file.seek(at * block)
            file.write(noise(at, block))
        file.truncate(200_000 * block)
    (place / "only a hole").touch()
    os.truncate(place / "only a hole", 5 * MIB + 1)
    with suppress(OSError), (place / "unwritten").open("wb") as file:  # block maps have no such thing
        fallocate(file.fileno(), _KEEP_SIZE, 0, 40 * block)
        file.write(noise("written", 3 * block))
        file.seek(20 * block)
        file.write(noise("later", 2 * block))
        file.truncate(30 * block + 7)
    with suppress(OSError), (place / "beyond its end").open("wb") as file:
        file.write(b"short")
        fallocate(file.fileno(), _KEEP_SIZE, 0, 30 * block)
    with suppress(OSError):
        punched(place / "in pieces", block, holes)


def punched(path: Path, block: int, holes: int) -> None:
    """A file with a hole after every block: so many runs."""
    with path.open("wb") as file:
        file.write(noise("piece", block) * (2 * holes))
        file.flush()
        for n in range(holes):
            fallocate(file.fileno(), _KEEP_SIZE | _PUNCH_HOLE, (2 * n + 1) * block, block)


def fallocate(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_int64(offset_bytes), ctypes.c_int64(length_bytes)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def fill_names(root: Path, names: int) -> None:
    place = root / "names"
    place.mkdir()
    (place / "one").write_bytes(b"one of many")
    (place / "many").mkdir()
    for n in range(names):
        os.link(place / "one", place / "many" / f"{n} of the many names of it")
    here = os.fsencode(place)
    for raw in (b"\xff\xfe not UTF-8", b"new\nline", "Größe und 長さ 😀".encode(), b"n" * 255, b"\xe4" * 255):
        Path(os.fsdecode(here + b"/" + raw)).write_bytes(raw)
    for length in (1, 59, 60, 61, 150, 1000):
        os.symlink("s" * length, place / f"link of {length}")
    os.mkfifo(place / "fifo")
    os.mknod(place / "character", stat.S_IFCHR | 0o640, os.makedev(300, 70_000))
    os.mknod(place / "block", stat.S_IFBLK | 0o600, os.makedev(8, 1))
    os.mknod(place / "socket", stat.S_IFSOCK | 0o777)
    deep = place
    for n in range(30):
        deep = deep / f"level {n}"
        deep.mkdir()
    (deep / "bottom").write_bytes(b"deep")
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 6, 0xFFFFFFFF), (2, 7, 1234), (4, 4, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
    )
    for name, values in {
        "small": {"user.small": b"v"},
        "in a block": {"user.large": b"x" * 700},
        "in the same block": {"user.large": b"x" * 700},
        "acl": {"system.posix_acl_access": acl, "trusted.t": b"t" * 60},
    }.items():
        (place / f"attributes {name}").write_bytes(name.encode())
        for key, value in values.items():
            with suppress(OSError):  # too large for a small inode without a block
                os.setxattr(place / f"attributes {name}", key, value)
    os.setxattr(place / "many", "user.of a directory", b"d" * 30)
    for nanoseconds in (-1, 0, -(1 << 31) * 10**9, 123456789, 4_102_444_800_123_456_789, 9_000_000_000_999_999_999):
        (place / f"time {nanoseconds}").touch()
        os.utime(place / f"time {nanoseconds}", ns=(0, nanoseconds))
    for mode in (0, 0o4755, 0o2710, 0o1777, 0o7777):
        (place / f"mode {mode:o}").touch()
        (place / f"mode {mode:o}").chmod(mode)


def work(root: Path, seed: int, steps: int = 400) -> None:
    """Let a tree change as in use: the same steps for the same seed, whether each succeeds or not."""
    chance = random.Random(seed)
    place = root / f"work {seed}"
    place.mkdir()
    files = [place]
    for step in range(steps):
        directory, file = place / f"{chance.randrange(8)}", chance.choice(files)
        new, length = directory / f"file {step}", chance.choice((0, 10, 900, 3000, 40_000))
        with suppress(OSError):
            match chance.randrange(13):
                case 0 | 1 | 2:
                    directory.mkdir(exist_ok=True)
                case 3:
                    shutil.rmtree(directory)
                case 4:
                    file.unlink()
                case 5:
                    file.rename(new)
                case 6:
                    new.symlink_to("t" * chance.choice((10, 59, 60, 300)))
                case 7:
                    os.link(file, new)
                case 8:
                    os.setxattr(file, "user.a", b"v" * chance.choice((10, 500)))
                case 9:
                    os.truncate(file, length)
                case _:
                    new.write_bytes(noise((seed, step), length))
                    files.append(new)


def recovered(image: Path, target: Path) -> Path:
    """A copy of a volume after its recovery by e2fsck."""
    run("cp", "--sparse=always", image, target)
    done = subprocess.run(["e2fsck", "-fy", target], capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stdout
    return target
