"""Volumes in many states, each a medium that a capture may meet, and what a fresh capture says of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlimage
from tests.conftest import run
from tests.image.edits import whole
from tests.images import noise
from tests.make import fat, ntfs
from tests.versions.family import Rows

_FILE = "volume, path, kind, bytes, modified_at, record, stream, attributes, digest"
_VOLUME = (
    "number, length_bytes, file_system, format_version, label, serial, bytes_per_sector, bytes_per_cluster, "
    "total_clusters, clusters_per_record, dirty, hibernated, captured_as, raw_reason"
)
_STREAMS = {
    "file": f"SELECT {_FILE} FROM effective_file WHERE version = ?",
    "extent": "SELECT volume, record, stream, file_offset, start_cluster, clusters FROM effective_extent "
    "WHERE version = ?",
    "owner": "SELECT volume, path, start_cluster, end_cluster FROM owner WHERE version = ?",
    "bitmap": "SELECT start_cluster, end_cluster FROM effective_bitmap WHERE version = ?",
    "volume": f"SELECT {_VOLUME} FROM volume WHERE version = ?",
    "property": "SELECT name, value FROM effective_property WHERE version = ?",
}
Told = dict[str, Rows]


def told(version: sqlimage.Version) -> Told:
    """All that a version says of its medium, its ancestors' word included; clusters as bytes, for what a medium is
    counted in is its first capture's."""
    unit, size = version.control.bytes_per_cluster, version.control.medium_bytes
    version.image.attach_parents(version.control)
    rows = {name: version.image.database.rows(sql, [version.number]) for name, sql in _STREAMS.items()}
    rows["bitmap"] = [(start * unit, min((end + 1) * unit, size)) for start, end in rows["bitmap"]]
    rows["owner"] = [(*row[:2], row[2] * unit, (row[3] + 1) * unit) for row in rows["owner"]]
    rows["extent"] = [(*row[:3], *(number * unit for number in row[3:])) for row in rows["extent"]]
    return {name: sorted(found, key=repr) for name, found in rows.items()}


def check_told(found: Told, expected: Told) -> None:
    """Row by row the same."""
    for name in expected:
        assert [row for row in found[name] if row not in expected[name]] == [], name
        assert [row for row in expected[name] if row not in found[name]] == [], name
        assert len(found[name]) == len(expected[name]), name


@dataclass(frozen=True)
class State:
    """A medium, and what a fresh capture makes of it."""

    medium: bytes
    kept: bytes
    """What the capture reads as: free clusters and page files are zeros."""
    unit: int
    told: Told

    @property
    def is_read_by_files(self) -> bool:
        return bool(self.told["file"])

    def without_digests(self, found: Told) -> Told:
        """What an edit tells, less the digests that a capture spares itself (of files that are nothing but holes)."""
        spared = {row[:-1] for row in self.told["file"] if row[-1] is None}
        rows = [(*row[:-1], None) if row[:-1] in spared else row for row in found["file"]]
        return {**found, "file": sorted(rows, key=repr)}


def states(media: Iterable[bytes], work: Path) -> list[State]:
    """Each of some media captured afresh."""
    made = []
    for number, medium in enumerate(media):
        report = sqlimage.capture(sqlimage.MemoryDevice(medium), work / f"fresh{number}.sqlimage", preset="fast")
        with sqlimage.open(report.image) as image:
            version = image.version()
            made.append(State(medium, whole(version.driver()), report.bytes_per_cluster, told(version)))
    return made


