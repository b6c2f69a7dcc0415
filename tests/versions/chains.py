"""Long chains of versions of one volume: in one file, over as many files as there are versions, and by hand."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import sqlimage
from sqlimage.image.edit import Edit
from sqlimage.streams import control
from sqlimage.streams.database import Database
from tests.images import noise
from tests.make import fat

LOG = "/LOG.TXT"
"""The file that every version has written to."""
_STREAMS = ("volume", "cluster_map", "bitmap", "file", "extent", "property", "control")
_ONLY = "DELETE FROM {} WHERE version != ?"
_DROP_BYTES = "UPDATE data SET bytes = NULL WHERE (SELECT min(version) FROM cluster_map WHERE data = data.id) < ?"
_DROP_DATA = "DELETE FROM data WHERE id NOT IN (SELECT data FROM cluster_map WHERE data IS NOT NULL)"


@dataclass(frozen=True)
class Chain:
    """The same versions in one file and each in a file of its own, and the media they were made of, oldest first."""

    one: Path
    many: list[Path]
    media: list[bytes]


def log_of(number: int) -> bytes:
    """What the file says in a version, counted from 1."""
    return f"version {number}\n".encode() * number


def media(work: Path, count: int) -> list[bytes]:
    """A FAT volume, written to again and again: a log that grows, files that are replaced, come and go."""
    raw, source = fat.make_volume(work / "raw", 512 << 10, 12, sectors_per_cluster=2), work / "source"

    def put(name: str, content: bytes) -> None:
        source.write_bytes(content)
        os.utime(source, (1_500_000_000, 1_500_000_000))
        fat.copy_in(raw, source, to=name)

    made: list[bytes] = []
    put("/KEPT.BIN", noise("kept", 20_000))
    for number in range(1, count + 1):
        put(LOG, log_of(number))
        put(f"/FILE{number % 7}.BIN", noise(number, 3000))
        if number % 10 == 0:
            fat.delete(raw, f"/FILE{(number + 1) % 7}.BIN")
        made.append(raw.read_bytes())
    return made


def make(work: Path, count: int) -> Chain:
    """Captures on top of each other, every third version an edit."""
    made, one = media(work, count), work / "one" / "one.sqlimage"
    one.parent.mkdir()
    for number, content in enumerate(made, 1):
        if number % 3 == 0:
            with sqlimage.open(str(one), writable=True) as image, image.edit() as edit:
                write(edit, content)
        else:
            sqlimage.capture(sqlimage.MemoryDevice(content), one, append=number > 1, preset="fast")
    (work / "many").mkdir()
    return Chain(one, [_split_off(one, number, work / "many") for number in range(1, count + 1)], made)


def write(edit: Edit, content: bytes) -> None:
    """Bring a medium to a content, cluster by cluster."""
    unit, before = edit.control.bytes_per_cluster, edit.driver.read(0, len(content))
    for at in range(0, len(content), unit):
        if content[at : at + unit] != before[at : at + unit]:
            edit.driver.write(at, content[at : at + unit])


def _split_off(one: Path, number: int, place: Path) -> Path:
    """One version as the only one of a file of its own, as if it had been captured there: what an older one brought is
    known by its digest. (The audit trail, which nobody can shorten, still tells of all of them.)"""
    made = Path(shutil.copy(one, place / f"{number}.sqlimage"))
    with Database.open(made, writable=True) as database, database.transaction():
        database.run(_DROP_BYTES, [number])
        for table in _STREAMS:
            database.run(_ONLY.format(table), [number])
            database.run(f"UPDATE {table} SET version = 1")
        database.run(_DROP_DATA)
        database.run("UPDATE control SET parent_name = ?", [f"{number - 1}.sqlimage" if number > 1 else None])
    return made


def add_by_hand(image: Path, count: int, parent: str | None) -> str:
    """Versions that say nothing of their own, each on top of the one before; the UUID of the last."""
    with Database.open(image, writable=True) as database, database.transaction():
        pattern, number = control.versions(database)[0], control.next_version(database)
        for n in range(number, number + count):
            made = dataclasses.replace(
                pattern, version=n, uuid=control.new_uuid(), parent_uuid=parent, parent_name=None, label=None
            )
            control.insert_control(database, made)
            for volume in control.volumes(database, pattern):
                control.insert_volume(database, dataclasses.replace(volume, version=n))
            parent = made.uuid
    assert parent is not None
    return parent


def set_control(image: Path, column: str, value: object) -> None:
    """Rewrite one fact of the only version of a file, by hand."""
    with Database.open(image, writable=True) as database:
        database.run(f"UPDATE control SET {column} = ?", [value])
