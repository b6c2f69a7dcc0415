"""What the tests of transfers under faults share: an image of some twenty segments, and what must hold of a copy, of a
store, and of a command that failed."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import sqlimage
from sqlimage.streams.database import Database
from sqlimage.streams.segments import Segment, read
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, Store
from sqlimage.transfer.stores.directory import DirectoryStore
from tests.images import noise, tool
from tests.make import ext

NAME = "i.sqlimage"
SEGMENT = "256KiB"
SEGMENT_BYTES = 256 << 10
FILES, FILE_BYTES = 60, 100_000
COMPANIONS = ("-edit", "-journal", "-wal", "-shm")
"""What may lie beside an image that is being written."""


@dataclass(frozen=True)
class World:
    """An image, and its segments in a directory."""

    place: Path
    source: Path
    shelf: Path
    content: dict[str, bytes]

    @property
    def total_bytes(self) -> int:
        return sum(len(content) for name, content in self.content.items() if name.startswith(SEGMENTS))


def make_world(place: Path) -> World:
    source = make_image(place)
    return World(place, source, place / "shelf", shelf_of(source, place / "shelf"))


def make_image(place: Path, seed: object = 0, files: int = FILES) -> Path:
    """A volume of files that do not compress, captured, in some 24 segments of ``SEGMENT``."""
    tree = place / "tree"
    tree.mkdir()
    for n in range(files):
        (tree / f"file-{n:03}").write_bytes(noise((seed, n), FILE_BYTES))
    volume = ext.make_volume(place / "volume.img", (8 << 20) + 2 * files * FILE_BYTES, "-d", tree)
    sqlimage.capture(str(volume), str(place / NAME), preset="fast")
    return place / NAME


def medium_digest(image: Path) -> str:
    """The SHA-256 of what an image restores to."""
    with sqlimage.open(str(image)) as opened:
        driver = opened.version().driver()
        try:
            return hashlib.sha256(driver.read(0, driver.size_bytes)).hexdigest()
        finally:
            driver.close()


def check_copy(copy: Path, source: Path) -> None:
    """A copy is whole and has the bytes of the source, and its trail."""
    assert ": whole" in tool("verify", copy)
    assert medium_digest(copy) == medium_digest(source)
    with sqlimage.open(str(copy)) as one, sqlimage.open(str(source)) as other:
        assert [*one.audit()] == [*other.audit()]


def segments(image: Path) -> list[Segment]:
    """What has arrived of an image and what has not; nothing where it is not there."""
    if not image.exists():
        return []
    sqlimage.recover(str(image))
    with Database.open(str(image), structure_only=True) as database:
        return read(database)


def here(image: Path) -> list[Segment]:
    return [one for one in segments(image) if one.is_here]


def here_bytes(image: Path) -> int:
    return sum(one.length_bytes for one in here(image))


def check_partial(image: Path) -> None:
    """Nothing that is called ``here`` lacks its contents or has others: every content of it decodes to its digest, and
    what lies in missing segments is not there."""
    if not image.exists():
        return
    sqlimage.recover(str(image))
    with Database.open(str(image), structure_only=True) as database:
        assert database.row("PRAGMA integrity_check") == ("ok",)
        states = {one.number: one.is_here for one in read(database)}
        for number, has_bytes in database.rows(
            "SELECT place.segment, data.bytes IS NOT NULL OR place.bytes IS NOT NULL "
            "FROM main.place JOIN main.data ON data.id = place.data"
        ):
            assert has_bytes == states[number], number
        for digest, flags, content in database.rows("SELECT digest, flags, bytes FROM main.data"):
            if content is not None:
                assert hashlib.sha256(decoded(content, flags)).digest() == digest


def decoded(content: bytes, flags: int) -> bytes:
    import zstandard

    assert flags in (0, 1), "these images are not encrypted"
    return zstandard.ZstdDecompressor().decompress(content) if flags else content


def shelf_of(image: Path, directory: Path) -> dict[str, bytes]:
    """The segments of an image in a directory, and what lies there by name."""
    tool("split", image, directory, "--segment-size", SEGMENT)
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def first_segment(directory: Path, name: str = NAME) -> Path:
    """The file that the name of an image in a directory stands for."""
    return directory / DirectoryStore(directory).first(name)


def check_store(store: Store, known: Collection[str] = (), name: str = NAME) -> dict[str, int]:
    """Every object that a store shows is whole; the lengths of its segments by name. Those of a registry are not
    listed: of the ones that are ``known`` it shows which it has."""
    found: dict[str, int] = {}
    listed = {*store.list(), *(each for each in known if store.head(each) is not None)}
    for each in sorted(listed, key=lambda each: not each.startswith(SEGMENTS)):
        content = store.get(each, 1 << 30)
        if each.startswith(SEGMENTS):
            assert hashlib.sha256(content).hexdigest() == each.removeprefix(SEGMENTS)
            found[each] = len(content)
        elif each.startswith(VERSIONS):
            assert json.loads(bytes(content))["image"] == name
        else:
            assert each == name, each
    if store.head(name) is not None:
        assert store.first(name) in found, "the name stands for a segment that is there"
    return found


def check_one_line(done: subprocess.CompletedProcess[str], *codes: int) -> str:
    """A command that failed as it should: one line on stderr, one of the exit codes."""
    assert done.returncode in codes, (done.args, done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("sqlimage: "), done.stderr
    return lines[0]


def beside(image: Path) -> set[str]:
    """The names in the image's directory, without its own."""
    return {path.name for path in image.parent.iterdir()} - {image.name}


def check_beside(image: Path) -> None:
    """Nothing lies beside an image but what may while it is written."""
    assert beside(image) <= {image.name + ending for ending in COMPANIONS}
