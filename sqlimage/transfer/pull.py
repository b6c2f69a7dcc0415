"""An image fetched from a store: what is missing of it, and nothing else."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sqlimage.errors import NotFoundError, RefusedError, SqlimageError
from sqlimage.image.lineage import resolve
from sqlimage.streams import control
from sqlimage.streams.database import Database
from sqlimage.streams.segments import Segment
from sqlimage.transfer import places
from sqlimage.transfer.arrive import First, Incoming, check_is_this, make_image
from sqlimage.transfer.push import pointer
from sqlimage.transfer.remote import Remote, look
from sqlimage.transfer.stores.contract import Store
from sqlimage.units import Progress

_AT_ONCE = 2
"""Segments in memory: one that is written, and one that is fetched meanwhile."""
_SUFFIX = ".sqlimage"


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull came to; sizes in bytes."""

    image: str
    url: str
    uuid: str
    identity: str
    segments: int
    fetched_segments: int
    fetched_bytes: int
    here_bytes: int
    """Of segments that an earlier pull had fetched."""
    parents: tuple[PullReport, ...] = ()


def pull(
    store: Store,
    name: str,
    path: str,
    *,
    url: str | None = None,
    parents: bool = True,
    search: Sequence[str] = (),
    progress: Progress | None = None,
) -> PullReport:
    """Fetch an image into a new file, or go on with one that an earlier pull has begun.

    The file is there, and can be read in part, once the first segment has come; each segment counts when it has been
    compared with its digest and is on the disk. ``parents`` that are nowhere to be found come from the same store, into
    the same directory. ``url`` is remembered until the image is whole.

    Raises :class:`~sqlimage.errors.NotFoundError` where segments are not in the store, after all others have been
    fetched; :class:`~sqlimage.errors.RefusedError` where the file is another image.
    """
    path = os.path.realpath(path)
    remote = look(store, name)
    segment = None
    if not os.path.lexists(path):
        if url is not None:
            places.remember_origin(remote.identity, url)
        segment = remote.whole_first()
        make_image(path, First.from_segment(remote.where, segment))
    with Incoming(path, "pulling it") as incoming:
        is_ours = url is not None and places.origin_of(incoming.identity or "") == url
        if not (is_ours and incoming.missing() and incoming.segments[0].is_here):
            # Else the name stands for another image by now; but the segments of this one are still where they were.
            check_is_this(path, incoming, remote.identity, remote.where)
        fetching = Fetching(incoming, lambda row: _get(remote, row), progress)
        if segment is not None:
            fetching.take(incoming.segments[0], segment)
            segment = None
        absent = fetching.run()
        identity = incoming.identity or ""
    above = _pull_parents(store, path, search) if parents else ()
    if absent:
        numbers = ", ".join(str(row.number) for row in absent[:10])
        raise NotFoundError(
            f"{remote.where}: segments {numbers}{' ...' if len(absent) > 10 else ''} of {len(incoming.segments)} "
            f"are not there; all others are in {path}",
            hint="run the command again when they are",
        )
    places.forget_origin(identity)
    return PullReport(
        path,
        remote.where,
        remote.header.image,
        identity,
        len(incoming.segments),
        fetching.fetched_segments,
        fetching.fetched_bytes,
        fetching.here_bytes,
        above,
    )


def _get(remote: Remote, row: Segment) -> bytes:
    if row.number == 1:
        return remote.whole_first()
    return remote.store.get(f"segments/{row.digest.hex()}", row.length_bytes)


class Fetching:
    """The missing segments of an image, fetched in order, one ahead of the one that is written."""

    def __init__(self, incoming: Incoming, get: Callable[[Segment], bytes], progress: Progress | None) -> None:
        self._incoming = incoming
        self._get = get
        self._progress = progress
        self._total = sum(row.length_bytes for row in incoming.segments)
        self.fetched_segments = self.fetched_bytes = 0
        self.here_bytes = sum(row.length_bytes for row in incoming.segments if row.is_here)

    def run(self) -> list[Segment]:
        """Fetch what is missing; what is not there, either."""
        absent: list[Segment] = []
        pool = ThreadPoolExecutor(1, thread_name_prefix="pull")
        window: deque[tuple[Segment, Future[bytes]]] = deque()
        self._tell()
        try:
            for row in self._incoming.missing():
                window.append((row, pool.submit(self._get, row)))
                if len(window) >= _AT_ONCE:
                    self._take(*window.popleft(), absent)
            while window:
                self._take(*window.popleft(), absent)
        finally:
            pool.shutdown(cancel_futures=True)
        return absent

    def _take(self, row: Segment, future: Future[bytes], absent: list[Segment]) -> None:
        try:
            segment = future.result()
        except NotFoundError:
            absent.append(row)
            return
        self.take(row, segment)

    def take(self, row: Segment, segment: bytes) -> None:
        """A segment that came."""
        self._incoming.put(row.number, segment)
        self.fetched_segments += 1
        self.fetched_bytes += len(segment)
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(self.here_bytes + self.fetched_bytes, self._total)


def _pull_parents(store: Store, path: str, search: Sequence[str]) -> tuple[PullReport, ...]:
    """Pull the parents of an image, unless they are at hand."""
    reports = []
    directory = os.path.dirname(path)
    for uuid in missing_parents(path, search):
        told = pointer(store, uuid)
        if told is None:
            continue  # whoever reads will be told; the image itself is here
        target = file_for(directory, told["image"])
        if os.path.lexists(target) and not _is_arriving(target):
            raise RefusedError(f"{target}: exists already, and does not hold the parent {uuid}", hint="move it away")
        reports.append(pull(store, told["image"], target, search=search))
    return tuple(reports)


def missing_parents(path: str, search: Sequence[str] = ()) -> list[str]:
    """The UUIDs of parents in other files that are nowhere to be found, or have not arrived whole."""
    missing: list[str] = []
    with Database.open(path, structure_only=True) as database:
        known = control.versions(database)
        here = {version.uuid for version in known}
        for version in known:
            parent = version.parent_uuid
            if parent is None or parent in here or parent in missing:
                continue
            try:
                lineage = resolve(database, version, search)
            except SqlimageError:
                missing.append(parent)
                continue
            try:
                lineage.files[lineage.links[1].file].check_whole()
            except RefusedError:
                missing.append(parent)
            finally:
                lineage.close()
    return missing


def _is_arriving(path: str) -> bool:
    try:
        with Database.open(path, structure_only=True) as database:
            database.check_whole()
    except RefusedError:
        return True
    except SqlimageError:
        return False
    return False


def file_for(directory: str, name: str) -> str:
    """Where an image of that name in a store goes. It ends as images do, or it would not be found as a parent."""
    base = os.path.basename(name)
    return os.path.join(directory, base if base.endswith(_SUFFIX) else base + _SUFFIX)
