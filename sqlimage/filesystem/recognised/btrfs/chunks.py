"""What the chunks of btrfs take of a device: the chunk tree, found through the chunks that the superblock has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs, first_overlap
from sqlimage.filesystem.recognised.btrfs import layout
from sqlimage.filesystem.recognised.btrfs.superblock import Superblock, is_intact

_NODES_MAX = 1 << 14
_STRIPES_MAX = 1 << 18
"""Chunks are of a GiB mostly, of which these are many more than a device has."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    logical: int
    length: int
    kind: int
    places: tuple[int, ...]
    """Of its stripes on this device, bytes."""
    stripe_bytes: int
    """How long each of them is."""


def chunks_on_device(device: BlockDevice, superblock: Superblock) -> Runs:
    """The bytes of the device that lie in chunks.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where the chunk tree contradicts itself or the superblock, or
    does not lie on this device.
    """
    return _Reader(device, superblock).read()


class _Reader:
    def __init__(self, device: BlockDevice, superblock: Superblock) -> None:
        self._device, self._superblock = device, superblock
        self._nodes_left, self._stripes_left = _NODES_MAX, _STRIPES_MAX
        self._system = list(self._system_chunks())

    def read(self) -> Runs:
        superblock = self._superblock
        place: list[int] = []
        length: list[int] = []
        for chunk in self._tree_chunks():
            place += chunk.places
            length += [chunk.stripe_bytes] * len(chunk.places)
        starts, lengths = np.array(place, dtype=np.int64), np.array(length, dtype=np.int64)
        if first_overlap(starts, lengths) is not None:
            raise InconsistentVolume("chunk tree", "two stripes overlap")
        if int(lengths.sum()) != superblock.chunk_bytes:
            problem = f"its stripes have {int(lengths.sum())} bytes, dev_item.bytes_used is {superblock.chunk_bytes}"
            raise InconsistentVolume("chunk tree", problem)
        return Runs.from_arrays(starts, lengths)

    def _system_chunks(self) -> Iterator[_Chunk]:
        """Those of ``sys_chunk_array``: a key and a chunk item, again and again."""
        raw, at = self._superblock.system_chunks, 0
        while at < len(raw):
            if raw[at + 8 : at + 9] != bytes([layout.CHUNK_ITEM_KEY]):
                raise InconsistentVolume("sys_chunk_array", "has a key that is not of a chunk")
            logical = int.from_bytes(raw[at + 9 : at + layout.KEY_BYTES], "little")
            chunk, taken = self._chunk(raw[at + layout.KEY_BYTES :], logical)
            at += layout.KEY_BYTES + taken
            yield chunk

    def _tree_chunks(self) -> Iterator[_Chunk]:
        """Those of the chunk tree, walked a level at a time."""
        superblock = self._superblock
        nodes = [(superblock.chunk_root, superblock.chunk_root_generation)]
        for level in range(superblock.chunk_root_level, -1, -1):
            beneath: list[tuple[int, int]] = []
            last = None
            for logical, generation in nodes:
                raw, keys = self._node(logical, generation, level)
                _check_order(keys if last is None else np.concatenate((last, keys)))
                last = keys[-1:]
                if level:
                    beneath += zip(*_columns(keys, "blockptr", "generation"), strict=True)
                    self._limit(len(beneath), self._nodes_left)
                else:
                    yield from self._chunks_of_leaf(raw, keys[keys["type"] == layout.CHUNK_ITEM_KEY])
            nodes = beneath

    def _chunks_of_leaf(self, raw: bytes, items: NDArray[np.void]) -> Iterator[_Chunk]:
        columns = _columns(items, "objectid", "offset", "data_offset", "data_size")
        for objectid, logical, at, size in zip(*columns, strict=True):
            begin = layout.HEADER_BYTES + at
            chunk, taken = self._chunk(raw[begin : begin + size], logical)
            if objectid != layout.FIRST_CHUNK_TREE_OBJECTID or taken != size:
                raise InconsistentVolume("CHUNK_ITEM", f"that of the chunk at {logical} is wrong")
            yield chunk

    def _node(self, logical: int, generation: int, level: int) -> tuple[bytes, NDArray[np.void]]:
        """A node that is right, and its keys: the first of its copies on this device that is."""
        self._limit(1, self._nodes_left)
        self._nodes_left -= 1
        for at in self._places(logical):
            raw = self._device.read(at, self._superblock.node_bytes)
            keys = self._keys(raw, logical, generation, level)
            if keys is not None:
                return raw, keys
        raise InconsistentVolume("chunk tree", f"its node at {logical} is wrong or lies on another device")

    def _limit(self, wanted: int, left: int) -> None:
        if wanted > left:
            raise InconsistentVolume("chunk tree", f"has more than {_NODES_MAX} nodes or {_STRIPES_MAX} stripes")

    def _places(self, logical: int) -> Iterator[int]:
        node, size = self._superblock.node_bytes, self._superblock.size_bytes
        for chunk in self._system:
            inside = logical - chunk.logical
            if 0 <= inside <= chunk.length - node and not chunk.kind & layout.PROFILES & ~layout.COPIES:
                yield from (place + inside for place in chunk.places if place + inside + node <= size)

    def _keys(self, raw: bytes, logical: int, generation: int, level: int) -> NDArray[np.void] | None:
        header = np.frombuffer(raw, dtype=layout.HEADER, count=1)[0]
        kind = layout.KEY_POINTER if level else layout.ITEM
        count = int(header["nritems"])
        right = (
            is_intact(raw, self._superblock.checksum_type)
            and header["fsid"].tobytes() == self._superblock.metadata_fsid
            and int(header["bytenr"]) == logical
            and int(header["generation"]) == generation
            and int(header["owner"]) == layout.CHUNK_TREE
            and int(header["level"]) == level
            and 0 < count <= (len(raw) - layout.HEADER_BYTES) // kind.itemsize
        )
        return np.frombuffer(raw, dtype=kind, count=count, offset=layout.HEADER_BYTES) if right else None

    def _chunk(self, raw: bytes, logical: int) -> tuple[_Chunk, int]:
        """A chunk item, and how many bytes it takes."""
        superblock, wrong = (
            self._superblock,
            InconsistentVolume("CHUNK_ITEM", f"that of the chunk at {logical} is wrong"),
        )
        if len(raw) < layout.CHUNK.size:
            raise wrong
        length, _, _, kind, _, _, _, stripes, sub_stripes = layout.CHUNK.unpack_from(raw)
        taken = layout.CHUNK.size + stripes * layout.STRIPE.size
        profile = kind & layout.PROFILES
        share = {
            layout.RAID0: stripes,
            layout.RAID10: stripes // max(sub_stripes, 1),
            layout.RAID5: stripes - 1,
            layout.RAID6: stripes - 2,
        }.get(profile, 1)
        if len(raw) < taken or profile.bit_count() > 1 or share < 1 or length == 0 or length % share:
            raise wrong
        self._limit(stripes, self._stripes_left)
        self._stripes_left -= stripes
        places = []
        for number in range(stripes):
            devid, place, uuid = layout.STRIPE.unpack_from(raw, layout.CHUNK.size + number * layout.STRIPE.size)
            if (devid, uuid) == (superblock.device_id, superblock.device_uuid):
                if place % superblock.sector_bytes or place + length // share > superblock.size_bytes:
                    raise wrong
                places.append(place)
        if length // share % superblock.sector_bytes:
            raise wrong
        return _Chunk(logical, length, kind, tuple(places), length // share), taken


def _check_order(keys: NDArray[np.void]) -> None:
    """Keys ascend, also from each node to the next, which those of a node that is reached twice could not."""
    objectid, kind, offset = keys["objectid"], keys["type"], keys["offset"]
    ascends = offset[1:] > offset[:-1]
    for field in (kind, objectid):
        ascends = (field[1:] > field[:-1]) | (field[1:] == field[:-1]) & ascends
    if not ascends.all():
        raise InconsistentVolume("chunk tree", "its keys do not ascend")


def _columns(table: NDArray[np.void], *names: str) -> list[list[int]]:
    return [table[name].tolist() for name in names]
