"""An image put into a store: only what is not there yet."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from sqlimage.errors import RefusedError
from sqlimage.image.chunks import Connections
from sqlimage.image.lineage import resolve
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.transfer.cut import cut, cut_first, digest
from sqlimage.transfer.daemons import Daemons
from sqlimage.transfer.plan import Plan, chosen, plan_for
from sqlimage.transfer.segment import HEADER_BYTES, USUAL_BYTES
from sqlimage.transfer.stores.contract import Store, address, segment_name
from sqlimage.transfer.there import There, point, pointer, what_is_there
from sqlimage.units import Progress

_AT_ONCE = 2
"""Segments that are on their way at the same time, each in memory."""
_NOT_IN_NAMES = re.compile("[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push came to; sizes in bytes."""

    image: str
    url: str
    uuid: str
    identity: str
    segments: int
    """Of which the image consists now."""
    sent_segments: int
    sent_bytes: int
    there_bytes: int
    """What was to be put there and was there already."""
    parents: tuple[PushReport, ...] = ()


def name_for(path: str) -> str:
    """Under which name an image file goes into a store unless told otherwise."""
    name = _NOT_IN_NAMES.sub("_", os.path.basename(path))[:128]
    return name if re.match("[A-Za-z0-9_]", name) else f"image{name}"[:128]


def push(
    path: str,
    version: str | None,
    store: Store,
    name: str,
    *,
    segment_bytes: int = USUAL_BYTES,
    parents: bool = True,
    replace: bool = False,
    search: Sequence[str] = (),
    progress: Progress | None = None,
) -> PushReport:
    """Put an image, or one version with its ancestors in the same file, into a store under a name.

    What the store has whole is not sent again: not what an earlier push put there before it was interrupted, nor what
    the image that the name stands for holds. ``parents`` in other files that are not there go first. The name stands
    for the new image when everything is there, and not before.

    Raises :class:`~sqlimage.errors.RefusedError` where the name stands for versions that are not among these (unless
    ``replace``), and what :func:`~sqlimage.transfer.plan.plan_for` raises.
    """
    with Database.open(path, structure_only=True) as database:
        versions = chosen(database, version)
        above = _push_parents(database, versions, store, segment_bytes, search) if parents else ()
        there = what_is_there(store, name)
        if there is not None:
            _check_nothing_is_lost(there, versions, replace)
        plan = plan_for(database, version, segment_bytes, there.known if there is not None else {})
        is_same = there is not None and there.is_same(plan)
        if there is not None and not there.has(there.segments if is_same else plan.used_segments()):
            plan, is_same = plan_for(database, version, segment_bytes), False
        if there is not None and is_same:
            identity, segments, sending = there.remote.identity, len(there.segments), _Sending(database, plan, store)
            sending.there_bytes = there.segments_bytes
        else:
            sending = _Sending(database, plan, store, progress)
            identity, segments = sending.run(name)
        for one in plan.versions:
            point(store, one.uuid, name)
        url = address(store, name)
        return PushReport(
            database.path, url, plan.newest.uuid, identity, segments,
            sending.sent_segments, sending.sent_bytes, sending.there_bytes, above,
        )  # fmt: skip


def _push_parents(
    database: Database, versions: Sequence[Control], store: Store, segment_bytes: int, search: Sequence[str]
) -> tuple[PushReport, ...]:
    """Push the files of parents that the store knows nothing of."""
    here = {version.uuid for version in versions}
    reports: dict[str, PushReport] = {}
    for version in versions:
        if version.parent_uuid is None or version.parent_uuid in here or pointer(store, version.parent_uuid):
            continue
        lineage = resolve(database, version, search)
        try:
            path = lineage.files[lineage.links[1].file].path
        finally:
            lineage.close()
        if path != database.path and path not in reports:
            reports[path] = push(path, None, store, name_for(path), segment_bytes=segment_bytes, search=search)
    return tuple(reports.values())


