"""Volumes that others made: every file that independent readers saw is found, and every cluster is accounted for."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import EntryKind, read_all
from sqlimage.filesystem.fat import FatVolume, is_fat
from sqlimage.media.file import FileDevice
from tests.conftest import images_directory, run
from tests.make.cost import PATIENCE

KINDS = {"fat12", "fat16", "fat32", "vfat"}


@dataclass(frozen=True)
class Image:
    path: Path
    status: str
    fs: str
    facts: Path

    @property
    def whole_facts(self) -> dict[str, Any]:
        return json.loads(self.facts.read_text())  # type: ignore[no-any-return]


def images() -> Iterator[Image]:
    directory = images_directory()
    if directory is None:
        return
    head, *rows = (line.split("\t") for line in (directory / "MANIFEST.tsv").read_text().splitlines())
    for row in rows:
        cell = dict(zip(head, row, strict=False))
        if not cell["path"].startswith("container/"):
            yield Image(directory / cell["path"], cell["status"], cell["fs"], directory / cell.get("facts", ""))


def select(*status: str) -> list[Any]:
    """Bare FAT volumes of these states, as parameters."""
    wanted = [image for image in images() if image.fs in KINDS and image.status in status]
    return [pytest.param(image, id=image.path.name.removesuffix(".zst")) for image in wanted]


def unpacked(image: Image, tmp_path: Path) -> FileDevice:
    out = tmp_path / "image"
    run("zstd", "-dqf", "--sparse", "--long=27", image.path, "-o", out)
    return FileDevice(out)


def digests(volume: FatVolume) -> dict[str, tuple[int, str]]:
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


@pytest.mark.parametrize("image", select("valid", "quirky"))
def test_every_file_and_cluster_is_the_one_that_others_saw(image: Image, tmp_path: Path) -> None:
    device = unpacked(image, tmp_path)
    volume = FatVolume(device)
    found, facts = digests(volume), volume.facts
    seen = image.whole_facts["filesystems"][0]
    for path, size, digest in seen["files"]:
        if digest:
            assert found[path] == (size, digest), path

    taken = volume.allocated().total - (facts.size_bytes - facts.total_clusters * facts.bytes_per_cluster)
    told = seen["alloc"]
    assert facts.total_clusters == told["total_clusters"]
    if "corrupt" not in image.facts.name and facts.file_system == f"fat{told['fat_type']}":
        assert taken == told["alloc_clusters"] * facts.bytes_per_cluster
    if image.status == "valid":  # also where the facts are of another state, or small FAT32 was counted as FAT12
        clusters = re.search(rb"(\d+)/\d+ clusters", run("fsck.fat", "-n", device.path).stdout)
        assert clusters is not None
        assert taken == int(clusters[1]) * facts.bytes_per_cluster

    printed = image.whole_facts["blkid"]
    if "LABEL" in printed:  # of the root directory only; ours may be the boot sector's where that has none
        assert facts.label == printed["LABEL"].replace("\\ ", " ")
    if "UUID" in printed:
        assert facts.serial == printed["UUID"].replace("-", "")


@pytest.mark.parametrize("image", select("corrupt", "truncated"))
def test_damaged_volumes_are_refused_or_read_in_bounded_time(image: Image, tmp_path: Path) -> None:
    device = unpacked(image, tmp_path)
    started = time.monotonic()
    try:
        volume = FatVolume(device)
        digests(volume)
        assert Runs.of([(0, volume.facts.size_bytes)]).covers(volume.allocated())
    except InconsistentVolume as refused:
        assert str(refused)
    assert time.monotonic() - started < 10 * PATIENCE
    if image.status == "truncated":
        with pytest.raises(InconsistentVolume, match="medium has"):
            FatVolume(device)


def test_the_boot_sector_tells_fat_from_every_other_medium() -> None:
    for image in images():
        with subprocess.Popen(["zstd", "-dqc", "--long=27", image.path], stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            boot_sector = program.stdout.read(512)
            program.kill()
        assert is_fat(boot_sector) == (image.fs in KINDS), image.path
