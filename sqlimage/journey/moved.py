"""Content that a version's ancestors have elsewhere: files that were moved, copied or brought back, found by their
digest or their name, and proved cluster by cluster. They cost map records, and no data."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import FormatError
from sqlimage.extent import stretches
from sqlimage.image.changes import Side
from sqlimage.image.chunks import Cache, ChunkCache, Connections
from sqlimage.image.flatmap import FlatMap
from sqlimage.image.keys import Key
from sqlimage.image.lineage import Lineage
from sqlimage.journey.jobs import Piece
from sqlimage.units import MIB

_CACHE = Cache(memory_bytes=48 * MIB)
_OLDER = (
    "SELECT version, volume, record, stream, digest FROM file WHERE version IN (SELECT value FROM json_each(?1)) "
    "AND digest IN (SELECT unhex(value) FROM json_each(?2)) AND deleted = 0"
)
_OLDER_PLACES = (
    "SELECT file_offset, start_cluster, clusters FROM extent WHERE version = ? AND volume = ? AND record = ? "
    "AND stream = ? ORDER BY file_offset"
)


@dataclass(frozen=True, slots=True)
class Donor:
    """A content of an ancestor: index of its version in the lineage, and where it lies there."""

    link: int
    places: Sequence[tuple[int, int, int]]
    """Place in the content, start and length in clusters."""


Reference = tuple[int, int, Key, int]
"""First cluster on the medium, clusters, the content that holds the same bytes, and the byte in it."""


class Donors:
    """Finds for a content of the medium what an ancestor has of it."""

    def __init__(
        self,
        device: BlockDevice,
        lineage: Lineage,
        connections: list[Connections],
        before: Sequence[tuple[int, Side]],
        wanted: Set[bytes],
    ) -> None:
        """``before`` are the parent's files, by volume; ``wanted`` are digests of the contents that are looked for."""
        self._device = device
        self._lineage = lineage
        self._connections = connections
        self._unit = lineage.links[0].control.bytes_per_cluster
        self._chunks = ChunkCache(connections, _CACHE)
        self._maps: dict[int, FlatMap] = {}
        self._before = dict(before)
        self._by_digest: dict[bytes, Donor] = {}
        for side in self._before.values():
            for row in side.rows.values():
                digest = row[9]
                if digest is not None and digest in wanted and digest not in self._by_digest:
                    places = side.content(row)
                    if places:
                        self._by_digest[digest] = Donor(0, places)

        self._look_up([digest for digest in wanted if digest not in self._by_digest])

    def _look_up(self, wanted: list[bytes]) -> None:
        """Find in older ancestors what the parent has no file of."""
        if not wanted or len(self._lineage.links) == 1:
            return
        asked = json.dumps([digest.hex() for digest in wanted])
        for file, connections in enumerate(self._connections):
            links = {
                link.control.version: n for n, link in enumerate(self._lineage.links) if link.file == file and n > 0
            }
            database = connections.mine()
            if database.sealed is None:
                database.unseal()
            for version, volume, record, stream, digest in database.rows(_OLDER, [json.dumps(list(links)), asked]):
                rows = database.rows(_OLDER_PLACES, [version, volume, record, stream])
                if rows and digest not in self._by_digest:
                    places = [(place, start, length) for place, start, length in rows]
                    self._by_digest[digest] = Donor(links[version], places)
            connections.check()

    def of(self, digest: bytes | None, volume: int, path: str) -> Iterator[Donor]:
        """Who may have a content: a file with that digest, else the one that had that path."""
        found = self._by_digest.get(digest) if digest is not None else None
        if found:
            yield found
            return
        side = self._before.get(volume)
        row = side.rows.get(path) if side else None
        if side and row is not None and side.content(row):
            yield Donor(0, side.content(row))

    def match(self, donor: Donor, pieces: Sequence[Piece]) -> tuple[list[Reference], list[Piece]]:
        """Compare pieces of a content with the same places of the donor's: what is equal, and what is left.

        Raises :class:`~sqlimage.errors.FormatError` where the ancestor contradicts itself.
        """
        found: list[Reference] = []
        left: list[Piece] = []
        offsets = [place[0] for place in donor.places]
        for place, start, count in pieces:
            end, at = place + count, place
            for n in range(max(0, bisect_right(offsets, place) - 1), len(donor.places)):
                begin, there, length = donor.places[n]
                if begin >= end:
                    break
                low, high = max(begin, at), min(begin + length, end)
                if low >= high:
                    continue
                if low > at:
                    left.append((at, start + at - place, low - at))
                mine, theirs = start + low - place, there + low - begin
                self._match_run(donor.link, theirs, (low, mine, high - low), found, left)
                at = high
            if at < end:
                left.append((at, start + at - place, end - at))
        return found, _joined(left)

    def _match_run(self, link: int, theirs: int, piece: Piece, found: list[Reference], left: list[Piece]) -> None:
        """Compare clusters of the medium with those from ``theirs`` on of an ancestor's medium."""
        place, mine, count = piece
        if mine == theirs and link == 0:  # known to differ
            left.append(piece)
            return
        equal = np.zeros(count, dtype=bool)
        references: list[Reference] = []
        for low, high, key, offset in self._map(link).pieces(theirs, theirs + count - 1):
            content = self._chunks.get(key)
            length = (high - low) * self._unit
            if offset + length > len(content):
                raise FormatError(f"{self._lineage.files[0].path}: a map record reaches beyond data {key[1]}")
            here = np.frombuffer(self._read(mine + low - theirs, high - low), dtype=np.uint64)
            there = np.frombuffer(content, dtype=np.uint64, count=length // 8, offset=offset)
            same = (here == there).reshape(high - low, -1).all(axis=1)
            equal[low - theirs : high - theirs] = same
            for a, b in stretches(same):
                references.append((mine + low - theirs + a, b - a, key, offset + a * self._unit))
        found += references
        left += [(place + a, mine + a, b - a) for a, b in stretches(~equal)]

    def _map(self, link: int) -> FlatMap:
        found = self._maps.get(link)
        if found is None:
            found = self._maps[link] = FlatMap(self._lineage.from_link(link), self._connections)
        return found

    def _read(self, start: int, count: int) -> bytes:
        at, length = start * self._unit, count * self._unit
        kept = max(0, min(length, self._device.size_bytes - at))
        return self._device.read(at, kept) + bytes(length - kept)

    def close(self) -> None:
        self._chunks.close()


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for place, start, count in pieces:
        if joined and joined[-1][0] + joined[-1][2] == place and joined[-1][1] + joined[-1][2] == start:
            joined[-1] = (joined[-1][0], joined[-1][1], joined[-1][2] + count)
        else:
            joined.append((place, start, count))
    return joined
