"""Shapes that need more than a plain tree: deep extent trees, triple indirect blocks, hash trees of two levels, shared
blocks of attributes, block sizes and features that this kernel does not mount."""

from __future__ import annotations

import os
import re
import stat
import time
from hashlib import sha256
from pathlib import Path

import pytest

from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, EntryKind
from sqlimage.filesystem.ext import ExtVolume, mapping
from sqlimage.media.file import FileDevice
from sqlimage.units import GIB, KIB, MIB, NO_TIME
from tests.conftest import run
from tests.images import noise
from tests.make.cost import PATIENCE
from tests.make.ext import in_memory, make_volume, mounted, needs_mount, punched
from tests.make.ext_oracle import (
    allocated_by_dumpe2fs,
    checked,
    keep_only,
    runs_by_debugfs,
    runs_by_us,
    seen_by_kernel,
    seen_by_us,
)


def agrees(image: Path, block: int, *, slack: int = 0) -> ExtVolume:
    """Names, bytes, runs and allocation are what the kernel, debugfs and dumpe2fs see."""
    device = FileDevice(image)
    volume = ExtVolume(device)
    scan = volume.scan()
    with mounted(image, "ro") as root:
        assert seen_by_us(volume, scan) == seen_by_kernel(root)
    ours = runs_by_us(scan.contents, block)
    del ours[7]
    assert ours == runs_by_debugfs(image, ours)
    assert volume.allocated() == allocated_by_dumpe2fs(image)
    return volume


@needs_mount
@pytest.mark.parametrize(("block", "pieces"), [(1024, 4000), pytest.param(4096, 7000, marks=pytest.mark.slow)])
def test_extent_trees_of_thousands_of_extents_are_followed(block: int, pieces: int) -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 96 * MIB, "-t", "ext4", "-b", str(block), "-O", "^resize_inode,64bit")
        with mounted(image) as root:
            punched(root / "file", block, pieces)
            with (root / "far").open("wb") as file:
                for n in range(2000):
                    file.seek(n * 200_003 * block)
                    file.write(noise(n, 100))
        dump = run("debugfs", "-R", "dump_extents /file", image).stdout.decode()
        assert re.search(r"^ *2/ *2 ", dump, re.MULTILINE)
        device = FileDevice(image)
        scan = ExtVolume(device).scan()
        row = scan.entries.content[scan.entries.path.index("/file")]
        runs = scan.contents.run_offset[scan.contents.first_run[row] : scan.contents.first_run[row + 1]]
        assert (runs != HOLE).sum() == pieces
        ours = runs_by_us(scan.contents, block)
        assert ours == runs_by_debugfs(image, ours)
        with mounted(image, "ro") as root:
            assert seen_by_us(ExtVolume(device), scan) == seen_by_kernel(root)
        device.close()


@needs_mount
@pytest.mark.parametrize("block", [1024, 2048, 4096])
def test_single_double_and_triple_indirect_blocks_are_followed(block: int) -> None:
    per_block = block // 4
    first = [0, 12, 12 + per_block, 12 + per_block + per_block**2]
    places = sorted({n + d for n in first for d in (-1, 0, 1, per_block - 1, per_block)} - {-1})
    with in_memory() as place:
        image = make_volume(place / "v.img", 64 * MIB, "-t", "ext3", "-b", str(block), "-O", "^resize_inode,large_file")
        with mounted(image) as root, (root / "file").open("wb") as file:
            for n in places:
                file.seek(n * block)
                file.write(noise(n, block))
            file.truncate((places[-1] + 3 * per_block) * block + 1)
        assert b"(TIND)" in run("debugfs", "-R", "stat /file", image).stdout
        device = FileDevice(image)
        volume = ExtVolume(device)
        scan = volume.scan()
        ours = runs_by_us(scan.contents, block)
        assert ours == runs_by_debugfs(image, ours)
        number = int(scan.entries.record[scan.entries.path.index("/file")])
        content = volume.open(number)
        for n in places:
            assert content.read(n * block, block) == noise(n, block)
            assert content.read(n * block + 5, block)[: block - 5] == noise(n, block)[5:]
        assert content.read((places[-1] + 1) * block, 2 * block) == bytes(2 * block)
        assert content.read(content.size_bytes - 1, 10) == b"\0"
        assert content.read(content.size_bytes, 10) == b""
        device.close()


