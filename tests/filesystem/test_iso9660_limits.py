"""Volumes that claim much: what they take of time and memory is bounded."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import Scan
from sqlimage.filesystem.iso9660 import IsoVolume
from sqlimage.filesystem.iso9660.item import RECORDS_MAX
from sqlimage.media.memory import MemoryDevice
from tests.conftest import CHECKOUT
from tests.make.cost import PATIENCE
from tests.make.iso import DIRECTORY, MULTI_EXTENT, SECTOR, BareIso, both32, cl, nm, px, record


def scan(made: BareIso) -> Scan:
    return IsoVolume(MemoryDevice(made.content)).scan()


def nested(name: bytes, depth: int) -> BareIso:
    made = BareIso(40 + depth, rock_ridge=True)
    one = record(b"D", 30, SECTOR, DIRECTORY, nm(name) if len(name) > 1 else b"")
    made.put_root(one)
    for block in range(30, 30 + depth):
        made.put_directory(block, one[:2] + both32(block + 1) + one[10:])
    made.put_directory(30 + depth)
    return made


@pytest.mark.parametrize(("name", "depth"), [(b"D", 20_000), (b"D" * 180, 1000)])
def test_a_bottomless_tree_is_refused_in_seconds(name: bytes, depth: int) -> None:
    started = time.process_time()
    with pytest.raises(InconsistentVolume, match="paths outgrow the volume"):
        scan(nested(name, depth))
    assert time.process_time() - started < 8 * PATIENCE


def test_a_deep_tree_is_read() -> None:
    assert scan(nested(b"D", 3000)).entries.path[-1] == "/D" * 3001


def test_fifty_thousand_files_are_listed_in_a_second_and_a_half() -> None:
    made = BareIso(4000, root_blocks=3500, rock_ridge=True)
    made.root = 400
    made.put_descriptor(0, 1)
    entries = px(0o100644) + nm(b"a name of usual length.txt")
    made.put_root(*[record(b"F%05d.;1" % n, 30 + n % 300, 5, 0, entries + nm(b"%d" % n)) for n in range(50_000)])
    started = time.process_time()
    found = scan(made)
    assert time.process_time() - started < 1.5 * PATIENCE
    assert len(found.entries) == 50_001
    assert len(found.contents) == 301


PROGRAM = """if True:
    import sys, time
    from sqlimage.errors import InconsistentVolume, NotFoundError
    from sqlimage.filesystem.iso9660 import IsoVolume
    from sqlimage.media.file import FileDevice
    from tests.make.cost import peak_bytes
    before = peak_bytes()
    started = time.process_time()
    try:
        IsoVolume(FileDevice(sys.argv[1])).scan()
        print("listed")
    except InconsistentVolume as problem:
        print(problem)
    for record in map(int, sys.argv[2:]):
        try:
            IsoVolume(FileDevice(sys.argv[1])).open(record)
        except (InconsistentVolume, NotFoundError) as problem:
            pass
    print(time.process_time() - started, (peak_bytes() - before) >> 20)
"""


def measured(made: BareIso, tmp_path: Path, size_bytes: int = 0, *records: int) -> tuple[str, float, int]:
    """What a scan in a process of its own says; its seconds, opening of records included, and how many mebibytes."""
    path = tmp_path / "v.iso"
    with path.open("wb") as file:
        file.write(made.content)
        file.truncate(max(size_bytes, len(made.content)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, *map(str, records)],
        capture_output=True,
        check=True,
        text=True,
        cwd=CHECKOUT,
    )
    said, numbers = done.stdout.splitlines()
    seconds, mebibytes = numbers.split()
    return said, float(seconds), int(mebibytes)


@pytest.mark.slow
@pytest.mark.parametrize("count", [RECORDS_MAX - 10, 2 * RECORDS_MAX])
def test_records_without_number_take_bounded_time_and_memory(count: int, tmp_path: Path) -> None:
    entries = px(0o100644) + nm(b"0123456789")
    blocks = count * len(record(b"F%07d" % 0, 30, 5, 0, entries)) // 1900
    made = BareIso(400 + blocks, root_blocks=blocks, rock_ridge=True)
    made.root = 400
    made.put_descriptor(0, 1)
    made.put_root(*[record(b"F%07d" % n, 30 + n % 300, 5, 0, px(0o100644) + nm(b"%010d" % n)) for n in range(count)])
    said, seconds, mebibytes = measured(made, tmp_path)
    assert ("more than the 600000 records" in said) == (count > RECORDS_MAX)
    assert seconds < 10 * PATIENCE and mebibytes < 800


@pytest.mark.parametrize("size", [0xFFFFFFFF, 500 << 20])
def test_a_directory_of_nothing_takes_little_time_and_memory(size: int, tmp_path: Path) -> None:
    made = BareIso()
    made.put_root(record(b"D", 63, size, DIRECTORY))
    made.patch(16 * SECTOR + 80, both32(1 << 23))
    said, seconds, mebibytes = measured(made, tmp_path, 1 << 34)
    assert ("more than the 536870912 bytes" in said) == (size > 512 << 20)
    assert seconds < 5 * PATIENCE and mebibytes < 100


def test_nothing_is_looked_for_through_a_vast_volume_of_zeros(tmp_path: Path) -> None:
    made = BareIso(rock_ridge=True)
    made.put_root(record(b"F", 30, SECTOR, MULTI_EXTENT), record(b"F", 40, 5), record(b"D", 0, 0, 0, cl(1000)))
    made.put(50, record(b"F", 30, SECTOR, MULTI_EXTENT))
    made.patch(16 * SECTOR + 80, both32(1 << 31))
    said, seconds, _ = measured(made, tmp_path, 1 << 42, 20 * SECTOR + 68, 50 * SECTOR, 60 * SECTOR)
    assert "does not begin with the record of itself" in said
    assert seconds < 1 * PATIENCE
