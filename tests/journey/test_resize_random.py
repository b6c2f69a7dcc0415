"""Volumes and disks made at random, to sizes chosen at random: every one is restored right, or refused before anything
is written."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sqlimage
from sqlimage.units import MIB
from tests.filesystem.test_fat_relocate_random import SHAPES, populated
from tests.make import ext, fat_oracle, ntfs, resized_disk
from tests.make.ext import needs_mount
from tests.make.ntfs_scattered import fill_up
from tests.make.resized import captured, check, contents, explained, restored

Wanted = tuple[str, int] | float
"""A size: so many sectors from the minimum or from the size there is, or a share of that."""
wanted_sizes: st.SearchStrategy[Wanted] = st.one_of(
    st.tuples(st.sampled_from(("minimum", "now")), st.integers(-2, 2)), st.floats(0.05, 2.5)
)
seeds = st.integers(0, 1 << 32)
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def somewhere() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sqlimage-random-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        (Path(name) / "to").mkdir()
        yield Path(name)


def size_of(wanted: Wanted, minimum: int, now: int) -> int:
    if isinstance(wanted, tuple):
        return max({"minimum": minimum, "now": now}[wanted[0]] + wanted[1] * 512, 0)
    return int(now * wanted)


def restored_or_refused(image: Path, place: Path, wanted: Wanted, now: int, *, exact: bool = True) -> Path | None:
    """The restored file; None where it was refused, rightly. ``exact``: whatever is not less than the minimum fits."""
    target = place / "to" / "file"
    minimum = explained(image, target, size="minimum").size_bytes
    size = size_of(wanted, minimum, now)
    try:
        report = restored(image, target, size=size)
    except sqlimage.RefusedError as refused:
        assert os.listdir(target.parent) == []
        assert size < (minimum if exact else now), refused
        assert f"({size // 512 * 512} bytes)" in str(refused)
        return None
    assert size // 512 * 512 == report.medium_bytes == target.stat().st_size or size == now
    assert size >= minimum
    return target


def random_fat(shape: int, seed: int, longest: int, crowded: bool, wanted: Wanted, defragment: bool) -> None:
    with somewhere() as place:
        volume = populated(shape, seed, longest, crowded, bad=seed % 3 == 0)
        source = place / "v"
        source.write_bytes(volume.content)
        image = captured(source, place / "i", defragment=defragment)
        new = restored_or_refused(image, place, wanted, source.stat().st_size)
        if new is None:
            return
        assert contents(new) == contents(source)
        assert fat_oracle.fsck(new)[0] == 0
        if volume.bits != 32:  # mtools takes a small FAT32 for another FAT
            assert fat_oracle.mtools_digests(new, place / "tree") == contents(source)


fat_volumes = given(
    shape=st.integers(0, len(SHAPES) - 1),
    seed=seeds,
    longest=st.sampled_from((0, 1, 3, 40)),
    crowded=st.booleans(),
    wanted=wanted_sizes,
    defragment=st.booleans(),
)


def test_a_few_fat_volumes() -> None:
    settings(quick, max_examples=8)(fat_volumes(random_fat))()


@pytest.mark.slow
def test_many_fat_volumes() -> None:
    settings(quick, max_examples=200)(fat_volumes(random_fat))()


def make_ntfs(path: Path, seed: int, cluster_bytes: int, full: bool, tiny: bool) -> None:
    """A volume with years of use behind it: written, deleted, written again; ``tiny``: hardly a record in use."""
    chance = random.Random(seed)
    ntfs.make_volume(path, chance.randrange(3 * MIB, 10 * MIB, 512), cluster_bytes=cluster_bytes)
    with ntfs.mounted(path) as root:
        with suppress(OSError):
            if cluster_bytes <= 4096:
                (root / "packed").mkdir()
                os.setxattr(root / "packed", ntfs.ATTRIBUTES, ntfs.COMPRESSED_DIRECTORY)
            for n in range(3 if tiny else chance.randrange(10, 90)):
                use_once(root, chance, n)
        if full:
            fill_up(root, chance, "all that is free")


def use_once(root: Path, chance: random.Random, n: int) -> None:
    """One thing that is done to a volume."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    name = f"{chance.randrange(4)}/{n} {'is a name' * chance.randrange(3)}"
    match chance.randrange(10):
        case 0 | 1 | 2 if files:
            chance.choice(files).unlink()
        case 3:
            (root / f"sparse {n}").touch()
            with (root / f"sparse {n}").open("r+b") as file:
                for _ in range(chance.randrange(1, 12)):
                    file.seek(chance.randrange(1 << 20))
                    file.write(chance.randbytes(chance.randrange(1, 9000)))
        case 4 if (root / "packed").is_dir():
            words = b" ".join(b"%d" % chance.randrange(99) for _ in range(chance.randrange(1, 30_000)))
            (root / "packed" / f"{n}").write_bytes(words)
        case 5 if files:
            (root / f"{chance.choice(files)}:stream").write_bytes(chance.randbytes(chance.randrange(4000)))
        case 6 if files:
            with chance.choice(files).open("ab") as file:
                file.write(chance.randbytes(chance.randrange(60_000)))
        case _:
            ntfs.write_tree(root, {name: chance.randbytes(chance.choice((0, 30, 700, 5000, 60_000, 300_000)))})


