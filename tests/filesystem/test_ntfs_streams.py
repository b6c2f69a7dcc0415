"""What a file on NTFS can be beside plain bytes: compressed, sparse, linked, streamed, a reparse point."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from sqlimage.filesystem.contract import HOLE, ContentFlag, EntryKind
from sqlimage.media.file import FileDevice
from tests.conftest import run
from tests.filesystem.test_ntfs_volume import Made, flags_of, kinds_of, opened, read_path, row_of
from tests.make.ntfs import ATTRIBUTES, COMPRESSED_DIRECTORY, DOS_NAME, REPARSE_DATA, make_volume, mounted, write_tree

MIB = 1 << 20
WOF, DEDUP = 0x80000017, 0x80000013
MOUNT_POINT, LX_SYMLINK = 0xA0000003, 0xA000001D


def compressible() -> dict[str, bytes]:
    chance = random.Random(3)
    words = [chance.randbytes(chance.randint(2, 9)) for _ in range(300)]
    text = b" ".join(chance.choice(words) for _ in range(60_000))
    return {
        "packed/text": text,
        "packed/noise": chance.randbytes(300_000),
        "packed/mixed": text[:100_000] + chance.randbytes(70_000) + bytes(200_000) + text[:33_333],
        "packed/zeros": bytes(500_000),
        "packed/one byte": b"a" * 65536 * 3 + b"b",
        "packed/small": b"tiny",
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    image = make_volume(tmp_path_factory.mktemp("streams") / "v.img", 64 * MIB)
    files = compressible()
    with mounted(image) as root:
        (root / "packed").mkdir()
        os.setxattr(root / "packed", ATTRIBUTES, COMPRESSED_DIRECTORY)
        write_tree(root, files)
        write_tree(root, {"host": b"main", "host:a stream": b"beside", "host:large": b"L" * 100_000, "dir/in": b""})
        (root / "dir:note").write_bytes(b"of a directory")
        os.link(root / "host", root / "dir/linked")
        os.symlink("../host", root / "dir/link")
        with (root / "sparse").open("wb") as file:
            for i in range(400):
                file.seek(i * 3 * 65536)
                file.write(b"%d" % i)
            file.truncate(100 * MIB)
        for name, tag, data in (
            ("wof", WOF, bytes(16)),
            ("dedup", DEDUP, bytes(16)),
            ("lx", LX_SYMLINK, b"\2\0\0\0target"),
        ):
            (root / name).write_bytes(b"")
            set_reparse_point(root / name, tag, data)
        (root / "junction").mkdir()
        set_reparse_point(root / "junction", MOUNT_POINT, struct.pack("<HHHH", 0, 4, 6, 4) + b"C\0:\0\0\0C\0:\0\0\0")
        (root / "long lx").write_bytes(b"")
        set_reparse_point(root / "long lx", LX_SYMLINK, b"\2\0\0\0" + b"t" * 3000)
        (root / "A Long File Name.text").write_bytes(b"long")
        os.setxattr(root / "A Long File Name.text", DOS_NAME, b"ALONGF~1.TEX")
        (root / "hiberfil.sys").write_bytes(b"wake" + bytes(4096))
    return opened(image, files)


def set_reparse_point(path: Path, tag: int, data: bytes) -> None:
    os.setxattr(path, REPARSE_DATA, struct.pack("<IHH", tag, len(data), 0) + data)


@pytest.mark.parametrize("path", sorted(compressible()))
def test_a_compressed_file_is_decompressed(made: Made, path: str) -> None:
    assert read_path(made.volume, made.scan, f"/{path}") == made.files[path]


@pytest.mark.parametrize("path", ["packed/text", "packed/mixed", "packed/one byte"])
def test_a_part_of_a_compressed_file_is_that_part_of_the_whole(made: Made, path: str) -> None:
    chance = random.Random(4)
    content = made.files[path]
    stream = made.volume.open(int(made.scan.contents.record[row_of(made.scan, f"/{path}")]))
    for _ in range(60):
        offset, length = chance.randrange(len(content) + 10), chance.randrange(140_000)
        assert stream.read(offset, length) == content[offset : offset + length]


def test_the_runs_of_a_compressed_file_are_its_stored_form(made: Made) -> None:
    row, contents = row_of(made.scan, "/packed/text"), made.scan.contents
    assert flags_of(made.scan, "/packed/text") & ContentFlag.COMPRESSED
    runs = slice(int(contents.first_run[row]), int(contents.first_run[row + 1]))
    stored = int(contents.run_length[runs][contents.run_offset[runs] != HOLE].sum())
    assert stored < contents.size_bytes[row] <= contents.run_length[runs].sum()


def test_the_holes_of_a_sparse_file_read_as_zeros(made: Made) -> None:
    data = read_path(made.volume, made.scan, "/sparse")
    expected = bytearray(100 * MIB)
    for i in range(400):
        mark = b"%d" % i
        expected[i * 3 * 65536 : i * 3 * 65536 + len(mark)] = mark
    assert data == expected
    assert HOLE in made.scan.contents.run_offset


def test_named_streams_are_entries_beside_their_file(made: Made) -> None:
    kinds = kinds_of(made.scan.entries)
    for path, content in (
        ("/host:a stream", b"beside"),
        ("/host:large", b"L" * 100_000),
        ("/dir:note", b"of a directory"),
    ):
        assert kinds[path] == EntryKind.STREAM
        assert read_path(made.volume, made.scan, path) == content
    assert read_path(made.volume, made.scan, "/host") == b"main"


def test_hard_links_are_two_names_of_one_content(made: Made) -> None:
    assert row_of(made.scan, "/host") == row_of(made.scan, "/dir/linked")
    assert list(made.scan.entries.path).count("/dir/linked:a stream") + 1 == 1, "streams stand beside the first name"


def test_links_are_links_however_they_are_stored(made: Made) -> None:
    kinds = kinds_of(made.scan.entries)
    assert {kinds[p] for p in ("/dir/link", "/lx", "/long lx", "/junction")} == {EntryKind.SYMLINK}
    assert read_path(made.volume, made.scan, "/dir/link").startswith(b"IntxLNK\1.\0.\0/\0")


def test_a_reparse_point_that_is_no_link_stays_a_file(made: Made) -> None:
    kinds = kinds_of(made.scan.entries)
    assert kinds["/wof"] == kinds["/dedup"] == EntryKind.FILE


def test_a_reparse_points_value_can_be_read(made: Made) -> None:
    record = int(made.scan.entries.record[made.scan.entries.path.index("/long lx")])
    value = made.volume.open(record, "$REPARSE_POINT")
    assert value.read(0, 8) == struct.pack("<IHH", LX_SYMLINK, 3004, 0)
    assert value.size_bytes == 3012


def test_an_8_3_alias_is_no_entry(made: Made) -> None:
    paths = made.scan.entries.path
    assert "/A Long File Name.text" in paths
    assert "ALONGF~1" not in "\n".join(paths)
    assert "ALONGF~1" in run("ntfsinfo", "-F", "/A Long File Name.text", made.image).stdout.decode()


def test_hibernation_is_told_by_the_first_bytes_of_its_file(made: Made, tmp_path: Path) -> None:
    assert not made.volume.facts.hibernated
    image = tmp_path / "hibernated.img"
    run("cp", "--sparse=always", made.image, image)
    with mounted(image) as root:
        (root / "HIBERFIL.SYS").unlink(missing_ok=True)
        (root / "hiberfil.sys").unlink(missing_ok=True)
        (root / "Hiberfil.sys").write_bytes(b"hibr" + bytes(4096))
    assert opened(image, {}).volume.facts.hibernated


def test_symbolic_links_of_windows_subsystem_for_linux(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 16 * MIB)
    with mounted(image, "special_files=wsl") as root:
        os.symlink("somewhere/else", root / "link")
        os.mkfifo(root / "pipe")
    made = opened(image, {})
    assert kinds_of(made.scan.entries)["/link"] == EntryKind.SYMLINK
    assert kinds_of(made.scan.entries)["/pipe"] == EntryKind.SPECIAL


@pytest.mark.parametrize("sector", [512, 1024, 4096])
def test_larger_sectors_are_read_too(tmp_path: Path, sector: int) -> None:
    image = make_volume(tmp_path / "v.img", 16 * MIB, sector=sector)
    made = opened(image, {})
    assert made.volume.facts.bytes_per_sector == sector
    assert made.volume.facts.clusters_per_record == (1 if sector == 4096 else -10)
    assert read_path(made.volume, made.scan, "/$Boot")[3:11] == b"NTFS    "
    assert FileDevice(image).size_bytes == made.volume.facts.size_bytes
