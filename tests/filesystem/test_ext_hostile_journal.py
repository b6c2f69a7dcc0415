"""Journals made to do harm: they are not followed, which is told, or followed within 10 s and 1 GiB."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.file import FileDevice
from sqlimage.units import GIB
from tests.make.cost import PATIENCE
from tests.make.ext import in_memory
from tests.make.ext_bare import BLOCK, FILE, FILE_MODE, ROOT, Bare, cost_apart, extent, extents, index, node

MAGIC = 0xC03B3998
JOURNAL = 8
DESCRIPTOR, COMMIT, REVOKE = 1, 2, 5
SAME_UUID, LAST = 2, 8
AT = 1 << 20
"""The block that a journal begins at."""


@pytest.fixture
def place() -> Iterator[Path]:
    with in_memory() as directory:
        yield directory / "v.img"


class Log:
    """A volume whose journal is written block by block; ``blocks`` is what its superblock says."""

    def __init__(self, place: Path, blocks: int, *, incompat: int = 0, start: int = 1, fast: int = 0) -> None:
        self.made = Bare(place, 1 << 23, incompat=0x46, compat=4)
        self.made.use(0, [ROOT, JOURNAL, FILE])
        self.made.inode(FILE, FILE_MODE, BLOCK, extents((0, 1, 5000)))
        self.made.put(5000 * BLOCK, b"old")
        runs = [extent(at, 32768, AT + at) for at in range(0, blocks, 32768)]
        tree = node([index(0, self.made.take(node(runs, 0)))], 1, room=4)
        self.made.inode(JOURNAL, FILE_MODE, len(runs) * 32768 * BLOCK, tree)
        superblock = bytearray(1024)
        struct.pack_into(">10I", superblock, 0, MAGIC, 4, 0, BLOCK, blocks, 1, 1, start, 0, 0)
        struct.pack_into(">I", superblock, 0x28, incompat)
        struct.pack_into(">I", superblock, 0x54, fast)
        self.made.put(AT * BLOCK, bytes(superblock))
        self.at, self.sequence = 1, 1

    def add(self, kind: int, body: bytes = b"") -> None:
        head = struct.pack(">III", MAGIC, kind, self.sequence)
        self.made.put((AT + self.at) * BLOCK, (head + body).ljust(BLOCK, b"\0"))
        self.at += 1
        self.sequence += kind == COMMIT

    def add_copies(self, *blocks: int) -> None:
        tags = [struct.pack(">IHH", block, 0, SAME_UUID | (LAST if n == len(blocks) - 1 else 0))
                for n, block in enumerate(blocks)]  # fmt: skip
        self.add(DESCRIPTOR, b"".join(tags))
        for block in blocks:
            self.made.put((AT + self.at) * BLOCK, b"copy of %d" % block)
            self.at += 1

    def volume(self) -> ExtVolume:
        return ExtVolume(FileDevice(self.made.close()))


def is_refused(volume: ExtVolume, problem: str) -> None:
    (note,) = volume.facts.notes
    assert "cannot be recovered" in note and problem in note
    assert volume.allocated().total == volume.facts.size_bytes
    assert volume.open(FILE).read(0, 3) == b"old"
    assert "/file" in volume.scan().entries.path


def test_a_log_is_followed(place: Path) -> None:
    log = Log(place, 100)
    log.add_copies(5000)
    log.add(COMMIT)
    volume = log.volume()
    assert volume.open(FILE).read(0, 12) == b"copy of 5000"
    assert "recovery" in str(volume.facts.notes)
    assert volume.allocated().total < volume.facts.size_bytes


@pytest.mark.parametrize("body", ["copies", "revocations", "commits"])
@pytest.mark.parametrize(
    "blocks", [pytest.param((1 << 19) - 1, marks=pytest.mark.slow), 20_000], ids=["the longest", "long"]
)
def test_long_logs_are_followed_in_seconds(place: Path, body: str, blocks: int) -> None:
    log = Log(place, blocks)
    revocations = min(8000, blocks // 20)  # more of them are not followed
    while log.at < blocks - 510 and (body != "revocations" or log.at < revocations):
        if body == "copies":
            tags = [struct.pack(">IHH", 2_000_000 + log.at + n, 0, SAME_UUID) for n in range(508)]
            tags.append(struct.pack(">IHH", 5000, 0, SAME_UUID | LAST))
            log.add(DESCRIPTOR, b"".join(tags))
            log.at += 509
        elif body == "revocations":
            log.add(
                REVOKE, struct.pack(">I", BLOCK) + np.arange(log.at * 1020, (log.at + 1) * 1020, dtype=">u4").tobytes()
            )
        else:
            log.add(COMMIT)
    log.add(COMMIT)
    cost = cost_apart(log.made.path)
    assert cost.seconds < 10 * PATIENCE and cost.memory_bytes < GIB
    assert not cost.problem
    volume = log.volume()
    assert "needs recovery" in str(volume.facts.notes)
    assert (volume.open(FILE).read(0, 3) == b"old") == (body != "copies")


def test_more_revocations_than_memory_allows_are_not_followed(place: Path) -> None:
    log = Log(place, 20_000)
    while log.at < 8500:
        log.add(REVOKE, struct.pack(">I", BLOCK) + np.arange(1020, dtype=">u4").tobytes())
    log.add(COMMIT)
    is_refused(log.volume(), "revokes more blocks")


def test_a_longer_journal_than_is_followed_is_told(place: Path) -> None:
    is_refused(Log(place, (1 << 19) + 1).volume(), "its superblock tells of")


def test_a_journal_whose_blocks_lie_in_one_place_is_not_followed(place: Path) -> None:
    log = Log(place, 32768)
    runs = [extent(at, 32768, AT) for at in range(0, 10 * 32768, 32768)]
    tree = node([index(0, log.made.take(node(runs, 0)))], 1, room=4)
    log.made.inode(JOURNAL, FILE_MODE, 10 * 32768 * BLOCK, tree)
    is_refused(log.volume(), "in the same place")


def test_a_log_that_leads_into_a_hole_of_the_journal_is_not_followed(place: Path) -> None:
    log = Log(place, 40_000)
    log.made.inode(JOURNAL, FILE_MODE, 40_000 * BLOCK, extents((0, 3, AT), (30_000, 10_000, AT + 30_000)))
    log.add_copies(5000, 5001, 5002)
    is_refused(log.volume(), "is nowhere")


@pytest.mark.parametrize("block", [1 << 23, 0xFFFFFFFF])
def test_a_copy_of_a_block_beyond_the_volume_is_not_followed(place: Path, block: int) -> None:
    log = Log(place, 100)
    log.add_copies(5000, block)
    log.add(COMMIT)
    is_refused(log.volume(), f"it holds block {block} of {1 << 23}")


SUPERBLOCKS = {
    "magic": (0, 1, "superblock is not one"),
    "kind": (4, 9, "superblock is not one"),
    "size of a block": (0x0C, 1024, "blocks of 1024 bytes"),
    "no blocks": (0x10, 0, "tells of 0 blocks"),
    "more blocks than it has": (0x10, 0x7FFFFFFF, "tells of 2147483647 blocks"),
    "first block": (0x14, 0, "from 0"),
    "first block behind the last": (0x14, 100, "from 100"),
    "start behind the last": (0x1C, 100, "begins at block 100"),
    "features": (0x28, 0x100, "not known"),
    "fast commits fill it": (0x28, 0x20, "of fast commits"),
    "checksum": (0x28, 0x10, "does not match its checksum"),
}


@pytest.mark.parametrize("case", SUPERBLOCKS)
def test_a_superblock_of_a_journal_that_cannot_be_is_not_followed(place: Path, case: str) -> None:
    at, value, problem = SUPERBLOCKS[case]
    log = Log(place, 100)
    log.add_copies(5000)
    log.add(COMMIT)
    log.made.put(AT * BLOCK + at, struct.pack(">I", value))
    is_refused(log.volume(), problem)


def test_a_journal_that_is_not_there_is_told(place: Path) -> None:
    log = Log(place, 100)
    log.made.use(0, [ROOT, FILE])
    is_refused(log.volume(), "is not in use")


def test_a_log_that_never_ends_is_read_once(place: Path) -> None:
    log = Log(place, 100)
    while log.at < 100:
        log.add(REVOKE, struct.pack(">I", 16))
    volume = log.volume()  # each block belongs to the transaction that is not committed
    assert volume.open(FILE).read(0, 3) == b"old"


@pytest.mark.parametrize("tags", [0, 508])
def test_a_transaction_that_is_not_finished_is_none(place: Path, tags: int) -> None:
    log = Log(place, 100)
    log.add_copies(5000)
    log.add(COMMIT)
    log.add(DESCRIPTOR, struct.pack(">IHH", 5000, 0, SAME_UUID) * tags)
    assert log.volume().open(FILE).read(0, 12) == b"copy of 5000"


def test_copies_of_blocks_of_the_journal_itself_do_not_change_how_it_is_followed(place: Path) -> None:
    log = Log(place, 100)
    log.add_copies(AT, AT + 1, AT + 5, 5000)
    log.add(COMMIT)
    assert log.volume().open(FILE).read(0, 12) == b"copy of 5000"


def test_a_log_that_makes_the_volume_another_one_is_refused(place: Path) -> None:
    log = Log(place, 100)
    log.add_copies(0)  # the superblock, as no superblock is
    log.add(COMMIT)
    with pytest.raises(InconsistentVolume, match="s_magic"):
        log.volume().scan()
