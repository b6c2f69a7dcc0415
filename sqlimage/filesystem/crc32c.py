"""CRC-32C (Castagnoli) as file systems keep it: a register that is carried on, without inversion at either end."""

from __future__ import annotations

import google_crc32c

_ALL = 0xFFFFFFFF


def crc32c(register: int, data: bytes) -> int:
    """The register after ``data``. ext4 begins with ``0xFFFFFFFF``; XFS and btrfs do too, and invert the result."""
    return int(google_crc32c.extend(register ^ _ALL, data)) ^ _ALL
