"""Makes images of many versions, each of which rewrote some clusters of small files.

``python -m tests.bench.chain OUT [--on IMAGE] [--versions 64] [--clusters 200]``: on a copy of a captured image, or on
the small volume that ships with sqlimage.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlimage
from sqlimage.units import KIB
from tests.images import sample_volume

CLUSTERS = 200
"""How many a version rewrites: it differs from the one before by less than a MiB, in about as many places."""
_CLUSTER_BYTES = 4 * KIB
_LARGEST_FILE_BYTES = 256 * KIB
"""Every file that was touched is read whole when its version is sealed; large ones would make that take hours."""
# Not the file system's own files, whose damage would make it a raw volume. CROSS JOIN: files first, then their extents
# by key; the other way round takes minutes.
_PLACES = """
SELECT DISTINCT start_cluster, clusters FROM file CROSS JOIN extent USING (version, volume, record, stream)
WHERE file.version = 1 AND kind = 'file' AND bytes BETWEEN 1 AND ? AND path NOT GLOB '/$*' AND start_cluster IS NOT NULL
ORDER BY start_cluster
"""


def small_first(image: Path) -> None:
    """The capture of the sample volume, 8 MiB."""
    with tempfile.TemporaryDirectory(dir=image.parent) as place:
        sqlimage.capture(sample_volume(Path(place) / "sample.img"), image)


def add_versions(image: Path, versions: int, clusters: int = CLUSTERS) -> None:
    """Put versions on top of an image, in the same file."""
    for blocks in _changes(image, versions, clusters):
        with sqlimage.open(str(image), writable=True) as opened, opened.edit() as edit:
            _write(edit, blocks)


def add_children(image: Path, versions: int, clusters: int = CLUSTERS) -> Path:
    """The same versions, each in a child file of its own beside the image; the last of them."""
    newest = image
    for number, blocks in enumerate(_changes(image, versions, clusters), 1):
        child = image.with_name(f"child-{number:03d}.sqlimage")
        with sqlimage.open(str(newest)) as opened, opened.edit(into=child) as edit:
            _write(edit, blocks)
        newest = child
    return newest


def _write(edit: sqlimage.Edit, blocks: list[tuple[int, bytes]]) -> None:
    for offset, block in blocks:
        edit.driver.write(offset, block)


def _changes(image: Path, versions: int, clusters: int) -> Iterator[list[tuple[int, bytes]]]:
    """For each version where it writes what; the same each time."""
    with sqlimage.open(str(image)) as opened:
        unit = opened.version().control.bytes_per_cluster
        rows = opened.database.rows(_PLACES, [_LARGEST_FILE_BYTES])
    offsets = sorted(
        {
            (start * unit + at) // _CLUSTER_BYTES * _CLUSTER_BYTES
            for start, length in rows
            for at in range(0, length * unit, _CLUSTER_BYTES)
        }
    )
    for number in range(versions):
        chance = random.Random(number)
        chosen = chance.sample(offsets, min(clusters, len(offsets)))
        yield [(offset, chance.randbytes(_CLUSTER_BYTES)) for offset in chosen]


def main(argv: Sequence[str] | None = None) -> int:
    """Make one image."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.chain", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--on", type=Path, help="an image of one version, which is copied")
    parser.add_argument("--versions", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    options = parser.parse_args(argv)
    if options.on:
        shutil.copyfile(options.on, options.out)
    else:
        small_first(options.out)
    add_versions(options.out, options.versions, options.clusters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
