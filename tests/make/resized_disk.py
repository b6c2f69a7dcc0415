"""Disks with a partition of every kind, and everybody's word on what became of each on another disk."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlimage.media.file import FileDevice
from sqlimage.media.partition import PartitionTable, partition_window, read_partition_table
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.make import fat, resized
from tests.make.resized import noise
from tests.media.disks import make_disk

WITH_CONTENTS = tuple(resized.SIZES)
SWAP_UUID = "11111111-2222-4333-8444-555555555555"
MBR = (
    "label: dos\nlabel-id: 0xfeedbeef\n"
    "start=2048, size=6MiB, type=6, bootable\n"
    "start=16384, size=12MiB, type=7\n"
    "start=43008, size=26MiB, type=f\n"
    "start=45056, size=16MiB, type=83\n"
    "start=81920, size=1MiB, type=82\n"
    "start=88064, size=1MiB, type=da\n"
)
GPT = (
    "label: gpt\nlabel-id: 01234567-89AB-4DEF-8123-456789ABCDEF\n"
    'start=2048, size=4MiB, type=U, uuid=AAAAAAAA-0000-4000-8000-000000000001, name="efi", attrs="RequiredPartition"\n'
    "start=12288, size=1MiB, type=S, uuid=AAAAAAAA-0000-4000-8000-000000000002\n"
    'start=16384, size=12MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name="data \\xc3\\xbc"\n'
    'start=43008, size=16MiB, type=L, uuid=AAAAAAAA-0000-4000-8000-000000000004, name="root"\n'
    "start=81920, size=1MiB, uuid=AAAAAAAA-0000-4000-8000-000000000005\n"
)
KINDS = {MBR: ("fat16", "ntfs", "ext4", "swap", "raw"), GPT: ("fat12", "swap", "ntfs", "ext4", "raw")}
SIZE = 48 * MIB
LOADER = noise("loader", 20 * KIB)
"""Lies behind the table, before the first partition."""


@dataclass(frozen=True)
class Disk:
    """A disk in a file; ``kinds`` and ``expected`` (digests of files) are in the order of its partitions."""

    path: Path
    kinds: tuple[str, ...]
    expected: tuple[dict[str, str], ...]

    def with_loader(self) -> Disk:
        """With a boot loader where they lie."""
        with self.path.open("r+b") as file:
            file.seek(100 * 512)
            file.write(LOADER)
        return self


def make(path: Path, script: str, kinds: tuple[str, ...], size: int = SIZE) -> Disk:
    """A disk that sfdisk partitions by a script; volumes fill their partitions."""
    make_disk(path, script, size)
    expected: list[dict[str, str]] = []
    part = path.with_suffix(".part")
    for kind, partition in zip(kinds, _table(path).partitions, strict=True):
        make_part(kind, part, partition.length_bytes)
        if kind in ("ntfs", "fat12", "fat16", "fat32", "blank"):
            _say_where(part, partition.offset_bytes // 512)
        with path.open("r+b") as file:
            file.seek(partition.offset_bytes)
            file.write(part.read_bytes())
        expected.append(resized.contents(part) if kind in WITH_CONTENTS else {})
    part.unlink()
    return Disk(path, kinds, tuple(expected)).with_loader()


def make_part(kind: str, path: Path, length: int) -> None:
    if kind in WITH_CONTENTS:
        resized.make(kind, path, length)
    elif kind == "blank":
        fat.make_volume(path, length, 12)
    else:
        path.write_bytes(noise(kind, length))
        if kind == "swap":
            run("mkswap", "-q", "-U", SWAP_UUID, path)


def _say_where(volume: Path, sector: int) -> None:
    content = bytearray(volume.read_bytes())
    places = [0]
    if content[3:7] == b"NTFS":
        places.append(len(content) - 512)
    elif content[22:24] == b"\0\0":
        places.append(6 * 512)
    for at in places:
        content[at + 28 : at + 32] = sector.to_bytes(4, "little")
    volume.write_bytes(content)


def _table(path: Path | str) -> PartitionTable:
    with closing(FileDevice(path)) as device:
        table = read_partition_table(device)
        assert table is not None
        return table


def places(path: Path | str) -> list[tuple[int, int]]:
    """Offset and length of each partition, in bytes."""
    return [(partition.offset_bytes, partition.length_bytes) for partition in _table(path).partitions]


def told(path: Path | str) -> dict[str, Any]:
    """What sfdisk tells of a disk but for places."""
    table = json.loads(run("sfdisk", "--json", path).stdout)["partitiontable"]
    for name in ("device", "lastlba", "grain"):  # the last one depends on the size of the disk
        table.pop(name, None)
    for partition in table["partitions"]:
        partition["node"] = partition["node"].removeprefix(str(path)).removeprefix("p")
        del partition["start"], partition["size"]
    return dict(table)


def check(disk: Disk, path: Path | str, work: Path) -> None:
    """All that must hold of a disk that ``disk`` was restored to: its table is in order and says the same but for
    places; every partition is in order and holds the same."""
    verified = subprocess.run(["sfdisk", "--verify", path], capture_output=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, b"") and b"No errors detected" in verified.stdout, verified
    assert told(path) == told(disk.path)
    with closing(FileDevice(path)) as device:
        if b"EFI PART" in device.read(0, 8192):
            assert b"No problems found" in run("sgdisk", "-v", path).stdout
        assert device.read(100 * 512, len(LOADER)) == LOADER
        assert device.read(0, 440) == disk.path.read_bytes()[:440]
        for kind, expected, partition in zip(disk.kinds, disk.expected, _table(path).partitions, strict=True):
            window = partition_window(device, partition.number)
            part = work / "part"
            part.write_bytes(window.read(0, window.size_bytes))
            if kind in WITH_CONTENTS:
                resized.check(kind, part, expected)
                check_hidden_sectors(part, kind, partition.offset_bytes // device.bytes_per_sector)
            elif kind == "blank":
                assert resized.contents(part) == {}
                check_hidden_sectors(part, kind, partition.offset_bytes // device.bytes_per_sector)
            elif kind == "swap":
                assert SWAP_UUID.encode() in run("swaplabel", part).stdout
            else:
                assert part.read_bytes() == noise(kind, len(part.read_bytes()))
            part.unlink()


def check_hidden_sectors(part: Path, kind: str, sector: int) -> None:
    if not kind.startswith("ext"):
        assert set(resized.hidden_sectors(part)) == {sector}
