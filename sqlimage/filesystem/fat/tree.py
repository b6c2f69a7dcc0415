"""The whole tree of a volume in one pass: level by level, many directories at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import ContentFlag, Contents, Entries, EntryKind, Scan
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import Geometry
from sqlimage.filesystem.fat.directory import Listing, list_entries
from sqlimage.filesystem.fat.table import Chains, Ending, Table
from sqlimage.units import KIB, MIB, NO_TIME

PIECE_BYTES = 64 * KIB
BATCH_BYTES = 4 * MIB
"""So much is read before it is parsed."""
BATCH_DIRECTORIES = 4096
DIRECTORY_BYTES_TOLERATED = 16 * layout.DIRECTORY_BYTES_MAX
"""Writers other than Windows and Linux are known to exceed the specification's 65,536 entries."""
PATH_LENGTH_MAX = 32767
"""Characters; what Windows allows. Also bounds the depth of a hostile tree."""
PATHS_LENGTH_BASE, PATHS_LENGTH_MEAN = 64 * MIB, 1024
"""All paths together: so many characters, and so many more for each entry. A few directories nested by long names
would otherwise turn a small volume into gigabytes of paths."""


def read_directory(device: BlockDevice, places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Pieces of a directory as (offset, bytes) up to its end mark, from the places (offset, bytes) it lies in."""
    for start, length in places:
        for offset in range(start, start + length, PIECE_BYTES):
            piece = device.read(offset, min(PIECE_BYTES, start + length - offset))
            end = piece[:: layout.ENTRY_BYTES].find(layout.NAME_END)
            if end < 0:
                yield offset, piece
                continue
            if end:
                yield offset, piece[: end * layout.ENTRY_BYTES]
            return


class TreeScanner:
    """Collects every name of a volume; used once."""

    def __init__(self, device: BlockDevice, geometry: Geometry, table: Table) -> None:
        self._device = device
        self._geometry = geometry
        self._table = table
        self._entered = np.zeros(geometry.end_cluster, dtype=np.bool_)
        self._paths = ["/"]
        self._known = {"/"}
        self._paths_length = 1
        self._listings = [
            Listing(
                directory=np.zeros(1, dtype=np.int64),
                offset=np.zeros(1, dtype=np.int64),
                name=[],
                attributes=np.array([layout.ATTR_DIRECTORY], dtype=np.uint8),
                first_cluster=np.array([geometry.root_cluster], dtype=np.int64),
                size_bytes=np.zeros(1, dtype=np.int64),
                modified_ns=np.array([NO_TIME], dtype=np.int64),
            )
        ]
        self._next: list[int] = []
        self._next_clusters: list[int] = []

    def scan(self) -> Scan:
        """The entries and contents. Raises :class:`InconsistentVolume`."""
        level, clusters = [0], [self._geometry.root_cluster]
        while level:
            self._next, self._next_clusters = [], []
            for at in range(0, len(level), BATCH_DIRECTORIES):
                self._read(level[at : at + BATCH_DIRECTORIES], clusters[at : at + BATCH_DIRECTORIES])
            level, clusters = self._next, self._next_clusters
        return self._result()

    def _read(self, rows: list[int], clusters: list[int]) -> None:
        """List directories, given as rows of the result and their first clusters."""
        chains = self._table.follow(np.array(clusters, dtype=np.int64))
        start, length, first_run = chains.start.tolist(), chains.length.tolist(), chains.first_run.tolist()
        ending = chains.ending.tolist()
        pieces: list[tuple[int, int, bytes]] = []
        held = 0
        for k, row in enumerate(rows):
            runs = list(
                zip(start[first_run[k] : first_run[k + 1]], length[first_run[k] : first_run[k + 1]], strict=True)
            )
            places = self._enter(row, runs, Ending(ending[k]))
            for offset, piece in read_directory(self._device, places):
                pieces.append((row, offset, piece))
                held += len(piece)
            if held >= BATCH_BYTES:
                self._take(pieces)
                pieces, held = [], 0
        self._take(pieces)

    def _enter(self, row: int, runs: list[tuple[int, int]], ending: Ending) -> list[tuple[int, int]]:
        """Where a directory lies, in bytes; each cluster is entered once, so that the tree has an end."""
        geometry = self._geometry
        if row == 0 and geometry.fat_bits != 32:
            return [(geometry.root_offset, geometry.root_entries * layout.ENTRY_BYTES)]
        if ending != Ending.END:
            raise self._problem(row, f"its chain {ending.words}")
        if not runs:
            raise self._problem(row, "has no cluster")
        if (size := sum(count for _, count in runs) * geometry.bytes_per_cluster) > DIRECTORY_BYTES_TOLERATED:
            raise self._problem(row, f"takes {size} bytes, allowed are {DIRECTORY_BYTES_TOLERATED}")
        for cluster, count in runs:
            if self._entered[cluster : cluster + count].any():
                raise self._problem(row, f"shares clusters from {cluster} to {cluster + count - 1} with another one")
            self._entered[cluster : cluster + count] = True
        return [(geometry.offset_of(cluster), count * geometry.bytes_per_cluster) for cluster, count in runs]

    def _take(self, pieces: list[tuple[int, int, bytes]]) -> None:
        """Parse what was read and put it into the result."""
        if not pieces:
            return
        counts = np.array([len(piece) // layout.ENTRY_BYTES for _, _, piece in pieces], dtype=np.int64)
        entries = np.frombuffer(b"".join(piece for _, _, piece in pieces), dtype=layout.DIRECTORY_ENTRY)
        directory = np.repeat(np.array([row for row, _, _ in pieces], dtype=np.int64), counts)
        base = np.array([offset for _, offset, _ in pieces], dtype=np.int64)
        base -= (np.cumsum(counts) - counts) * layout.ENTRY_BYTES
        offset = np.repeat(base, counts) + np.arange(len(entries), dtype=np.int64) * layout.ENTRY_BYTES
        listing = list_entries(entries, directory, offset, self._geometry.fat_bits)
        self._listings.append(listing)
        first_row = len(self._paths)
        for parent, name, place in zip(listing.directory.tolist(), listing.name, listing.offset.tolist(), strict=True):
            self._add_path(f"{self._paths[parent]}/{name}" if parent else f"/{name}", place)
        below = np.flatnonzero(listing.attributes & layout.ATTR_DIRECTORY)
        self._next += (below + first_row).tolist()
        self._next_clusters += listing.first_cluster[below].tolist()

    def _add_path(self, path: str, place: int) -> None:
        while path in self._known:
            path = f"{path}~{place // layout.ENTRY_BYTES}"
        self._paths_length += len(path)
        if len(path) > PATH_LENGTH_MAX:
            raise InconsistentVolume("directory tree", f"a path is longer than {PATH_LENGTH_MAX} characters")
        if self._paths_length > PATHS_LENGTH_BASE + PATHS_LENGTH_MEAN * len(self._paths):
            raise InconsistentVolume("directory tree", f"{len(self._paths)} paths have {self._paths_length} characters")
        self._known.add(path)
        self._paths.append(path)

    def _result(self) -> Scan:
        geometry, listings = self._geometry, self._listings
        attributes = np.concatenate([part.attributes for part in listings])
        size_bytes = np.concatenate([part.size_bytes for part in listings])
        record = np.concatenate([part.offset for part in listings]) // layout.ENTRY_BYTES
        chains = self._table.follow(np.concatenate([part.first_cluster for part in listings]))
        is_directory = (attributes & layout.ATTR_DIRECTORY) != 0
        self._check_sizes(chains, np.where(is_directory, 0, size_bytes), record)
        size_bytes[is_directory] = chains.clusters[is_directory] * geometry.bytes_per_cluster
        first_run = chains.first_run
        run_offset = geometry.heap_offset + (chains.start - layout.FIRST_CLUSTER) * geometry.bytes_per_cluster
        run_length = chains.length * geometry.bytes_per_cluster
        if geometry.fat_bits != 32:
            size_bytes[0] = geometry.root_entries * layout.ENTRY_BYTES
            first_run = np.concatenate((first_run[:1], first_run[1:] + 1))
            run_offset = np.concatenate(([geometry.root_offset], run_offset))
            run_length = np.concatenate(([geometry.root_bytes], run_length))
        entries = Entries(
            path=self._paths,
            kind=np.where(is_directory, EntryKind.DIRECTORY, EntryKind.FILE).astype(np.uint8),
            content=np.arange(len(self._paths), dtype=np.int64),
            record=record,
            modified_ns=np.concatenate([part.modified_ns for part in listings]),
            attributes=attributes.astype(np.uint32),
        )
        contents = Contents(
            record=record,
            stream=[""] * len(self._paths),
            size_bytes=size_bytes,
            valid_bytes=size_bytes,
            flags=np.where(is_directory, ContentFlag.INDEX, 0).astype(np.uint8),
            first_run=first_run,
            run_offset=run_offset,
            run_length=run_length,
            inline_digest={},
        )
        return Scan(entries, contents)

    def _check_sizes(self, chains: Chains, size_bytes: Int64s, record: Int64s) -> None:
        """A chain may be longer than its file; where it is shorter, bytes of the file are nowhere."""
        short = np.flatnonzero(chains.clusters * self._geometry.bytes_per_cluster < size_bytes)
        if len(short):
            row = int(short[0])
            words = Ending(int(chains.ending[row])).words
            raise InconsistentVolume(
                f"file {self._paths[row]!r}",
                f"DIR_FileSize is {size_bytes[row]}, but its chain {words} after {chains.clusters[row]} clusters of "
                f"{self._geometry.bytes_per_cluster} bytes",
                offset_bytes=int(record[row]) * layout.ENTRY_BYTES,
            )

    def _problem(self, row: int, problem: str) -> InconsistentVolume:
        return InconsistentVolume(f"directory {self._paths[row]!r}", problem)
