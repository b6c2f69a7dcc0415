"""Volumes that others made: what independent readers and e2fsck saw is found, and damaged ones do no harm."""

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
from sqlimage.filesystem.contract import HOLE, EntryKind, read_all
from sqlimage.filesystem.ext import ExtVolume, is_ext
from sqlimage.media.file import FileDevice
from sqlimage.media.window import Window
from tests.conftest import images_directory, run
from tests.make.cost import PATIENCE
from tests.make.ext import mounted, needs_mount, recovered
from tests.make.ext_oracle import allocated_by_dumpe2fs, checked, keep_only, seen_by_kernel, seen_by_us

IMAGES = images_directory()
REFUSED = {
    "ext/e2fsprogs_f_uninit_enable.img.zst": "bg_checksum",
    "big/forensics-samples_fs.multiple.img.zst": "the medium has",
}
"""As by the kernel: descriptors that should have checksums have none; a volume is longer than its partition."""
NOT_READ_BY_OTHERS = {"ext/e2fsprogs_f_first_meta_bg_too_big.img.zst", "ext/e2fsprogs_f_zero_inode_size.img.zst"}
LONGER_THAN_ITS_SIZE = {"ext/syz_ext4_15.img.zst", "ext/syz_ext4_60.img.zst", "ext/syz_ext4_62.img.zst"}
"""Of their /file1, whose i_size is 10, the facts have all 60 bytes of i_block."""


def rows(*states: str) -> list[Any]:
    if IMAGES is None:
        return []
    with (IMAGES / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        pytest.param(row, id=row["path"])
        for row in found
        if row["status"] in states
        and row["path"].split("/")[0] in ("ext", "disk", "big", "corrupt")
        and ("ext" in row["fs"] or row["path"].startswith(("ext/", "corrupt/ext/")))
    ]


class Image:
    """An unpacked image and what is known of it."""

    def __init__(self, row: dict[str, Any], place: Path) -> None:
        assert IMAGES is not None
        self.path: str = row["path"]
        self.file = place / "image"
        run("zstd", "-dqf", "--sparse", "--long=27", IMAGES / self.path, "-o", self.file)
        self.device = FileDevice(self.file)
        known = json.loads((IMAGES / row["facts"]).read_text()) if row["facts"] else {}
        self.facts = [one for one in known.get("filesystems", []) if str(one["fs"]).startswith("ext")]

    def volumes(self) -> Iterator[tuple[dict[str, Any], BlockDevice]]:
        for facts in self.facts:
            end = min(facts["offset"] + (facts.get("psize") or self.device.size_bytes), self.device.size_bytes)
            yield facts, Window(self.device, facts["offset"], end - facts["offset"])


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    found = Image(request.param, tmp_path)
    yield found
    found.device.close()
    found.file.unlink()


@pytest.mark.parametrize("image", rows("valid", "quirky"), indirect=True)
def test_every_file_and_every_block_is_found(image: Image) -> None:
    if image.path in NOT_READ_BY_OTHERS:
        assert "/lost+found" in ExtVolume(image.device).scan().entries.path
        return
    assert image.facts
    for facts, device in image.volumes():
        if image.path in REFUSED:
            with pytest.raises(InconsistentVolume, match=REFUSED[image.path]):
                ExtVolume(device).scan()
            continue
        volume = ExtVolume(device)
        scan = volume.scan()
        allocated = volume.allocated()
        contents = scan.contents
        backed = contents.run_offset != HOLE
        assert allocated.covers(Runs.from_arrays(contents.run_offset[backed], contents.run_length[backed]))
        if volume.facts.dirty and any("journal" in note for note in volume.facts.notes):
            continue  # the readers did not follow its journal; e2fsck does, below
        record = dict(zip(scan.entries.path, scan.entries.record.tolist(), strict=True))
        for path, size, digest, *_ in facts.get("files", []):
            if path.startswith(("/[SYS]/", "/[UNKNOWN]/")):
                continue
            content = volume.open(record[path])
            found = sha256()
            for block in read_all(content):
                found.update(block)
            if path == "/file1" and image.path in LONGER_THAN_ITS_SIZE:
                assert (size, content.size_bytes) == (60, 10)
                continue
            assert content.size_bytes == size
            assert digest in (None, found.hexdigest()), path
        told = facts["alloc"]
        if volume.facts.bytes_per_cluster > told["cluster_size"]:  # of these the facts have not all
            assert allocated == allocated_by_dumpe2fs(image.file)
        elif told["alloc_clusters"] and not any("damaged" in note for note in volume.facts.notes):
            assert allocated.total == told["alloc_clusters"] * told["cluster_size"]
        assert volume.facts.may_share == ("shared_blocks" in told.get("features", ""))


@pytest.mark.slow
@pytest.mark.parametrize("image", rows("valid", "quirky"), indirect=True)
def test_what_is_kept_is_enough_for_e2fsck(image: Image, tmp_path: Path) -> None:
    if image.path in REFUSED or not image.path.startswith("ext/"):
        return
    kept = keep_only(image.file, ExtVolume(image.device), tmp_path / "kept")
    assert checked(kept) == checked(image.file)


@needs_mount
@pytest.mark.parametrize("image", rows("valid", "quirky", "corrupt"), indirect=True)
def test_one_whose_journal_is_to_be_recovered_is_seen_as_e2fsck_leaves_it(image: Image, tmp_path: Path) -> None:
    try:
        volume = ExtVolume(image.device)
        facts = volume.facts
    except InconsistentVolume:
        return
    if not any("needs recovery" in note for note in facts.notes) or "another device" in str(facts.notes):
        return
    after = recovered(image.file, tmp_path / "after")
    with mounted(after, "ro") as root:
        wanted = seen_by_kernel(root)
    assert volume.allocated().covers(allocated_by_dumpe2fs(after))
    if any("fast commits" in note for note in facts.notes):
        assert seen_by_us(volume) != wanted
    else:
        assert seen_by_us(volume) == wanted


@pytest.mark.parametrize("image", rows("corrupt", "truncated"), indirect=True)
def test_a_damaged_volume_is_refused_or_read_within_seconds(image: Image) -> None:
    started = time.monotonic()
    try:
        volume = ExtVolume(image.device)
        facts = volume.facts
        assert facts.size_bytes <= image.device.size_bytes
        assert Runs.of([(0, facts.size_bytes)]).covers(volume.allocated())
        entries = volume.scan().entries
    except InconsistentVolume as error:
        assert error.structure and error.problem
    else:
        assert len(set(entries.path)) == len(entries)
        for kind, record in zip(entries.kind, entries.record.tolist(), strict=True):
            if kind == EntryKind.FILE:
                with suppress(InconsistentVolume):
                    volume.open(record).read(0, 1 << 20)
    assert time.monotonic() - started < 10 * PATIENCE


def test_the_superblock_tells_ext_from_every_other_medium() -> None:
    for param in rows("valid", "quirky"):
        (row,) = param.values
        if row["path"].startswith("ext/"):
            head = run("sh", "-c", f"zstd -dqc --long=27 '{IMAGES}/{row['path']}' | head -c 2048").stdout
            assert is_ext(head)
    assert not is_ext(b"") and not is_ext(bytes(4096))
