"""The superblock: a field that cannot be is refused by its name, and the places that follow from it are mke2fs's."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.ext import ExtVolume, find_backup, is_ext
from sqlimage.filesystem.ext.superblock import read_geometry
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import MIB
from tests.conftest import run
from tests.make.ext import make_volume

FIELDS = {
    "s_inodes_count": (0x0, "<I", 7),
    "s_blocks_count": (0x4, "<I", 1 << 20),
    "s_first_data_block": (0x14, "<I", 0),
    "s_log_block_size": (0x18, "<I", 7),
    "s_blocks_per_group": (0x20, "<I", 8193),
    "s_inodes_per_group": (0x28, "<I", 0),
    "s_magic": (0x38, "<H", 0xEF52),
    "s_rev_level": (0x4C, "<I", 2),
    "s_first_ino": (0x54, "<I", 5),
    "s_inode_size": (0x58, "<H", 200),
    "s_feature_incompat": (0x60, "<I", 0x80000000),
    "s_desc_size": (0xFE, "<H", 96),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A volume of one group, so that no backup stands in."""
    place = tmp_path_factory.mktemp("superblock")
    return make_volume(place / "v.img", 4 * MIB, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum").read_bytes()


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_cannot_be_is_refused_by_name(pristine: bytes, name: str) -> None:
    at, form, value = FIELDS[name]
    content = bytearray(pristine)
    struct.pack_into(form, content, 1024 + at, value)
    with pytest.raises(InconsistentVolume) as refused:
        ExtVolume(MemoryDevice(content))
    assert refused.value.structure == f"superblock, {name}"
    assert str(value) in refused.value.problem or f"{value:#x}" in refused.value.problem


def test_a_journal_by_itself_is_no_volume(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "journal", 4 * MIB, "-O", "journal_dev")
    with pytest.raises(InconsistentVolume, match="external journal"):
        ExtVolume(FileDevice(image))


@pytest.mark.parametrize("length", [0, 512, 1024, 1082, 2047])
def test_a_medium_too_short_for_a_superblock_is_none(pristine: bytes, length: int) -> None:
    assert not is_ext(pristine[: min(length, 1081)])
    assert find_backup(MemoryDevice(pristine[:length])) is None
    with pytest.raises(InconsistentVolume, match="the medium has"):
        ExtVolume(MemoryDevice(pristine[:length]))


def test_a_volume_longer_than_its_medium_is_refused_and_a_longer_medium_is_not_its(pristine: bytes) -> None:
    with pytest.raises(InconsistentVolume, match="the medium has 4194303 bytes"):
        ExtVolume(MemoryDevice(pristine[:-1]))
    volume = ExtVolume(MemoryDevice(pristine + bytes(5000)))
    assert volume.facts.size_bytes == volume.allocated().complement(4 * MIB).total + volume.allocated().total


@pytest.mark.parametrize(
    "options",
    [
        "-b 1024",
        "-b 1024 -g 256",
        "-b 4096 -g 512",
        "-b 1024 -g 512 -O ^meta_bg",
        "-b 1024 -O sparse_super2",
        "-b 1024 -O ^sparse_super,^resize_inode",
        "-b 1024 -O meta_bg,^resize_inode",
        "-b 1024 -g 256 -O meta_bg,^resize_inode,^sparse_super,^64bit",
        "-b 1024 -O bigalloc,meta_bg,^resize_inode -C 2048 -g 1024",
        "-b 2048 -O bigalloc -C 4096",
    ],
)
def test_copies_of_superblock_and_descriptors_are_where_dumpe2fs_has_them(options: str, tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 130 * MIB, "-t", "ext4", "-N", "4096", *options.split())
    geometry, damage = read_geometry(FileDevice(image))
    assert damage is None
    text = run("dumpe2fs", image).stdout.decode()
    told = [int(block) for block in re.findall(r"(?:Primary|Backup) superblock at (\d+)", text)]
    assert told == [geometry.first_block(g) + geometry.superblock_offset(g) for g in geometry.superblock_groups()]
    assert [g for g in range(geometry.groups) if geometry.has_superblock(g)] == list(geometry.superblock_groups())
    assert geometry.groups == len(re.findall(r"^Group \d+:", text, re.MULTILINE))
    descriptors = [int(block) for block in re.findall(r"[Gg]roup descriptors? at (\d+)", text)]
    for number in range(geometry.descriptor_blocks):
        place = geometry.descriptor_block(number)
        assert place in descriptors or place - number in descriptors