@needs_mount
@pytest.mark.parametrize("features", ["dir_index", "^dir_index", "dir_index,^metadata_csum", "dir_index,large_dir"])
def test_directories_of_five_thousand_names_are_read(features: str) -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 32 * MIB, "-t", "ext4", "-b", "1024", "-O", features)
        with mounted(image) as root:
            (root / "one").touch()
            (root / "many").mkdir()
            for n in range(5000):
                os.link(root / "one", root / "many" / f"name {n} {'x' * (n % 90)}")
            for n in range(0, 5000, 3):
                (root / "many" / f"name {n} {'x' * (n % 90)}").unlink()
        if "^dir_index" not in features:
            assert b"Indirect levels: 1" in run("debugfs", "-R", "htree /many", image).stdout
        device = FileDevice(image)
        volume = ExtVolume(device)
        with mounted(image, "ro") as root:
            assert seen_by_us(volume) == seen_by_kernel(root)
        assert checked(image) == 0
        device.close()


@needs_mount
def test_a_directory_that_outgrew_its_inode_and_one_that_did_not_are_read() -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024", "-I", "512", "-O", "inline_data")
        with mounted(image) as root:
            for count in range(0, 40, 3):
                (root / f"of {count}").mkdir()
                for n in range(count):
                    (root / f"of {count}" / f"name {n}").symlink_to("x" * (10 * n + 1))
                for n in range(0, count, 4):
                    (root / f"of {count}" / f"name {n}").unlink()
            for size in range(0, 500, 7):
                (root / f"file of {size}").write_bytes(noise(size, size))
            os.truncate(root / "file of 7", 300)  # longer than what was written
            os.truncate(root / "file of 497", 30)
        device = FileDevice(image)
        volume = ExtVolume(device)
        with mounted(image, "ro") as root:
            assert seen_by_us(volume) == seen_by_kernel(root)
        contents = volume.scan().contents
        assert len(contents.inline_digest) > 60
        for row, digest in contents.inline_digest.items():
            content = volume.open(int(contents.record[row]))
            assert sha256(content.read(0, content.size_bytes)).digest() == digest
        device.close()


@needs_mount
def test_attributes_too_large_for_a_block_lie_in_inodes_of_their_own() -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024", "-O", "ea_inode")
        with mounted(image) as root:
            for n in range(5):
                (root / f"file {n}").write_bytes(b"content")
                os.setxattr(root / f"file {n}", "user.large", noise("attribute", 30_000))
                os.setxattr(root / f"file {n}", "user.own", noise(n, 30_000))
        volume = agrees(image, 1024)
        assert not [path for path in volume.scan().entries.path if "$Orphan" in path]


@needs_mount
def test_a_file_deleted_but_open_is_not_listed_and_one_in_no_directory_is() -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^has_journal")
        with mounted(image) as root:
            (root / "directory" / "below").mkdir(parents=True)
            (root / "directory" / "below" / "file").write_bytes(b"lost")
            number = (root / "directory").stat().st_ino
        run("debugfs", "-w", "-R", "unlink directory", image)
        device = FileDevice(image)
        entries = ExtVolume(device).scan().entries
        lost = [path for path in entries.path if "Orphan" in path]
        assert lost == [f"/$OrphanFiles/{number + n}" for n in range(3)]
        assert (entries.kind[-3:] == [EntryKind.DIRECTORY, EntryKind.DIRECTORY, EntryKind.FILE]).all()
        device.close()


@needs_mount
def test_times_that_nanoseconds_cannot_tell_are_told_as_none() -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024")
        with mounted(image) as root:
            for name, seconds in {"last": 9_223_372_036, "later": 9_300_000_000, "end": 15_032_385_535}.items():
                (root / name).touch()
                os.utime(root / name, ns=(0, seconds * 10**9))
        device = FileDevice(image)
        entries = ExtVolume(device).scan().entries
        times = dict(zip(entries.path, entries.modified_ns.tolist(), strict=True))
        assert (times["/later"], times["/end"]) == (NO_TIME, NO_TIME)
        assert times["/last"] in (NO_TIME, 9_223_372_036 * 10**9)
        device.close()