def others(medium: bytes) -> list[bytes]:
    """What else a medium may come to be: garbage, longer or shorter than its volume says it is, all zeros."""
    size = len(medium)
    garbage = noise("garbage", size // 2).ljust(size, b"\0")
    return [garbage, medium + noise("more", 5000), medium[: size // 2 + 300], bytes(size)]


def fat_media(work: Path) -> list[bytes]:
    """A FAT volume whose files come and go: names taken again by others, contents moved, copied and brought back."""
    work.mkdir()
    raw, source = work / "raw", work / "source"
    fat.make_volume(raw, 512 << 10, 12, sectors_per_cluster=2)
    made: list[bytes] = []

    def put(name: str, seed: object, size: int) -> None:
        source.write_bytes(noise(seed, size))
        os.utime(source, (1_500_000_000, 1_500_000_000))
        fat.copy_in(raw, source, to=f"/{name}")

    def rename(old: str, new: str) -> None:
        run("mren", "-i", raw, f"::{old}", f"::{new}")

    def keep() -> None:
        made.append(raw.read_bytes())

    fat.make_directory(raw, "/dir", "/dir/deep")
    for name, size in (("A.BIN", 40_000), ("B.BIN", 9000), ("A long name.txt", 700), ("dir/IN.BIN", 30_000)):
        put(name, name, size)
    put("dir/deep/COPY.BIN", "A.BIN", 40_000)
    keep()
    fat.delete(raw, "/B.BIN")
    keep()
    rename("/A.BIN", "/B.BIN")  # the name of one, the entry of another
    keep()
    rename("/B.BIN", "/A.BIN")
    put("dir/IN.BIN", "", 0)
    keep()
    fat.delete(raw, "/dir/IN.BIN")
    rename("/A long name.txt", "/dir/IN.BIN")
    keep()
    rename("/dir/IN.BIN", "/A long name.txt")
    put("dir/IN.BIN", "IN again", 30_000)
    put("C.BIN", "c", 5000)  # in B's entry, so that B comes back in another
    put("B.BIN", "b again", 12_000)
    keep()
    rename("/A.BIN", "/X.BIN")
    rename("/dir/IN.BIN", "/A.BIN")
    keep()
    fat.delete(raw, "/X.BIN", "/dir/deep/COPY.BIN")
    put("BIG.BIN", "big", 60_000)
    put("X.BIN", "A.BIN", 40_000)  # its content, elsewhere
    keep()
    fat.make_directory(raw, "/C")
    fat.delete(raw, "/A long name.txt", "/C.BIN")
    put("C/B.BIN", "big", 60_000)
    keep()
    fat.make_volume(raw, 512 << 10, 12, sectors_per_cluster=2)
    put("B.BIN", "B.BIN", 9000)
    keep()
    return made


def ntfs_media(work: Path) -> list[bytes]:
    """An NTFS volume likewise, with streams, links, resident contents and a page file."""
    work.mkdir()
    raw = ntfs.make_volume(work / "raw", 4 << 20)
    made: list[bytes] = []

    def keep() -> None:
        made.append(raw.read_bytes())

    with ntfs.mounted(raw) as root:
        ntfs.write_tree(
            root,
            {
                "one": noise("one", 50_000),
                "two": noise("two", 20_000),
                "small": b"resident",
                "directory/three": noise("three", 30_000),
                "directory/deep/four": noise("one", 50_000),
                "pagefile.sys": noise("page", 30_000),
                "one:stream": noise("stream", 9000),
                "empty": b"",
            },
        )
        os.link(root / "two", root / "directory" / "two again")
    keep()
    with ntfs.mounted(raw) as root:
        (root / "two").unlink()
        (root / "one").unlink()
    keep()
    with ntfs.mounted(raw) as root:  # other files have their records now
        ntfs.write_tree(root, {"new": noise("new", 9000), "newer": noise("newer", 70_000), "one": noise("one", 50_000)})
        (root / "small").write_bytes(noise("grown", 10_000))
    keep()
    with ntfs.mounted(raw) as root:
        (root / "directory").rename(root / "moved")
        (root / "pagefile.sys").write_bytes(noise("page again", 50_000))
        (root / "one").rename(root / "two")
        (root / "newer").rename(root / "one")
    keep()
    with ntfs.mounted(raw) as root:
        shutil.rmtree(root / "moved")
        ntfs.write_tree(root, {"directory/three": noise("three again", 5000), "small": b"resident again"})
        (root / "two").write_bytes(b"")
        (root / "pagefile.sys").unlink()
    keep()
    return made
