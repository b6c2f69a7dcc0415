"""Real images that others made: what the manifest says of them is what we say; none does us harm."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

import sqlimage
from tests.conftest import images_directory
from tests.images import check_restored

IMAGES = images_directory()
LARGEST = 300 << 20
"""Larger ones (of holes, mostly) are left to the slow part."""
READ_BY_US = ("ntfs", "fat12", "fat16", "fat32", "vfat", "ext2", "ext3", "ext4")
OTHERS_DIFFER = {
    # debugfs gives all 60 bytes of i_block where i_size is 10; the kernel gives 10, and so do we.
    "ext/syz_ext4_15.img": "/file1",
    "ext/syz_ext4_60.img": "/file1",
    "ext/syz_ext4_62.img": "/file1",
    # They read the volume before its journal is recovered; e2fsck and the kernel recover it first, and so do we.
    "ext/e2fsprogs_j_corrupt_revoke_csum.img": "/a",
}
"""A file of an image of which other readers give other bytes than its driver."""


def rows() -> list[dict[str, str]]:
    if IMAGES is None:
        return []
    with (IMAGES / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if not row["path"].startswith("container/")]


def name(row: dict[str, str]) -> str:
    return row["path"].removesuffix(".zst")


def unpacked(row: dict[str, str], target: Path) -> Path:
    assert IMAGES
    command = ["zstd", "-dqf", "--sparse", "--long=27", str(IMAGES / row["path"]), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def readable(row: dict[str, str]) -> bool:
    return row["status"] in ("valid", "quirky")


@pytest.mark.skipif(IMAGES is None, reason="the collection of real images is not at hand (SQLIMAGE_IMAGES)")
def test_the_collection_is_at_hand() -> None:
    assert len(rows()) > 300


@pytest.mark.parametrize("row", [r for r in rows() if int(r["size"] or 0) <= LARGEST], ids=name)
def test_a_real_image_comes_back_bit_for_bit_or_is_refused_by_name(row: dict[str, str], tmp_path: Path) -> None:
    raw = unpacked(row, tmp_path / "raw")
    try:
        report = sqlimage.capture(raw, tmp_path / "i.sqlimage", preset="fast")
    except sqlimage.SqlimageError as problem:
        assert not readable(row), problem
        assert str(problem)
        return
    with sqlimage.open(str(tmp_path / "i.sqlimage")) as image:
        sqlimage.restore(image.version(), tmp_path / "out")
    is_raw = all(volume.captured_as == "raw" for volume in report.volumes)
    check_restored(None if is_raw else tmp_path / "i.sqlimage", raw, tmp_path / "out")


def known(row: dict[str, str]) -> bool:
    systems = row["fs"].split(";")[0].split("+")
    return readable(row) and row["path"].split("/")[0] != "big" and all(fs in READ_BY_US for fs in systems)


LONG = ("ext/e2fsprogs_f_h_normal.img", "ext/ext4-view-rs_test_disk1.bin")
"""Images of so many or so large files that they are left to the slow part."""


def with_long_ones_marked(chosen: list[dict[str, str]]) -> list[object]:
    return [pytest.param(row, marks=pytest.mark.slow) if name(row) in LONG else row for row in chosen]


@pytest.mark.parametrize("row", with_long_ones_marked([r for r in rows() if known(r)]), ids=name)
def test_every_file_that_others_found_is_found_with_its_digest(row: dict[str, str], tmp_path: Path) -> None:
    assert IMAGES
    facts = json.loads((IMAGES / row["facts"]).read_text()) if row["facts"] else {}
    listed_by_others = [file for system in facts.get("filesystems", []) for file in system.get("files", [])]
    wanted = {file[2] for file in listed_by_others if file[2] and file[0] != OTHERS_DIFFER.get(name(row))}
    if not wanted:
        return
    raw = unpacked(row, tmp_path / "raw")
    report = sqlimage.capture(raw, tmp_path / "i.sqlimage", preset="fast")
    assert all(volume.captured_as == "files" for volume in report.volumes), report.warnings
    with sqlimage.open(str(tmp_path / "i.sqlimage")) as image:
        version = image.version()
        sqlimage.extract(version, "/", tmp_path / "files")
        rows_with_digest = "SELECT digest FROM file WHERE digest NOT NULL AND kind IN ('file', 'stream')"
        listed = {digest.hex() for (digest,) in image.database.query(rows_with_digest)}
    have: set[str] = set()
    for base, _, names in os.walk(tmp_path / "files"):
        for path in (Path(base) / one for one in names):
            if not path.is_symlink():
                have.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert wanted <= have
    assert listed <= have, "a digest in the file table is that of no file's bytes"
