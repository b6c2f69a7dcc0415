"""XFS and btrfs volumes made by their own tools and filled through the kernel, and what those tools say of them."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from sqlimage.device import Buffer, DeviceExtent, check_range
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Recognised
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.recognised import recognise
from sqlimage.media.file import FileDevice
from sqlimage.units import MIB
from tests.conftest import run
from tests.make.ext import fallocate

_KEEP_SIZE_AND_PUNCH_HOLE = 3
_ALL = 0xFFFFFFFF


def sparse(path: Path, size_bytes: int) -> Path:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def make_xfs(path: Path, size_bytes: int, *options: str | Path) -> Path:
    """An empty volume on a sparse file, small ones too."""
    run("mkfs.xfs", "-q", "--unsupported", *options, sparse(path, size_bytes))
    return path


def make_btrfs(path: Path, size_bytes: int, *options: str) -> Path:
    run("mkfs.btrfs", "-q", *options, sparse(path, size_bytes))
    return path


@contextmanager
def mounted(image: Path, kind: str, options: str = "") -> Iterator[Path]:
    """The volume's root directory; unmounted when this ends."""
    place = image.with_name(image.name + ".mnt")
    place.mkdir(exist_ok=True)
    run("mount", "-t", kind, "-o", f"loop,{options}", image, place)
    try:
        yield place
    finally:
        run("umount", place)
        place.rmdir()


def fill(root: Path, seed: str, *, files: int = 400) -> None:
    """Directories of files of many sizes, half of which are gone again."""
    chance = random.Random(seed)
    for n in range(files):
        path = root / f"d{n % 8}" / f"f{n}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice([0, 10, 600, 5000, 40_000])))
    os.sync()
    for path in sorted(root.glob("d*/f*")):
        if chance.random() < 0.5:
            path.unlink()


def make_holes(path: Path, holes: int, block_bytes: int) -> None:
    """A file that leaves every other block of its place free again."""
    with path.open("wb") as file:
        fallocate(file.fileno(), 0, 0, 2 * holes * block_bytes)
        for n in range(holes):
            fallocate(file.fileno(), _KEEP_SIZE_AND_PUNCH_HOLE, 2 * n * block_bytes, block_bytes)


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in files}


class Patched:
    """A device of bytes that stay as they are, with others in some places: many of them are cheap."""

    bytes_per_sector = 512

    def __init__(self, content: bytes, patches: Mapping[int, bytes], size_bytes: int | None = None) -> None:
        self._content, self._patches = content, patches
        self.size_bytes = len(content) if size_bytes is None else size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self.size_bytes, "patched device")
        data = bytearray(self._content[offset_bytes : offset_bytes + length_bytes])
        for at, patch in self._patches.items():
            begin, end = max(at, offset_bytes), min(at + len(patch), offset_bytes + length_bytes)
            if begin < end:
                data[begin - offset_bytes : end - offset_bytes] = patch[begin - at : end - at]
        return bytes(data)

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        buffer[:] = self.read(offset_bytes, len(buffer))

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        yield DeviceExtent(offset_bytes, length_bytes, is_data=True)

    def close(self) -> None:
        """Nothing is held."""


def mended(source: bytes, at: int, data: bytes, *, begin: int, size: int, field: int) -> Patched:
    """With other bytes at ``at``, and the CRC-32C of the structure around them made right again: by its place, its
    size, and where in it the checksum stands. btrfs keeps it at the beginning and leaves its whole field out."""
    structure = bytearray(source[begin : begin + size])
    structure[at - begin : at - begin + len(data)] = data
    covered = structure[32:] if field == 0 else structure[:field] + bytes(4) + structure[field + 4 :]
    structure[field : field + 4] = (crc32c(_ALL, bytes(covered)) ^ _ALL).to_bytes(4, "little")
    return Patched(source, {begin: bytes(structure)})


def found(image: Path) -> Recognised:
    volume = recognise(FileDevice(image))
    assert volume is not None
    return volume


def keep_only(image: Path, runs: Runs, target: Path) -> Path:
    """A copy that has the runs and zeros everywhere else."""
    with image.open("rb") as source, sparse(target, image.stat().st_size).open("r+b") as copy:
        for start, length in runs:
            for at in range(start, start + length, MIB):
                source.seek(at)
                data = source.read(min(MIB, start + length - at))
                if any(data):
                    copy.seek(at)
                    copy.write(data)
    return target


def blkid(image: Path) -> dict[str, str]:
    """What ``blkid`` finds by probing: ``TYPE``, ``UUID``, ``LABEL``, ``VERSION``, ``BLOCK_SIZE``, as far as told."""
    lines = run("blkid", "-p", "-o", "udev", image).stdout.splitlines()
    pairs = dict(line.removeprefix(b"ID_FS_").split(b"=", 1) for line in lines)
    plain = {key: re.sub(rb"\\x([0-9a-f]{2})", _byte, pairs.get(key + b"_ENC", value)) for key, value in pairs.items()}
    return {key.decode(): value.decode() for key, value in plain.items()}


def _byte(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape[1].decode())


def xfs_free_space(image: Path) -> Runs:
    """The bytes that ``xfs_db`` finds free by the B-tree: ``freesp`` without the blocks of the free lists."""
    fields = xfs_db(image, "sb 0", "print blocksize agblocks agcount")
    block, ag_blocks, ag_count = (int(value) for value in re.findall(r"= (\d+)", fields))
    listed = re.findall(r"^ *(\d+) +(\d+) +(\d+) *$", xfs_db(image, "freesp -d"), re.MULTILINE)
    pieces = [(int(ag) * ag_blocks + int(start), int(length)) for ag, start, length in listed]
    in_lists = [(ag * ag_blocks + number, 1) for ag in range(ag_count) for number in _free_list(image, ag)]
    free = Runs.of(pieces).subtract(Runs.of(in_lists))
    return Runs(free.start * block, free.length * block)


def _free_list(image: Path, ag: int) -> list[int]:
    first, count = map(int, re.findall(r"= (\d+)", xfs_db(image, f"agf {ag}", "print flfirst flcount")))
    entries: list[str] = []
    for low, high, value in re.findall(r"(\d+)(?:-(\d+))?:(\d+|null)", xfs_db(image, f"agfl {ag}", "print bno")):
        entries += [value] * (int(high or low) - int(low) + 1)
    return [int(entries[(first + n) % len(entries)]) for n in range(count)]


def xfs_db(image: Path, *commands: str) -> str:
    arguments = [part for command in commands for part in ("-c", command)]
    return run("xfs_db", "-r", *arguments, image).stdout.decode()


def xfs_log_is_clean(image: Path) -> bool:
    """What ``xfs_logprint`` says, which looks for the log's end as the kernel does."""
    state = re.search(r"state: <(CLEAN|DIRTY)>", run("xfs_logprint", "-t", image).stdout.decode())
    assert state
    return state[1] == "CLEAN"


def btrfs_device_extents(image: Path) -> Runs:
    """The bytes of the device that the device tree gives to chunks, which is another tree than the one read here."""
    tree = run("btrfs", "inspect-internal", "dump-tree", "-t", "dev", image).stdout.decode()
    number = re.search(
        r"dev_item\.devid\s+(\d+)", run("btrfs", "inspect-internal", "dump-super", image).stdout.decode()
    )
    extents = re.findall(r"key \((\d+) DEV_EXTENT (\d+)\).*?length (\d+)", tree, re.DOTALL)
    assert number and extents
    return Runs.of((int(start), int(length)) for device, start, length in extents if device == number[1])
