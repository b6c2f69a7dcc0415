"""An image fetched from a store: what is missing of it, and nothing else."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

from sqlimage.errors import NotFoundError, RefusedError, SqlimageError
from sqlimage.image.lineage import resolve
from sqlimage.streams import control
from sqlimage.streams.database import Database
from sqlimage.streams.segments import Segment
from sqlimage.transfer import places
from sqlimage.transfer.arrive import Arrival, Incoming, check_is_this
from sqlimage.transfer.daemons import Daemons
from sqlimage.transfer.remote import Remote, look
from sqlimage.transfer.stores.contract import Content, Store, segment_name
from sqlimage.transfer.stores.wrappers import WrongBytes
from sqlimage.transfer.there import pointer
from sqlimage.units import Progress

_SUFFIX = ".sqlimage"
DEEPEST = 120
"""How many files of parents may stand one on another in a store."""
_AT_ONCE = 2
"""Segments that are in memory at the same time."""
_SOON_S = 1.0
"""How long a new image may wait for its name; what comes until then is written faster than it could be later."""


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
    above: int = 0,
) -> PullReport:
    """Fetch an image into a new file, or go on with one that an earlier pull has begun.

    The file is there, and can be read in part, once the first segment has come; each segment counts when it has been
    compared with its digest and is on the disk. What ``store`` gives MUST have been compared, as by
    :class:`~sqlimage.transfer.stores.wrappers.Checked`. ``parents`` that are nowhere to be found come from the same
    store, into the same directory; this image is ``above`` so many. ``url`` is remembered until the image is whole.

    Raises :class:`~sqlimage.errors.NotFoundError` where segments are not in the store, after all others have been
    fetched; :class:`~sqlimage.errors.RefusedError` where the file is another image.
    """
    path = os.path.realpath(path)
    remote = look(store, name)
    with closing(Fetching(remote, progress)) as fetching:
        if not os.path.lexists(path):
            if url is not None:
                places.remember_origin(remote.identity, url)
            try:
                _begin(remote, path, fetching)
            except RefusedError:
                if not os.path.lexists(path):
                    raise
                # Somebody else has begun it meanwhile; who, and whether it is this image, is told below.
        with Incoming(path, "pulling it") as incoming:
            is_ours = url is not None and places.origin_of(incoming.identity or "") == url
            if not (is_ours and incoming.missing()):
                # Else the name stands for another image by now; but the segments of this one are where they were.
                check_is_this(path, incoming, remote.identity, remote.where)
            absent = fetching.run(incoming)
            incoming.settle()
            identity = incoming.identity or ""
    fetched = _pull_parents(store, path, search, above + 1) if parents else ()
    if absent:
        numbers = ", ".join(str(row.number) for row in absent[:10]) + (" ..." if len(absent) > 10 else "")
        raise NotFoundError(
            f"{remote.where}: {len(absent)} of {len(incoming.segments)} segments are not there (number {numbers}); "
            f"all others are in {path}",
            hint="run the command again when they are there",
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
        fetched,
    )


def _begin(remote: Remote, path: str, fetching: Fetching) -> None:
    """The image with its streams, and what else comes very soon; whatever ends it, what came stays."""
    fetching.expect_first()
    first = remote.first(with_rest=True)
    with Arrival(path, first) as arrival:
        try:
            fetching.run(arrival, seconds=_SOON_S)
        finally:
            if not arrival.is_broken:
                arrival.publish()


class Fetching:
    """The missing segments of an image, fetched in order, one after the other; no more than two are in memory at a
    time. Close it."""

    def __init__(self, remote: Remote, progress: Progress | None) -> None:
        self._remote = remote
        self._progress = progress
        self._daemons = Daemons(1, "pull")
        self._coming: dict[int, Future[Content]] = {}
        self.fetched_segments = self.fetched_bytes = self.here_bytes = 0

    def expect(self, rows: Sequence[Segment]) -> None:
        """Have the first of them fetched."""
        for row in rows[:_AT_ONCE]:
            if row.number not in self._coming:
                self._coming[row.number] = self._daemons.submit(self._get, row)

    def expect_first(self) -> None:
        """Begin to fetch the first segment, of which nothing but the header needs to be known."""
        self._coming[1] = self._daemons.submit(self._remote.whole_first)

    def run(self, target: Arrival | Incoming, seconds: float = math.inf) -> list[Segment]:
        """Fetch what is missing, for so long; what is not there, either."""
        total = sum(row.length_bytes for row in target.segments)
        self.here_bytes = sum(row.length_bytes for row in target.segments if row.is_here) - self.fetched_bytes
        absent: list[Segment] = []
        missing = target.missing()
        end = time.monotonic() + seconds
        self._tell(total)
        for at, row in enumerate(missing):
            if time.monotonic() > end:
                break
            self.expect(missing[at:])
            coming = self._coming.pop(row.number)
            while not coming.done() and target.go_on():
                pass
            try:
                segment = coming.result()
            except NotFoundError:
                absent.append(row)
                continue
            except WrongBytes as problem:
                raise problem.of_segment(row.number, len(target.segments)) from None
            del coming  # it holds the segment
            target.take(row.number, segment)
            self.count(len(segment))
            del segment
            self._tell(total)
        return absent

    def count(self, length_bytes: int) -> None:
        """A segment came."""
        self.fetched_segments += 1
        self.fetched_bytes += length_bytes

    def _get(self, row: Segment) -> Content:
        return self._remote.store.get(segment_name(row.digest), row.length_bytes)

    def close(self) -> None:
        """What is on its way is not waited for."""
        self._daemons.abandon()

    def _tell(self, total: int) -> None:
        if self._progress:
            self._progress(self.here_bytes + self.fetched_bytes, total)


def _pull_parents(store: Store, path: str, search: Sequence[str], depth: int) -> tuple[PullReport, ...]:
    """Pull the parents of an image, unless they are at hand."""
    reports = []
    directory = os.path.dirname(path)
    for uuid in missing_parents(path, search):
        name = pointer(store, uuid)
        if name is None:
            continue  # whoever reads will be told; the image itself is here
        if depth > DEEPEST:
            raise RefusedError(f"{store.where}: tells of parents of parents without an end", hint="--no-parents")
        target = file_for(directory, name)
        if os.path.lexists(target) and not _is_arriving(target):
            raise RefusedError(f"{target}: exists already, and does not hold the parent {uuid}", hint="move it away")
        reports.append(pull(store, name, target, search=search, above=depth))
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
