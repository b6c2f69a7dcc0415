"""Volumes with every feature of mke2fs, filled through the kernel: we see what it, debugfs and dumpe2fs see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

from sqlimage.errors import NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, EntryKind, Scan
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.file import FileDevice
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.make.ext import UUID, fill, in_memory, make_volume, mounted, needs_mount
from tests.make.ext_oracle import (
    Seen,
    allocated_by_dumpe2fs,
    checked,
    keep_only,
    runs_by_debugfs,
    runs_by_us,
    seen_by_kernel,
    seen_by_us,
)

pytestmark = needs_mount


class Shape(NamedTuple):
    """What mke2fs is told; ``features`` are added to those that the type has."""

    name: str
    type: str = "ext4"
    features: str = ""
    block: int = 1024
    options: tuple[str, ...] = ()
    size_bytes: int = 64 * MIB
    mount: str = ""

    def make(self, path: Path) -> Path:
        features = ("-O", self.features) if self.features else ()
        options = ("-t", self.type, "-b", str(self.block), *features, "-L", "etikett", *self.options)
        return make_volume(path, self.size_bytes, *options)


SHAPES = [
    Shape("ext2", "ext2"),
    Shape("ext2 of revision 0", "ext2", options=("-r", "0")),
    Shape("ext2 for Hurd", "ext2", options=("-o", "hurd")),
    Shape("ext2, each group with a superblock", "ext2", "^sparse_super,^resize_inode"),
    Shape("ext2, blocks of 4 KiB", "ext2", block=4096),
    Shape("ext3", "ext3"),
    Shape("ext3, blocks of 2 KiB, inodes of 128 bytes", "ext3", block=2048, options=("-I", "128")),
    Shape("ext3, no types in directories, no hash trees", "ext3", "^filetype,^dir_index"),
    Shape("ext4"),
    Shape("ext4, blocks of 2 KiB", block=2048),
    Shape("ext4, blocks of 4 KiB", block=4096),
    Shape("32 bits", features="^64bit"),
    Shape("no checksums", features="^metadata_csum"),
    Shape("block maps", features="^extent,^64bit"),
    Shape("uninit_bg", features="^metadata_csum,uninit_bg"),
    Shape("uninit_bg, 32 bits", features="^metadata_csum,^64bit,uninit_bg"),
    Shape("nothing left uninitialised", options=("-E", "lazy_itable_init=0,lazy_journal_init=0")),
    Shape("no flex_bg", features="^flex_bg"),
    Shape("flex groups of 4", options=("-G", "4")),
    Shape("metadata packed at the front", options=("-E", "packed_meta_blocks=1")),
    Shape("meta_bg", features="meta_bg,^resize_inode"),
    Shape("meta_bg, no flex_bg", features="meta_bg,^resize_inode,^flex_bg"),
    Shape("small groups", options=("-g", "256")),
    Shape("small groups, no meta_bg", features="^meta_bg", options=("-g", "512")),
    Shape("bigalloc", features="bigalloc", options=("-C", "4096")),
    Shape("bigalloc, blocks of 4 KiB", features="bigalloc", block=4096, options=("-C", "65536")),
    Shape("bigalloc, clusters of one block", features="bigalloc", block=4096, options=("-C", "4096")),
    Shape("metadata_csum_seed", features="metadata_csum_seed"),
    Shape("inline_data", features="inline_data"),
    Shape("inline_data, inodes of 1 KiB", features="inline_data", block=4096, options=("-I", "1024")),
    Shape("ea_inode", features="ea_inode"),
    Shape("large_dir", features="large_dir"),
    Shape("no hash trees", features="^dir_index"),
    Shape("encrypt", features="encrypt"),
    Shape("orphan_file", features="orphan_file"),
    Shape("fast_commit", features="fast_commit"),
    Shape("sparse_super2", features="sparse_super2"),
    Shape("no resize_inode", features="^resize_inode"),
    Shape("room to grow", options=("-E", "resize=500M")),
    Shape("inodes of 128 bytes", options=("-I", "128")),
    Shape("inodes of 1 KiB", options=("-I", "1024")),
    Shape("no huge_file, dir_nlink, extra_isize", features="^huge_file,^dir_nlink,^extra_isize"),
    Shape("no journal", features="^has_journal"),
    Shape("journal in the middle", options=("-J", "size=4,location=40M")),
    Shape("mmp", features="mmp"),
    Shape("stable_inodes", features="stable_inodes"),
    Shape("verity", features="verity"),
    Shape("few inodes", options=("-N", "256")),
    Shape("last group of a few blocks", size_bytes=(5 * 8192 + 1 + 1003) * KIB, options=("-G", "1")),
    Shape("no whole number of blocks", size_bytes=20 * MIB + 12345, block=4096),
    Shape("much at once", features="bigalloc,inline_data,metadata_csum_seed,orphan_file,ea_inode,large_dir"),
    Shape("data=journal", mount="data=journal"),
]
RARE = {
    *("ext2, blocks of 4 KiB", "ext4, blocks of 2 KiB", "32 bits", "uninit_bg, 32 bits", "nothing left uninitialised"),
    *("flex groups of 4", "metadata packed at the front", "large_dir", "encrypt", "room to grow", "stable_inodes"),
    *("verity", "few inodes", "journal in the middle", "no resize_inode", "inodes of 1 KiB", "meta_bg"),
}
"""What is left to the slow run: each differs little from another one."""


@dataclass
class Filled:
    """A volume, what of it is kept, and what the kernel sees on that."""

    shape: Shape
    image: Path
    kept: Path
    seen: dict[bytes, Seen]
    volume: ExtVolume

    @cached_property
    def scan(self) -> Scan:
        return self.volume.scan()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(shape, id=shape.name, marks=pytest.mark.slow if shape.name in RARE else ()) for shape in SHAPES
    ],
)
def filled(request: pytest.FixtureRequest) -> Iterator[Filled]:
    shape = request.param
    with in_memory() as place:
        image = shape.make(place / "v.img")
        with mounted(image, shape.mount) as root:
            fill(root)
        device = FileDevice(image)
        volume = ExtVolume(device)
        kept = keep_only(image, volume, place / "kept.img")
        with mounted(kept, "ro") as root:
            seen = seen_by_kernel(root)
        yield Filled(shape, image, kept, seen, volume)
        device.close()


def test_facts_are_those_of_mke2fs(filled: Filled) -> None:
    facts, shape = filled.volume.facts, filled.shape
    kind = run("blkid", "-p", "-o", "value", "-s", "TYPE", filled.image).stdout.decode().strip()
    assert (facts.file_system, facts.label, facts.serial) == (kind, "etikett", UUID)
    assert facts.size_bytes == shape.size_bytes // shape.block * shape.block
    assert facts.alignment_bytes == shape.block
    assert facts.total_clusters == -(-facts.size_bytes // facts.bytes_per_cluster)
    assert not facts.dirty and not facts.notes and not facts.may_share


def test_names_modes_times_and_bytes_are_what_the_kernel_sees(filled: Filled) -> None:
    assert seen_by_us(filled.volume, filled.scan) == filled.seen


def test_runs_are_what_debugfs_sees(filled: Filled) -> None:
    ours = runs_by_us(filled.scan.contents, filled.shape.block)
    theirs = runs_by_debugfs(filled.image, ours)
    theirs[7] = []  # the resize inode's blocks are not bytes of a file
    assert ours == {number: theirs[number] for number in ours}
    assert sum(map(len, ours.values())) > 100


def test_what_is_allocated_is_what_dumpe2fs_does_not_call_free(filled: Filled) -> None:
    allocated = filled.volume.allocated()
    assert allocated == allocated_by_dumpe2fs(filled.image)
    contents = filled.scan.contents
    backed = contents.run_offset != HOLE
    assert allocated.covers(Runs.from_arrays(contents.run_offset[backed], contents.run_length[backed]))


def test_what_is_kept_is_enough_for_the_kernel_and_e2fsck(filled: Filled) -> None:
    assert len(filled.seen) > 450
    assert checked(filled.kept) == checked(filled.image) == 0


def test_special_files_have_no_content_and_metadata_is_told_as_such(filled: Filled) -> None:
    entries = filled.scan.entries
    special = {path for path, kind in zip(entries.path, entries.kind, strict=True) if kind == EntryKind.SPECIAL}
    assert special == {f"/names/{name}" for name in ("fifo", "character", "block", "socket")}
    for path, record, row in zip(entries.path, entries.record.tolist(), entries.content.tolist(), strict=True):
        assert (row < 0) == (path in special)
        if path in special:
            with pytest.raises(NotFoundError):
                filled.volume.open(record)
    hidden = {path for path, kind in zip(entries.path, entries.kind, strict=True) if kind == EntryKind.METADATA}
    assert ("/$Journal" in hidden) == (b"has_journal" in run("dumpe2fs", "-h", filled.image).stdout)
    assert hidden <= {"/$Journal", "/$OrphanFile"}
