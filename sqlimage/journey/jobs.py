"""Jobs of work: small contents packed together, large ones cut into slabs, and the order in which they are done.

Everything here counts clusters of the medium.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from sqlimage.extent import Runs
from sqlimage.journey.chain import DigestChain

_SLAB_BYTES = 4 << 20
"""A job on a large content reads about this much."""

Piece = tuple[int, int, int]
"""Place in the job's buffer, first cluster on the medium, number of clusters."""


Key = tuple[int, int]
"""A content: its volume, and its row in the contents of that volume."""


class Encrypt(IntEnum):
    """How much of a content is to be encrypted."""

    NOTHING = 0
    PARTS = 1
    """Those clusters that are secret: a file of records may hold contents of other files."""
    ALL = 2


class Item(NamedTuple):
    """One content in a pack."""

    key: Key | None
    """None for clusters that belong to no file."""
    start: int
    """Place in the job's buffer."""
    clusters: int
    size_bytes: int
    valid_bytes: int
    digested: bool


@dataclass(slots=True)
class Pack:
    """Small contents, neighbours on the medium, that become one chunk."""

    store: bool
    encrypt: bool = False
    pieces: list[Piece] = field(default_factory=list)
    clusters: int = 0
    items: list[Item] = field(default_factory=list)

    def add(self, key: Key | None, pieces: Sequence[Piece], sizes: tuple[int, int, bool]) -> None:
        """Append a content, its pieces one after the other."""
        first = self.clusters
        for _, start, count in pieces:
            self.pieces.append((self.clusters, start, count))
            self.clusters += count
        self.items.append(Item(key, first, self.clusters - first, *sizes))


@dataclass(slots=True)
class Slab:
    """A stretch of one content, cut into chunks at multiples of the chunk size from the content's first byte."""

    pieces: list[Piece]
    clusters: int
    store: bool
    encrypt: Encrypt
    offset_bytes: int
    """Where the slab begins in its content."""
    chain: DigestChain | None
    turn: int
    last: bool


Job = Pack | Slab


class About(NamedTuple):
    """What is known of a content beside where it lies."""

    key: Key | None
    path: str
    """A name of it; empty where it has none."""
    size_bytes: int
    valid_bytes: int
    digested: bool
    store: bool
    encrypt: Encrypt


NOBODY = About(None, "", 0, 0, False, False, Encrypt.NOTHING)
"""Clusters that belong to no file."""


class Window:
    """Contents of one stretch of the medium, to be turned into jobs together."""

    def __init__(self, chunk_clusters: int, bytes_per_cluster: int) -> None:
        self._chunk_clusters = chunk_clusters
        self._bytes_per_cluster = bytes_per_cluster
        self._small: list[tuple[About, list[Piece], int]] = []
        self._large: list[tuple[About, list[Piece]]] = []
        self.small_clusters = 0
        self._large_clusters = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def add(self, pieces: list[Piece], about: About) -> None:
        """Take a content: shorter than a chunk and without holes, it will be packed; else it is cut, as is what is
        encrypted in parts."""
        clusters = sum(piece[2] for piece in pieces)
        is_whole = pieces[-1][0] + pieces[-1][2] == clusters and about.encrypt != Encrypt.PARTS
        if clusters <= self._chunk_clusters and is_whole:
            self._small.append((about, pieces, clusters))
            self.small_clusters += clusters
        else:
            self._large.append((about, pieces))
            self._large_clusters += clusters

    def places(self) -> Runs:
        """The clusters that will be read in many small pieces."""
        starts = np.array([piece[1] for _, pieces, _ in self._small for piece in pieces], dtype=np.int64)
        counts = np.array([piece[2] for _, pieces, _ in self._small for piece in pieces], dtype=np.int64)
        return Runs.from_arrays(starts, counts)

    def jobs(self) -> Iterator[Job]:
        """Packs and slabs in turn, in proportion to their bytes: a pack is mostly work for the thread that begins it,
        a slab for the others, and this way all are busy all the time."""
        packs, slabs = self._packs(), self._slabs()
        pack, slab = next(packs, None), next(slabs, None)
        packed = cut = 0
        while pack or slab:
            if pack and (slab is None or packed * self._large_clusters <= cut * self.small_clusters):
                packed += pack.clusters
                yield pack
                pack = next(packs, None)
            elif slab:
                cut += slab.clusters
                yield slab
                slab = next(slabs, None)

    def _packs(self) -> Iterator[Pack]:
        """Small contents, like beside like, so that they compress well together."""
        self._small.sort(key=lambda small: (small[0].store, small[0].encrypt, _kin(small[0].path)))
        pack = Pack(False)
        for about, pieces, clusters in self._small:
            is_secret = about.encrypt == Encrypt.ALL
            is_alike = about.store == pack.store and is_secret == pack.encrypt
            if pack.clusters + clusters > self._chunk_clusters or not is_alike:
                if pack.items:
                    yield pack
                pack = Pack(about.store, is_secret)
            pack.add(about.key, pieces, (about.size_bytes, about.valid_bytes, about.digested))
        if pack.items:
            yield pack

    def _slabs(self) -> Iterator[Slab]:
        length = max(1, _SLAB_BYTES // self._bytes_per_cluster // self._chunk_clusters) * self._chunk_clusters
        for about, pieces in self._large:
            digested = about.key is not None and about.digested
            chain = DigestChain(about.key, about.size_bytes, about.valid_bytes) if about.key and digested else None
            yield from _slabs(pieces, length, about, chain, self._bytes_per_cluster)


def _kin(path: str) -> tuple[str, str]:
    """What makes contents alike: the ending of their name, then the name."""
    name = path[path.rfind("/") + 1 :].lower()
    dot = name.rfind(".")
    return (name[dot:] if dot > 0 else ""), name


def _slabs(
    pieces: Sequence[Piece], length: int, about: About, chain: DigestChain | None, bytes_per_cluster: int
) -> Iterator[Slab]:
    """Cut a content at multiples of ``length`` clusters; stretches without clusters make no slab."""
    current: list[Piece] = []
    number = -1

    def slab(last: bool) -> Slab:
        turn = 0
        if chain:
            turn, chain.slabs = chain.slabs, chain.slabs + 1
        clusters = current[-1][0] + current[-1][2]
        offset = number * length * bytes_per_cluster
        return Slab(current, clusters, about.store, about.encrypt, offset, chain, turn, last)

    for place, start, count in pieces:
        while count:
            index, inside = divmod(place, length)
            if index != number:
                if current:
                    yield slab(False)
                current, number = [], index
            part = min(count, length - inside)
            current.append((inside, start, part))
            place, start, count = place + part, start + part, count - part
    if current:
        yield slab(True)
