"""FAT volumes that are not laid out anew: refused by name before anything is written; hostile ones in bounded time."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import InconsistentVolume, RefusedError, SqlimageError
from sqlimage.filesystem.fat import FatVolume, relocate_ledger
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.make import fat as make
from tests.make.fat import END, BareVolume, short_entry
from tests.make.fat_oracle import carry_out
from tests.make.fat_tree import ScatteredVolume
from tests.make.relocated import check_moves

FUZZ_ROUNDS = 300
DEFRAGMENT = Wish(defragment=True)


def relocate(volume: BareVolume, wish: Wish = DEFRAGMENT) -> Relocation:
    opened = FatVolume(MemoryDevice(volume.content))
    return opened.relocate(opened.scan(), wish)


def is_refused(volume: BareVolume, match: str) -> None:
    for wish in (DEFRAGMENT, Wish(), Wish(size_bytes=len(volume.content) * 2)):
        with pytest.raises(InconsistentVolume, match=match):
            relocate(volume, wish)


def with_file(bits: int = 12, clusters: int = 100) -> BareVolume:
    volume = BareVolume(bits, clusters)
    volume.chain(5, 6, 9)
    volume.write_root(short_entry(b"FILE", 5, 1500))
    return volume


@pytest.mark.parametrize(("bits", "mark"), [(16, 0x7FFF), (16, 0xBFFF), (32, 0x07FFFFFF), (32, 0x0BFFFFFF)])
def test_a_volume_marked_as_in_use_or_as_faulty_in_its_fat_is_refused(bits: int, mark: int) -> None:
    volume = with_file(bits, 5000 if bits == 16 else 70000)
    assert relocate(volume).fixups
    volume.link(1, mark)
    with pytest.raises(RefusedError, match=r"marked as in use.*check it with fsck\.fat"):
        relocate(volume)


def test_a_volume_marked_as_in_use_in_its_boot_sector_is_refused() -> None:
    volume = with_file()
    assert relocate(volume).fixups
    volume.content[37] = 1
    with pytest.raises(RefusedError, match="marked as in use"):
        relocate(volume)


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fats_that_differ_are_refused_and_reserved_bits_and_what_is_no_entry_may(bits: int, tmp_path: Path) -> None:
    size = {12: 1440 * KIB, 16: 9 * MIB, 32: 40 * MIB}[bits]
    source = make.make_volume(tmp_path / "v", size, bits, sectors_per_cluster=1)
    volume = ScatteredVolume(bytearray(source.read_bytes()), seed=1)
    volume.add_file("/file", b"x" * 9000)
    content = volume.finish()
    second = volume.reserved_bytes + volume.fat_bytes
    last = volume.clusters + 1
    content[second] ^= 0x08  # the entry of cluster 0 holds the kind of medium
    content[second + -(-(last + 1) * bits // 8)] ^= 0xFF  # behind the last entry, in sectors of the FAT
    if bits == 32:
        content[second + 10 * 4 + 3] ^= 0x50
    source.write_bytes(content)
    carry_out(source, DEFRAGMENT, tmp_path / "new", mtools=False, checker=False)
    for cluster in (2, 1000, last):
        at = second + cluster * bits // 8
        content[at] ^= 0x10
        source.write_bytes(content)
        opened = FatVolume(FileDevice(source))
        with pytest.raises(InconsistentVolume, match=f"FAT 1 and FAT 2 differ: the entry of cluster {cluster} is 0x"):
            opened.relocate(opened.scan(), Wish())
        content[at] ^= 0x10


def test_chains_that_meet_are_refused() -> None:
    volume = with_file()
    volume.chain(20, 21)
    volume.write_root(short_entry(b"FILE", 5, 1500), short_entry(b"OTHER", 5, 1500))
    is_refused(volume, "cluster 5 is reached by two")
    volume.write_root(short_entry(b"FILE", 5, 1500), short_entry(b"OTHER", 6, 1000))
    is_refused(volume, "cluster 6 is reached by two")
    volume.write_root(short_entry(b"FILE", 5, 1500), short_entry(b"OTHER", 20, 1024))
    volume.link(21, 9)
    is_refused(volume, "cluster 9 is reached by two")
    volume.link(21, 6)
    is_refused(volume, "cluster 6 is reached by two")


def test_a_file_that_begins_amid_a_lost_chain_is_refused() -> None:
    volume = with_file()
    volume.write_root(short_entry(b"FILE", 6, 1000))
    is_refused(volume, "cluster 6 is reached by two")


def test_a_lost_chain_that_leads_into_a_file_or_into_itself_is_refused() -> None:
    volume = with_file()
    volume.link(30, 9)
    is_refused(volume, "cluster 9 is reached by two")
    volume.link(30, 31)
    volume.link(31, 35)
    volume.link(35, 30)
    is_refused(volume, "belongs to no file leads back into itself")


@pytest.mark.parametrize(
    ("following", "words"),
    [(40, "leads into a free cluster"), (41, "leads into a bad"), (1, "out of"), (500, "out of")],
)
def test_a_chain_that_does_not_end_is_refused_even_behind_its_file(following: int, words: str) -> None:
    volume = with_file()
    volume.link(41, 0xFF7)
    volume.link(9, following)
    is_refused(volume, f"the chain that reaches cluster 9 .*{words}")


def test_an_empty_file_that_begins_at_a_free_cluster_is_refused() -> None:
    """The cluster could become another file's."""
    volume = with_file()
    volume.write_root(short_entry(b"FILE", 5, 1500), short_entry(b"EMPTY", 77))
    is_refused(volume, "file '/EMPTY'.*begins at cluster 77, which is not allocated")


