"""Volumes made to do harm: none costs more than 10 s or 1 GiB, and what is wrong is named."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.file import FileDevice
from sqlimage.units import GIB, TIB
from tests.make.cost import PATIENCE
from tests.make.ext import in_memory
from tests.make.ext_bare import (
    BLOCK,
    DIRECTORY_MODE,
    FILE,
    FILE_MODE,
    ROOT,
    Bare,
    Cost,
    cost_apart,
    cost_of,
    extent,
    extents,
    index,
    inode,
    names,
    node,
)

WHOLE = 16 * TIB // BLOCK - 8192
"""Blocks of a medium of nearly 16 TiB, of which nearly all are holes."""


@pytest.fixture
def place() -> Iterator[Path]:
    with in_memory() as directory:
        yield directory / "v.img"


def bounded(image: Path) -> Cost:
    cost = cost_of(image)
    assert cost.seconds < 10 * PATIENCE, cost
    return cost


def bounded_apart(image: Path) -> Cost:
    cost = cost_apart(image)
    assert cost.seconds < 10 * PATIENCE and cost.memory_bytes < GIB, cost
    return cost


def test_a_bare_volume_is_one(place: Path) -> None:
    image = Bare(place, 1 << 20).close()
    volume = ExtVolume(FileDevice(image))
    assert volume.scan().entries.path == ["/", "/file"]
    metadata, copies = 2 + 3 * 32, 7 * 2
    assert volume.allocated().total == (metadata + copies) * BLOCK  # though no bitmap tells of them
    assert bounded(image).told == [(metadata + copies) * BLOCK, 2, 1]


def test_more_groups_than_there_can_be_are_refused_at_once(place: Path) -> None:
    image = Bare(place, WHOLE, blocks_per_group=256, incompat=0x2 | 0x10, has_tables=False).close()
    cost = bounded_apart(image)
    assert "s_blocks_per_group" in cost.problem and cost.seconds < 0.5 * PATIENCE


@pytest.mark.slow
def test_half_a_million_groups_in_meta_groups_are_read_in_seconds(place: Path) -> None:
    made = Bare(place, WHOLE, blocks_per_group=8192, incompat=0x2 | 0x10, has_tables=False)
    per_block = BLOCK // 32
    number = np.arange(made.groups, dtype=np.int64)
    table = np.zeros((made.groups, 8), dtype="<u4")
    for column in range(3):
        table[:, column] = number * 8192 + 10 + column
    with_superblock = {0, 1} | {base**n for base in (3, 5, 7) for n in range(1, 20)}
    for first in range(0, made.groups, per_block):
        made.put((first * 8192 + int(first in with_superblock)) * BLOCK, table[first : first + per_block].tobytes())
    cost = bounded_apart(made.close())
    assert "no inode is in use" in cost.problem and cost.told


def test_groups_that_share_their_inode_tables_are_refused(place: Path) -> None:
    made = Bare(place, WHOLE)
    made.put(BLOCK, struct.pack("<III", 500, 501, 502).ljust(32, b"\0") * made.groups)
    assert "lie at block" in bounded(made.close()).problem


@pytest.mark.parametrize("groups", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_bitmaps_of_every_other_block_end_as_groups_in_use(place: Path, groups: int) -> None:
    made = Bare(place, groups * 32768)
    for group in range(groups):
        made.put((made.bitmaps + group) * BLOCK, b"\x55" * BLOCK)
    cost = bounded_apart(made.close())
    assert cost.told[0] >= groups * 16384 * BLOCK
    assert not cost.problem


def test_bitmaps_of_all_ones_are_one_run(place: Path) -> None:
    made = Bare(place, 1 << 26)
    for group in range(made.groups):
        made.put((made.bitmaps + group) * BLOCK, b"\xff" * BLOCK)
    assert bounded(made.close()).told[0] == BLOCK << 26


def test_inode_bitmaps_of_all_ones_over_nothing_are_refused(place: Path) -> None:
    made = Bare(place, 1 << 26, inodes_per_group=32768)
    for group in range(made.groups):
        made.put((made.inode_bitmaps + group) * BLOCK, b"\xff" * BLOCK)
    assert "is blank" in bounded_apart(made.close()).problem


@pytest.mark.parametrize(
    "nodes", [500, pytest.param(5_800, marks=pytest.mark.slow), pytest.param(6_000, marks=pytest.mark.slow)]
)
def test_extents_by_the_million_are_read_or_refused(place: Path, nodes: int) -> None:
    made = Bare(place, 1 << 31)
    level = []
    for number in range(nodes):
        piece = np.zeros(340, dtype=[("block", "<u4"), ("len", "<u2"), ("hi", "<u2"), ("lo", "<u4")])
        piece["block"] = piece["lo"] = (number * 340 + np.arange(340)) * 2
        piece["lo"] += 1_000_000
        piece["len"] = 1
        level.append(
            index(number * 680, made.take(node([], 0)[:2] + struct.pack("<HHHI", 340, 340, 0, 0) + piece.tobytes()))
        )
    depth = 1
    while len(level) > 4:
        parts = [level[at : at + 340] for at in range(0, len(level), 340)]
        level = [index(struct.unpack("<I", part[0][:4])[0], made.take(node(part, depth))) for part in parts]
        depth += 1
    made.inode(FILE, FILE_MODE, nodes * 680 * BLOCK, node(level, depth, room=4))
    cost = bounded_apart(made.close())
    assert bool(cost.problem) == (nodes * 680 > 4_000_000)
    if cost.problem:
        assert "too many pieces" in cost.problem


def test_a_tree_deeper_than_any_is_refused_and_one_as_deep_is_read(place: Path) -> None:
    for depth, problem in ((10, ""), (11, "root of its extent tree")):
        made = Bare(place, 1 << 20)
        below = made.take(node([extent(0, 1, 5000)], 0))
        for height in range(1, depth):
            below = made.take(node([index(0, below)], height))
        made.inode(FILE, FILE_MODE, BLOCK, node([index(0, below)], depth, room=4))
        assert problem in bounded(made.close()).problem


@pytest.mark.parametrize("kind", ["extents", "block map"])
def test_a_tree_that_leads_into_itself_is_refused(place: Path, kind: str) -> None:
    made = Bare(place, 1 << 20)
    block = made.free
    if kind == "extents":
        made.take(node([index(0, block), index(1, block)], 1))
        made.inode(FILE, FILE_MODE, BLOCK, node([index(0, block)], 2, room=4))
    else:
        made.take(struct.pack("<I", block) * 1024)
        made.inode(FILE, FILE_MODE, BLOCK, struct.pack("<15I", *[0] * 14, block), flags=0)
    assert "again" in (problem := bounded(made.close()).problem) or "no node of depth" in problem


def test_two_files_with_one_tree_are_refused(place: Path) -> None:
    made = Bare(place, 1 << 20)
    made.use(0, [ROOT, FILE, FILE + 1])
    block = made.take(node([extent(0, 1, 5000)], 0))
    for number in (FILE, FILE + 1):
        made.inode(number, FILE_MODE, BLOCK, node([index(0, block)], 1, room=4))
    assert "again" in bounded(made.close()).problem


def test_a_block_map_over_nothing_is_refused(place: Path) -> None:
    made = Bare(place, 1 << 31)
    double = [made.take(np.arange(n << 20, (n << 20) + 1024, dtype="<u4").tobytes()) for n in range(1, 1024)]
    top = made.take(struct.pack("<1023I", *double))
    made.inode(FILE, FILE_MODE, 1 << 40, struct.pack("<15I", *[0] * 14, top), flags=0)
    assert "are empty" in bounded_apart(made.close()).problem


@pytest.mark.parametrize("blocks", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_names_that_are_all_the_same_are_told_apart_in_seconds(place: Path, blocks: int) -> None:
    made = Bare(place, 1 << 20)
    first = made.take(names([(FILE, b"same")] * 340) * blocks)
    made.inode(ROOT, DIRECTORY_MODE, blocks * BLOCK, extents((0, blocks, first)), links=2)
    assert bounded_apart(made.close()).told[1] == blocks * 340 + 1


def test_paths_that_outgrow_the_volume_are_refused(place: Path) -> None:
    made = Bare(place, 1 << 20, inodes_per_group=1024)
    made.use(0, [ROOT, FILE, *range(100, 220)])
    name = "\U00010348".encode() * 63
    number = ROOT
    for following in range(100, 220):
        made.inode(number, DIRECTORY_MODE, BLOCK, extents((0, 1, made.take(names([(following, name)])))), links=2)
        number = following
    first = made.take(names([(FILE, b"%04d" % n) for n in range(340)]) * 2000)
    made.inode(number, DIRECTORY_MODE, 2000 * BLOCK, extents((0, 2000, first)), links=2)
    assert "outgrow" in bounded_apart(made.close()).problem


@pytest.mark.parametrize("target", [ROOT, FILE + 1])
def test_directories_that_contain_themselves_are_refused(place: Path, target: int) -> None:
    made = Bare(place, 1 << 20)
    made.use(0, [ROOT, FILE, FILE + 1])
    made.inode(ROOT, DIRECTORY_MODE, BLOCK, extents((0, 1, made.take(names([(FILE + 1, b"below")])))), links=2)
    made.inode(FILE + 1, DIRECTORY_MODE, BLOCK, extents((0, 1, made.take(names([(target, b"above")])))), links=2)
    assert "reached again" in bounded(made.close()).problem


def test_two_directories_in_one_place_are_refused(place: Path) -> None:
    made = Bare(place, 1 << 20)
    made.use(0, [ROOT, FILE, FILE + 1])
    block = made.take(names([(FILE, b"file")]))
    for number in (ROOT, FILE + 1):
        made.inode(number, DIRECTORY_MODE, BLOCK, extents((0, 1, block)), links=2)
    assert "claim block" in bounded(made.close()).problem


def test_a_directory_of_sixteen_tebibytes_of_nothing_is_refused_at_its_first_block(place: Path) -> None:
    made = Bare(place, WHOLE)
    runs = [extent(n * 32768, 32768, 1_000_000 + n * 32768) for n in range(340)]
    made.inode(ROOT, DIRECTORY_MODE, 340 << 27, node([index(0, made.take(node(runs, 0)))], 1, room=4), links=2)
    cost = bounded_apart(made.close())
    assert "its entry of 0 bytes" in cost.problem and cost.seconds < 2 * PATIENCE


ENTRIES = {
    "no length": (struct.pack("<IHBB", FILE, 0, 1, 0) + b"a", "entry of 0 bytes"),
    "shorter than its head": (struct.pack("<IHBB", FILE, 4, 1, 0) + b"a", "entry of 4 bytes"),
    "shorter than its name": (struct.pack("<IHBB", FILE, 12, 9, 0) + b"a" * 9, "entry of 12 bytes"),
    "not of four bytes": (struct.pack("<IHBB", FILE, 14, 1, 0) + b"a", "entry of 14 bytes"),
    "beyond its block": (struct.pack("<IHBB", FILE, BLOCK + 4, 1, 0) + b"a", f"entry of {BLOCK + 4} bytes"),
    "as in a block of 64 KiB": (struct.pack("<IHBB", FILE, 0xFFFF, 1, 0) + b"a", "entry of 65535 bytes"),
    "without a name": (names([(FILE, b"")]), "names is empty"),
    "to no inode": (names([(99_999, b"a")]), "names inode 99999 of 1024"),
    "to a free inode": (names([(20, b"a")]), "names inode 20, which is free"),
    "to a reserved inode": (names([(1, b"a")]), "names inode 1, which is free"),
    "that leaves the end over": (names([(FILE, b"a")], BLOCK - 4), "do not fill a block"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_an_entry_that_cannot_be_is_refused(place: Path, case: str) -> None:
    raw, problem = ENTRIES[case]
    made = Bare(place, 1 << 20)
    made.inode(ROOT, DIRECTORY_MODE, BLOCK, extents((0, 1, made.take(raw))), links=2)
    with pytest.raises(InconsistentVolume, match=problem):
        ExtVolume(FileDevice(made.close())).scan()


def test_names_that_no_path_can_hold_are_changed_and_dots_are_left_out(place: Path) -> None:
    made = Bare(place, 1 << 20)
    entries = [b".", b"..", b"a/b", b"a\0b", b"\xff", b"a", b"a", b"a~2", b"$OrphanFiles"]
    made.inode(
        ROOT, DIRECTORY_MODE, BLOCK, extents((0, 1, made.take(names([(FILE, raw) for raw in entries])))), links=2
    )
    made.use(0, [ROOT, FILE, 20])
    made.inode(20, FILE_MODE, 0, extents())
    found = ExtVolume(FileDevice(made.close())).scan().entries.path
    assert found == ["/", "/a∕b", "/a␀b", "/\udcff", "/a", "/a~3", "/a~2", "/$OrphanFiles", "/$OrphanFiles~/20"]


INODES = {
    "size below nothing": (inode(FILE_MODE, 1 << 63, extents()), "its size"),
    "size beyond what blocks can number": (inode(FILE_MODE, (1 << 44) + 1, extents()), "its size"),
    "extent of no blocks": (inode(FILE_MODE, 1, extents((0, 0, 5000))), "extent of 0 blocks"),
    "extent beyond the volume": (inode(FILE_MODE, 1, extents((0, 2, (1 << 20) - 1))), "extent of 2 blocks"),
    "extents that overlap": (inode(FILE_MODE, 1, extents((0, 2, 5000), (1, 2, 6000))), "extent of 2 blocks"),
    "extents in disorder": (inode(FILE_MODE, 1, extents((7, 1, 5000), (1, 1, 6000))), "extent of 1 blocks"),
    "extent past the last block": (inode(FILE_MODE, 1, extents((0xFFFFFFFF, 2, 5000))), "extent of 2 blocks"),
    "five extents in four": (inode(FILE_MODE, 1, node([], 0, room=5)[:2] + b"\5\0\5\0"), "root of its extent tree"),
    "no extent tree": (inode(FILE_MODE, 1, b""), "root of its extent tree"),
    "block beyond the volume": (inode(FILE_MODE, 1, struct.pack("<I", 1 << 20), flags=0), "its block 0 is block"),
    "tree beyond the volume": (inode(FILE_MODE, 1, struct.pack("<15I", *[0] * 12, 1 << 20, 0, 0), flags=0), "leads to"),
    "no mode": (inode(0, 0, b""), "is blank"),
}


@pytest.mark.parametrize("case", INODES)
def test_an_inode_that_cannot_be_is_refused(place: Path, case: str) -> None:
    raw, problem = INODES[case]
    made = Bare(place, 1 << 20)
    made.put(made.tables * BLOCK + (FILE - 1) * 128, raw)
    volume = ExtVolume(FileDevice(made.close()))
    for method in (volume.scan, lambda: volume.open(FILE)):
        with pytest.raises((InconsistentVolume, FileNotFoundError), match=rf"{problem}|no file with inode"):
            method()


def test_a_file_of_sixteen_tebibytes_is_read_where_it_is_asked(place: Path) -> None:
    made = Bare(place, 1 << 20)
    made.put(5000 * BLOCK, b"start".ljust(BLOCK, b"\0"))
    made.put(5001 * BLOCK, b"end".rjust(BLOCK, b"\0"))
    made.inode(FILE, FILE_MODE, 1 << 44, extents((0, 1, 5000), ((1 << 32) - 1, 1, 5001)))
    volume = ExtVolume(FileDevice(made.close()))
    content = volume.open(FILE)
    assert content.size_bytes == 1 << 44
    assert content.read((1 << 44) - 3, 100) == b"end"
    assert content.read(0, 6) == b"start\0"
    assert content.read(1 << 43, 100) == bytes(100)
    contents = volume.scan().contents
    assert contents.run_length[contents.run_offset == HOLE].tolist() == [((1 << 32) - 2) * BLOCK]
