"""Images that travel: of a volume with enough that does not compress to need many segments."""

from __future__ import annotations

from pathlib import Path

import sqlimage
from sqlimage.streams.database import Database
from sqlimage.transfer.cut import cut, cut_first, digests
from sqlimage.transfer.plan import chosen, make_plan
from sqlimage.units import KIB, MIB
from tests.images import noise
from tests.make import fat

SEGMENT_BYTES = 256 * KIB
_FILES = 10
_TABLES = (
    *("format", "feature", "control", "volume", "property", "key_slot", "sealed_stream", "cluster_map", "bitmap"),
    *("file", "extent", "audit", "data"),
)


def volume(directory: Path, files: int = _FILES, file_bytes: int = 300_000) -> Path:
    """FAT16 with files of noise in two directories."""
    made = fat.make_volume(directory / "volume.img", 16 * MIB, 16)
    tree = {f"{'ab'[n % 2]}/file{n}.bin": noise(n, file_bytes) for n in range(files)}
    tree["readme.txt"] = b"what stands here is read over a line\n" * 40
    fat.fill(made, tree, directory / "filled")
    return made


def image(directory: Path, name: str = "base.sqlimage", **wishes: object) -> Path:
    """Captured, in some 12 segments."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / name
    sqlimage.capture(str(volume(directory)), str(target), **wishes)  # type: ignore[arg-type]
    return target


def child(parent: Path, name: str = "child.sqlimage", content: bytes | None = None) -> Path:
    """A child file of the image beside it, in which one file of 100,000 bytes was added."""
    target = parent.parent / name
    where = parent.parent / "added.bin"
    where.write_bytes(noise(f"added to {name}", 100_000) if content is None else content)
    with sqlimage.changing(str(parent), into=str(target)) as changes:
        changes.put(str(where), "/added.bin")
    return target


def segments_of(path: Path, segment_bytes: int = SEGMENT_BYTES) -> list[bytes]:
    """All segments of an image, in order."""
    with Database.open(path, structure_only=True) as database:
        plan = make_plan(database, chosen(database, None), segment_bytes)
        told = digests(database, plan)
        return [
            bytes(cut_first(database, plan, told)),
            *(bytes(cut(database, plan, n)) for n in range(2, len(plan.cut) + 1)),
        ]


def rows_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything an image holds, but for how it travelled."""
    with Database.open(path, structure_only=True) as database:
        found = {}
        for table in _TABLES:
            listed = ", ".join(f'"{row[1]}"' for row in database.rows(f"PRAGMA main.table_info({table})"))
            found[table] = sorted(database.rows(f"SELECT {listed} FROM main.{table}"), key=repr)
        return found
