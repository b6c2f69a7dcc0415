"""The whole tree of a volume in one pass: level by level, many directories at a time."""

from __future__ import annotations

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import ContentFlag, Contents, Entries, EntryKind, Scan
from sqlimage.filesystem.exfat import layout
from sqlimage.filesystem.exfat.boot import Geometry
from sqlimage.filesystem.exfat.directory import Batch, Bools, Listing, UpCase, list_entries
from sqlimage.filesystem.exfat.places import Places
from sqlimage.filesystem.exfat.root import Root, places_of, read_directory
from sqlimage.filesystem.exfat.table import Chains, Ending, Table
from sqlimage.units import MIB, NO_TIME

BITMAP_PATH, UP_CASE_PATH = "/$Bitmap", "/$UpCase"
BATCH_BYTES = 4 * MIB
"""So much is read before it is parsed."""
BATCH_DIRECTORIES = 4096
PATH_LENGTH_MAX = 32767
"""Characters; what Windows allows. Also bounds the depth of a hostile tree."""
PATHS_LENGTH_BASE, PATHS_LENGTH_MEAN = 64 * MIB, 1024
"""All paths together: so many characters, and so many more for each entry. A few directories nested by long names
would otherwise turn a small volume into gigabytes of paths."""


class TreeScanner:
    """Collects every name of a volume; used once."""

    def __init__(self, device: BlockDevice, geometry: Geometry, table: Table, root: Root, up_case: UpCase) -> None:
        self._device = device
        self._geometry = geometry
        self._table = table
        self._root = root
        self._up_case = up_case
        self._entered = Places()
        self._paths = ["/"]
        self._known = {"/"}
        self._paths_length = 1
        size = root.clusters * geometry.bytes_per_cluster
        self._listings = [_row(layout.ATTRIBUTE_DIRECTORY, geometry.root_cluster, size, 0)]
        self._pieces: list[tuple[int, int, bytes]] = []
        """(row of the directory, offset, bytes) of what was read and is not parsed yet."""
        self._below: list[tuple[Int64s, Int64s, Int64s, Bools]] = []
        """Directories of the next level: row, first cluster, size in bytes, whether they are contiguous."""
        self._held_bytes = 0

    def scan(self) -> Scan:
        """The entries and contents. Raises :class:`InconsistentVolume`."""
        self._descend(self._listings[0], 0)
        while self._below:
            below, self._below = self._below, []
            rows, first, size = (np.concatenate([part[k] for part in below]) for k in range(3))
            contiguous = np.concatenate([part[3] for part in below])
            for at in range(0, len(rows), BATCH_DIRECTORIES):
                part = slice(at, at + BATCH_DIRECTORIES)
                self._read(rows[part], first[part], size[part], contiguous[part])
        return self._result()

    def _descend(self, listing: Listing, first_row: int) -> None:
        """Note the directories of a listing, whose first row is that one of the result, for the next level."""
        which = np.flatnonzero(listing.is_directory & (listing.size_bytes > 0))
        if len(which):
            self._below.append(
                (
                    which + first_row,
                    listing.first_cluster[which],
                    listing.size_bytes[which],
                    listing.contiguous[which],
                )
            )

    def _read(self, rows: Int64s, first: Int64s, size: Int64s, contiguous: Bools) -> None:
        """List directories, given as rows of the result and where they lie."""
        runs = self._runs(first, size, contiguous)
        self._check(runs, rows)
        owner = np.repeat(rows, np.diff(runs.first_run))
        met = self._entered.add(runs.start, runs.length)  # so that the tree has an end
        if met is not None:
            raise self._problem(
                int(owner[met]), f"shares clusters from {runs.start[met]} on with another one or with itself"
            )
        for k, row in enumerate(rows.tolist()):
            part = slice(runs.first_run[k], runs.first_run[k + 1])
            whole = int(size[k]) // layout.ENTRY_BYTES * layout.ENTRY_BYTES
            places = places_of(self._geometry, runs.start[part], runs.length[part], whole)
            for offset, piece in read_directory(self._device, places):
                self._pieces.append((row, offset, piece))
                self._held_bytes += len(piece)
                if self._held_bytes >= BATCH_BYTES:
                    self._take(more=True)
        self._take(more=False)

    def _runs(self, first: Int64s, size: Int64s, contiguous: Bools) -> Chains:
        """Where contents lie, by their directory entries or by the FAT."""
        clusters = -(-size // self._geometry.bytes_per_cluster)
        chained = np.flatnonzero(~contiguous)
        chains = self._table.follow(first[chained], clusters[chained])
        count = (clusters > 0).astype(np.int64)
        count[chained] = np.diff(chains.first_run)
        first_run = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(count)))
        start, length = np.empty(first_run[-1], dtype=np.int64), np.empty(first_run[-1], dtype=np.int64)
        is_chained = np.repeat(~contiguous, count)
        whole = contiguous & (clusters > 0)
        start[is_chained], length[is_chained] = chains.start, chains.length
        start[~is_chained], length[~is_chained] = first[whole], clusters[whole]
        ending = np.zeros(len(first), dtype=np.int8)
        ending[chained] = chains.ending
        return Chains(first_run, start, length, ending)

    def _check(self, runs: Chains, rows: Int64s) -> None:
        """No content is longer than its chain, and no chain passes a cluster twice."""
        broken = np.flatnonzero(runs.ending != Ending.ENOUGH)
        if len(broken):
            k = int(broken[0])
            words = Ending(int(runs.ending[k])).words
            raise self._problem(
                int(rows[k]), f"its chain in the FAT {words}, {runs.clusters(k)} clusters after its beginning"
            )

    def _take(self, *, more: bool) -> None:
        """Parse what was read and put it into the result. With ``more`` the last directory may go on."""
        pieces = self._pieces
        if not pieces:
            return
        counts = np.array([len(piece) // layout.ENTRY_BYTES for _, _, piece in pieces], dtype=np.int64)
        base = np.array([offset for _, offset, _ in pieces], dtype=np.int64)
        base -= (np.cumsum(counts) - counts) * layout.ENTRY_BYTES
        total = int(counts.sum())
        batch = Batch(
            raw=b"".join(piece for _, _, piece in pieces),
            directory=np.repeat(np.array([row for row, _, _ in pieces], dtype=np.int64), counts),
            offset=np.repeat(base, counts) + np.arange(total, dtype=np.int64) * layout.ENTRY_BYTES,
        )
        listing, consumed = list_entries(batch, self._geometry, self._up_case, more=more)
        self._keep_unparsed(total - consumed)
        self._listings.append(listing)
        self._descend(listing, len(self._paths))
        for parent, name, place in zip(listing.directory.tolist(), listing.name, listing.offset.tolist(), strict=True):
            before = self._paths[parent] if parent else ""
            self._add_path(f"{before}/{name}", place // layout.ENTRY_BYTES)
        listing.name.clear()

    def _keep_unparsed(self, entries: int) -> None:
        """Of what was read, keep the last entries only."""
        kept = []
        missing = entries * layout.ENTRY_BYTES
        while missing > 0:
            row, offset, piece = self._pieces.pop()
            surplus = max(len(piece) - missing, 0)
            kept.append((row, offset + surplus, piece[surplus:]))
            missing -= len(piece) - surplus
        self._pieces = kept[::-1]
        self._held_bytes = entries * layout.ENTRY_BYTES

    def _add_path(self, path: str, record: int) -> None:
        while path in self._known:
            path = f"{path}~{record}"
        self._paths_length += len(path)
        if len(path) > PATH_LENGTH_MAX:
            raise InconsistentVolume("directory tree", f"a path is longer than {PATH_LENGTH_MAX} characters")
        if self._paths_length > PATHS_LENGTH_BASE + PATHS_LENGTH_MEAN * len(self._paths):
            raise InconsistentVolume("directory tree", f"{len(self._paths)} paths have {self._paths_length} characters")
        self._known.add(path)
        self._paths.append(path)

    def _result(self) -> Scan:
        geometry = self._geometry
        names = len(self._paths)
        for path, entry in ((BITMAP_PATH, self._root.bitmap), (UP_CASE_PATH, self._root.up_case)):
            self._add_path(path, entry.record)
            self._listings.append(_row(0, entry.first_cluster, entry.size_bytes, entry.record))
        self._known.clear()
        listing = _joined(self._listings)
        self._listings.clear()
        rows = np.arange(len(self._paths), dtype=np.int64)
        runs = self._runs(listing.first_cluster, listing.size_bytes, listing.contiguous)
        self._check(runs, rows)
        record = listing.offset // layout.ENTRY_BYTES
        kind = np.where(listing.is_directory, EntryKind.DIRECTORY, EntryKind.FILE).astype(np.uint8)
        kind[names:] = EntryKind.METADATA
        flags = np.where(listing.is_directory, ContentFlag.INDEX, 0).astype(np.uint8)
        flags[listing.encrypted] |= np.uint8(ContentFlag.ENCRYPTED)
        entries = Entries(
            path=self._paths,
            kind=kind,
            content=rows,
            record=record,
            modified_ns=listing.modified_ns,
            attributes=listing.attributes.astype(np.uint32),
        )
        contents = Contents(
            record=record,
            stream=[""] * len(self._paths),
            size_bytes=listing.size_bytes,
            valid_bytes=listing.valid_bytes,
            flags=flags,
            first_run=runs.first_run,
            run_offset=geometry.heap_offset + (runs.start - layout.FIRST_CLUSTER) * geometry.bytes_per_cluster,
            run_length=runs.length * geometry.bytes_per_cluster,
            inline_digest={},
        )
        return Scan(entries, contents)

    def _problem(self, row: int, problem: str) -> InconsistentVolume:
        return InconsistentVolume(repr(self._paths[row]), problem)


def _row(attributes: int, first_cluster: int, size_bytes: int, record: int) -> Listing:
    """One content that no File directory entry names. Its chain is in the FAT."""
    size = np.array([size_bytes], dtype=np.int64)
    return Listing(
        directory=np.zeros(1, dtype=np.int64),
        offset=np.array([record * layout.ENTRY_BYTES], dtype=np.int64),
        name=[],
        attributes=np.array([attributes], dtype=np.uint16),
        first_cluster=np.array([first_cluster], dtype=np.int64),
        size_bytes=size,
        valid_bytes=size,
        contiguous=np.zeros(1, dtype=np.bool_),
        modified_ns=np.array([NO_TIME], dtype=np.int64),
        encrypted=np.zeros(1, dtype=np.bool_),
    )


def _joined(listings: list[Listing]) -> Listing:
    """All rows of several listings; their names are paths by now."""
    return Listing(
        directory=np.concatenate([part.directory for part in listings]),
        offset=np.concatenate([part.offset for part in listings]),
        name=[],
        attributes=np.concatenate([part.attributes for part in listings]),
        first_cluster=np.concatenate([part.first_cluster for part in listings]),
        size_bytes=np.concatenate([part.size_bytes for part in listings]),
        valid_bytes=np.concatenate([part.valid_bytes for part in listings]),
        contiguous=np.concatenate([part.contiguous for part in listings]),
        modified_ns=np.concatenate([part.modified_ns for part in listings]),
        encrypted=np.concatenate([part.encrypted for part in listings]),
    )
