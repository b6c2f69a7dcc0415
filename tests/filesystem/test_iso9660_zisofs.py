"""Compressed files: by mkzftree and xorriso, and such as contradict themselves."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import ContentFlag, read_all
from sqlimage.filesystem.iso9660 import IsoVolume
from sqlimage.filesystem.iso9660.zisofs import ZisofsContent
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from tests.conftest import run
from tests.images import noise
from tests.make.cost import PATIENCE
from tests.make.iso import SECTOR, BareIso, genisoimage, record, xorriso, zf, zisofs

BLOCK = 32768


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("zisofs") / "tree"
    tree.mkdir()
    (tree / "text").write_bytes(b"".join(b"line %d\n" % n for n in range(40_000)))
    (tree / "zeros").write_bytes(bytes(10 * BLOCK))
    (tree / "holes").write_bytes(b"a" + bytes(3 * BLOCK) + b"b" * 100 + bytes(BLOCK))
    (tree / "exact").write_bytes(b"x" * (2 * BLOCK))
    (tree / "random").write_bytes(os.urandom(3 * BLOCK))
    (tree / "small").write_bytes(b"small")
    return tree


def images(tree: Path, target: Path) -> list[Path]:
    run("mkzftree", tree, target / "packed")
    run("mkzftree", "-z9", "-f", tree, target / "forced")
    return [
        genisoimage(target / "g.iso", target / "packed", "-R", "-z"),
        genisoimage(target / "f.iso", target / "forced", "-R", "-z"),
        xorriso(target / "x.iso", "-map", tree, "/", "-set_filter_r", "--zisofs", "/", "--"),
        xorriso(
            target / "b.iso", "-zisofs", "level=1:block_size=128k", "-map", tree, "/", "-set_filter_r", "--zisofs",
            "/", "--",
        ),
    ]  # fmt: skip


def test_files_are_read_decompressed(tree: Path, tmp_path: Path) -> None:
    compressed = 0
    for image in images(tree, tmp_path):
        volume = IsoVolume(FileDevice(image))
        scan = volume.scan()
        for path, record_, row in zip(scan.entries.path, scan.entries.record, scan.entries.content, strict=True):
            if path == "/":
                continue
            wanted = (tree / path[1:]).read_bytes()
            content = volume.open(int(record_))
            assert content.size_bytes == scan.contents.size_bytes[row] == len(wanted), path
            assert b"".join(read_all(content, 50_000)) == wanted, path
            for at, length in ((0, 1), (BLOCK - 1, 2), (len(wanted) - 3, 10), (len(wanted), 5), (BLOCK, BLOCK)):
                assert content.read(at, length) == wanted[at : at + length], path
            compressed += bool(scan.contents.flags[row] & ContentFlag.COMPRESSED)
    assert compressed >= 4 * 3


def with_file(data: bytes, entry: bytes) -> IsoVolume:
    made = BareIso(100, rock_ridge=True)
    made.put_root(record(b"FILE.;1", 40, len(data), system_use=entry))
    made.put(40, data)
    return IsoVolume(MemoryDevice(made.content))


def content_of(data: bytes, entry: bytes) -> ZisofsContent:
    volume = with_file(data, entry)
    content = volume.open(int(volume.scan().entries.record[1]))
    assert isinstance(content, ZisofsContent)
    return content


def refused(data: bytes, entry: bytes, match: str) -> None:
    with pytest.raises(InconsistentVolume, match=match):
        content_of(data, entry).read(0, 1 << 20)


GOOD = zisofs(BLOCK + 10, [zlib.compress(b"a" * BLOCK), zlib.compress(b"b" * 10)])


def test_a_file_built_by_hand_is_read() -> None:
    assert content_of(GOOD, zf(BLOCK + 10)).read(BLOCK - 2, 99) == b"aa" + b"b" * 10
    zeros = zisofs(2 * BLOCK, [b"", zlib.compress(b"c" * BLOCK)])
    assert content_of(zeros, zf(2 * BLOCK)).read(BLOCK - 1, 2) == b"\0c"
    assert content_of(zisofs(0, []), zf(0)).read(0, 10) == b""


@pytest.mark.parametrize(
    ("data", "entry", "words"),
    [
        (b"", zf(10), "too few for a header"),
        (GOOD[:15], zf(BLOCK + 10), "too few for a header"),
        (b"x" * 100, zf(10), "no header"),
        (GOOD, zf(BLOCK + 11), "differs"),
        (GOOD, zf(BLOCK + 10, logarithm=16), "differs"),
        (GOOD, zf(BLOCK + 10, header=5), "differs"),
        (zisofs(10, [b""], logarithm=14), zf(10, logarithm=14), r"2 \*\* 14"),
        (zisofs(10, [b""], logarithm=255), zf(10, logarithm=255), r"2 \*\* 255"),
        (zisofs(10, [b""], header=0), zf(10, header=0), "behind a header of 0"),
        (GOOD[:24], zf(BLOCK + 10), "pointers do not fit"),
        (zisofs(0xFFFFFFFF, []), zf(0xFFFFFFFF), "131072 blocks, whose pointers do not fit"),
        (GOOD[:-1], zf(BLOCK + 10), "has block 1 at bytes"),
        (GOOD[:20] + b"\xff" * 4 + GOOD[24:], zf(BLOCK + 10), "has block 0 at bytes"),
        (GOOD[:16] + bytes(4) + GOOD[20:], zf(BLOCK + 10), "has block 0 at bytes 0 to"),
        (GOOD[:30] + b"\0\0\0\0" + GOOD[34:], zf(BLOCK + 10), "cannot be inflated"),
        (zisofs(10, [zlib.compress(b"x" * 9)]), zf(10), "has 9 bytes in block 0 instead of 10"),
        (zisofs(10, [zlib.compress(noise("zisofs", 60))[:-20]]), zf(10), None),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_when_it_is_read(
    data: bytes, entry: bytes, words: str | None
) -> None:
    assert with_file(data, entry).scan().entries.path == ["/", "/FILE"]
    if words is None:  # what is needed is there
        assert len(content_of(data, entry).read(0, 99)) == 10
    else:
        refused(data, entry, words)


def test_a_block_is_not_inflated_beyond_its_size() -> None:
    bomb = zlib.compress(bytes(60 << 20), 9)
    assert 50_000 < len(bomb) < 2 * BLOCK
    started = time.process_time()
    assert content_of(zisofs(10, [bomb]), zf(10)).read(0, 1 << 30) == bytes(10)
    assert time.process_time() - started < 0.5 * PATIENCE


def test_a_claim_of_4_gib_in_half_a_mebibyte_is_read_by_the_piece() -> None:
    size = 0xFFFFFFFF
    count = -(-size // BLOCK)
    pointers = [16 + 4 * (count + 1)] * (count + 1)
    data = (
        bytes.fromhex("37e45396c9dbd607")
        + struct.pack("<IBBH", size, 4, 15, 0)
        + struct.pack(f"<{count + 1}I", *pointers)
    )
    made = BareIso(60 + len(data) // SECTOR, rock_ridge=True)
    made.put_root(record(b"FILE.;1", 40, len(data), system_use=zf(size)))
    made.patch(40 * SECTOR, data)
    made.content = made.content[: made.blocks * SECTOR]
    volume = IsoVolume(MemoryDevice(made.content))
    content = volume.open(int(volume.scan().entries.record[1]))
    started = time.process_time()
    assert content.size_bytes == size
    assert content.read(size - 5, 1 << 20) == bytes(5)
    assert time.process_time() - started < 0.2 * PATIENCE


def test_other_algorithms_are_listed_as_they_lie() -> None:
    volume = with_file(b"PZ data", zf(1 << 20, algorithm=b"PZ"))
    scan = volume.scan()
    assert scan.contents.size_bytes[1] == 7 and not scan.contents.flags[1]
    assert volume.open(int(scan.entries.record[1])).read(0, 99) == b"PZ data"


def test_the_same_bytes_with_and_without_zf_are_two_contents() -> None:
    made = BareIso(100, rock_ridge=True)
    made.put(40, GOOD)
    made.put_root(
        record(b"A.;1", 40, len(GOOD)),
        record(b"B.;1", 40, len(GOOD), system_use=zf(BLOCK + 10)),
        record(b"C.;1", 40, len(GOOD)),
        record(b"D.;1", 40, len(GOOD), system_use=zf(BLOCK + 10)),
    )
    volume = IsoVolume(MemoryDevice(made.content))
    scan = volume.scan()
    assert scan.entries.content.tolist() == [0, 1, 2, 1, 2]
    assert [volume.open(int(n)).size_bytes for n in scan.entries.record[1:]] == [len(GOOD), BLOCK + 10] * 2