def test_two_entries_of_one_name_are_refused() -> None:
    volume = with_file()
    volume.write_root(short_entry(b"FILE", 5, 1500), short_entry(b"OTHER"), short_entry(b"FILE"))
    is_refused(volume, "directory entry '/FILE'.*is there twice")


def test_dot_entries_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    volume = with_file()
    volume.chain(50)
    volume.write_root(short_entry(b"FILE", 5, 1500), short_entry(b"DIR", 50, attributes=0x10))
    volume.write(50, short_entry(b"FIRST") + short_entry(b"SECOND"))
    (tmp_path / "v").write_bytes(volume.content)
    carry_out(tmp_path / "v", DEFRAGMENT, tmp_path / "new", mtools=False, checker=False)


def test_more_fixups_than_memory_may_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocate_ledger, "HELD_BYTES_MAX", 100)
    with pytest.raises(RefusedError, match="changes over 50 bytes"):
        relocate(with_file())


def test_what_all_fats_have_in_common_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make.make_volume(tmp_path / "v", 9 * MIB, 16, sectors_per_cluster=1, options=("-f", "4"))
    volume = ScatteredVolume(bytearray(source.read_bytes()), seed=1)
    volume.add_file("/file", b"x" * 90000)
    opened = FatVolume(MemoryDevice(volume.finish()))
    fixups = opened.relocate(opened.scan(), DEFRAGMENT).fixups
    held = {id(data): len(data) for fixup in fixups for data in (fixup.original, fixup.replacement)}
    assert sum(held.values()) < sum(len(fixup.original) for fixup in fixups)
    monkeypatch.setattr(relocate_ledger, "HELD_BYTES_MAX", sum(held.values()))
    assert opened.relocate(opened.scan(), DEFRAGMENT).fixups == fixups