@pytest.mark.parametrize(
    "options",
    [
        "-b 8192",
        "-b 16384 -O bigalloc -C 65536",
        "-b 65536",
        "-b 65536 -O ^extent,^64bit,^metadata_csum",
        "-O quota",
        "-O quota,project -E quotatype=usrquota:grpquota:prjquota",
        "-O casefold,encrypt,inline_data",
        "-O orphan_file,fast_commit,quota,verity,stable_inodes,large_dir,ea_inode,metadata_csum_seed,mmp",
    ],
)
def test_volumes_that_mke2fs_fills_from_a_tree_are_read(options: str, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "many").mkdir(parents=True)
    for n in range(200):
        (source / "many" / f"{n} {'n' * 80}").symlink_to("target " * (n % 20 + 1))
    for size in (0, 1, 60, 150, 70_000, 300_000):
        (source / f"of {size}").write_bytes(noise(size, size))
    with (source / "sparse").open("wb") as file:
        for n in range(20):
            file.seek(n * 500_000)
            file.write(noise(n, 66_000))
    os.mkfifo(source / "fifo")
    os.link(source / "of 60", source / "many" / "link")
    image = make_volume(tmp_path / "v.img", 128 * MIB, "-t", "ext4", *options.split(), "-d", source)
    device = FileDevice(image)
    volume = ExtVolume(device)
    scan = volume.scan()
    seen = seen_by_us(volume, scan)
    del seen[b"/lost+found"]
    wanted = {b"/" + os.fsencode(path.relative_to(source)): path for path in source.rglob("*")} | {b"/": source}
    assert seen.keys() == wanted.keys()
    for name, path in wanted.items():
        info = path.lstat()
        assert seen[name].mode == info.st_mode
        if name != b"/":  # whose time is that of mke2fs
            assert seen[name].modified_ns // 10**9 == int(info.st_mtime)
        if stat.S_ISREG(info.st_mode):
            content = volume.open(seen[name].inode)
            assert content.read(0, content.size_bytes) == path.read_bytes()
        if stat.S_ISLNK(info.st_mode):
            assert seen[name].digest == sha256(os.readlink(path).encode()).hexdigest()
    assert seen[b"/many/link"].inode == seen[b"/of 60"].inode
    ours = runs_by_us(scan.contents, volume.facts.alignment_bytes)
    ours.pop(7, None)
    assert ours == runs_by_debugfs(image, ours)
    assert volume.allocated() == allocated_by_dumpe2fs(image)
    assert checked(keep_only(image, volume, tmp_path / "kept")) == checked(image)
    hidden = {
        path for path, kind in zip(scan.entries.path, scan.entries.kind, strict=True) if kind == EntryKind.METADATA
    }
    assert ("/$UserQuota" in hidden) == ("quota" in options)
    assert ("/$ProjectQuota" in hidden) == ("project" in options)
    device.close()


@pytest.mark.parametrize("kind", ["ext3", "ext4"])
def test_how_many_runs_are_told_grows_with_the_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "_PIECES_BASE", 10)
    (tmp_path / "tree").mkdir()
    for n in range(500):
        (tmp_path / "tree" / f"{n}").write_bytes(noise(n, 3000))
    image = make_volume(tmp_path / "v.img", 16 * MIB, "-t", kind, "-b", "1024", "-d", tmp_path / "tree")
    device = FileDevice(image)
    assert len(ExtVolume(device).scan().entries) == 503
    device.close()


def test_bad_blocks_are_allocated_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("5000\n5001\n9000\n")
    image = make_volume(tmp_path / "v.img", 16 * MIB, "-t", "ext2", "-b", "1024", "-l", tmp_path / "bad")
    device = FileDevice(image)
    volume = ExtVolume(device)
    assert volume.scan().entries.path == ["/", "/lost+found"]
    assert volume.allocated() == allocated_by_dumpe2fs(image)
    assert volume.allocated().covers(Runs.of([(5000 * KIB, 2 * KIB), (9000 * KIB, KIB)]))
    device.close()


@needs_mount
@pytest.mark.slow
def test_a_volume_of_sixteen_tebibytes_is_read_in_the_time_of_its_files() -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 16384 * GIB, "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=1")
        with mounted(image) as root:
            (root / "file").write_bytes(noise("file", 100_000))
        started = time.monotonic()
        device = FileDevice(image)
        volume = ExtVolume(device)
        allocated, scan = volume.allocated(), volume.scan()
        assert time.monotonic() - started < 5 * PATIENCE
        assert scan.entries.path[:3] == ["/", "/lost+found", "/file"]
        assert allocated == allocated_by_dumpe2fs(image)
        device.close()
