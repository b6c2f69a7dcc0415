"""A capture that holds only what differs from a parent: compare, find what moved, store the rest."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlimage.codec.vault import Vault
from sqlimage.device import BlockDevice, Prefetching
from sqlimage.extent import Runs
from sqlimage.image.chunks import Connections, connect, read_row
from sqlimage.image.compare import Comparing, Comparison
from sqlimage.image.delta import Delta, Observed
from sqlimage.image.holding import Holdings
from sqlimage.image.image import Version
from sqlimage.image.keys import Key
from sqlimage.image.lineage import resolve
from sqlimage.image.medium import Medium
from sqlimage.image.uncommitted import Ancestors
from sqlimage.journey.encode import Encoded, Encoder, NewChunk, Record
from sqlimage.journey.jobs import NOBODY, About, Encrypt, Job, Piece, Window
from sqlimage.journey.moved import Donors, Reference
from sqlimage.journey.plan import Plan, VolumeContents
from sqlimage.journey.pour import pour
from sqlimage.journey.presets import Preset
from sqlimage.journey.write import Writer
from sqlimage.units import Progress

Kept = tuple[int, list[Piece], About]
"""First cluster, pieces and description of what has to be stored."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the new version is written."""

    version: int
    first_id: int
    """Numbers of the data stream from here on are free."""
    is_parents_file: bool


