"""How long images take to open: one with a million map records, and any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

import apsw

import sqlimage

RECORDS = 1_000_000
_MEASURE = """
import sys, time
from sqlimage.session.work import open_work
import sqlimage.image.flatmap, sqlimage.nbd.server
begin = time.perf_counter()
work = open_work(sys.argv[1])
work.medium.read(int(sys.argv[2]), 4096)
print((time.perf_counter() - begin) * 1000)
"""


def open_to_first_byte(place: Path) -> float:
    """Milliseconds from opening the image, in a server that runs already, to its first 4 KiB; median of 5."""
    image = many_records(place / "many.sqlimage", place)
    opened = median(first_byte(image, turn * 300_000 * 4096) for turn in range(5))
    image.unlink()
    return opened


def first_byte(image: Path, offset: int) -> float:
    """Milliseconds from opening an image, in a server that runs already, to the first 4 KiB from some offset."""
    command = [sys.executable, "-c", _MEASURE, str(image), str(offset)]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def many_records(image: Path, place: Path) -> Path:
    """An image whose every second cluster has a record of its own."""
    raw = place / "small.raw"
    raw.write_bytes(b"one chunk" * 1000)
    image.unlink(missing_ok=True)
    sqlimage.capture(raw, image)
    raw.unlink()
    connection = apsw.Connection(str(image))
    with connection:
        connection.execute(f"UPDATE control SET medium_bytes = {RECORDS} * 2 * 4096")
        connection.execute(f"UPDATE volume SET length_clusters = {RECORDS} * 2, length_bytes = {RECORDS} * 8192")
        connection.execute("DELETE FROM cluster_map")
        connection.execute(
            "WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n WHERE x < ?) "
            "INSERT INTO cluster_map SELECT 1, x * 2, x * 2, 1, 0, 0 FROM n",
            [RECORDS - 1],
        )
    connection.close()
    return image
