"""``sqlimage tour``."""

from __future__ import annotations

import os
import shlex
import tempfile
from importlib.resources import files
from typing import Annotated

import typer

import sqlimage

from . import capture, info, ls, restore, sql, verify

EXAMPLE = "sqlimage tour"
SAMPLE = "sample.ntfs.zst"
_SAMPLE_BYTES = 8 << 20
_QUERIES = (
    "SELECT path, bytes FROM file WHERE kind = 'file' ORDER BY bytes DESC LIMIT 5",
    "SELECT count(*) AS names, count(DISTINCT digest) AS contents FROM file WHERE kind = 'file' AND bytes > 0",
    "SELECT path FROM file WHERE kind = 'file' AND instr(content(path), 'a needle')",
)


def command(
    directory: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="Where to work; a new temporary directory by default.")
    ] = None,
) -> None:
    """See the main job done on a sample volume: captured, listed, queried, restored, and compared."""
    place = directory or tempfile.mkdtemp(prefix="sqlimage-tour-")
    os.makedirs(place, exist_ok=True)
    source, image, copy = (os.path.join(place, name) for name in ("sample.ntfs", "sample.sqlimage", "restored.ntfs"))
    for path in (source, image, copy):
        if os.path.lexists(path):
            raise sqlimage.RefusedError(f"{path}: exists already", hint="name an empty directory")
    _unpack(source)
    print(f"A sample NTFS volume of 8 MiB lies at {source}.")
    _step("capture", source, image, "--label", "golden", "--property", "site=tour")
    capture.command(source, image, label="golden", property_=["site=tour"])
    _step("info", image)
    info.command(image)
    _step("ls", image, "/")
    ls.command(image, "/")
    for query in _QUERIES:
        _step("sql", image, query)
        sql.command(image, query)
    _step("restore", image, copy)
    restore.command(image, copy)
    _step("verify", image)
    verify.command(image)
    _compare(source, copy, image)
    print(f"\nEverything is in {place}: the volume sample.ntfs, its image sample.sqlimage, the copy restored.ntfs.")
    print(f"Look further: sqlite3 {shlex.quote(image)} .tables")


def _unpack(target: str) -> None:
    import zstandard

    packed = (files("sqlimage.cli") / "sample" / SAMPLE).read_bytes()
    content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_SAMPLE_BYTES)
    with open(target, "xb") as file:
        file.write(content)


def _step(*words: str) -> None:
    shown = (f'"{word}"' if "'" in word else shlex.quote(word) for word in words)
    print(f"\n$ sqlimage {' '.join(shown)}")


def _compare(source: str, copy: str, image: str) -> None:
    """The copy against the source, cluster by allocated cluster; the page file is the one thing left out."""
    with sqlimage.Image.open(image) as opened:
        version = opened.version()
        unit, allocated = version.control.bytes_per_cluster, list(version.allocated())
        left_out = opened.database.rows("SELECT start_cluster, end_cluster FROM owner WHERE path = '/pagefile.sys'")
    skipped = {cluster for start, end in left_out for cluster in range(start, end + 1)}
    same = 0
    with open(source, "rb") as a, open(copy, "rb") as b:
        for start, length in allocated:
            for cluster in range(start, start + length):
                a.seek(cluster * unit)
                b.seek(cluster * unit)
                if cluster not in skipped:
                    if a.read(unit) != b.read(unit):
                        raise sqlimage.DamagedError(f"{copy}: cluster {cluster} differs from {source}")
                    same += 1
    print(f"\nThe copy is identical to the source in all {same} allocated clusters (the page file was left out).")
