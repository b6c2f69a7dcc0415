"""Reads a version from end to end through the driver, as a guest would: ``python -m tests.bench.read_through IMAGE
[KEY_FILE]``."""

from __future__ import annotations

import sys

import sqlimage
from sqlimage.units import MIB


def main(path: str, *key_file: str) -> None:
    for name in key_file:
        sqlimage.keyring.add(sqlimage.read_key_file(name))
    with sqlimage.open(path) as image:
        driver = image.driver()
        buffer = bytearray(MIB)
        for offset in range(0, driver.size_bytes, MIB):
            driver.read_into(offset, memoryview(buffer)[: min(MIB, driver.size_bytes - offset)])
        driver.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
