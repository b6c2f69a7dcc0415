"""Relocations of NTFS volumes carried out on copies, and everything that must hold of them checked by what they became,
by this reader and by others."""

from __future__ import annotations

import re
import struct
import subprocess
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.filesystem.contract import HOLE, Contents, EntryKind, Scan, read_all
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.media.file import FileDevice
from tests.conftest import run
from tests.make.relocated import apply


def relocated(source: Path | BlockDevice, wish: Wish, target: Path) -> Relocation:
    """Plan, carry out and check by this reader; the relocation."""
    device = FileDevice(source) if isinstance(source, Path) else source
    volume = NtfsVolume(device)
    scan = volume.scan()
    relocation = volume.relocate(scan, wish)
    apply(device, relocation, target)
    check_same(volume, scan, target, relocation)
    if isinstance(source, Path):
        device.close()
    return relocation


def check_same(volume: NtfsVolume, scan: Scan, target: Path, relocation: Relocation) -> None:
    """The new volume is what the relocation says, and every file reads as before."""
    device = FileDevice(target)
    new = NtfsVolume(device)
    found = new.scan()
    assert new.facts == relocation.facts
    assert new.allocated() == relocation.allocated
    check_scan(found, relocation.scan)
    assert digests(new, found) == digests(volume, scan)
    device.close()


def check_scan(found: Scan, told: Scan) -> None:
    """Two scans say the same."""
    assert found.entries.path == told.entries.path
    assert found.contents.stream == told.contents.stream
    assert found.contents.inline_digest == told.contents.inline_digest
    for name in ("kind", "content", "record", "modified_ns", "attributes"):
        assert np.array_equal(getattr(found.entries, name), getattr(told.entries, name)), name
    for name in ("record", "size_bytes", "valid_bytes", "flags", "first_run", "run_offset", "run_length"):
        assert np.array_equal(getattr(found.contents, name), getattr(told.contents, name)), name


def digests(volume: NtfsVolume, scan: Scan) -> dict[tuple[int, str], bytes]:
    """Of every content but those that tell places."""
    out = {}
    for record, stream in zip(scan.contents.record.tolist(), scan.contents.stream, strict=True):
        if (record, stream) not in ((0, ""), (1, ""), (6, ""), (7, ""), (8, "$Bad")):
            digest = sha256()
            for block in read_all(volume.open(record, stream)):
                digest.update(block)
            out[record, stream] = digest.digest()
    return out


def check_by_others(image: Path, *options: str) -> None:
    """What the tools of ntfs-3g and sleuthkit say of a volume that fills a file."""
    accounting = ["ntfsresize", "--info", "--force", "--no-progress-bar", *options, str(image)]
    done = subprocess.run(accounting, capture_output=True, check=False)
    assert done.returncode == 0 or b"ERROR: Volume is full." in done.stdout, done.stdout + done.stderr
    done = subprocess.run(["ntfsfix", "-n", image], capture_output=True, check=False)
    assert done.returncode == 0 and b"FAILED" not in done.stdout, done.stdout
    assert b"alternate boot sector... OK" in done.stdout, done.stdout
    run("ntfsinfo", "-m", image)
    assert b"NTFS" in run("fsstat", image).stdout


def listed_by_sleuthkit(image: Path) -> list[bytes]:
    """Every name, deleted ones left out."""
    return sorted(re.findall(rb"^r/r .*$|^d/d .*$", run("fls", "-r", "-p", "-u", image).stdout, re.MULTILINE))


def stretches(contents: Contents, row: int) -> list[tuple[int, int]]:
    """The runs of a content, merged where they go on: places and lengths, holes included."""
    out: list[tuple[int, int]] = []
    for i in range(int(contents.first_run[row]), int(contents.first_run[row + 1])):
        place, length = int(contents.run_offset[i]), int(contents.run_length[i])
        if out and ((out[-1][0] == HOLE) == (place == HOLE)) and place in (HOLE, out[-1][0] + out[-1][1]):
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((place, length))
    return out


def scattered(scan: Scan) -> list[str]:
    """The streams that do not lie in one run, holes left out."""
    found = []
    for row in range(len(scan.contents)):
        backed = [run for run in stretches(scan.contents, row) if run[0] != HOLE]
        if any(one[0] + one[1] != two[0] for one, two in pairwise(backed)):
            found.append(f"{scan.contents.record[row]}:{scan.contents.stream[row]}")
    return found


def files_of(scan: Scan) -> dict[str, int]:
    """The content's row of every file and stream that is not metadata."""
    entries = scan.entries
    kinds = (EntryKind.FILE, EntryKind.STREAM)
    rows = zip(entries.path, entries.kind.tolist(), entries.content.tolist(), strict=True)
    return {path: row for path, kind, row in rows if kind in kinds and row >= 0}


def restart_page(
    *, client: int, flags: int, lsn: int, version: int = 1, signature: bytes = b"RSTR", area: int = 0x30
) -> bytes:
    """A restart page of $LogFile, protected: which client is in use, and whether it was a clean shutdown."""
    page = bytearray(8192)
    struct.pack_into("<4sHHQIIHhh", page, 0, signature, 0x1E, 9, 0, 4096, 4096, area, 1, version)
    struct.pack_into("<QHHHH", page, area, lsn, 1, 0xFFFF, client, flags)
    del page[4096:]
    page[0x1E:0x20] = b"\x07\x00"
    for sector in range(1, 9):
        page[0x1E + 2 * sector : 0x20 + 2 * sector] = page[sector * 512 - 2 : sector * 512]
        page[sector * 512 - 2 : sector * 512] = b"\x07\x00"
    return bytes(page)
