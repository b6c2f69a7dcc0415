"""Volumes that contradict themselves: refused by name or read in bounded time, never anything else."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume, NotFoundError, SqlimageError
from sqlimage.extent import Runs
from sqlimage.filesystem.fat import FatVolume, is_fat
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, TIB
from tests.make import fat as make
from tests.make.cost import PATIENCE
from tests.make.fat import BareVolume, long_entries, short_entry

FUZZ_ROUNDS = int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "800"))


def directory(name: bytes, cluster: int) -> bytes:
    return short_entry(name, cluster, attributes=0x10)


def scan_fails(volume: BareVolume, match: str) -> None:
    with pytest.raises(InconsistentVolume, match=match):
        FatVolume(MemoryDevice(volume.content)).scan()


def test_a_directory_that_holds_itself_is_refused() -> None:
    volume = BareVolume(12, 100)
    volume.chain(5)
    volume.write_root(directory(b"A", 5))
    volume.write(5, directory(b"A", 5))
    scan_fails(volume, r"directory '/A/A'.*shares clusters")


def test_a_directory_that_holds_the_root_is_refused() -> None:
    volume = BareVolume(32, 100)
    volume.write_root(directory(b"A", 2))
    scan_fails(volume, "shares clusters")


def test_two_directories_in_one_place_are_refused() -> None:
    volume = BareVolume(12, 100)
    volume.chain(5)
    volume.write_root(directory(b"A", 5), directory(b"B", 5))
    scan_fails(volume, "'/B'.*shares clusters")


def test_directories_that_share_only_a_tail_are_refused() -> None:
    volume = BareVolume(12, 100)
    volume.chain(5, 7, 8)
    volume.chain(6, 8)
    volume.write_root(directory(b"A", 5), directory(b"B", 6))
    scan_fails(volume, "'/B'.*shares clusters from 8")


@pytest.mark.parametrize(
    ("following", "words"),
    [(5, "back into itself"), (0xFF7, "bad"), (9, "free"), (3000, "out of the volume"), (1, "out")],
)
def test_a_directory_whose_chain_does_not_end_is_refused(following: int, words: str) -> None:
    volume = BareVolume(12, 100)
    volume.link(5, following)
    volume.write_root(directory(b"A", 5))
    scan_fails(volume, words)
    with pytest.raises(InconsistentVolume, match=words):
        FatVolume(MemoryDevice(volume.content)).open(volume.root_offset // 32)


def test_a_directory_without_a_cluster_is_refused() -> None:
    volume = BareVolume(12, 100)
    volume.write_root(directory(b"A", 0))
    scan_fails(volume, "no cluster")


def test_a_root_directory_that_does_not_end_is_refused() -> None:
    volume = BareVolume(32, 100)
    volume.link(2, 2)
    volume.write(2, short_entry(b"\xe5") * 16)
    scan_fails(volume, "'/'")
    with pytest.raises(InconsistentVolume):
        _ = FatVolume(MemoryDevice(volume.content)).facts


@pytest.mark.parametrize("name", [b"D", b"D" * 8])
def test_a_bottomless_tree_is_refused_in_seconds(name: bytes) -> None:
    volume = BareVolume(32, 40_000)
    volume.write_root(directory(name, 3))
    for cluster in range(3, 40_001):
        volume.link(cluster, make.END)
        volume.write(cluster, directory(name, cluster + 1))
    started = time.monotonic()
    scan_fails(volume, "path")
    assert time.monotonic() - started < 20 * PATIENCE


def test_long_paths_do_not_outgrow_the_volume_that_names_them() -> None:
    volume = BareVolume(32, 10_000)
    long = long_entries("x" * 250, b"D")
    volume.chain(2, 3)
    volume.write_root(long, directory(b"D", 10))
    at = 10
    for _ in range(100):
        volume.chain(at, at + 1, at + 2)
        volume.write(at, long + directory(b"D", at + 3))
        at += 3
    volume.chain(*range(at, 10_001))
    volume.write(at, short_entry(b"F") * (16 * (10_001 - at)))
    scan_fails(volume, "paths have")


def test_a_directory_of_too_many_entries_is_refused() -> None:
    volume = BareVolume(32, 70_000)
    volume.chain(2, *range(3, 70_002))
    volume.write(2, short_entry(b"\xe5") * (16 * 70_000))
    scan_fails(volume, "takes 35840000 bytes")
    with pytest.raises(InconsistentVolume, match="takes more"):
        FatVolume(MemoryDevice(volume.content)).open(0)


def test_twenty_thousand_files_in_one_directory_are_listed_in_a_second() -> None:
    volume = BareVolume(32, 70_000)
    entries = [
        long_entries(f"file number {k}.txt", b"F%06d" % k) + short_entry(b"F%06d" % k, 5000 + k, 1)
        for k in range(20_000)
    ]
    data = b"".join(entries)
    volume.chain(2, *range(3, 3 + len(data) // 512))
    volume.write(2, data)
    for k in range(20_000):
        volume.link(5000 + k, make.END)
    started = time.monotonic()
    scan = FatVolume(MemoryDevice(volume.content)).scan()
    assert time.monotonic() - started < 1 * PATIENCE
    assert len(scan.entries) == 20_001
    assert scan.entries.path[-1] == "/file number 19999.txt"


def test_files_that_share_clusters_are_listed_both() -> None:
    volume = BareVolume(12, 100)
    volume.chain(5, 6)
    volume.write_root(short_entry(b"A", 5, 600), short_entry(b"B", 5, 600))
    scan = FatVolume(MemoryDevice(volume.content)).scan()
    assert scan.contents.run_offset.tolist()[1:] == [volume.offset_of(5)] * 2


@pytest.mark.parametrize(("size", "sectors_per_cluster", "bytes_per_sector"), [(TIB, 64, 512), (8 * TIB, 128, 4096)])
def test_a_huge_empty_volume_takes_little_time_and_memory(
    size: int, sectors_per_cluster: int, bytes_per_sector: int, tmp_path: Path
) -> None:
    path = make.make_volume(
        tmp_path / "v", size, 32, sectors_per_cluster=sectors_per_cluster, bytes_per_sector=bytes_per_sector
    )
    program = """if True:
        import sys, time
        from sqlimage.filesystem.fat import FatVolume
        from sqlimage.media.file import FileDevice
        from tests.make.cost import peak_bytes
        before = peak_bytes()
        started = time.monotonic()
        volume = FatVolume(FileDevice(sys.argv[1]))
        assert len(volume.scan().entries) == 1
        assert volume.allocated().total < 600 << 20
        print(time.monotonic() - started, peak_bytes() - before)
    """
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True)
    seconds, taken = map(float, done.stdout.split())
    assert seconds < 3 * PATIENCE
    assert taken < 64 << 20


def exercise(content: bytearray) -> None:
    """Everything a caller can ask of a volume; only errors of ours may come out, and what comes out must hold."""
    is_fat(bytes(content[:512]))
    try:
        volume = FatVolume(MemoryDevice(content))
        size = volume.facts.size_bytes
        inside = Runs.of([(0, size)])
        assert inside.covers(volume.allocated())
        scan = volume.scan()
    except SqlimageError:
        return
    contents, entries = scan.contents, scan.entries
    assert inside.covers(Runs.from_arrays(contents.run_offset, contents.run_length))
    assert len(set(entries.path)) == len(entries) == len(entries.record)
    assert not any("\0" in path or "//" in path or "/../" in path + "/" for path in entries.path)
    "".join(entries.path).encode()
    held = [0, *contents.run_length.cumsum().tolist()]
    for row, record in list(enumerate(contents.record.tolist()))[:20]:
        first, end = int(contents.first_run[row]), int(contents.first_run[row + 1])
        assert held[end] - held[first] >= contents.size_bytes[row]
        opened = volume.open(record)  # what scan lists can be opened
        assert opened.size_bytes == contents.size_bytes[row]
        opened.read(max(0, opened.size_bytes - 700), 700)
    for record in (1, size // 64, size // 32 - 1):
        with contextlib.suppress(SqlimageError):
            volume.open(record).read(0, 1000)


def sample(bits: int, tmp_path: Path) -> bytearray:
    """A small good volume with files and directories in several pieces."""
    if bits == 32:  # mtools takes so few clusters for another kind of FAT
        volume = BareVolume(32, 500)
        volume.write_root(directory(b"A", 5), long_entries("A Long Name.txt", b"B"), short_entry(b"B", 8, 1500))
        volume.chain(5, 9)
        volume.chain(8, 10, 11)
        volume.write(5, directory(b"C", 20) + short_entry(b"\xe5") * 15)
        volume.write(9, short_entry(b"D", 30, 512) + directory(b"E", 40))
        for cluster in (20, 30, 40):
            volume.chain(cluster)
        return volume.content
    size = 200 * KIB if bits == 12 else 2400 * KIB
    path = make.make_volume(tmp_path / "v", size, bits, sectors_per_cluster=1, options=("-r", "64"))
    tree = {f"dir {k % 3}/sub/Long Name Of A File {k}.text": bytes(k * 200) for k in range(8)}
    make.fill(path, tree | {"ROOT.TXT": b"x" * 600}, tmp_path / "tree")
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_no_change_of_bytes_brings_out_anything_but_our_errors(bits: int, tmp_path: Path) -> None:
    good = sample(bits, tmp_path)
    exercise(good)
    seed = int(os.environ.get("SQLIMAGE_SEED", "1"))
    chance = random.Random(seed)
    used = [at for at in range(0, len(good), 32) if any(good[at : at + 32])]
    areas: list[Callable[[], int]] = [
        lambda: chance.randrange(90),
        lambda: chance.choice(used) + chance.randrange(32),
        lambda: chance.choice(used) + chance.choice((0, 11, 20, 26, 27, 28)),
        lambda: chance.randrange(512, 2048),
    ]
    for rounds in range(FUZZ_ROUNDS):
        content = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 5, 40))):
            at = chance.choice(areas)()
            content[at] = chance.choice(
                (0, 0xFF, 1, 0x10, content[at] ^ 1 << chance.randrange(8), chance.randrange(256))
            )
        try:
            exercise(content)
        except Exception as problem:
            raise AssertionError(f"seed {seed}, round {rounds}: {problem!r}") from problem


def test_bytes_that_nobody_wrote_as_a_volume_are_refused() -> None:
    chance = random.Random(3)
    for _ in range(2000):
        exercise(bytearray(chance.randbytes(600)))


def test_opening_any_record_of_a_volume_only_finds_or_does_not_find(tmp_path: Path) -> None:
    content = sample(12, tmp_path)
    volume = FatVolume(MemoryDevice(content))
    listed = set(volume.scan().entries.record.tolist())
    found = set()
    for record in range(len(content) // 32 + 2):
        try:
            volume.open(record)
            found.add(record)
        except (NotFoundError, InconsistentVolume):
            pass
    assert listed <= found