def test_volumes_changed_at_random_are_laid_out_right_or_refused() -> None:
    seed = time.time_ns()
    noise = random.Random(seed)
    planned = 0
    for _ in range(FUZZ_ROUNDS):
        bits = noise.choice((12, 16, 32))
        volume = BareVolume(bits, 5000 if bits == 16 else 60)
        volume.chain(5, 6, 9)
        volume.chain(12)
        volume.chain(20, 21, 22)
        volume.write_root(short_entry(b"FILE", 5, 1500), short_entry(b"DIR", 12, attributes=0x10))
        dots = short_entry(b".", 12, attributes=0x10) + short_entry(b"..", 0, attributes=0x10)
        volume.write(12, dots + short_entry(b"INNER", 20, 1300))
        for _ in range(noise.randint(0, 3)):
            if noise.random() < 0.5:
                volume.link(noise.randint(0, 61), noise.choice((0, 1, END, 0xFF7, noise.randint(0, 70))))
            else:
                at = noise.choice((0, volume.root_offset, volume.offset_of(12), volume.fat_offset))
                volume.content[at + noise.randint(0, 99)] = noise.randint(0, 255)
        wish = Wish(noise.random() < 0.5, noise.choice((None, noise.randint(0, len(volume.content) * 2))))
        with contextlib.suppress(SqlimageError):
            check_moves(relocate(volume, wish), len(volume.content))
            planned += 1
    assert FUZZ_ROUNDS > planned > 20, seed


LARGEST = """
import sys, time
from sqlimage.errors import SqlimageError
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.relocation import Wish
from sqlimage.media.file import FileDevice
from tests.make.cost import PATIENCE, peak_bytes
volume = FatVolume(FileDevice(sys.argv[1]))
scan = volume.scan()
for wish in (Wish(True), Wish(False, volume.smallest_bytes(scan)), Wish(True, 1 << 41)):
    started = time.monotonic()
    try:
        plan = volume.relocate(scan, wish)
    except SqlimageError as refused:
        assert sys.argv[2] in str(refused), refused
    else:
        assert sys.argv[2] == "", plan.facts
    assert time.monotonic() - started < 10 * PATIENCE, time.monotonic() - started
assert peak_bytes() < 1 << 30, peak_bytes()
"""


def hostile(path: Path, clusters: int, fats: int, chain: np.ndarray | None = None) -> Path:
    """A FAT32 of sectors as clusters on a sparse file, with one lost chain."""
    fat_sectors = -(-(clusters + 2) * 4 // 512)
    heap = (32 + fats * fat_sectors) * 512
    volume = BareVolume(32, 70000, heap=False)
    struct.pack_into("<B", volume.content, 16, fats)
    struct.pack_into("<II", volume.content, 32, heap // 512 + clusters, fat_sectors)
    with path.open("wb") as file:
        file.write(volume.content[:512])
        for number in range(fats):
            file.seek(32 * 512 + number * fat_sectors * 512)
            file.write(struct.pack("<III", 0x0FFFFFF8, END, END))
            if chain is not None:
                file.write(chain.astype("<u4").tobytes())
        file.truncate(heap + clusters * 512)
    return path


def measured(path: Path, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", LARGEST, path, expected], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_largest_volume_of_the_most_fats_is_planned_in_bounded_time_and_memory(tmp_path: Path) -> None:
    measured(hostile(tmp_path / "v", clusters=0x0FFFFFE0, fats=2), "")
    measured(hostile(tmp_path / "v", clusters=1 << 20, fats=255), "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one chain", "many chains", "bad between"])
def test_volumes_in_a_million_pieces_are_planned_in_bounded_time_and_memory(kind: str, tmp_path: Path) -> None:
    count = 1 << 20
    chain = np.full(count, END, dtype=np.int64)
    if kind == "one chain":
        order = np.random.default_rng(1).permutation(count)
        chain[order[:-1]] = order[1:] + 3
    elif kind == "bad between":
        chain[1::2] = 0x0FFFFFF7
    measured(hostile(tmp_path / "v", clusters=3 * count, fats=2, chain=chain), "")


def test_more_pieces_are_refused(tmp_path: Path) -> None:
    count = 1 << 21
    chain = np.full(count, END, dtype=np.int64)
    measured(hostile(tmp_path / "v", clusters=3 * count, fats=1, chain=chain), f"in {count + 1} pieces")
