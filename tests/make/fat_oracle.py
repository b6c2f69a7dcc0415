"""Carries out a FAT volume's relocation, and asks others whether the result is right: fsck.fat, mtools, our reader."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
from pathlib import Path

import numpy as np

from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, ContentFlag, EntryKind, Scan, read_all
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.media.file import FileDevice
from tests.conftest import run
from tests.make import relocated
from tests.make.fat import mtools_environment


def digests(volume: FatVolume, scan: Scan) -> dict[str, str]:
    """SHA-256 of every file by path, as our reader has it."""
    entries, found = scan.entries, {}
    for path, kind, record in zip(entries.path, entries.kind, entries.record.tolist(), strict=True):
        if kind == EntryKind.FILE:
            digest = hashlib.sha256()
            for block in read_all(volume.open(record)):
                digest.update(block)
            found[path] = digest.hexdigest()
    return found


def mtools_digests(path: Path, work: Path) -> dict[str, str]:
    """The same by mcopy, which copies the whole tree out."""
    work.mkdir()
    run("mcopy", "-i", path, "-s", "-n", "-Q", "::", work, env=mtools_environment())
    found = {}
    for file in sorted(work.rglob("*")):
        if file.is_file():
            found["/" + str(file.relative_to(work))] = hashlib.sha256(file.read_bytes()).hexdigest()
    subprocess.run(["rm", "-rf", work], check=True)
    return found


def fsck(path: Path) -> tuple[int, bytes]:
    """The exit code and what it says; 0: nothing is wrong."""
    done = subprocess.run(["fsck.fat", "-n", path], capture_output=True, check=False)
    return done.returncode, done.stdout


def carry_out(source: Path, wish: Wish, target: Path, *, mtools: bool = True, checker: bool = True) -> Relocation:
    """Relocate into ``target`` and check all that must hold of any relocation. ``checker`` False: fsck.fat has
    something to say of the old volume already."""
    device = FileDevice(source)
    old = FatVolume(device)
    scan = old.scan()
    plan = old.relocate(scan, wish)
    relocated.apply(device, plan, target)
    new_device = FileDevice(target)
    new = FatVolume(new_device)
    new_scan = new.scan()
    assert dataclasses.replace(new.facts, notes=plan.facts.notes) == plan.facts
    assert new.allocated() == plan.allocated
    same_scan(new_scan, plan.scan)
    same_contents(scan, new_scan)
    told = digests(old, scan)
    assert digests(new, new_scan) == told
    kept = Runs.from_arrays(plan.moved_from, plan.moved_length)
    assert old.allocated().covers(kept)
    assert kept.covers(Runs.from_arrays(scan.contents.run_offset, scan.contents.run_length))
    if checker:
        code, text = fsck(target)
        assert code == 0, text
    if mtools:
        assert mtools_digests(target, target.with_suffix(".tree")) == told
    device.close()
    new_device.close()
    return plan


def same_scan(one: Scan, other: Scan) -> None:
    for part in ("entries", "contents"):
        for field in dataclasses.fields(getattr(one, part)):
            a, b = (getattr(getattr(scan, part), field.name) for scan in (one, other))
            assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


def same_contents(old: Scan, new: Scan) -> None:
    """All but the places."""
    assert new.entries.path == old.entries.path
    for name in ("kind", "content", "modified_ns", "attributes"):
        assert np.array_equal(getattr(new.entries, name), getattr(old.entries, name)), name
    for name in ("size_bytes", "valid_bytes", "flags"):
        assert np.array_equal(getattr(new.contents, name), getattr(old.contents, name)), name


def in_pieces(scan: Scan) -> list[str]:
    """Files and directories of more than one run."""
    return [scan.entries.path[row] for row in np.flatnonzero(np.diff(scan.contents.first_run) > 1).tolist()]


def walked(scan: Scan) -> list[str]:
    """Paths with clusters as a walk of the tree meets them: a directory, its files, then the directories in it."""
    contents, entries = scan.contents, scan.entries
    children: dict[str, list[int]] = {}
    for row, path in enumerate(entries.path[1:], start=1):
        children.setdefault(path.rpartition("/")[0] or "/", []).append(row)
    order, waiting = [], [0]
    while waiting:
        row = waiting.pop()
        below = children.get(entries.path[row], [])
        directory = (contents.flags[below] & ContentFlag.INDEX) != 0
        order += [row, *(child for child, is_directory in zip(below, directory, strict=True) if not is_directory)]
        waiting += [child for child, is_directory in zip(below, directory, strict=True) if is_directory][::-1]
    runs = np.diff(contents.first_run)
    return [entries.path[row] for row in order if runs[row]]


def by_place(scan: Scan) -> list[str]:
    """Paths with clusters in the order of their first runs."""
    contents = scan.contents
    rows = np.flatnonzero(np.diff(contents.first_run))
    first = contents.run_offset[contents.first_run[rows]]
    assert (first != HOLE).all()
    return [scan.entries.path[row] for row in rows[np.argsort(first)].tolist()]
