"""NTFS volumes made by mkntfs and filled through ntfs-3g, and records of them changed by hand."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sqlimage.filesystem.ntfs.runlist import encode_many
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.media.memory import MemoryDevice
from tests.conftest import run

ATTRIBUTES, REPARSE_DATA, DOS_NAME = "system.ntfs_attrib_be", "system.ntfs_reparse_data", "system.ntfs_dos_name"
"""Extended attributes by which ntfs-3g shows NTFS's own."""
COMPRESSED_DIRECTORY = (0x810).to_bytes(4, "big")
SECTOR = 512


def make_volume(path: Path, size_bytes: int, *, cluster_bytes: int = 4096, label: str = "", sector: int = 512) -> Path:
    """An empty volume; the file is as sparse as mkntfs leaves it."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run("mkntfs", "-q", "-Q", "-F", "-c", str(cluster_bytes), "-s", str(sector), "-L", label, path)
    return path


@contextmanager
def mounted(image: Path, options: str = "compression,streams_interface=windows") -> Iterator[Path]:
    """The volume's root directory; unmounted and written out when this ends."""
    place = image.with_name(image.name + ".mnt")
    place.mkdir(exist_ok=True)
    driver = subprocess.Popen(
        ["ntfs-3g", "-o", f"no_detach,{options}", image, place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            if os.path.ismount(place) or driver.poll() is not None:
                break
            time.sleep(0.01)
        assert os.path.ismount(place), f"ntfs-3g ended with {driver.poll()}"
        yield place
    finally:
        for _ in range(50):
            if not os.path.ismount(place) or subprocess.run(["umount", place], check=False).returncode == 0:
                break
            time.sleep(0.1)
        driver.wait(timeout=30)


def write_tree(root: Path, files: dict[str, bytes]) -> None:
    """Files by their paths, directories as needed."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def scatter_free_space(root: Path, file_bytes: int) -> dict[str, bytes]:
    """Fill the volume with files of one size, and what is left with one more, then delete every other small one.

    Returns the files that stay.
    """
    files: dict[str, bytes] = {}
    (root / "rest").touch()
    with suppress(OSError):
        while True:
            (root / f"fill{len(files)}").write_bytes(b"x" * file_bytes)
            files[f"fill{len(files)}"] = b"x" * file_bytes
    (root / f"fill{len(files)}").unlink(missing_ok=True)
    with suppress(OSError), (root / "rest").open("wb", buffering=0) as file:
        while file.write(b"y" * 4096):
            pass
    for i in range(0, len(files), 2):
        (root / f"fill{i}").unlink()
        del files[f"fill{i}"]
    return files | {"rest": (root / "rest").read_bytes()}


def make_everything(image: Path) -> bytes:
    """A volume of 4 MiB on 1 KiB clusters: links, streams, a compressed and a sparse file, an attribute list."""
    make_volume(image, 4 << 20, cluster_bytes=1024)
    with mounted(image) as root:
        (root / "packed").mkdir()
        os.setxattr(root / "packed", ATTRIBUTES, COMPRESSED_DIRECTORY)
        write_tree(root, {"a/b/c/file": b"deep", "a/second": b"2" * 5000, "small": b"s", "large": b"L" * 70_000})
        write_tree(root, {"packed/text": b"to be or not to be " * 9000, "small:stream": b"beside"})
        write_tree(root, {f"name {i}": b"" for i in range(60)})
        os.symlink("a/second", root / "link")
        os.link(root / "small", root / "a/linked")
        with (root / "sparse").open("wb") as file:
            for i in range(400):
                file.seek(i * 2048)
                file.write(b"x")
    return image.read_bytes()


class VolumeBytes:
    """A small volume in memory, whose MFT must be one run, to be changed at will."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        sector, per_cluster = struct.unpack_from("<HB", content, 0x0B)
        self.cluster_bytes = sector * per_cluster
        (lcn,) = struct.unpack_from("<Q", content, 0x30)
        self.mft_at: int = lcn * self.cluster_bytes
        (size,) = struct.unpack_from("<b", content, 0x40)
        self.record_bytes: int = 1 << -size if size < 0 else size * self.cluster_bytes

    def record_at(self, number: int) -> int:
        return self.mft_at + number * self.record_bytes

    def record(self, number: int) -> bytearray:
        """A record with its fix-ups applied."""
        at = self.record_at(number)
        data = self.content[at : at + self.record_bytes]
        assert data[:4] == b"FILE", f"record {number} is not where a contiguous MFT has it"
        array, words = struct.unpack_from("<HH", data, 4)
        for i in range(1, words):
            data[i * SECTOR - 2 : i * SECTOR] = data[array + 2 * i : array + 2 * i + 2]
        return data

    def put_record(self, number: int, data: bytes) -> None:
        """Write a record, its update sequence array made anew."""
        block = bytearray(data)
        array, words = struct.unpack_from("<HH", block, 4)
        for i in range(1, words):
            end = i * SECTOR
            block[array + 2 * i : array + 2 * i + 2] = block[end - 2 : end]
            block[end - 2 : end] = block[array : array + 2]
        at = self.record_at(number)
        self.content[at : at + self.record_bytes] = block

    def attribute_at(self, number: int, type_code: int, nth: int = 0) -> int:
        """Where in its record the nth attribute of a type starts."""
        data = self.record(number)
        at = int.from_bytes(data[0x14:0x16], "little")
        while True:
            code = int.from_bytes(data[at : at + 4], "little")
            assert code != 0xFFFFFFFF, f"record {number} has no attribute {type_code:#x}"
            if code == type_code:
                if nth == 0:
                    return at
                nth -= 1
            at += int.from_bytes(data[at + 4 : at + 8], "little")

    def patch(self, number: int, at: int, data: bytes) -> None:
        """Change bytes of a record."""
        record = self.record(number)
        record[at : at + len(data)] = data
        self.put_record(number, bytes(record))

    def patch_value(self, number: int, type_code: int, at: int, data: bytes, nth: int = 0) -> None:
        """Change bytes of a resident attribute's value."""
        start = self.attribute_at(number, type_code, nth)
        (value,) = struct.unpack_from("<H", self.record(number), start + 0x14)
        self.patch(number, start + value + at, data)


def clusters(made: VolumeBytes, path: str) -> tuple[int, int]:
    """The LCN of a file's first run and its length."""
    scan = NtfsVolume(MemoryDevice(made.content)).scan()
    row = int(scan.entries.content[scan.entries.path.index(path)])
    run_row = int(scan.contents.first_run[row])
    unit = made.cluster_bytes
    return int(scan.contents.run_offset[run_row]) // unit, int(scan.contents.run_length[run_row]) // unit


def put_pairs(made: VolumeBytes, number: int, type_code: int, nth: int, runs: list[tuple[int, int]]) -> None:
    """Another run list for an attribute, whatever its length; what comes behind it moves."""
    table = np.array(runs, dtype=np.int64)
    pairs = encode_many(np.array([len(runs)]), table[:, 0], table[:, 1])[0].tobytes()
    at, record = made.attribute_at(number, type_code, nth), made.record(number)
    (length,) = struct.unpack_from("<I", record, at + 4)
    (pairs_at,) = struct.unpack_from("<H", record, at + 0x20)
    new = record[at : at + pairs_at] + pairs
    new += bytes(-len(new) % 8)
    struct.pack_into("<I", new, 4, len(new))
    (free,) = struct.unpack_from("<I", record, 0x18)
    out = record[:at] + new + record[at + length : free]
    struct.pack_into("<I", out, 0x18, len(out))
    made.put_record(number, bytes(out.ljust(made.record_bytes, b"\0")))
