"""An image put into a store: only what is not there yet."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqlimage.errors import FormatError, NotFoundError, RefusedError
from sqlimage.image.chunks import Connections
from sqlimage.image.lineage import resolve
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.transfer import columns
from sqlimage.transfer.arrive import First
from sqlimage.transfer.contents import OWN, SegmentInfo
from sqlimage.transfer.cut import cut, cut_first, digest
from sqlimage.transfer.daemons import Daemons
from sqlimage.transfer.plan import Elsewhere, Known, Plan, Stored, chosen, make_plan
from sqlimage.transfer.remote import Remote, look
from sqlimage.transfer.rows import split
from sqlimage.transfer.segment import HEADER_BYTES, USUAL_BYTES
from sqlimage.transfer.stores.contract import MOST_SMALL_BYTES, SEGMENTS, VERSIONS, Store, address, check_name
from sqlimage.units import Progress

_AT_ONCE = 2
"""Segments that are on their way at the same time, each in memory."""
_COMPARED = {"control": {"uuid"}, "data": {"id", "digest", "stored_bytes", "flags"}}
"""What must be told of an image that is there already, to see what of it can be used."""
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

    Raises :class:`~sqlimage.errors.RefusedError` where the name stands for an image of another lineage (unless
    ``replace``), and what :func:`~sqlimage.transfer.plan.chosen` and :func:`~sqlimage.transfer.plan.make_plan` raise.
    """
    with Database.open(path, structure_only=True) as database:
        versions = chosen(database, version)
        above = _push_parents(database, versions, store, segment_bytes, search) if parents else ()
        there = _what_is_there(store, name)
        if there is not None:
            _check_related(there, versions, replace)
        plan = make_plan(database, versions, segment_bytes, there.known if there is not None else {})
        if there is not None and _is_same(there.remote, plan):
            identity, segments, sending = there.remote.identity, there.segments, _Sending(database, plan, store, None)
            sending.there_bytes = there.segments_bytes
        else:
            sending = _Sending(database, plan, store, progress)
            identity, segments = sending.run(name)
        sending.point(name)
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


