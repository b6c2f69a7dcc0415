"""Encryption by file on every kind of volume: wherever its driver leaves copies of a file, none of them shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise
from tests.make import exfat, ext, ntfs
from tests.make.encrypted import KEY, is_shown, with_key, without_keys

SECRETS = {
    "vault/tiny.txt": b"CANARY-tiny",
    "vault/small.txt": b"CANARY-small " * 60,
    "vault/large.bin": b"CANARY-large" + noise("large", 700_000),
}
PLAIN = {"open/tiny.txt": b"plain tiny", "open/large.bin": b"plain large" + noise("plain", 500_000)}
CANARIES = (b"CANARY-tiny", b"CANARY-small", b"CANARY-large")


@pytest.fixture(autouse=True)
def no_key_is_known() -> Iterator[None]:
    without_keys()
    yield
    without_keys()


def check(source: Path, image: Path, *, on: str = "", readable: bool = True) -> None:
    """The secrets do not show, all the rest is read without the key, and with it everything comes back."""
    sqlimage.capture(source, image, encrypt=["vault"], ways=[KEY])
    assert is_shown(image, *CANARIES) == []
    without_keys()
    if readable:
        with sqlimage.open(str(image)) as opened:
            for path, content in PLAIN.items():
                with opened.version().content(f"{on}/{path}") as found:
                    assert found.read(0, MIB) == content
    with sqlimage.open(str(image)) as opened:
        for path in SECRETS:
            with pytest.raises(sqlimage.LockedError), opened.version().content(f"{on}/{path}") as found:
                found.read(0, MIB)
    with_key()
    with sqlimage.open(str(image)) as opened:
        assert sqlimage.verify(opened).is_whole
        for path, content in (SECRETS | PLAIN).items():
            with opened.version().content(f"{on}/{path}") as found:
                assert found.read(0, MIB) == content


def write(root: Path) -> None:
    ntfs.write_tree(root, PLAIN | SECRETS)


def fat(path: Path, size_bytes: int = 40 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run("mkfs.fat", path)
    tree = path.parent / "tree"
    write(tree)
    run("mcopy", "-s", "-Q", "-i", path, tree / "vault", tree / "open", "::/")
    return path


def test_fat(tmp_path: Path) -> None:
    check(fat(tmp_path / "v.img"), tmp_path / "i.sqlimage")


@ext.needs_mount
def test_ext4_with_a_journal_that_holds_all_data(tmp_path: Path) -> None:
    with ext.in_memory() as place:
        source = ext.make_volume(place / "v.img", 64 * MIB, "-t", "ext4")
        with ext.mounted(source, "data=journal") as root:
            write(root)
        assert b"CANARY-large" in source.read_bytes()
        check(source, tmp_path / "i.sqlimage")


@ext.needs_mount
def test_ext4_with_files_inside_their_inodes(tmp_path: Path) -> None:
    """Then all control information is encrypted: nothing is read without the key."""
    with ext.in_memory() as place:
        source = ext.make_volume(place / "v.img", 64 * MIB, "-t", "ext4", "-I", "256", "-O", "inline_data")
        with ext.mounted(source) as root:
            write(root)
        check(source, tmp_path / "i.sqlimage", readable=False)


def test_iso9660(tmp_path: Path) -> None:
    write(tmp_path / "tree")
    run("genisoimage", "-quiet", "-J", "-R", "-o", tmp_path / "v.iso", tmp_path / "tree")
    check(tmp_path / "v.iso", tmp_path / "i.sqlimage")


def test_exfat(tmp_path: Path) -> None:
    source = exfat.make_volume(tmp_path / "v.img", 40 * MIB)
    (tmp_path / "mnt").mkdir()
    with exfat.mounted(source, tmp_path / "mnt") as root:
        write(root)
    check(source, tmp_path / "i.sqlimage")


def test_a_disk_of_several_volumes(tmp_path: Path) -> None:
    volume = fat(tmp_path / "v.img")
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(100 * MIB)
    table = "label: gpt\nstart=2048, size=81920\nstart=90112, size=81920\n"
    run("sfdisk", "-q", disk, input=table.encode())
    with disk.open("r+b") as file:
        for sector in (2048, 90112):
            file.seek(sector * 512)
            file.write(volume.read_bytes())
    check(disk, tmp_path / "i.sqlimage", on="/1")


def test_ntfs_keeps_nothing_of_a_small_file_that_was_deleted(tmp_path: Path) -> None:
    source, image, child = ntfs.make_volume(tmp_path / "v.img", 24 * MIB), tmp_path / "i", tmp_path / "child"
    with ntfs.mounted(source) as root:
        write(root)
    sqlimage.capture(source, image, encrypt=["vault"], ways=[KEY])
    with ntfs.mounted(source) as root:
        for path in SECRETS:
            (root / path).unlink()
    assert b"CANARY-tiny" in source.read_bytes()
    sqlimage.capture(source, child, parent=image)
    sqlimage.capture(source, image, append=True)
    sqlimage.capture(source, tmp_path / "late", encrypt=["vault"], ways=[KEY])
    for made in (image, child, tmp_path / "late"):
        assert is_shown(made, *CANARIES) == []


def test_ntfs_keeps_nothing_of_a_file_that_was_small(tmp_path: Path) -> None:
    source = ntfs.make_volume(tmp_path / "v.img", 24 * MIB)
    with ntfs.mounted(source) as root:
        ntfs.write_tree(root, {"vault/grown.txt": b"CANARY-tiny" * 40})
    with ntfs.mounted(source) as root:
        (root / "vault/grown.txt").write_bytes(noise("grown", 9000))
    assert b"CANARY-tiny" in source.read_bytes()
    sqlimage.capture(source, tmp_path / "i", encrypt=["vault"], ways=[KEY])
    assert is_shown(tmp_path / "i", *CANARIES) == []


@ext.needs_mount
def test_ext4_keeps_nothing_of_a_file_that_was_deleted_from_its_inode(tmp_path: Path) -> None:
    with ext.in_memory() as place:
        source = ext.make_volume(place / "v.img", 64 * MIB, "-t", "ext4", "-I", "256", "-O", "inline_data")
        with ext.mounted(source) as root:
            write(root)
        sqlimage.capture(source, tmp_path / "i", encrypt=["vault"], ways=[KEY])
        with ext.mounted(source) as root:
            for path in SECRETS:
                (root / path).unlink()
        assert b"CANARY-tiny" in source.read_bytes()
        sqlimage.capture(source, tmp_path / "child", parent=tmp_path / "i")
        sqlimage.capture(source, tmp_path / "late", encrypt=["vault"], ways=[KEY])
    for made in ("i", "child", "late"):
        assert is_shown(tmp_path / made, *CANARIES) == []
