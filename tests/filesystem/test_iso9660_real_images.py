"""Volumes that others made: every file that independent readers saw is found, under its name and with its bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import EntryKind, read_all
from sqlimage.filesystem.iso9660 import IsoVolume, is_iso9660
from sqlimage.media.file import FileDevice
from tests.conftest import images_directory, run
from tests.make.cost import PATIENCE


def images(*status: str) -> list[Any]:
    """Packed image and facts of every ISO 9660 volume in one of these states, as parameters."""
    directory = images_directory()
    found: list[Any] = []
    if directory is None:
        return found
    with (directory / "MANIFEST.tsv").open() as manifest:
        for row in csv.DictReader(manifest, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["fs"] == "iso9660" and row["status"] in status:
                path = directory / row["path"]
                found.append(pytest.param(path, directory / row["facts"], id=path.name.removesuffix(".zst")))
    return found


def unpacked(image: Path, tmp_path: Path) -> FileDevice:
    run("zstd", "-dqf", "--sparse", "--long=27", image, "-o", tmp_path / "image")
    return FileDevice(tmp_path / "image")


def digests(volume: IsoVolume) -> dict[str, tuple[int, str]]:
    """(size, SHA-256) of every file, by path."""
    found = {}
    entries = volume.scan().entries
    for path, kind, record in zip(entries.path, entries.kind, entries.record.tolist(), strict=True):
        if kind == EntryKind.FILE:
            content, digest = volume.open(record), hashlib.sha256()
            for block in read_all(content):
                digest.update(block)
            found[path] = content.size_bytes, digest.hexdigest()
    return found


@pytest.mark.parametrize(("image", "facts_of"), images("valid", "quirky"))
def test_every_file_is_the_one_that_others_saw(image: Path, facts_of: Path, tmp_path: Path) -> None:
    device = unpacked(image, tmp_path)
    assert is_iso9660(device)
    volume = IsoVolume(device)
    told = json.loads(facts_of.read_text())
    seen, facts = told["filesystems"][0], volume.facts
    found = digests(volume)
    assert found == {path: (size, digest) for path, size, digest in seen["files"]}
    assert len(found) == seen["nfiles"]
    if "alloc" in seen:
        assert facts.total_clusters == seen["alloc"]["total_clusters"]
    assert volume.allocated() == Runs.of([(0, facts.size_bytes)])

    printed = run("blkid", "-p", "-o", "export", device.path).stdout.decode("utf-8", "replace").splitlines()
    lines = dict(line.split("=", 1) for line in printed)
    assert facts.serial == lines.get("UUID")
    if "M-" not in lines.get("LABEL", ""):  # how blkid prints what is not ASCII
        assert facts.label == (lines["LABEL"].replace("\\ ", " ") if "LABEL" in lines else None)


@pytest.mark.parametrize(("image", "_"), images("corrupt", "truncated"))
def test_damaged_volumes_are_refused_or_read_in_bounded_time(image: Path, _: Path, tmp_path: Path) -> None:
    device = unpacked(image, tmp_path)
    started = time.monotonic()
    try:
        volume = IsoVolume(device)
        assert Runs.of([(0, volume.facts.size_bytes)]).covers(volume.allocated())
        digests(volume)
    except InconsistentVolume as refused:
        assert str(refused)
    assert time.monotonic() - started < 10 * PATIENCE