class ChildCapture:
    """One capture on top of a parent: clusters are compared from the moment it is made, beside whatever else is done.
    Use as a context manager: :meth:`look`, then :meth:`store` within the transaction of the file that is written."""

    def __init__(
        self,
        parent: Version,
        device: BlockDevice,
        target: Target,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._parent = parent
        self._device = device
        self._target = target
        self._threads = threads
        self._lineage = resolve(parent.image.database, parent.control, parent.image.search)
        self._connections: list[Connections] = connect(self._lineage)
        parent.image.attach_parents(parent.control)
        self.delta = Delta(parent.image.database, parent.number, target.version, parent.control.total_clusters)
        self._ids = itertools.count(target.first_id)
        self._numbers: dict[Key, int] = {}
        total = parent.allocated().total * parent.control.bytes_per_cluster
        self._comparing = Comparing(
            device,
            self._lineage,
            self._connections,
            threads=threads,
            progress=(lambda done: progress(min(done, total), total)) if progress else None,
        )
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="compare")
        self._map_looked_at = self._beside.submit(self._comparing.look_at_map)
        self.comparison: Comparison
        self._medium: Medium
        self._plan: Plan
        self._observed: Observed

    def look(self, medium: Medium, plan: Plan, keep_page_files: bool) -> None:
        """Find out which clusters and which files differ."""
        assert medium.bytes_per_cluster == self._parent.control.bytes_per_cluster
        self._medium, self._plan = medium, plan
        self._observed = Observed(self.delta, medium, keep_page_files=keep_page_files)
        self._map_looked_at.result()
        self.comparison = self._comparing.finish(plan.wanted, medium.total_clusters)
        differing, unit = self.comparison.changed.union(self.comparison.gone), medium.bytes_per_cluster
        written = Runs(differing.start * unit, differing.length * unit)
        self._observed.compare_with(written, [volume.number for volume in self._parent.volumes()])

    @property
    def ancestors(self) -> Ancestors:
        """The parent, while the capture is open."""
        return Ancestors(self._lineage, self._connections)

    @property
    def digests(self) -> Mapping[tuple[int, int], bytes]:
        """Of the contents that were read."""
        return self._observed.digests

    def check_parent(self) -> None:
        """Raise where the parent was removed or rearranged since it was looked at: what refers to it would be lost."""
        for connections in self._connections:
            connections.check()

    def store(
        self,
        writer: Writer,
        preset: Preset,
        start_writeback: Callable[[], None] | None = None,
        vault: Vault | None = None,
    ) -> None:
        """Write data and map of the new version."""
        unit, chunk_bytes = self._medium.bytes_per_cluster, self._parent.control.chunk_bytes
        own_file = 0 if self._target.is_parents_file else None
        holdings = Holdings(self._lineage, self._connections, own_file)
        encoder = Encoder(
            self._device,
            unit,
            chunk_bytes,
            preset.level,
            ids=self._ids,
            held=holdings.find,
            vault=vault,
            secret=self._plan.secret,
        )
        kept = self._without_what_moved(writer)
        jobs = self._jobs(kept, max(1, chunk_bytes // unit), preset.window_bytes // unit)
        pour(jobs, encoder, writer, bytes_per_cluster=unit, threads=self._threads, start_writeback=start_writeback)
        hidden = self.comparison.changed.union(self.comparison.gone).intersect(self.comparison.backed)
        zeros: list[Record] = [
            (start, start + length - 1, None, 0) for start, length in hidden.subtract(writer.recorded())
        ]
        writer.add_records(zeros)
        writer.finish()

    def _without_what_moved(self, writer: Writer) -> list[Kept]:
        """What of the changed clusters no ancestor has; what one has is recorded."""
        changed = self.comparison.changed
        before = [(volume.number, self.delta.before(volume.number)) for volume in self._parent.volumes()]
        kept: list[Kept] = []
        touched = [(contents, n) for contents in self._plan.contents for n in self._rows(contents)]
        digests = self._observed.digests
        asked = [digests.get((contents.number, contents.row[n])) for contents, n in touched]
        wanted = {digest for digest in asked if digest is not None}
        donors = Donors(self._device, self._lineage, self._connections, before, wanted)
        borders = (changed.start.tolist(), changed.end.tolist())
        try:
            for (contents, n), digest in zip(touched, asked, strict=True):
                whole = contents.pieces(n)
                pieces = _clip(whole, *borders)
                about = contents.about(n)
                for donor in donors.of(digest, contents.number, about.path):
                    if pieces:
                        found, pieces = donors.match(donor, pieces)
                        self._refer(found, writer)
                if pieces:
                    kept.append((pieces[0][1], *_placed(pieces, whole, about, self._medium.bytes_per_cluster)))
        finally:
            donors.close()
        leftover = changed.intersect(self._plan.leftover)
        for runs, encrypt in (
            (leftover.intersect(self._plan.secret), Encrypt.ALL),
            (leftover.subtract(self._plan.secret), Encrypt.NOTHING),
        ):
            kept += [(start, [(0, start, count)], NOBODY._replace(encrypt=encrypt)) for start, count in runs]
        kept.sort(key=lambda one: one[0])
        return kept

    def _rows(self, contents: VolumeContents) -> Iterator[int]:
        """The contents of a volume on clusters that differ, as rows of the plan."""
        row_of = {row: n for n, row in enumerate(contents.row)}
        for row in self._observed.touched.get(contents.number, ()):
            if row in row_of:
                yield row_of[row]

    def _refer(self, found: list[Reference], writer: Writer) -> None:
        """Records for what an ancestor holds."""
        records: list[Record] = []
        for start, count, key, offset in found:
            records.append((start, start + count - 1, self._number(key, writer), offset))
        writer.add_records(records)

    def _number(self, key: Key, writer: Writer) -> int:
        """Under which number the written file knows a content of an ancestor."""
        if key[0] == 0 and self._target.is_parents_file:
            return key[1]
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = next(self._ids)
            row = read_row(self._connections, key)
            chunk = NewChunk(number, row.digest, row.length, row.flags, row.stored_bytes, None)
            writer.add(Encoded(0, chunks=[chunk]))
        return number

    def _jobs(self, kept: list[Kept], chunk_clusters: int, window_clusters: int) -> Iterator[Job]:
        """As a plan of a whole medium makes them, of what is kept."""
        window = Window(chunk_clusters, self._medium.bytes_per_cluster)
        for _, pieces, about in kept:
            window.add(pieces, about)
            if window.small_clusters >= window_clusters or len(window) >= _MOST_IN_WINDOW:
                yield from self._announced(window)
                window = Window(chunk_clusters, self._medium.bytes_per_cluster)
        yield from self._announced(window)

    def _announced(self, window: Window) -> Iterator[Job]:
        device, unit = self._device, self._medium.bytes_per_cluster
        if isinstance(device, Prefetching):
            for start, count in window.places():
                device.prefetch(start * unit, count * unit)
        return window.jobs()

    def close(self) -> None:
        self._comparing.stop()
        self._beside.shutdown()
        for connections in self._connections:
            connections.close()
        self._lineage.close()

    def __enter__(self) -> ChildCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_MOST_IN_WINDOW = 100_000


def _clip(pieces: list[Piece], starts: list[int], ends: list[int]) -> list[Piece]:
    """The parts of pieces of a content that lie in runs (``ends`` not included)."""
    clipped: list[Piece] = []
    for place, start, count in pieces:
        n, end = bisect_right(ends, start), start + count
        while n < len(starts) and starts[n] < end:
            low, high = max(starts[n], start), min(ends[n], end)
            clipped.append((place + low - start, low, high - low))
            n += 1
    return clipped


def _placed(pieces: list[Piece], whole: list[Piece], about: About, unit: int) -> tuple[list[Piece], About]:
    """Pieces as they are to be cut: a content that is new as a whole from its first byte, as always; parts of one
    close together, for where they lie in it says nothing any more."""
    if pieces == whole:
        return pieces, about._replace(digested=False)
    close: list[Piece] = []
    at = 0
    for _, start, count in pieces:
        close.append((at, start, count))
        at += count
    return close, about._replace(digested=False, size_bytes=at * unit, valid_bytes=at * unit)