def random_ntfs(seed: int, cluster_bytes: int, full: bool, tiny: bool, wanted: Wanted, defragment: bool) -> None:
    with somewhere() as place:
        source = place / "v"
        make_ntfs(source, seed, cluster_bytes, full, tiny)
        image = captured(source, place / "i", defragment=defragment)
        new = restored_or_refused(image, place, wanted, source.stat().st_size)
        if new is not None:
            check("ntfs", new, contents(source))


ntfs_volumes = given(
    seed=seeds,
    cluster_bytes=st.sampled_from((512, 1024, 4096, 4096, 16384)),
    full=st.booleans(),
    tiny=st.booleans(),
    wanted=wanted_sizes,
    defragment=st.booleans(),
)


def test_a_few_ntfs_volumes() -> None:
    settings(quick, max_examples=2)(ntfs_volumes(random_ntfs))()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_ntfs_volumes() -> None:
    settings(quick, max_examples=80)(ntfs_volumes(random_ntfs))()


def random_ext(seed: int, kind: str, block: int, full: bool, steps: int, wanted: Wanted) -> None:
    with somewhere() as place:
        chance, source = random.Random(seed), place / "v"
        ext.make_volume(source, chance.randrange(4 * MIB, 24 * MIB, 4096), "-t", kind, "-b", str(block))
        with ext.mounted(source) as root:
            ext.work(root, seed, steps)
            (root / "sparse").write_bytes(b"x")
            os.truncate(root / "sparse", 1 << 20)
            if full:
                fill_up(root, chance, "all that is free")
        image = captured(source, place / "i")
        new = restored_or_refused(image, place, wanted, source.stat().st_size, exact=False)
        if new is not None:
            check("ext4", new, contents(source))


ext_volumes = given(
    seed=seeds,
    kind=st.sampled_from(("ext2", "ext3", "ext4")),
    block=st.sampled_from((1024, 4096)),
    full=st.booleans(),
    steps=st.integers(0, 300),
    wanted=wanted_sizes,
)


@needs_mount
def test_a_few_ext_volumes() -> None:
    settings(quick, max_examples=2)(ext_volumes(random_ext))()


@needs_mount
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_ext_volumes() -> None:
    settings(quick, max_examples=80)(ext_volumes(random_ext))()


def random_disk(seed: int, scheme: str, kinds: list[str], wanted: Wanted) -> None:
    with somewhere() as place:
        chance, script, at = random.Random(seed), f"label: {scheme}\n", 2048
        logical = scheme == "dos" and len(kinds) > 3
        for n, kind in enumerate(kinds):
            if logical and n == 2:
                script += f"start={at}, type=f\n"
                at += 2048
            length = {"ntfs": 12, "fat16": 6, "fat12": 4, "ext4": 14}.get(kind, 1) * MIB // 512
            script += f"start={at}, size={length}\n"
            at += length + 2048 + chance.choice((0, 0, 2048, 4096, 3 * 2048))
        size = (at + 2048) * 512 + chance.randrange(0, 12 * MIB, 512)
        disk = resized_disk.make(place / "disk", script, tuple(kinds), size)
        image = captured(disk.path, place / "i")
        new = restored_or_refused(image, place, wanted, size, exact="ext4" not in kinds)
        if new is not None:
            resized_disk.check(disk, new, place)


disks = given(
    seed=seeds,
    scheme=st.sampled_from(("dos", "gpt")),
    kinds=st.lists(st.sampled_from(("ntfs", "fat12", "fat16", "ext4", "raw", "swap", "blank")), min_size=1, max_size=5),
    wanted=wanted_sizes,
)


@needs_mount
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_disks() -> None:
    settings(quick, max_examples=60)(disks(random_disk))()
