"""btrfs: its facts and what of a device its chunks take, as its own tools see them; what is kept is all it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Recognised
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.recognised import recognise
from sqlimage.filesystem.recognised.btrfs import layout
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import GIB, KIB, MIB
from tests.conftest import run
from tests.make.ext import in_memory, needs_mount
from tests.make.recognised import (
    Patched,
    blkid,
    btrfs_device_extents,
    digests,
    fill,
    found,
    keep_only,
    make_btrfs,
    mended,
    mounted,
    sparse,
)

SUPERBLOCK = 64 * KIB
ALL = 0xFFFFFFFF


@dataclass(frozen=True)
class Kind:
    size_mib: int
    options: str


KINDS = {
    "plain": Kind(300, "-L étiquette"),
    "mixed_blake2": Kind(130, "--mixed --csum blake2 -L étiquette"),
}
SLOW_KINDS = {
    "sha256_nodes_of_64k": Kind(600, "--csum sha256 -n 65536 -L étiquette"),
    "xxhash_nodes_of_4k": Kind(300, "--csum xxhash -n 4096 -L étiquette"),
    "single": Kind(2000, "-m single -O raid1c34 -R free-space-tree -L étiquette"),
    "data_twice": Kind(600, "-d dup -L étiquette"),
}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with in_memory() as directory:
        yield directory


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(kind, id=name) for name, kind in KINDS.items()),
        *(pytest.param(kind, id=name, marks=pytest.mark.slow) for name, kind in SLOW_KINDS.items()),
    ],
)
def volume(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """A volume that was filled, smaller than its medium."""
    kind: Kind = request.param
    path = make_btrfs(place / "volume", kind.size_mib * MIB, "-b", f"{kind.size_mib - 10}M", *kind.options.split())
    with mounted(path, "btrfs") as root:
        fill(root, kind.options, files=200)
        run("btrfs", "subvolume", "snapshot", root, root / "snapshot")
    yield path
    path.unlink()


def fixed(size_bytes: int) -> Runs:
    """What is kept beside chunks."""
    return Runs.of([(0, MIB), (64 * MIB, 4 * KIB), (256 * GIB, 4 * KIB)]).clip(0, size_bytes)


@needs_mount
def test_facts_and_chunks_are_those_of_its_own_tools(volume: Path) -> None:
    seen = found(volume)
    facts, printed = seen.facts, blkid(volume)
    assert (facts.file_system, facts.label, facts.serial) == ("btrfs", "étiquette", printed["UUID"])
    assert (facts.size_bytes, facts.dirty, facts.notes) == (volume.stat().st_size - 10 * MIB, False, ())
    assert facts.bytes_per_cluster == int(printed["BLOCK_SIZE"])
    allocated = seen.allocated()
    assert allocated == btrfs_device_extents(volume).union(fixed(facts.size_bytes))
    assert allocated.total < facts.size_bytes
    assert len(seen.left_out()) == 0


@needs_mount
def test_what_is_kept_is_all_that_the_volume_needs(volume: Path, tmp_path: Path) -> None:
    allocated = found(volume).allocated()
    assert allocated is not None
    kept = keep_only(volume, allocated, tmp_path / "kept")
    run("btrfs", "check", "--check-data-csum", kept)
    with mounted(volume, "btrfs", "ro") as root:
        expected = digests(root)
    with mounted(kept, "btrfs", "ro") as root:
        assert digests(root) == expected
    assert len(expected) > 100


@needs_mount
def test_a_volume_with_a_log_tree_is_kept_whole(place: Path) -> None:
    path = make_btrfs(place / "logged", 120 * MIB)
    with mounted(path, "btrfs") as root:
        with (root / "file").open("wb") as file:
            file.write(b"x" * 5000)
            file.flush()
            os.fsync(file.fileno())
        run("cp", "--sparse=always", path, path.with_suffix(".mounted"))
    assert found(path).facts.dirty is False
    seen = found(path.with_suffix(".mounted"))
    assert seen.facts.dirty and seen.allocated() is None
    assert "log tree is to be replayed" in seen.facts.notes[0]


@contextmanager
def looped(paths: list[Path]) -> Iterator[list[str]]:
    """The files as devices that btrfs has found."""
    names: list[str] = []
    try:
        names += [run("losetup", "--find", "--show", path).stdout.decode().strip() for path in paths]
        yield names
    finally:
        run("btrfs", "device", "scan", "--forget")
        for name in names:
            run("losetup", "--detach", name)


def content(names: list[str], at: Path) -> dict[str, str]:
    run("btrfs", "device", "scan", *names)
    run("mount", "-o", "ro", names[0], at)
    try:
        return digests(at)
    finally:
        run("umount", at)


@needs_mount
@pytest.mark.parametrize(
    ("devices", "options"),
    [
        (2, "-m raid1 -d raid1"),
        pytest.param(4, "-m raid1c4 -d raid10", marks=pytest.mark.slow),
        pytest.param(3, "-m raid1c3 -d raid0", marks=pytest.mark.slow),
        pytest.param(3, "-m raid1c3 -d raid5", marks=pytest.mark.slow),
        pytest.param(4, "-m raid1c4 -d raid6", marks=pytest.mark.slow),
    ],
)
def test_each_device_of_several_is_told_apart(place: Path, tmp_path: Path, devices: int, options: str) -> None:
    paths = [sparse(place / f"device{n}", 300 * MIB) for n in range(devices)]
    with looped(paths) as names:
        run("mkfs.btrfs", "-q", *options.split(), *names)
        run("btrfs", "device", "scan", *names)
        run("mount", names[0], tmp_path)
        fill(tmp_path, options, files=100)
        run("umount", tmp_path)
        expected = content(names, tmp_path)
    kept = []
    for path in paths:
        with looped(paths):
            extents = btrfs_device_extents(path)
        seen = found(path)
        allocated = seen.allocated()
        assert f"one of {devices} devices" in seen.facts.notes[-1]
        assert allocated is not None and allocated == extents.union(fixed(seen.facts.size_bytes))
        kept.append(keep_only(path, allocated, path.with_suffix(".kept")))
    with looped(kept) as names:
        assert content(names, tmp_path) == expected
    for path in (*paths, *kept):
        path.unlink()


@needs_mount
def test_a_device_on_which_the_chunk_tree_does_not_lie_is_kept_whole(place: Path) -> None:
    paths = [sparse(place / f"device{n}", 300 * MIB) for n in range(2)]
    with looped(paths) as names:
        run("mkfs.btrfs", "-q", "-m", "raid0", *names)
    for path in paths:
        seen = found(path)
        assert seen.allocated() is None
        assert "lies on another device" in seen.facts.notes[0] and "one of 2 devices" in seen.facts.notes[1]


@pytest.fixture(scope="module")
def small(place: Path) -> bytes:
    return make_btrfs(place / "small", 130 * MIB, "-L", "small").read_bytes()


def patched(source: bytes, begin: int, size: int, at: int, data: bytes, *, mend: bool = True) -> Recognised | None:
    """With other bytes in a structure, whose checksum is made right again or not."""
    if mend:
        return recognise(mended(source, begin + at, data, begin=begin, size=size, field=0))
    return recognise(Patched(source, {begin + at: data}))


def chunk_tree(small: bytes) -> int:
    """Where its root lies: the first copy that bears its logical address."""
    root = small[SUPERBLOCK + 0x58 : SUPERBLOCK + 0x60]
    return next(at for at in range(MIB, len(small), 4096) if small[at + 0x30 : at + 0x38] == root)


@pytest.mark.parametrize(
    ("field", "at", "data", "note"),
    [
        ("incompat_flags", 0xBC + 7, b"\x80", "features that are not known"),
        ("incompat_flags", 0xBC + 1, b"\x13", "features that are not known"),  # ZONED
        ("flags", 0x38 + 4, b"\x10", "was not finished"),  # CHANGING_FSID_V2
        ("log_root", 0x60, b"\0\0\1\0", "log tree"),
        ("chunk_root", 0x58, b"\0\0\1\0\0\0\0\0", "chunks cannot be told"),
        ("chunk_root_generation", 0xA4, b"\xff", "chunks cannot be told"),
        ("chunk_root_level", 0xC7, b"\1", "chunks cannot be told"),
        ("sys_chunk_array, type", 0x32B + 8, b"\x7f", "sys_chunk_array"),
        ("sys_chunk_array, num_stripes", 0x32B + 17 + 44, b"\xff\xff", "CHUNK_ITEM"),
        ("sys_chunk_array, length", 0x32B + 17, bytes(8), "CHUNK_ITEM"),
        ("bytes_used", 0xD9 + 2, b"\x77", "dev_item.bytes_used"),
        ("devid", 0xC9, b"\7", "chunks cannot be told"),
    ],
)
def test_a_superblock_that_leaves_chunks_open_keeps_the_volume_whole(
    small: bytes, field: str, at: int, data: bytes, note: str
) -> None:
    seen = patched(small, SUPERBLOCK, 4096, at, data)
    assert seen is not None and seen.allocated() is None, field
    assert note in seen.facts.notes[0]


ITEMS = 101


@pytest.mark.parametrize(
    ("field", "at", "data"),
    [
        ("fsid", 0x20, b"!"),
        ("bytenr", 0x30, b"\1"),
        ("generation", 0x50, b"\xff"),
        ("owner", 0x58, b"\5"),
        ("nritems 0", 0x60, b"\0"),
        ("nritems too many", 0x60, b"\xff\xff"),
        ("level", 0x64, b"\1"),
        ("key order", ITEMS + 25 + 9, b"\xff" * 8),
        ("data_offset", ITEMS + 25 + 17, b"\xff\xff\xff\xff"),
        ("data_size", ITEMS + 25 + 21, b"\1\0\0\0"),
        ("chunk objectid", ITEMS + 25, b"\xff\1"),
    ],
)
def test_a_chunk_tree_that_contradicts_anything_is_not_believed(
    small: bytes, field: str, at: int, data: bytes, tmp_path: Path
) -> None:
    begin = chunk_tree(small)
    other = small.find(small[begin : begin + 16 * KIB], begin + 4096)
    pristine = recognise(Patched(small, {other: bytes(16 * KIB)}))
    assert pristine is not None and pristine.allocated() is not None
    node = bytearray(small[begin : begin + 16 * KIB])
    node[at : at + len(data)] = data
    for mend in (False, True):
        if mend:
            node[:4] = (crc32c(ALL, bytes(node[32:])) ^ ALL).to_bytes(4, "little")
        seen = recognise(Patched(small, {other: bytes(16 * KIB), begin: bytes(node)}))
        assert seen is not None and seen.allocated() is None, field


def test_one_damaged_copy_of_a_node_is_no_harm(small: bytes) -> None:
    before = recognise(Patched(small, {}))
    seen = patched(small, chunk_tree(small), 16 * KIB, 200, b"damage", mend=False)
    assert before is not None and seen is not None
    assert seen.allocated() == before.allocated()


def test_a_damaged_superblock_is_replaced_by_its_mirror_and_the_volume_kept_whole(small: bytes) -> None:
    seen = patched(small, SUPERBLOCK, 4096, 0x200, b"damage", mend=False)
    assert seen is not None and seen.allocated() is None
    assert (seen.facts.label, seen.facts.size_bytes) == ("small", len(small))
    assert "superblock is damaged" in seen.facts.notes[0] and "mirror" in seen.facts.notes[0]


def test_a_superblock_without_a_right_mirror_is_refused(small: bytes) -> None:
    with pytest.raises(InconsistentVolume, match="csum"):
        patched(small[: 60 * MIB], SUPERBLOCK, 4096, 0x200, b"damage", mend=False)


def test_a_volume_longer_than_its_medium_is_refused(small: bytes) -> None:
    with pytest.raises(InconsistentVolume, match=f"says the volume has {130 * MIB} bytes, the medium has"):
        recognise(Patched(small, {}, 129 * MIB))


@pytest.mark.parametrize(
    ("name", "kind"), [("sha256", layout.CSUM_SHA256), ("blake2", layout.CSUM_BLAKE2), ("crc32c", layout.CSUM_CRC32C)]
)
def test_every_checksum_but_xxhash_is_verified(place: Path, name: str, kind: int) -> None:
    content = bytearray(make_btrfs(place / name, 120 * MIB, "--csum", name).read_bytes())
    seen = recognise(MemoryDevice(content))
    assert seen is not None and seen.allocated() is not None
    assert content[SUPERBLOCK + 0xC4] == kind
    rest = content[SUPERBLOCK + 32 : SUPERBLOCK + 4096]
    digest = {"sha256": sha256(rest).digest(), "blake2": blake2b(rest, digest_size=32).digest()}.get(name)
    assert digest is None or content[SUPERBLOCK : SUPERBLOCK + 32] == digest
    content[SUPERBLOCK + 0x300] ^= 1
    damaged = recognise(MemoryDevice(content))
    assert damaged is not None and "csum" in damaged.facts.notes[0]
