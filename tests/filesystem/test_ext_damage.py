"""Damaged volumes: a backup stands in for the superblock, and what does not match its checksum is not believed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.ext import ExtVolume, find_backup
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise
from tests.make.ext import fill, in_memory, make_volume, mounted, needs_mount, recovered
from tests.make.ext_journal import Transaction, blocks_of, journal_block, write_journal
from tests.make.ext_oracle import Seen, allocated_by_dumpe2fs, seen_by_kernel, seen_by_us

pytestmark = needs_mount
BLOCK = 1024


class Made(NamedTuple):
    image: Path
    content: bytes
    seen: dict[bytes, Seen]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    """A clean volume with checksums everywhere, large enough for backups, deep trees and hash trees."""
    with in_memory() as place:
        image = make_volume(place / "v.img", 40 * MIB, "-t", "ext4", "-b", "1024", "-O", "metadata_csum")
        with mounted(image) as root:
            fill(root, names=3000)
        with mounted(image, "ro") as root:
            seen = seen_by_kernel(root)
        yield Made(image, image.read_bytes(), seen)


def told(image: Path, command: str) -> str:
    return run("debugfs", "-R", command, image).stdout.decode("utf-8", "replace")


def number_in(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return int(found[1])


def inode_at(image: Path, path: str) -> int:
    """Where an inode lies, in bytes."""
    found = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", told(image, f'imap "{path}"'))
    assert found
    return int(found[1]) * BLOCK + int(found[2], 16)


def everything(volume: ExtVolume) -> None:
    volume.allocated()
    volume.scan()


FLIPS: dict[str, tuple[Callable[[Path], int], str]] = {
    "group descriptor": (lambda _: 2 * BLOCK + 64 + 0x0C, "group descriptor 1"),
    "block bitmap": (
        lambda image: number_in(told(image, "stats"), r"block bitmap at (\d+)") * BLOCK + 5,
        "block bitmap",
    ),
    "inode bitmap": (
        lambda image: number_in(told(image, "stats"), r"inode bitmap at (\d+)") * BLOCK + 200,
        "inode bitmap",
    ),
    "inode": (lambda image: inode_at(image, "/after") + 0x10, "inode "),
    "root of an extent tree": (lambda image: inode_at(image, "/contents/in pieces") + 0x30, "inode "),
    "block of an extent tree": (
        lambda image: number_in(told(image, 'stat "/contents/in pieces"'), r"\(ETB0\):(\d+)") * BLOCK + 500,
        "inode ",
    ),
    "block of a directory": (lambda image: blocks_of(image, "/d1")[0] * BLOCK + 100, "directory, inode"),
    "root of a hash tree": (lambda image: blocks_of(image, "/names/many")[0] * BLOCK + 0x24, "directory, inode"),
    "leaf of a hash tree": (lambda image: blocks_of(image, "/names/many")[2] * BLOCK + 9, "directory, inode"),
    "block of attributes": (
        lambda image: number_in(told(image, 'stat "/names/attributes in a block"'), r"File ACL: (\d+)") * BLOCK + 900,
        "i_file_acl",
    ),
}


@pytest.mark.parametrize("where", FLIPS)
def test_what_does_not_match_its_checksum_is_not_believed(made: Made, where: str) -> None:
    place, structure = FLIPS[where]
    content = bytearray(made.content)
    everything(ExtVolume(MemoryDevice(content)))
    content[place(made.image)] ^= 0x10
    with pytest.raises(InconsistentVolume, match=r"checksum|should be") as caught:
        everything(ExtVolume(MemoryDevice(content)))
    assert structure in caught.value.structure


def test_a_superblock_that_does_not_match_its_checksum_has_a_backup_stand_in(made: Made) -> None:
    content = bytearray(made.content)
    content[1024 + 0x78] ^= 1  # in its label
    volume = ExtVolume(MemoryDevice(content))
    (note,) = volume.facts.notes
    assert "first superblock is damaged" in note and "s_checksum" in note and "group 1 " in note
    assert seen_by_us(volume) == made.seen
    assert volume.allocated() == allocated_by_dumpe2fs(made.image)


@pytest.mark.parametrize(
    "options",
    [
        "-t ext4 -b 1024",
        pytest.param("-t ext4 -b 1024 -O ^metadata_csum", marks=pytest.mark.slow),
        "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg",
        "-t ext4 -b 1024 -O meta_bg,^resize_inode",
        "-t ext4 -b 1024 -O bigalloc",
        "-t ext4 -b 1024 -O sparse_super2",
        pytest.param("-t ext4 -b 2048", marks=pytest.mark.slow),
        "-t ext4 -b 4096 -g 4096",
        pytest.param("-t ext2 -b 1024", marks=pytest.mark.slow),
        "-t ext2 -b 1024 -O ^sparse_super,^resize_inode",
        "-t ext3 -b 1024 -g 1024",
    ],
)
def test_files_are_found_by_a_backup(options: str) -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 200 * MIB, *options.split())
        with mounted(image) as root:
            fill(root, names=50, holes=20)
            for n in range(300):
                (root / f"directory {n}").mkdir()  # in many groups, some of which no backup knows to be in use
                (root / f"directory {n}" / "file").write_bytes(noise(n, 4000))
        with mounted(image, "ro") as root:
            seen = seen_by_kernel(root)
        allocated = allocated_by_dumpe2fs(image)
        device = FileDevice(image)
        whole = device.read(0, 4096)
        for is_gone, damaged in (
            (False, whole[: 1024 + 0x58] + b"\7\7" + whole[1024 + 0x5A :]),
            (True, whole[:1024] + bytes(1024) + whole[2048:]),
            (True, bytes(4096)),
        ):
            with image.open("r+b") as file:
                file.write(damaged)
            if is_gone and "-g" in options:
                with pytest.raises(InconsistentVolume, match="s_magic"):
                    ExtVolume(device)  # nothing says how large its groups are
                assert find_backup(device) is None
                continue
            volume = ExtVolume(device)
            assert any("superblock is damaged" in note for note in volume.facts.notes)
            assert seen_by_us(volume) == seen
            kept = volume.allocated()
            assert kept.covers(allocated)
            if is_gone:
                assert kept.total == volume.facts.size_bytes, "another file system may have been there since"
            else:
                assert kept == allocated
        device.close()


@pytest.mark.parametrize(
    "features",
    [
        "metadata_csum",
        pytest.param("^metadata_csum,uninit_bg", marks=pytest.mark.slow),
        pytest.param("^metadata_csum", marks=pytest.mark.slow),
    ],
)
def test_where_the_descriptors_are_gone_too_those_of_a_backup_tell_the_places(features: str) -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 40 * MIB, "-t", "ext4", "-b", "1024", "-O", features)
        with mounted(image) as root:
            fill(root, names=50, holes=20)
            (root / "large").write_bytes(noise("large", 20 * MIB))  # lies where the backup knows of nothing
        with mounted(image, "ro") as root:
            seen = seen_by_kernel(root)
        content = bytearray(image.read_bytes())
        content[BLOCK : 3 * BLOCK] = bytes(2 * BLOCK)
        volume = ExtVolume(MemoryDevice(content))
        assert volume.allocated().total == volume.facts.size_bytes
        assert seen_by_us(volume) == seen
        content[BLOCK : 2 * BLOCK] = image.read_bytes()[BLOCK : 2 * BLOCK]
        if "uninit_bg" in features or features == "metadata_csum":
            with pytest.raises(InconsistentVolume, match="bg_checksum"):
                ExtVolume(MemoryDevice(content)).scan()  # the superblock is right: something else happened here
        else:
            with pytest.raises(InconsistentVolume, match="bg_block_bitmap"):
                ExtVolume(MemoryDevice(content)).scan()


def test_a_backup_of_the_superblock_does_not_hide_that_the_journal_is_to_be_recovered() -> None:
    with in_memory() as place:
        image = unclean(place)
        seen = seen_by_us(opened(image))
        content = bytearray(image.read_bytes())
        content[1024:2048] = bytes(1024)
        volume = ExtVolume(MemoryDevice(content))
        assert volume.facts.dirty
        assert [note.split()[1] for note in volume.facts.notes] == ["first", "journal"]
        assert seen_by_us(volume) == seen


LOG = {
    "superblock": (0, 0x20),
    "descriptor": (1, 0x30),
    "copy of a block": (2, 700),
    "revoke block": (5, 0x10),
}


@pytest.mark.parametrize("where", LOG)
def test_a_damaged_journal_is_told_and_not_followed(where: str) -> None:
    with in_memory() as place:
        image = unclean(place)
        seen = seen_by_us(opened(image))
        number, at = LOG[where]
        flip(image, journal_block(image, number) * BLOCK + at)
        volume = opened(image)
        assert any("cannot be recovered" in note and "checksum" in note for note in volume.facts.notes)
        assert volume.facts.dirty
        assert volume.allocated().total == volume.facts.size_bytes
        found = seen_by_us(volume)
        assert found.keys() == seen.keys() and found[b"/file"].digest != seen[b"/file"].digest


def test_a_commit_that_does_not_match_its_checksum_ends_the_log_as_for_e2fsck() -> None:
    with in_memory() as place:
        image = unclean(place)
        flip(image, journal_block(image, 6) * BLOCK + 0x30)
        volume = opened(image)
        with mounted(recovered(image, place / "after.img"), "ro") as root:
            assert seen_by_us(volume)[b"/file"] == seen_by_kernel(root)[b"/file"]


def unclean(place: Path) -> Path:
    """A volume with a file of four blocks, of which the journal holds two; it revokes the fourth, and holds it anew."""
    (place / "tree").mkdir()
    (place / "tree" / "file").write_bytes(noise("old", 4 * BLOCK))
    image = make_volume(
        place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024", "-O", "metadata_csum", "-d", place / "tree"
    )
    at = blocks_of(image, "file")
    write_journal(
        image,
        [
            Transaction({block: noise(("new", block), BLOCK) for block in at[:2]}),
            Transaction(revoked=(at[1], at[3])),
            Transaction({at[3]: noise("newest", BLOCK)}),
        ],
        checksum=3,
    )
    return image


def opened(image: Path) -> ExtVolume:
    return ExtVolume(MemoryDevice(image.read_bytes()))


def flip(image: Path, at: int) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
