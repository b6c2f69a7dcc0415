"""What a store has of an image already: what its name stands for, and what of that can be used again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sqlimage.errors import FormatError, NotFoundError, RefusedError
from sqlimage.transfer import columns
from sqlimage.transfer.arrive import First
from sqlimage.transfer.contents import SegmentInfo
from sqlimage.transfer.cut import digest
from sqlimage.transfer.plan import Elsewhere, Known, Plan, Stored
from sqlimage.transfer.remote import Remote, look
from sqlimage.transfer.rows import split
from sqlimage.transfer.segment import HEADER_BYTES
from sqlimage.transfer.stores.contract import MOST_SMALL_BYTES, VERSIONS, Store, address, check_name

_CONTROL, _DATA = "control", "data"
_COMPARED = {_CONTROL: ("uuid",), _DATA: ("id", "digest", "stored_bytes", "flags")}
"""What must be told of an image that is there already, to see what of it can be used."""
_DIGEST = re.compile("[0-9a-f]{64}")
_IMAGE, _FIRST, _IDENTITY = "image", "first", "identity"


def pointer(store: Store, uuid: str) -> str | None:
    """The name of the image in a store that holds a version; None where the store knows none."""
    return _pointer(store, uuid).get(_IMAGE)


def point(store: Store, uuid: str, image: str) -> None:
    """Have a version found by its UUID."""
    _note(store, uuid, {_IMAGE: image})


def note_first(store: Store, uuid: str, identity: str, first: bytes) -> None:
    """Keep the digest of the first segment of an image, of which ``uuid`` is the newest version: where its name comes
    to stand for another, what lies in that segment can be used from then on."""
    _note(store, uuid, {_IDENTITY: identity, _FIRST: first.hex()})


def _note(store: Store, uuid: str, told: Mapping[str, str]) -> None:
    before = _pointer(store, uuid)
    if any(before.get(key) != value for key, value in told.items()):
        store.put(f"{VERSIONS}{uuid}", json.dumps({**before, **told}).encode())


def _pointer(store: Store, uuid: str) -> dict[str, str]:
    try:
        told = json.loads(bytes(store.get(f"{VERSIONS}{uuid}", MOST_SMALL_BYTES)))
        found = {key: str(told[key]) for key in (_IMAGE, _FIRST, _IDENTITY) if key in told}
        if _IMAGE in found:
            check_name(found[_IMAGE])
    except (NotFoundError, ValueError, AttributeError, TypeError, RecursionError):
        return {}
    return found


@dataclass(frozen=True, slots=True)
class There:
    """What a name stands for."""

    remote: Remote
    uuids: frozenset[str]
    """Of its versions."""
    segments: int
    segments_bytes: int
    known: Known = field(repr=False)
    """Where contents lie that can be referred to."""
    first: SegmentInfo | None
    """Its first segment; None where its digest is not known."""

    def is_same(self, plan: Plan) -> bool:
        """Whether it has the same rows as the image that is to be sent, down to the digests of all contents."""
        header = self.remote.header
        return (header.streams.digest, header.rest.digest) == (digest(plan.streams), digest(plan.rest))

    def keeps(self, plan: Plan) -> bool:
        """Whether everything stays there that a plan uses, when the name comes to stand for what is planned."""
        first = self.first
        if first is None or first not in plan.used_segments() or self._is_kept(first):
            return True
        self.remote.store.preserve(self.remote.name, first.name)
        return self._is_kept(first)  # somebody may have let the name stand for something else just now

    def _is_kept(self, first: SegmentInfo) -> bool:
        try:
            return self.remote.store.get_range(first.name, 0, HEADER_BYTES) == self.remote.header.pack()
        except NotFoundError:
            return False

    def without_first(self) -> Known:
        """What can be referred to even if the first segment is gone."""
        return {
            stored: pieces
            for stored, pieces in self.known.items()
            if all(piece.segment != self.first for piece in pieces)
        }


def what_is_there(store: Store, name: str) -> There | None:
    """What a name stands for in a store; None for nothing.

    Raises :class:`~sqlimage.errors.RefusedError` where that is no image.
    """
    try:
        remote = look(store, name)
    except NotFoundError:
        return None
    except FormatError:
        raise RefusedError(
            f"{address(store, name)}: exists, and is not an image in segments", hint="choose another name"
        ) from None
    first = remote.first(with_rest=False)
    uuids, stored = _compared(remote, first)
    listed = list(first.contents.segments)
    own = _first_segment(remote)
    length = sum(one.length_bytes for one in listed)
    return There(remote, uuids, len(listed), length, _known(remote, first, stored, own), own)


def _compared(remote: Remote, first: First) -> tuple[frozenset[str], dict[int, Stored]]:
    """The UUIDs of the versions, and what each row of the data stream holds."""
    uuids: set[str] = set()
    stored: dict[int, Stored] = {}
    for block in split(first.streams):
        decoded = columns.decode(block)
        found = dict(zip(decoded.names, decoded.columns, strict=True))
        wanted = _COMPARED.get(decoded.table, ())
        if not found.keys() >= set(wanted):
            raise FormatError(f"{remote.where}: the rows of {decoded.table!r} in its first segment lack columns")
        if decoded.table == _CONTROL:
            uuids.update(map(str, found["uuid"]))
        elif decoded.table == _DATA:
            for number, *told in zip(*(found[name] for name in wanted), strict=True):
                stored[number] = tuple(told)  # compared, never used
    return frozenset(uuids), stored


def _first_segment(remote: Remote) -> SegmentInfo | None:
    told = _pointer(remote.store, remote.header.image)
    if told.get(_IDENTITY) != remote.identity or not _DIGEST.fullmatch(told.get(_FIRST, "")):
        return None
    return SegmentInfo(bytes.fromhex(told[_FIRST]), remote.header.length_bytes)


def _known(remote: Remote, first: First, stored: Mapping[int, Stored], own: SegmentInfo | None) -> Known:
    """Where the contents of an image lie that is in the store, for as far as they can be referred to."""
    listed: list[SegmentInfo | None] = [own, *first.contents.segments[1:]]
    known: dict[Stored, list[Elsewhere]] = {}
    lost: set[Stored] = set()
    for data, number, at, length in np.stack(first.contents.places(), axis=1).tolist():
        segment = listed[number - 1]
        if data not in stored:
            continue
        if segment is None:
            lost.add(stored[data])
            continue
        offset = at if number > 1 else at + remote.header.data_offset_bytes
        known.setdefault(stored[data], []).append(Elsewhere(segment, offset, length))
    return {one: pieces for one, pieces in known.items() if one not in lost}
