"""The superblock of btrfs, or a mirror of it: parsed, and validated against itself and its medium."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.recognised.btrfs import layout
from sqlimage.filesystem.recognised.volume import is_power_of_two, longer_than_medium, text_of

_ALL = 0xFFFFFFFF
_TOO_LONG = "superblock, dev_item.total_bytes"


@dataclass(frozen=True, slots=True)
class Superblock:
    """What counts here of a valid superblock."""

    at: int
    checksum_type: int
    fsid: bytes
    metadata_fsid: bytes
    """What tree blocks have."""
    label: str | None
    sector_bytes: int
    node_bytes: int
    device_id: int
    device_uuid: bytes
    devices: int
    size_bytes: int
    """Of this device's part."""
    chunk_bytes: int
    """Of this device, that chunks take."""
    chunk_root: int
    chunk_root_level: int
    chunk_root_generation: int
    system_chunks: bytes
    has_log_tree: bool
    unusable: str | None
    """Why chunks are not looked at."""


def is_btrfs(device: BlockDevice) -> bool:
    at = layout.SUPERBLOCKS_AT[0]
    if at + layout.SUPERBLOCK_BYTES > device.size_bytes:
        return False
    return device.read(at + layout.MAGIC_AT, len(layout.MAGIC)) == layout.MAGIC


def read_superblock(device: BlockDevice) -> tuple[Superblock, InconsistentVolume | None]:
    """The superblock, or its first mirror that is right; then also what is wrong with the first one.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where none is right or the volume is longer than the device.
    """
    first, *mirrors = layout.SUPERBLOCKS_AT
    try:
        return validate(device, first), None
    except InconsistentVolume as problem:
        if problem.structure == _TOO_LONG:
            raise
        for at in mirrors:
            if at + layout.SUPERBLOCK_BYTES > device.size_bytes:
                break
            try:
                return validate(device, at), problem
            except InconsistentVolume:
                continue
        raise


def validate(device: BlockDevice, at: int) -> Superblock:
    """The superblock at ``at``.

    Raises :class:`~sqlimage.errors.InconsistentVolume` naming the field where one is out of its range.
    """
    raw = device.read(at, layout.SUPERBLOCK_BYTES)
    field = np.frombuffer(raw, dtype=layout.SUPERBLOCK)[0]

    def number(name: str) -> int:
        return int(field[name])

    def check(holds: bool, name: str, allowed: str) -> None:
        if not holds:
            problem = f"is {number(name)}, must be {allowed}"
            raise InconsistentVolume(f"superblock, {name}", problem, offset_bytes=at)

    if field["magic"] != layout.MAGIC:
        raise InconsistentVolume("superblock, magic", "is not _BHRfS_M", offset_bytes=at)
    check(number("csum_type") <= layout.CSUM_BLAKE2, "csum_type", "0 to 3")
    if not is_intact(raw, number("csum_type")):
        raise InconsistentVolume("superblock, csum", "is not that of its bytes", offset_bytes=at)
    check(number("bytenr") == at, "bytenr", f"{at}")
    sector, node = number("sectorsize"), number("nodesize")
    check(is_power_of_two(sector, 4096, 65536), "sectorsize", "a power of two from 4096 to 65536")
    check(is_power_of_two(node, sector, 65536), "nodesize", f"a power of two from {sector} to 65536")
    check(number("num_devices") > 0, "num_devices", "at least 1")
    check(number("chunk_root_level") < layout.LEVELS_MAX, "chunk_root_level", f"below {layout.LEVELS_MAX}")
    array = raw[layout.SYS_CHUNK_ARRAY]
    check(number("sys_chunk_array_size") <= len(array), "sys_chunk_array_size", f"at most {len(array)}")
    size = number("total_bytes")
    check(size >= layout.RESERVED_BYTES, "total_bytes", f"at least {layout.RESERVED_BYTES}")
    if size > device.size_bytes:
        raise longer_than_medium(_TOO_LONG, size, device, at)
    incompat = number("incompat_flags")
    fsid = field["fsid"].tobytes()
    return Superblock(
        at=at,
        checksum_type=number("csum_type"),
        fsid=fsid,
        metadata_fsid=field["metadata_uuid"].tobytes() if incompat & layout.INCOMPAT_METADATA_UUID else fsid,
        label=text_of(field["label"].tobytes()),
        sector_bytes=sector,
        node_bytes=node,
        device_id=number("devid"),
        device_uuid=field["dev_uuid"].tobytes(),
        devices=number("num_devices"),
        size_bytes=size // sector * sector,
        chunk_bytes=number("bytes_used"),
        chunk_root=number("chunk_root"),
        chunk_root_level=number("chunk_root_level"),
        chunk_root_generation=number("chunk_root_generation"),
        system_chunks=array[: number("sys_chunk_array_size")],
        has_log_tree=number("log_root") != 0,
        unusable=_why_unusable(incompat, number("flags")),
    )


def _why_unusable(incompat: int, flags: int) -> str | None:
    if unknown := incompat & ~layout.INCOMPAT_KNOWN:
        return f"it has features that are not known ({unknown:#x})"
    return "a change to all of it was not finished" if flags & layout.SUPER_FLAGS_UNFINISHED else None


def is_intact(raw: bytes, checksum_type: int) -> bool:
    """Whether the checksum that begins a structure is that of the rest; xxhash is taken on trust."""
    rest = memoryview(raw)[layout.CSUM_BYTES :]
    if checksum_type == layout.CSUM_CRC32C:
        right = (crc32c(_ALL, bytes(rest)) ^ _ALL).to_bytes(4, "little")
    elif checksum_type == layout.CSUM_SHA256:
        right = sha256(rest).digest()
    elif checksum_type == layout.CSUM_BLAKE2:
        right = blake2b(rest, digest_size=32).digest()
    else:
        return True
    return raw[: len(right)] == right
