"""Real NTFS volumes that others made, Windows among them, laid out anew: right in every way, or refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.filesystem.ntfs.volume import NtfsVolume, is_ntfs
from sqlimage.filesystem.relocation import Wish
from sqlimage.media.file import FileDevice
from sqlimage.media.window import Window
from tests.conftest import images_directory, run
from tests.make.ntfs_relocated import check_by_others, relocated, scattered

EVERYDAY_BYTES = 1 << 29
SMALL_SECTORS = "ntfs/syz_ntfs_0.img.zst"
"""Its sectors have 256 bytes."""
CLUSTERS_UNKNOWN_TO_OTHERS = 2 << 20
IMAGES = images_directory()


def rows(*states: str) -> list[Any]:
    """The manifest's NTFS images of some states."""
    if IMAGES is None:
        return []
    with (IMAGES / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        found = [r for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if "ntfs" in r["fs"]]
    return [
        pytest.param(row, id=row["path"], marks=[pytest.mark.slow] if int(row["size"]) > EVERYDAY_BYTES else [])
        for row in found
        if row["status"] in states
    ]


@pytest.fixture
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, BlockDevice]]:
    """The first NTFS volume of the image that a manifest's row names."""
    assert IMAGES is not None
    row = request.param
    image = tmp_path / "image"
    run("zstd", "-dqf", "--sparse", "--long=27", IMAGES / row["path"], "-o", image)
    whole = FileDevice(image)
    known = json.loads((IMAGES / row["facts"]).read_text()).get("filesystems") or [{"fs": "ntfs", "offset": 0}]
    facts = next(facts for facts in known if facts["fs"] == "ntfs")
    yield row["path"], Window(whole, facts["offset"], facts.get("psize") or whole.size_bytes)
    whole.close()
    image.unlink()


def wishes(size: int, smallest: int) -> list[Wish]:
    return [
        Wish(defragment=True),
        Wish(defragment=True, size_bytes=smallest),
        Wish(size_bytes=smallest),
        Wish(size_bytes=(size + smallest) // 2),
        Wish(size_bytes=size * 3 + 5, hidden_sectors=128),
        Wish(hidden_sectors=63, sectors_per_track=63, tracks_per_cylinder=255),
    ]


@pytest.mark.parametrize("device", rows("valid", "quirky"), indirect=True)
def test_a_volume_of_others_becomes_what_is_wished(device: tuple[str, BlockDevice], tmp_path: Path) -> None:
    path, source = device
    volume = NtfsVolume(source)
    scan = volume.scan()
    smallest = volume.smallest_bytes(scan)
    if path == SMALL_SECTORS:
        with pytest.raises(RefusedError, match="sectors of 256 bytes"):
            volume.relocate(scan, Wish(defragment=True))
        return
    for wish in wishes(volume.facts.size_bytes, smallest):
        relocation = relocated(source, wish, tmp_path / "new.img")
        if volume.facts.bytes_per_cluster < CLUSTERS_UNKNOWN_TO_OTHERS:
            check_by_others(tmp_path / "new.img")
        if wish.defragment:
            assert scattered(relocation.scan) == []
    with pytest.raises(RefusedError, match=f"needs {smallest} bytes"):
        volume.relocate(scan, Wish(size_bytes=smallest - 1))


@pytest.mark.parametrize("device", rows("corrupt", "truncated"), indirect=True)
def test_a_damaged_volume_is_refused_or_becomes_what_is_wished(device: tuple[str, BlockDevice], tmp_path: Path) -> None:
    _, source = device
    if not is_ntfs(source.read(0, 512)):
        return
    with suppress(InconsistentVolume):
        volume = NtfsVolume(source)
        scan = volume.scan()
        for wish in wishes(volume.facts.size_bytes, volume.smallest_bytes(scan)):
            with suppress(InconsistentVolume, RefusedError):
                relocated(source, wish, tmp_path / "new.img")
