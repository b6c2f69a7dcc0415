"""Reads a version from end to end through the driver, as a guest would: ``python -m tests.bench.read_through IMAGE
OUT [KEY_FILE]``; OUT is told how much that was."""

from __future__ import annotations

import sys
from pathlib import Path

import sqlimage
from sqlimage.units import MIB


def main(path: str, out: str, *key_file: str) -> None:
    for name in key_file:
        sqlimage.keyring.add(sqlimage.read_key_file(name))
    with sqlimage.open(path) as image:
        driver = image.driver()
        buffer = bytearray(MIB)
        for offset in range(0, driver.size_bytes, MIB):
            driver.read_into(offset, memoryview(buffer)[: min(MIB, driver.size_bytes - offset)])
        driver.close()
        Path(out).write_text(f"{driver.size_bytes}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
