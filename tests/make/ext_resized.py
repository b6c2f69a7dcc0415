"""ext volumes made without the kernel, brought to other sizes, and what can be said of the result."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.extent import Runs
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.journey.ext_resize import ResizedExt, resized
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise
from tests.make.ext import make_volume
from tests.make.ext_oracle import checked, seen_by_us

KINDS: dict[str, tuple[str, ...]] = {
    "ext2 1K": ("-t", "ext2", "-b", "1024"),
    "ext2 4K": ("-t", "ext2", "-b", "4096"),
    "ext2 of revision 0": ("-t", "ext2", "-b", "1024", "-r", "0"),
    "ext3 1K": ("-t", "ext3", "-b", "1024"),
    "ext3 4K": ("-t", "ext3", "-b", "4096"),
    "ext4 1K": ("-t", "ext4", "-b", "1024"),
    "ext4 2K": ("-t", "ext4", "-b", "2048"),
    "ext4 4K": ("-t", "ext4", "-b", "4096"),
    "no journal": ("-t", "ext4", "-O", "^has_journal"),
    "no resize_inode": ("-t", "ext4", "-b", "1024", "-O", "^resize_inode"),
    "meta_bg": ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"),
    "no flex_bg": ("-t", "ext4", "-b", "1024", "-O", "^flex_bg"),
    "no 64bit": ("-t", "ext4", "-O", "^64bit"),
    "no extents": ("-t", "ext4", "-O", "^extent,^64bit"),
    "uninit_bg": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg"),
    "bigalloc": ("-t", "ext4", "-b", "4096", "-O", "bigalloc"),
    "quota": ("-t", "ext4", "-O", "quota,project"),
    "casefold": ("-t", "ext4", "-O", "casefold"),
    "encrypt": ("-t", "ext4", "-O", "encrypt"),
    "verity": ("-t", "ext4", "-O", "verity"),
    "orphan_file": ("-t", "ext4", "-O", "orphan_file"),
    "sparse_super2": ("-t", "ext4", "-b", "1024", "-O", "sparse_super2,^resize_inode"),
    "inline_data": ("-t", "ext4", "-O", "inline_data", "-I", "512"),
    "ea_inode": ("-t", "ext4", "-O", "ea_inode"),
    "large_dir": ("-t", "ext4", "-O", "large_dir"),
    "metadata_csum_seed": ("-t", "ext4", "-O", "metadata_csum_seed"),
    "fast_commit": ("-t", "ext4", "-O", "fast_commit"),
    "inodes of 128 bytes": ("-t", "ext4", "-I", "128"),
    "small groups": ("-t", "ext4", "-b", "1024", "-g", "1024"),
    "few inodes": ("-t", "ext4", "-N", "400"),
    "RAID stride": ("-t", "ext4", "-E", "stride=16,stripe-width=32"),
}


def make_tree(root: Path, total_bytes: int, seed: int = 1) -> Path:
    """Files of all sizes, sparse ones, hard links, symbolic links, attributes; and one that is called ``known``."""
    chance = random.Random(seed)
    root.mkdir()
    (root / "known").write_bytes(noise("known", 100_000))
    directories, done, n = [root], 0, 0
    while done < total_bytes:
        if chance.random() < 0.1:
            directories.append(chance.choice(directories) / f"directory {n}")
            directories[-1].mkdir()
        path = chance.choice(directories) / f"file {n}"
        size = chance.choice((0, 100, 5000, 20_000, 100_000, chance.randrange(1, MIB)))
        with path.open("wb") as file:
            if chance.random() < 0.2:
                file.seek(chance.randrange(MIB))
            file.write(noise((seed, n), size))
        if n % 7 == 0:
            os.link(path, f"{path} again")
            os.symlink("t" * chance.choice((5, 70, 300)), f"{path} linked")
        if n % 5 == 0:
            with suppress(OSError):  # the temporary directory may have none
                os.setxattr(path, "user.a", noise(n, chance.choice((10, 600))))
        done, n = done + size, n + 1
    return root


def filled(path: Path, size_bytes: int, kind: str, tree: Path) -> Path:
    return make_volume(path, size_bytes, *KINDS[kind], "-d", tree)


def filled_at_its_end(path: Path, size_bytes: int, kind: str, files: int = 20, each_bytes: int = 200_000) -> Path:
    """A volume whose files lie behind a large one that has been removed."""
    ballast, source = path.with_name("ballast"), path.with_name("source")
    ballast.mkdir()
    (ballast / "ballast").write_bytes(b"b" * (size_bytes // 2))
    make_volume(path, size_bytes, *KINDS[kind], "-d", ballast)
    source.write_bytes(noise("source", each_bytes))
    commands = path.with_name("commands")
    lines = [f"mkdir d{n}\ncd d{n}\nwrite {source} high\ncd /\n" for n in range(files)]
    commands.write_text("".join(lines) + "rm ballast\n")
    run("debugfs", "-w", "-f", commands, path)
    for left in (ballast / "ballast", source, commands):
        left.unlink()
    ballast.rmdir()
    return path


def seen(path: Path) -> dict[bytes, tuple[object, ...]]:
    """What our reader tells of a volume, but for the numbers of inodes, which change."""
    device = FileDevice(path)
    try:
        return {name: one[1:] for name, one in seen_by_us(ExtVolume(device)).items()}
    finally:
        device.close()


def write_resized(source: BlockDevice, plan: ResizedExt, target: Path, *, fresh: bool = True) -> Path:
    """What a restore does with a plan: data from the source, control information from the plan, the rest zeroed."""
    if fresh:
        with target.open("wb") as file:
            file.truncate(plan.facts.size_bytes)
    device = WritableFileDevice(target)
    rows = zip(plan.moved_from.tolist(), plan.moved_to.tolist(), plan.moved_length.tolist(), strict=True)
    for old, new, length in rows:
        for at in range(0, length, MIB):
            device.write(new + at, source.read(old + at, min(MIB, length - at)))
    plan.write_control(device, fresh=fresh)
    device.flush()
    device.close()
    return target


def brought_to(volume: Path, size_bytes: int, target: Path) -> tuple[str, ...]:
    """Resize a volume into a file and check that nothing is lost; the notes."""
    device = FileDevice(volume)
    with resized(device, size_bytes) as plan:
        check_plan(plan, device.size_bytes, size_bytes)
        write_resized(device, plan, target)
    device.close()
    assert target.stat().st_size == plan.facts.size_bytes <= size_bytes
    assert checked(target) == 0
    return plan.notes


def check_plan(plan: ResizedExt, old_bytes: int, size_bytes: int) -> None:
    """Places are inside the volumes, sorted and disjoint, and together make up what is allocated."""
    moved = Runs.from_arrays(plan.moved_to, plan.moved_length)
    assert (np.diff(plan.moved_to) > 0).all()
    assert moved.total == plan.moved_length.sum() == Runs.from_arrays(plan.moved_from, plan.moved_length).total
    assert not len(moved.intersect(plan.control))
    assert plan.allocated.covers(moved.union(plan.control))
    assert not len(plan.allocated) or plan.allocated.end[-1] <= plan.facts.size_bytes <= size_bytes
    assert not len(moved) or int((plan.moved_from + plan.moved_length).max()) <= old_bytes
