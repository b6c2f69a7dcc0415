"""What the tests of edits share: small images of both cluster sizes, and everything that must hold of an image."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import sqlimage
from sqlimage.image.driver import ImageDriver
from tests.images import noise

SIZE = 300 * 1024 + 700
"""No multiple of any cluster."""
_ODD_SECTOR = 63


@cache
def medium(unit: int, size: int = SIZE) -> bytes:
    """Bytes that a capture counts in clusters of ``unit``: a partition that begins at sector 63 makes them small."""
    content = bytearray(noise(("medium", unit), size))
    content[40_000:90_000] = bytes(50_000)
    if unit == 512:
        content[:512] = bytes(512)
        struct.pack_into("<B3xB3xII", content, 446, 0, 0x83, _ODD_SECTOR, 400)
        content[510:512] = b"\x55\xaa"
    return bytes(content)


def captured(image: Path, content: bytes, unit: int) -> Path:
    """An image of the content whose clusters have that size."""
    sqlimage.capture(sqlimage.MemoryDevice(content), image, preset="fast")
    with sqlimage.open(str(image)) as opened:
        assert opened.version().control.bytes_per_cluster == unit
    return image


def whole(driver: ImageDriver) -> bytes:
    """All that a driver gives; it is closed."""
    try:
        return driver.read(0, driver.size_bytes)
    finally:
        driver.close()


def content_of(image: Path, version: str | None = None) -> bytes:
    with sqlimage.open(str(image)) as opened:
        return whole(opened.driver(version))


def check_extents(driver: ImageDriver, model: bytes | bytearray, offset: int, length: int) -> None:
    """They cover exactly the range, in order, and never call data zeros."""
    at = offset
    for extent in driver.extents(offset, length):
        assert extent.offset_bytes == at
        assert extent.length_bytes > 0
        at += extent.length_bytes
        if not extent.is_data:
            assert not any(model[extent.offset_bytes : at]), extent
    assert at == offset + length


def check_whole(image: Path) -> None:
    """``verify`` finds nothing, and no content is kept that no version needs."""
    with sqlimage.open(str(image)) as opened:
        report = sqlimage.verify(opened)
        assert report.is_whole, report.problems
        unused = "SELECT id FROM data WHERE id NOT IN (SELECT data FROM cluster_map WHERE data IS NOT NULL)"
        if all(version.control.state == "sealed" for version in opened.versions()):
            assert opened.database.rows(unused) == []
