"""NTFS volumes of many files and of the largest clusters, laid out anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Wish
from sqlimage.media.file import FileDevice
from tests.make.ntfs import make_volume, mounted, write_tree
from tests.make.ntfs_relocated import check_by_others, relocated
from tests.make.ntfs_scattered import read_through_driver

pytestmark = pytest.mark.slow
MIB = 1 << 20
FILES = 100_000
PLAN = """
import re, sys, time
from pathlib import Path
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Wish
from sqlimage.media.file import FileDevice

volume = NtfsVolume(FileDevice(Path(sys.argv[1])))
scan = volume.scan()
for wish in (Wish(defragment=True), Wish(size_bytes=volume.smallest_bytes(scan)), Wish(size_bytes=10 << 40)):
    started = time.monotonic()
    relocation = volume.relocate(scan, wish)
    seconds = time.monotonic() - started
    memory = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
    print(seconds, memory >> 10, len(relocation.fixups))
"""


def test_clusters_of_two_mebibytes(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 1 << 30, cluster_bytes=2 * MIB)
    files = {f"file {i}": os.urandom(2_000_000 + i * 99_999) for i in range(40)}
    with mounted(image) as root:
        write_tree(root, files)
        for i in range(0, 40, 3):
            (root / f"file {i}").unlink()
            del files[f"file {i}"]
    volume = NtfsVolume(FileDevice(image))
    for wish in (
        Wish(defragment=True),
        Wish(size_bytes=volume.smallest_bytes(volume.scan())),
        Wish(size_bytes=5 << 30),
    ):
        relocated(image, wish, tmp_path / "new.img")
    read_through_driver(tmp_path / "new.img", files)


def test_a_hundred_thousand_files_are_planned_in_ten_seconds_and_500_mib(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 2 << 30)
    with mounted(image) as root:
        for i in range(300):
            (root / f"{i}").mkdir()
        for i in range(FILES):
            (root / f"{i % 300}/file {i:06}.bin").write_bytes(b"x" * (i % 5 * 3000 + 900))
    done = subprocess.run([sys.executable, "-c", PLAN, str(image)], capture_output=True, text=True, check=True)
    print(done.stdout)
    changed = []
    for line in done.stdout.splitlines():
        seconds, mebibytes, fixups = line.split()
        assert float(seconds) < 10 and int(mebibytes) < 500
        changed.append(int(fixups))
    assert changed[0] > FILES / 2
    volume = NtfsVolume(FileDevice(image))
    wish = Wish(defragment=True, size_bytes=volume.smallest_bytes(volume.scan()))
    relocated(image, wish, tmp_path / "new.img")
    check_by_others(tmp_path / "new.img")
