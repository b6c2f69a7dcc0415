"""Disks and volumes that others made: the partitions are as independent readers saw them."""

from __future__ import annotations

import csv
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.media.partition import PartitionTable
from sqlimage.units import GIB, MIB
from tests.conftest import images_directory, run
from tests.media.disks import ask_sfdisk, read, rows

ROOT = images_directory()
CUT = {
    "disk/manageiq_dos_mbr.img.zst": "156296385",  # the first sectors of a disk of 80 GB
    "corrupt/iso/rufus_arch_trunc.iso.zst": "131236",
}
"""Images that hold the beginning of their disk only, and the sector their partitions would reach."""


@cache
def manifest() -> list[dict[str, str]]:
    if ROOT is None:
        return []
    with (ROOT / "MANIFEST.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def select(*, tables: bool) -> list[Any]:
    """The images with a partition table in the eyes of somebody, or the FAT, exFAT and NTFS volumes without."""
    chosen = []
    for row in manifest():
        room = row["path"].split("/")[0]
        if room == "container" or not row["path"].endswith(".zst"):
            continue  # not a raw disk
        if tables and (row["pt"] or room == "disk"):
            chosen.append(row)
        if not tables and not row["pt"] and room in ("fat12", "fat16", "fat32", "exfat", "ntfs"):
            chosen.append(row)
    none = pytest.param({}, marks=pytest.mark.skip("images of others are not at hand: set SQLIMAGE_IMAGES"))
    return [pytest.param(row, id=row["path"]) for row in chosen] or [none]


def unpack(row: dict[str, str], directory: Path) -> Path:
    assert ROOT is not None
    path = directory / "disk.img"
    size_bytes = int(row["size"])
    if size_bytes > 4 * GIB and row["pt"] == "dos":  # what matters lies at the beginning, the rest takes long
        with path.open("wb") as file:
            zstd = subprocess.Popen(["zstd", "-dqc", "--long=27", ROOT / row["path"]], stdout=subprocess.PIPE)
            assert zstd.stdout is not None
            file.write(zstd.stdout.read(MIB))
            zstd.stdout.close()
            zstd.wait()
            file.truncate(size_bytes)
        return path
    run("zstd", "-dqf", "--sparse", "--long=27", ROOT / row["path"], "-o", path)
    return path


def partitions_in_facts(row: dict[str, str]) -> list[tuple[int, int]] | None:
    """(offset, length) in bytes of the volumes that sleuthkit saw; None where it was not asked."""
    assert ROOT is not None
    parts = json.loads((ROOT / row["facts"]).read_text()).get("parts")
    if parts is None:
        return None
    volumes = []
    for _, start, length, _, flags in parts:
        if flags == 1 and start > 0:  # allocated, no table and no container
            volumes.append((start, length))
    return sorted(volumes)


@pytest.mark.parametrize("row", select(tables=True))
def test_partitions_are_as_others_saw_them(row: dict[str, str], tmp_path: Path) -> None:
    path = unpack(row, tmp_path)
    if row["path"] in CUT:
        with pytest.raises(InconsistentVolume, match=CUT[row["path"]]):
            read(path)
        return
    table, oracle, facts = read(path), ask_sfdisk(path), partitions_in_facts(row)
    if table is None:
        assert oracle is None or not oracle[1] or oracle[0] in ("atari", "sgi", "sun")
        assert not facts or row["pt"] in ("atari", "sgi", "sun")
        return
    assert {"mbr": "dos", "gpt": "gpt"}[table.scheme] == row["pt"]
    assert table.problems == ()
    check_agrees(table, oracle)
    if facts is not None:
        assert [(p.offset_bytes, p.length_bytes) for p in table.partitions] == facts


def check_agrees(table: PartitionTable, oracle: Any) -> None:
    assert oracle is not None
    scheme, partitions = oracle
    assert table.scheme == scheme
    assert [row[:4] for row in rows(table)] == [row[:4] for row in partitions]


@pytest.mark.parametrize("row", select(tables=False))
def test_volumes_are_not_taken_for_disks(row: dict[str, str], tmp_path: Path) -> None:
    assert read(unpack(row, tmp_path)) is None
