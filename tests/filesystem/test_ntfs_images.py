"""Real NTFS volumes that others made: every file has the digest independent readers agreed on; damaged ones are
refused or read, quickly and without a crash."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import read_all
from sqlimage.filesystem.ntfs.volume import NtfsVolume, is_ntfs
from sqlimage.media.file import FileDevice
from sqlimage.media.window import Window
from tests.conftest import images_directory, run
from tests.make.cost import PATIENCE

EVERYDAY_BYTES = 1 << 30
IMAGES = images_directory()


def rows(*states: str) -> list[Any]:
    """The manifest's NTFS images of some states; those of many GiB are for the slow run."""
    if IMAGES is None:
        return []
    with (IMAGES / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        found = [r for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if "ntfs" in r["fs"]]
    marks = [pytest.mark.slow] if states == ("valid", "quirky") else []
    return [
        pytest.param(row, id=row["path"], marks=marks if int(row["size"]) > EVERYDAY_BYTES else [])
        for row in found
        if row["status"] in states
    ]


@pytest.fixture
def volumes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[tuple[dict[str, Any], BlockDevice]]]:
    """The NTFS volumes on the image that a manifest's row names, with what is known of them."""
    assert IMAGES is not None
    row = request.param
    image = tmp_path / "image"
    run("zstd", "-dqf", "--sparse", "--long=27", IMAGES / row["path"], "-o", image)
    device = FileDevice(image)
    known = json.loads((IMAGES / row["facts"]).read_text()).get("filesystems") or [{"fs": "ntfs", "offset": 0}]
    yield [
        (facts, Window(device, facts["offset"], facts.get("psize") or device.size_bytes))
        for facts in known
        if facts["fs"] == "ntfs"
    ]
    device.close()
    image.unlink()


@pytest.mark.parametrize("volumes", rows("valid", "quirky"), indirect=True)
def test_every_file_and_every_cluster_is_found(volumes: list[tuple[dict[str, Any], BlockDevice]]) -> None:
    assert volumes
    for facts, device in volumes:
        assert is_ntfs(device.read(0, 512))
        volume = NtfsVolume(device)
        scan = volume.scan()
        content = dict(zip(scan.entries.path, scan.entries.content.tolist(), strict=True))
        for path, size, digest, *_ in facts["files"]:
            row = content[path]
            assert scan.contents.size_bytes[row] == size
            stream = volume.open(int(scan.contents.record[row]), scan.contents.stream[row])
            found = sha256()
            for block in read_all(stream):
                found.update(block)
            assert digest in (None, found.hexdigest()), path
        told = facts["alloc"]
        assert volume.facts.bytes_per_cluster == told["cluster_size"]
        assert volume.facts.total_clusters == told["total_clusters"]
        heap = volume.allocated().clip(0, told["total_clusters"] * told["cluster_size"])
        assert heap.total == told["alloc_clusters"] * told["cluster_size"]
        backed = scan.contents.run_offset >= 0
        assert heap.covers(Runs.from_arrays(scan.contents.run_offset[backed], scan.contents.run_length[backed]))


@pytest.mark.parametrize("volumes", rows("corrupt", "truncated"), indirect=True)
def test_a_damaged_volume_is_refused_or_read_within_seconds(volumes: list[tuple[dict[str, Any], BlockDevice]]) -> None:
    started = time.monotonic()
    for _, device in volumes:
        if not is_ntfs(device.read(0, 512)):
            continue
        try:
            volume = NtfsVolume(device)
            assert volume.facts.size_bytes <= device.size_bytes
            assert volume.allocated().total <= device.size_bytes
            contents = volume.scan().contents
        except InconsistentVolume as error:
            assert error.structure and error.problem
            continue
        for row in range(len(contents)):
            with suppress(InconsistentVolume):
                volume.open(int(contents.record[row]), contents.stream[row]).read(0, 1 << 20)
    assert time.monotonic() - started < 10 * PATIENCE
