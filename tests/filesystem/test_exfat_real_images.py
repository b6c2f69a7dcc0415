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

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import EntryKind, read_all
from sqlimage.filesystem.exfat import ExfatVolume, is_exfat
from sqlimage.media.file import FileDevice
from sqlimage.media.window import Window
from tests.conftest import images_directory, run
from tests.make.cost import PATIENCE


@dataclass(frozen=True)
class Image:
    path: Path
    status: str
    facts: Path

    @property
    def whole_facts(self) -> dict[str, Any]:
        return json.loads(self.facts.read_text())  # type: ignore[no-any-return]


def images() -> Iterator[tuple[Image, str]]:
    """Every medium, and the names of its file systems."""
    directory = images_directory()
    if directory is None:
        return
    head, *rows = (line.split("\t") for line in (directory / "MANIFEST.tsv").read_text().splitlines())
    for row in rows:
        cell = dict(zip(head, row, strict=False))
        if not cell["path"].startswith("container/"):
            yield Image(directory / cell["path"], cell["status"], directory / cell.get("facts", "")), cell["fs"]


def select(*status: str) -> list[Any]:
    """Media of these states with an exFAT volume, as parameters."""
    wanted = [image for image, kinds in images() if "exfat" in kinds and image.status in status]
    return [pytest.param(image, id=image.path.name.removesuffix(".zst")) for image in wanted]


def unpacked(image: Image, tmp_path: Path) -> FileDevice:
    out = tmp_path / "image"
    run("zstd", "-dqf", "--sparse", "--long=27", image.path, "-o", out)
    return FileDevice(out)


def volumes(image: Image, device: BlockDevice) -> Iterator[tuple[Window, dict[str, Any]]]:
    """The exFAT volumes of a medium, and what others saw of each."""
    for seen in image.whole_facts["filesystems"]:
        if seen["fs"] == "exfat":
            length = min(seen["psize"], device.size_bytes - seen["offset"])
            yield Window(device, seen["offset"], length), seen


def digests(volume: ExfatVolume) -> dict[str, tuple[int, str]]:
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
    checked = 0
    for device, seen in volumes(image, unpacked(image, tmp_path)):
        told = seen["alloc"]
        if told["total_clusters"] * told["cluster_size"] > device.size_bytes:
            with pytest.raises(InconsistentVolume, match=r"VolumeLength.*the medium has"):
                ExfatVolume(device)
            checked += 1
            continue  # it reaches over the partition behind it
        volume = ExfatVolume(device)
        found, facts = digests(volume), volume.facts
        alone = tmp_path / "alone"
        alone.write_bytes(device.read(0, device.size_bytes))
        counted = re.search(rb"directories (\d+), files (\d+)", run_checker(alone))
        assert counted is not None
        if len(found) == len(seen["files"]):
            for path, size, digest in seen["files"]:
                assert found[path] == (size, digest), path
        else:  # the other reader went on behind the end of directories
            assert len(found) == int(counted[2]) < len(seen["files"])
            others = {path: (size, digest) for path, size, digest in seen["files"]}
            assert {path: others[path] for path in found} == found
        assert (facts.total_clusters, facts.bytes_per_cluster) == (told["total_clusters"], told["cluster_size"])
        outside = facts.size_bytes - facts.total_clusters * facts.bytes_per_cluster
        taken = (volume.allocated().total - outside) // facts.bytes_per_cluster
        if told["alloc_clusters"] > 0:  # dump.exfat takes another entry for that of the bitmap where it is 0
            assert taken == told["alloc_clusters"]
        scan = volume.scan()
        runs = Runs.from_arrays(scan.contents.run_offset, scan.contents.run_length)
        assert volume.allocated().covers(runs)
        assert runs.total == taken * facts.bytes_per_cluster
        printed = {} if seen["offset"] else image.whole_facts["blkid"]
        if printed:
            assert facts.label == printed.get("LABEL")
            assert facts.serial == printed["UUID"].replace("-", "")
        checked += 1
    assert checked


def run_checker(path: Path) -> bytes:
    """What fsck.exfat says of a volume, whatever it finds."""
    return subprocess.run(["fsck.exfat", "-n", path], capture_output=True, check=False, timeout=60).stdout


@pytest.mark.parametrize("image", select("corrupt", "truncated"))
def test_damaged_volumes_are_refused_or_read_in_bounded_time(image: Image, tmp_path: Path) -> None:
    for device, _ in volumes(image, unpacked(image, tmp_path)):
        started = time.monotonic()
        try:
            volume = ExfatVolume(device)
            digests(volume)
            assert Runs.of([(0, volume.facts.size_bytes)]).covers(volume.allocated())
        except InconsistentVolume as refused:
            assert str(refused)
        assert time.monotonic() - started < 10 * PATIENCE


REFUSED = {
    "exfatprogs_bad_bitmap_size.img": "Allocation Bitmap Directory Entry.*DataLength is 142",
    "exfatprogs_bad_first_clu.img": "SetChecksum",
    "exfatprogs_bad_root.img": "root directory.*leads out of the cluster heap",
    "exfatprogs_de_bad_csum.img": "SetChecksum",
    "exfatprogs_file_invalid_clus.img": "SetChecksum",
}


@pytest.mark.parametrize("image", select("corrupt"))
def test_what_is_damaged_is_named(image: Image, tmp_path: Path) -> None:
    expected = REFUSED.get(image.path.name.removesuffix(".zst"))
    for device, _ in volumes(image, unpacked(image, tmp_path)):
        if expected:
            with pytest.raises(InconsistentVolume, match=expected):
                ExfatVolume(device).scan()
        else:
            volume = ExfatVolume(device)
            volume.scan()
            assert ("backup" in str(volume.facts.notes)) == ("bs_bad_csum" in image.path.name)


def test_the_first_sectors_tell_exfat_from_every_other_medium() -> None:
    for image, kinds in images():
        with subprocess.Popen(["zstd", "-dqc", "--long=27", image.path], stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            head = program.stdout.read(4096)
            program.kill()
        is_bare = kinds == "exfat" and image.path.parent.name != "disk"
        assert is_exfat(head) == is_bare, image.path