def pointer(store: Store, uuid: str) -> dict[str, str] | None:
    """What a store says of a version: under ``image`` the name of the image that holds it; None where it knows none."""
    try:
        told = json.loads(store.get(f"{VERSIONS}{uuid}", MOST_SMALL_BYTES))
        if "image" not in told:
            return None
        check_name(str(told["image"]))
        return {str(key): str(value) for key, value in told.items()}
    except (NotFoundError, ValueError, AttributeError, TypeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class _There:
    """What a name stands for."""

    remote: Remote
    uuids: frozenset[str]
    known: Known
    segments: int
    segments_bytes: int


def _what_is_there(store: Store, name: str) -> _There | None:
    try:
        remote = look(store, name)
    except NotFoundError:
        return None
    except FormatError:
        raise RefusedError(
            f"{address(store, name)}: exists, and is not an image in segments", hint="choose another name"
        ) from None
    first = remote.first(with_rest=False)
    uuids: set[str] = set()
    stored: dict[int, Stored] = {}
    for block in split(first.streams):
        table, names, rows = columns.decode(block)
        row = {one: number for number, one in enumerate(names)}
        if not _COMPARED.get(table, set()) <= row.keys():
            raise FormatError(f"{remote.where}: the rows of {table!r} in its first segment lack columns")
        if table == "control":
            uuids.update(str(one[row["uuid"]]) for one in rows)
        elif table == "data":
            for one in rows:
                number, *told = (one[row[column]] for column in ("id", "digest", "stored_bytes", "flags"))
                stored[number] = tuple(told)  # type: ignore[index, assignment]  # compared, never used
    listed = first.contents.segments
    length = sum(one.length_bytes for one in listed)
    return _There(remote, frozenset(uuids), _known(remote, first, stored), len(listed), length)


def _known(remote: Remote, first: First, stored: Mapping[int, Stored]) -> Known:
    """Where the contents of an image lie that is in the store, for as far as they can be referred to."""
    listed = list(first.contents.segments)
    own = _digest_of_first(remote)
    if own is not None:
        listed[0] = SegmentInfo(own, remote.header.length_bytes)
    known: dict[Stored, list[Elsewhere]] = {}
    for data, number, at, length in np.stack(first.contents.places(), axis=1).tolist():
        if data in stored:
            offset = at if number > 1 else at + remote.header.data_offset_bytes
            known.setdefault(stored[data], []).append(Elsewhere(listed[number - 1], offset, length))
    if own is None:
        return {name: pieces for name, pieces in known.items() if all(one.segment.digest != OWN for one in pieces)}
    return known


def _digest_of_first(remote: Remote) -> bytes | None:
    """Under which digest the first segment of an image lies in the store, too; None where that is not known."""
    told = (pointer(remote.store, remote.header.image) or {}).get("first", "")
    if not re.fullmatch("[0-9a-f]{64}", told):
        return None
    try:
        begins = remote.store.get_range(SEGMENTS + told, 0, HEADER_BYTES)
    except NotFoundError:
        return None
    return bytes.fromhex(told) if begins == remote.header.pack() else None


def _check_related(there: _There, versions: Sequence[Control], replace: bool) -> None:
    if not replace and there.uuids.isdisjoint(version.uuid for version in versions):
        raise RefusedError(
            f"{there.remote.where}: is another image, none of whose versions is in this one",
            hint="choose another name, or replace it with --replace",
        )


def _is_same(remote: Remote, plan: Plan) -> bool:
    """Whether what the name stands for has the same rows, down to the digests of all contents."""
    return (remote.header.streams.digest, remote.header.rest.digest) == (digest(plan.streams), digest(plan.rest))


def _down_to(most: int, sending: set[Future[None]]) -> set[Future[None]]:
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

    def __init__(self, database: Database, plan: Plan, store: Store, progress: Progress | None) -> None:
        self._database = database
        self._plan = plan
        self._store = store
        self._progress = progress
        self._first: str | None = None
        self._lock = threading.Lock()
        self.sent_segments = self.sent_bytes = self.there_bytes = 0

    def run(self, name: str) -> tuple[str, int]:
        """Send what is not there, and let the name stand for it; the identity, and of how many segments it consists."""
        plan = self._plan
        connections = Connections(self._database)
        pool = Daemons(_AT_ONCE, "push")
        numbers = range(2, len(plan.cut) + 1)
        known: dict[int, Future[bytes]] = {number: Future() for number in numbers}
        sending: set[Future[None]] = set()
        try:
            for number in numbers:
                sending.add(pool.submit(self._send, connections, number, known[number]))
                sending = _down_to(_AT_ONCE, sending)
            # The first is cut as soon as all others are known, while the last of them are still on their way.
            while unknown := [one for one in known.values() if not one.done()]:
                either: list[Future[Any]] = [*unknown, *sending]
                wait(either, return_when=FIRST_COMPLETED)
                sending = _down_to(len(sending), sending)
            sent = [known[number].result() for number in numbers]
            segment = cut_first(self._database, plan, sent)
            first: Future[bytes] = Future()
            sending.add(pool.submit(self._put, segment, first))
            _down_to(0, sending)
        finally:
            pool.abandon()
        connections.close()  # where it was interrupted, somebody may still read through one
        self._first = first.result().hex()
        others = {one.name for one in plan.used_segments()}
        keep = [SEGMENTS + one.hex() for one in sent] + sorted(others)
        self._store.publish(name, SEGMENTS + self._first, keep)
        return hashlib.sha256(segment[:HEADER_BYTES]).hexdigest(), 1 + len(sent) + len(others)

    def _send(self, connections: Connections, number: int, known: Future[bytes]) -> None:
        try:
            segment = cut(connections.mine(), self._plan, number)
        except BaseException as problem:
            known.set_exception(problem)
            raise
        self._put(segment, known)

    def _put(self, segment: bytearray, known: Future[bytes]) -> None:
        """Send a segment that is not there; ``known`` is told its digest before that."""
        found = digest(segment)
        known.set_result(found)
        name = SEGMENTS + found.hex()
        was_there = self._store.head(name) == len(segment)
        if not was_there:
            self._store.put(name, segment)
        with self._lock:
            self._count(not was_there, len(segment))

    def _count(self, was_sent: bool, length: int) -> None:
        if was_sent:
            self.sent_segments += 1
            self.sent_bytes += length
        else:
            self.there_bytes += length
        if self._progress:
            self._progress(self.sent_bytes + self.there_bytes, self._plan.new_bytes)

    def point(self, name: str) -> None:
        """Have every version found by its UUID."""
        newest = self._plan.newest.uuid
        for version in self._plan.versions:
            told = {"image": name}
            if version.uuid == newest and self._first is not None:
                told["first"] = self._first
            before = pointer(self._store, version.uuid)
            if before is None or any(before.get(key) != value for key, value in told.items()):
                self._store.put(f"{VERSIONS}{version.uuid}", json.dumps(told).encode())