def _check_nothing_is_lost(there: There, versions: Sequence[Control], replace: bool) -> None:
    """Other versions may be the work of others, or the parents of what they have."""
    ours = {version.uuid for version in versions}
    lost = there.uuids - ours
    if replace or not lost:
        return
    where = there.remote.where
    if lost == there.uuids:
        is_parent = any(version.parent_uuid in lost for version in versions)
        what = "is the parent of this image" if is_parent else "is another image, none of whose versions is in this one"
        raise RefusedError(f"{where}: {what}", hint="choose another name, or replace it with --replace")
    raise RefusedError(
        f"{where}: has {len(lost)} of its {len(there.uuids)} versions alone, which would be lost there",
        hint="pull them into another file and `sqlimage merge` or keep that, choose another name, or give them up "
        "with --replace",
    )


def _down_to(most: int, sending: set[Future[Any]]) -> set[Future[Any]]:
    """Those that are still on their way when there are no more than that; whatever fails first is raised at once."""
    while True:
        for one in [one for one in sending if one.done()]:
            one.result()
            sending.remove(one)
        if len(sending) <= most:
            return sending
        wait(sending, return_when=FIRST_COMPLETED)


class _Sending:
    """The segments of a plan on their way."""

    def __init__(self, database: Database, plan: Plan, store: Store, progress: Progress | None = None) -> None:
        self._database = database
        self._plan = plan
        self._store = store
        self._progress = progress
        self._lock = threading.Lock()
        self._local = threading.local()
        self.sent_segments = self.sent_bytes = self.there_bytes = 0

    def run(self, name: str) -> tuple[str, int]:
        """Send what is not there, and let the name stand for it; the identity, and of how many segments it consists."""
        plan = self._plan
        connections = Connections(self._database)
        pool = Daemons(_AT_ONCE, "push")
        known: dict[int, Future[bytes]] = {number: Future() for number in range(2, len(plan.cut) + 1)}
        sending: set[Future[Any]] = set()
        try:
            for number, told in known.items():
                sending.add(pool.submit(self._send, connections, number, told))
                sending = _down_to(_AT_ONCE, sending)
            first = pool.submit(self._send_first, connections, [*known.values()])
            _down_to(0, sending | {first})
        finally:
            pool.abandon()
        connections.close()  # where it was interrupted, somebody may still read through one
        identity, segment = first.result()
        others = [segment_name(told.result()) for told in known.values()]
        keep = others + sorted(one.name for one in plan.used_segments())
        self._store.publish(name, segment, keep)
        return identity, 1 + len(keep)

    def _send(self, connections: Connections, number: int, known: Future[bytes]) -> None:
        try:
            segment = cut(connections.mine(), self._plan, number, self._buffer())
        except BaseException as problem:
            known.set_exception(problem)
            raise
        self._put(segment, known)

    def _send_first(self, connections: Connections, known: Sequence[Future[bytes]]) -> tuple[str, str]:
        """It is cut as soon as all others are known, while the last of them is still on its way; the identity, and the
        name of the segment."""
        segment = cut_first(connections.mine(), self._plan, [one.result() for one in known], self._buffer())
        told: Future[bytes] = Future()
        self._put(segment, told)
        return hashlib.sha256(segment[:HEADER_BYTES]).hexdigest(), segment_name(told.result())

    def _buffer(self) -> bytearray:
        """The calling thread's, for one segment after the other: new memory each time would take as long as filling
        it."""
        found: bytearray | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = bytearray(max(self._plan.lengths))
        return found

    def _put(self, segment: memoryview, known: Future[bytes]) -> None:
        """Send a segment that is not there; ``known`` is told its digest before that."""
        found = digest(segment)
        known.set_result(found)
        name = segment_name(found)
        was_sent = self._store.head(name) != len(segment) and self._store.put(name, segment)
        with self._lock:
            self._count(was_sent, len(segment))

    def _count(self, was_sent: bool, length: int) -> None:
        if was_sent:
            self.sent_segments += 1
            self.sent_bytes += length
        else:
            self.there_bytes += length
        if self._progress:
            self._progress(self.sent_bytes + self.there_bytes, self._plan.new_bytes)
