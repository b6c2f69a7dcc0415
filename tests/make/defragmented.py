"""Images whose volumes were laid out anew, held to what a capture of the same source as it is says, and to others."""

from __future__ import annotations

import hashlib
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import sqlimage
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.media.file import FileDevice
from tests.image.edits import check_whole
from tests.make import fat, fat_oracle, ntfs_relocated
from tests.make.fat_tree import ScatteredVolume

_TORN = (
    "SELECT path, file_offset FROM (SELECT e.*, lag(file_offset + clusters) OVER (PARTITION BY volume, record, stream "
    "ORDER BY file_offset) AS reach FROM effective_extent AS e WHERE version = ?1) AS e LEFT JOIN effective_file AS f "
    "USING (version, volume, record, stream) WHERE file_offset = reach"
)
"""Runs that begin in a content where another one ends."""
_FILES = (
    "SELECT volume, path, kind, bytes, modified_at, stream, attributes, digest FROM effective_file WHERE version = ? "
    "ORDER BY volume, path"
)
_OF_PLACES = ("/$MFT", "/$MFTMirr", "/$Bitmap", "/$Boot")
"""Files of NTFS that say where things lie, and are others when those have moved."""


@dataclass(frozen=True)
class Both:
    """A source captured as it is, and with every file in one piece."""

    plain: sqlimage.CaptureReport
    defragmented: sqlimage.CaptureReport

    @property
    def image(self) -> Path:
        return Path(self.defragmented.image)


def capture_both(source: Path | sqlimage.BlockDevice, place: Path, *, keep_page_files: bool = False) -> Both:
    """Both images, the second one checked against the first."""
    for name in ("plain.sqlimage", "defragmented.sqlimage"):
        (place / name).unlink(missing_ok=True)
    before = digest_of(source) if isinstance(source, Path) else None
    both = Both(
        sqlimage.capture(source, place / "plain.sqlimage", keep_page_files=keep_page_files),
        sqlimage.capture(source, place / "defragmented.sqlimage", keep_page_files=keep_page_files, defragment=True),
    )
    if isinstance(source, Path):
        assert digest_of(source) == before, "the source is only read"
    assert files_of(both.image) == files_of(Path(both.plain.image))
    assert both.defragmented.medium_bytes == both.plain.medium_bytes
    assert both.defragmented.allocated_bytes == both.plain.allocated_bytes
    check_at_rest(both.image)
    return both


def digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def files_of(image: Path, version: str | None = None) -> list[tuple[object, ...]]:
    """All that is told of the files of a version, but for where they lie and what tells so."""
    with sqlimage.open(str(image)) as opened:
        found = opened.version(version)
        opened.attach_parents(found.control)
        rows = opened.database.rows(_FILES, [found.number])
    return [(*row[:7], None if row[1] in _OF_PLACES else row[7]) for row in rows]


def torn(image: Path, version: str | None = None) -> list[tuple[object, ...]]:
    """Contents of which two runs follow each other that lie apart, by the extent table; and where."""
    with sqlimage.open(str(image)) as opened:
        found = opened.version(version)
        opened.attach_parents(found.control)
        return list(opened.database.rows(_TORN, [found.number]))


def check_at_rest(image: Path) -> None:
    """The image verifies, chunk by chunk and file by file, and has no fix-ups in it."""
    check_whole(image)
    with sqlimage.open(str(image)) as opened:
        assert opened.database.rows("SELECT count(*) FROM fixup") == [(0,)]
        for version in opened.versions():
            assert sqlimage.verify_files(version) == []


def restored(image: Path, target: Path, *, version: str | None = None, volume: int | None = None) -> Path:
    """A version, or one volume of it, in a file of its own."""
    target.unlink(missing_ok=True)
    with sqlimage.open(str(image)) as opened:
        sqlimage.restore(opened.version(version), target, volume=volume)
    return target


def check_ntfs(copy: Path) -> None:
    """By this reader and by the tools of ntfs-3g: right, and no file in two pieces."""
    device = FileDevice(copy)
    assert ntfs_relocated.scattered(NtfsVolume(device).scan()) == []
    device.close()
    ntfs_relocated.check_by_others(copy)


def check_fat(copy: Path, digests: dict[str, str]) -> None:
    """By this reader, fsck.fat and mtools: right, no file in two pieces, and each with the digest it had."""
    device = FileDevice(copy)
    volume = FatVolume(device)
    scan = volume.scan()
    assert fat_oracle.in_pieces(scan) == []
    assert fat_oracle.digests(volume, scan) == digests
    device.close()
    code, said = fat_oracle.fsck(copy)
    assert code == 0, said
    assert fat_oracle.mtools_digests(copy, copy.with_suffix(".tree")) == digests


@dataclass(frozen=True)
class Fat:
    """A FAT volume in pieces."""

    bits: int
    size_bytes: int
    sectors_per_cluster: int

    def make(self, path: Path) -> Path:
        """Written into clusters in any order, with files deleted between."""
        options = ("-r", "240") if self.bits != 32 else ()
        empty = fat.make_volume(
            path, self.size_bytes, self.bits, sectors_per_cluster=self.sectors_per_cluster, options=options
        )
        volume = ScatteredVolume(bytearray(empty.read_bytes()), self.bits)
        chance, most = random.Random(self.bits), min(40, volume.clusters // 90) * volume.bytes_per_cluster
        volume.add_directory("/directory")
        volume.add_directory("/directory/deeper")
        for n in range(60):
            above = ("", "/directory", "/directory/deeper")[n % 3]
            content = chance.randbytes(chance.randint(0, most))
            volume.add_file(f"{above}/a file of some length {n}.bin", content, deleted=n % 5 == 4)
        path.write_bytes(volume.finish())
        return path


def make_ext4(path: Path, size_bytes: int, files: dict[str, bytes]) -> Path:
    """A volume of the kernel's kind, filled by mke2fs."""
    tree = path.with_suffix(".tree")
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, path], check=True, capture_output=True)
    return path


def make_disk(path: Path, table: str, parts: dict[int, bytes], size_bytes: int) -> Path:
    """A disk whose partition table sfdisk makes of ``table``; ``parts`` are what lies at which sectors."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["sfdisk", "-q", path], input=table.encode(), check=True, capture_output=True)
    with path.open("r+b") as file:
        for sector, content in parts.items():
            file.seek(sector * 512)
            file.write(content)
    return path
