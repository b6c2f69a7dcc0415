"""Volumes shown by our own readers: beside the drivers that know them, and for readers that tell nonsense."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import sqlimage
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Content, Contents, Entries, EntryKind, FileSystem, Scan, VolumeFacts
from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.file import FileDevice
from sqlimage.mount.signature import file_system_kind
from sqlimage.mount.tree import VolumeTree, serve_tree
from sqlimage.units import KIB, NO_TIME
from tests.conftest import run
from tests.images import noise, sample_volume
from tests.make.fat import copy_in
from tests.mount.conftest import Place
from tests.mount.volumes import is_same_tree, make_volume

Row = tuple[str, EntryKind, int, str, bytes]
"""Path, kind, record, name of the stream, content."""


@contextlib.contextmanager
def shown(directory: Path, volumes: FileSystem | Mapping[str, VolumeTree | None]) -> Iterator[list[str]]:
    """The mounted tree; gives the list to which problems are told."""
    told: list[str] = []
    tree = volumes if isinstance(volumes, Mapping) else VolumeTree(volumes)
    server = serve_tree(tree, str(directory), on_problem=told.append)
    try:
        yield told
    finally:
        server.unmount()


def file_system_of(path: Path) -> FileSystem:
    found = open_file_system(FileDevice(path))
    assert found is not None
    return found


@contextlib.contextmanager
def by_ntfs_3g(volume: Path, directory: Path, options: str = "ro") -> Iterator[None]:
    run("ntfs-3g", "-o", options, volume, directory)
    try:
        yield
    finally:
        run("umount", directory)


class ToldFileSystem:
    """A reader that tells what it is given, however little sense it makes."""

    def __init__(self, rows: list[Row], damaged: frozenset[int] = frozenset()) -> None:
        self._rows, self._damaged = rows, damaged

    @property
    def facts(self) -> VolumeFacts:
        return VolumeFacts("told", 1 << 20, 512, 4096, 256, 4096)

    def allocated(self) -> Runs:
        raise AssertionError("a tree needs no runs")

    def scan(self) -> Scan:
        count = len(self._rows)
        records = np.array([row[2] for row in self._rows], dtype=np.int64)
        sizes = np.array([len(row[4]) for row in self._rows], dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        entries = Entries(
            path=[row[0] for row in self._rows],
            kind=np.array([row[1] for row in self._rows], dtype=np.uint8),
            content=np.arange(count, dtype=np.int64),
            record=records,
            modified_ns=np.full(count, NO_TIME, dtype=np.int64),
            attributes=np.zeros(count, dtype=np.uint32),
        )
        streams = [row[3] for row in self._rows]
        first = np.zeros(count + 1, dtype=np.int64)
        contents = Contents(records, streams, sizes, sizes, np.zeros(count, dtype=np.uint8), first, none, none, {})
        return Scan(entries, contents)

    def open(self, record: int, stream: str = "") -> Content:
        if record in self._damaged:
            raise InconsistentVolume("record", f"{record} is damaged")
        return ToldContent(next(row[4] for row in self._rows if row[2:4] == (record, stream)))


class ToldContent:
    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self._content[offset_bytes : offset_bytes + length_bytes]


def file(path: str, record: int, content: bytes = b"") -> Row:
    return (path, EntryKind.FILE, record, "", content)


ROOT: Row = ("/", EntryKind.DIRECTORY, 5, "", b"")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return sample_volume(tmp_path / "sample.ntfs")


def test_an_ntfs_volume_is_as_ntfs_3g_shows_it(sample: Path, place: Place) -> None:
    ours, theirs = place("ours"), place("theirs")
    with shown(ours, file_system_of(sample)) as told, by_ntfs_3g(sample, theirs):
        assert is_same_tree(ours, theirs)
        for directory, names, files in os.walk(theirs):
            for name in [*names, *files]:
                one = os.stat(os.path.join(directory, name))
                other = os.stat(os.path.join(str(ours), os.path.relpath(directory, theirs), name))
                assert other.st_mtime_ns == one.st_mtime_ns
                assert other.st_nlink == one.st_nlink or os.path.isdir(os.path.join(directory, name))
    assert told == []


def test_a_captured_version_is_as_its_source(sample: Path, place: Place, tmp_path: Path) -> None:
    sqlimage.capture(str(sample), str(tmp_path / "image"), keep_page_files=True)
    ours, theirs = place("ours"), place("theirs")
    with (
        sqlimage.open(str(tmp_path / "image")) as image,
        image.version().file_system(0) as file_system,
        shown(ours, file_system),
        by_ntfs_3g(sample, theirs),
    ):
        assert is_same_tree(ours, theirs)


def test_a_fat_volume_has_what_mtools_put_there(place: Place, tmp_path: Path) -> None:
    volume, source = make_volume(tmp_path / "volume", "fat"), tmp_path / "source"
    (source / "Ordner mit langem Namen" / "tief").mkdir(parents=True)
    (source / "Ordner mit langem Namen" / "tief" / "漢字.bin").write_bytes(noise(1, 70_000))
    (source / "EMPTY").write_bytes(b"")
    copy_in(volume, *source.iterdir())
    directory = place("mount")
    with shown(directory, file_system_of(volume)):
        assert is_same_tree(directory, source)


def test_hard_links_share_an_inode_and_every_mount_gives_the_same(place: Place, tmp_path: Path) -> None:
    volume, directory = make_volume(tmp_path / "volume", "ntfs"), place("mount")
    with by_ntfs_3g(volume, directory, "rw"):
        (directory / "one").write_bytes(b"shared")
        (directory / "other").write_bytes(b"alone")
        os.link(directory / "one", directory / "two")
    seen = []
    for _ in range(2):
        with shown(directory, file_system_of(volume)):
            seen.append({path.name: (path.stat().st_ino, path.stat().st_nlink) for path in directory.iterdir()})
    assert seen[0] == seen[1]
    assert seen[0]["one"] == seen[0]["two"]
    assert seen[0]["one"][1] == 2
    assert seen[0]["other"][1] == 1
    assert seen[0]["other"][0] != seen[0]["one"][0]


def test_streams_are_extended_attributes_up_to_64_kib(place: Place, tmp_path: Path) -> None:
    volume, directory = make_volume(tmp_path / "volume", "ntfs"), place("mount")
    with by_ntfs_3g(volume, directory, "rw,streams_interface=windows"):
        (directory / "file").write_bytes(b"main")
        (directory / "file:small").write_bytes(b"beside it")
        (directory / "file:fits").write_bytes(noise(1, 64 * KIB))
        (directory / "file:long").write_bytes(noise(2, 64 * KIB + 1))
    path = directory / "file"
    with shown(directory, file_system_of(volume)):
        assert os.listdir(directory) == ["file"]
        assert sorted(os.listxattr(path)) == ["user.stream.fits", "user.stream.small"]
        assert os.getxattr(path, "user.stream.small") == b"beside it"
        assert os.getxattr(path, "user.stream.fits") == noise(1, 64 * KIB)
        for absent in ("user.stream.long", "user.other"):
            with pytest.raises(OSError) as caught:
                os.getxattr(path, absent)
            assert caught.value.errno == errno.ENODATA


def test_nothing_can_be_written(sample: Path, place: Place) -> None:
    directory = place("mount")
    with shown(directory, file_system_of(sample)):
        path = directory / "Windows" / "System32" / "driver.bin"
        for action in (
            lambda: os.open(path, os.O_WRONLY),
            lambda: os.unlink(path),
            lambda: os.mkdir(directory / "new"),
            lambda: os.open(directory / "new", os.O_WRONLY | os.O_CREAT),
        ):
            with pytest.raises(OSError) as caught:
                action()
            assert caught.value.errno == errno.EROFS


def test_several_volumes_are_directories_and_one_that_nobody_knows_is_empty(
    sample: Path, place: Place, tmp_path: Path
) -> None:
    fat = make_volume(tmp_path / "fat", "fat")
    run("mmd", "-i", fat, "::/on fat")
    directory = place("mount")
    trees = {"0": VolumeTree(file_system_of(sample), 0), "1": None, "2": VolumeTree(file_system_of(fat), 2)}
    with shown(directory, trees):
        assert sorted(os.listdir(directory)) == ["0", "1", "2"]
        assert os.listdir(directory / "1") == []
        assert os.listdir(directory / "2") == ["on fat"]
        assert "Users" in os.listdir(directory / "0")
        assert not (directory / "3").exists()
        assert not (directory / "1" / "x").exists()
        inodes = [path.stat().st_ino for path in directory.rglob("*")]
        assert len(inodes) == len(set(inodes))


def test_names_that_no_tree_can_have_are_shown_changed_and_apart(place: Place) -> None:
    directory = place("mount")
    rows = [
        ROOT,
        file("/..", 10, b"up"),
        file("/.", 11, b"here"),
        file("/nul\0in it", 12, b"nul"),
        file("/" + "x" * 300, 13, b"long"),
        file("/" + "x" * 301, 14, b"longer"),
        file("/half \ud800 a pair", 15, b"half"),
        file("/half ? a pair", 16, b"other"),
        file("/missing/child", 17, b"child"),
        file("/missing/too/deep", 18, b"deep"),
        file("/.../of a file", 19, b"below"),
        file("/...", 22, b"a file"),
        ("/$hidden", EntryKind.METADATA, 20, "", b"metadata"),
        ("/pipe", EntryKind.SPECIAL, 21, "", b""),
    ]
    with shown(directory, ToldFileSystem(rows)) as told:
        found = {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        expected = [b"up", b"here", b"nul", b"long", b"longer", b"half", b"other", b"child", b"below", b"a file"]
        assert sorted(found.values()) == sorted(expected)
        assert all(0 < len(os.fsencode(name)) <= 255 for name in found)
    assert told == []


def test_a_link_leads_where_its_content_says(place: Place) -> None:
    directory = place("mount")
    rows = [
        ROOT,
        file("/target", 10, b"bytes"),
        ("/link", EntryKind.SYMLINK, 11, "", b"target"),
        ("/untold", EntryKind.SYMLINK, 12, "", b""),
    ]
    with shown(directory, ToldFileSystem(rows)):
        assert os.readlink(directory / "link") == "target"
        assert (directory / "link").read_bytes() == b"bytes"
        assert (directory / "untold").is_file()
        assert not (directory / "untold").is_symlink()


def test_a_damaged_file_is_an_error_and_the_others_are_read(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    directory = place("mount")
    rows = [ROOT, file("/whole", 10, b"bytes"), file("/damaged", 11, b"lost")]
    with shown(directory, ToldFileSystem(rows, frozenset([11]))) as told:
        with pytest.raises(OSError) as caught:
            (directory / "damaged").read_bytes()
        assert caught.value.errno == errno.EIO
        assert (directory / "whole").read_bytes() == b"bytes"
    assert "record: 11 is damaged" in told[0]
    assert capfd.readouterr() == ("", "")


def test_more_files_are_read_side_by_side_than_are_kept_open(place: Place) -> None:
    directory = place("mount")
    rows = [ROOT, *(file(f"/{number}", 10 + number, noise(number, 5000)) for number in range(200))]
    with shown(directory, ToldFileSystem(rows)):
        listed = sorted(path.name for path in directory.iterdir())
        done = subprocess.run(
            ["xargs", "-P", "8", "-n", "5", "cat"],
            input="\n".join(f"{directory}/{name}" for name in listed).encode(),
            capture_output=True,
            check=True,
        )
        assert len(done.stdout) == 200 * 5000
        for number in range(200):
            assert (directory / str(number)).read_bytes() == noise(number, 5000)


@pytest.mark.parametrize("kind", ["ext4", "iso9660"])
def test_links_and_permissions_of_volumes_that_have_them_are_shown(kind: str, tmp_path: Path) -> None:
    tree, volume = tmp_path / "tree", tmp_path / "volume"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "tool").write_bytes(b"tool")
    (tree / "bin" / "tool").chmod(0o755)
    (tree / "private").write_bytes(b"private")
    (tree / "private").chmod(0o600)
    (tree / "link").symlink_to("bin/tool")
    if kind == "ext4":
        with volume.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mke2fs", "-q", "-t", kind, "-d", tree, volume], check=True)
    else:
        subprocess.run(["genisoimage", "-quiet", "-R", "-o", volume, tree], check=True)
    file_system = open_file_system(FileDevice(volume))
    assert file_system is not None
    shown = VolumeTree(file_system)
    assert shown.attributes("/bin/tool")["st_mode"] & 0o777 == 0o555
    assert shown.read("/bin/tool", 0, 100) == b"tool"
    assert shown.attributes("/private")["st_mode"] & 0o777 in (0o400, 0o444)
    assert shown.link_target("/link") == "bin/tool"
    assert file_system_kind(FileDevice(volume)) == ("ext" if kind == "ext4" else kind)
