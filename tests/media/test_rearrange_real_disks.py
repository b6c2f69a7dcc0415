"""Disks that others made, on smaller and larger ones."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.extent import Runs
from sqlimage.media.file import FileDevice
from sqlimage.media.partition import read_partition_table
from sqlimage.units import MIB
from tests.conftest import run
from tests.media.disks import ask_sfdisk
from tests.media.rearranged import SparseDisk, rearranged, rooms_for, smallest, table_of
from tests.media.test_real_disks import select, unpack

OTHERS = re.compile("corrupt/|iso/|exfat/|.*_pt_(atari|sgi|sun)")
"""Images in which partitions are not the point."""
REFUSED = (
    "would cover the partition table itself",
    "stands for no partition of the GPT",
    "lies outside extended partition",
    "which are not before FirstUsableLBA",
    "leaves the usable LBAs",
)


def without_volumes(path: Path) -> SparseDisk | None:
    """The table of a disk and what lies between its partitions."""
    with closing(FileDevice(path)) as device:
        try:
            table = read_partition_table(device)
        except InconsistentVolume:
            return None
        if table is None:
            return None
        disk = SparseDisk(device.size_bytes)
        volumes = Runs.of((p.offset_bytes, p.length_bytes) for p in table.partitions)
        for start, length in volumes.complement(device.size_bytes):
            for extent in device.extents(start, length):
                for at in range(extent.offset_bytes, extent.offset_bytes + extent.length_bytes * extent.is_data, MIB):
                    rest = extent.offset_bytes + extent.length_bytes - at
                    disk.write(at, device.read(at, min(MIB, rest)))
    return disk if read_partition_table(disk) == table else None


@pytest.mark.parametrize("row", [param for param in select(tables=True) if not OTHERS.match(str(param.id))])
def test_a_disk_of_others(row: dict[str, str], tmp_path: Path) -> None:
    disk = without_volumes(unpack(row, tmp_path))
    if disk is None:
        return
    table = table_of(disk)
    fixed, halved = rooms_for(table), rooms_for(table, lambda length: length // 2)
    try:
        sizes = {smallest(disk, fixed), smallest(disk, halved), disk.size_bytes + disk.size_bytes // 8}
    except RefusedError as refused:
        assert any(reason in str(refused) for reason in REFUSED), str(refused)
        return
    plan, new = rearranged(disk, fixed, disk.size_bytes, problems=["hybrid"])
    assert plan.fixups == () or table.problems
    for size in sizes:
        try:
            plan, new = rearranged(disk, halved, size, problems=["hybrid"])
        except RefusedError as refused:
            assert any(reason in str(refused) for reason in REFUSED), str(refused)
            return
        path = new.save(tmp_path / "new.img")
        oracle = ask_sfdisk(path)
        assert oracle is not None
        assert [row[1:3] for row in oracle[1]] == list(plan.places)
        before = run("sfdisk", "--verify", disk.save(tmp_path / "old.img")).stdout
        if b"No errors detected" in before:
            assert b"No errors detected" in run("sfdisk", "--verify", path).stdout
