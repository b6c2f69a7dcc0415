"""What a store has of an image already: what its name stands for, and what of that can be used again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sqlimage.errors import FormatError, NotFoundError, RefusedError
from sqlimage.transfer import columns
from sqlimage.transfer.arrive import First
from sqlimage.transfer.contents import SegmentInfo
from sqlimage.transfer.cut import digest
from sqlimage.transfer.daemons import Daemons
from sqlimage.transfer.plan import Elsewhere, Known, Plan, Stored
from sqlimage.transfer.remote import Remote, look
from sqlimage.transfer.rows import split
from sqlimage.transfer.stores.asking import check_image
from sqlimage.transfer.stores.contract import MOST_SMALL_BYTES, VERSIONS, Store, address

_CONTROL, _DATA = "control", "data"
_COMPARED = {_CONTROL: ("uuid",), _DATA: ("id", "digest", "stored_bytes", "flags")}
"""What must be told of an image that is there already, to see what of it can be used."""
_HEADS_AT_A_TIME = 8


def pointer(store: Store, uuid: str) -> str | None:
    """The name of the image in a store that holds a version; None where the store knows none."""
    try:
        image = json.loads(bytes(store.get(f"{VERSIONS}{uuid}", MOST_SMALL_BYTES)))["image"]
        check_image(str(image))
        return str(image)
    except (NotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return None


def point(store: Store, uuid: str, image: str) -> None:
    """Have a version found by its UUID."""
    if pointer(store, uuid) != image:
        store.put(f"{VERSIONS}{uuid}", json.dumps({"image": image}).encode())


@dataclass(frozen=True, slots=True)
class There:
    """What a name stands for."""

    remote: Remote
    uuids: frozenset[str]
    """Of its versions."""
    segments: Sequence[SegmentInfo]
    known: Known = field(repr=False)
    """Where its contents lie."""

    @property
    def segments_bytes(self) -> int:
        return sum(one.length_bytes for one in self.segments)

    def is_same(self, plan: Plan) -> bool:
        """Whether it has the same rows as the image that is to be sent, down to the digests of all contents."""
        header = self.remote.header
        return (header.streams.digest, header.rest.digest) == (digest(plan.streams), digest(plan.rest))

    def has(self, segments: Sequence[SegmentInfo]) -> bool:
        """Whether the store still has segments."""
        pool = Daemons(_HEADS_AT_A_TIME, "head")
        try:
            lengths = [pool.submit(self.remote.store.head, one.name) for one in segments]
            return all(found.result() == one.length_bytes for found, one in zip(lengths, segments, strict=True))
        finally:
            pool.abandon()


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
    own = SegmentInfo(remote.digest, remote.header.length_bytes)
    listed = [own, *first.contents.segments[1:]]
    return There(remote, uuids, listed, _known(remote, first, stored, listed))


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


def _known(
    remote: Remote, first: First, stored: Mapping[int, Stored], listed: Sequence[SegmentInfo]
) -> dict[Stored, list[Elsewhere]]:
    """Where the contents of an image lie that is in the store; those that lie there whole, once each."""
    known: dict[int, list[Elsewhere]] = {}
    for data, number, at, length in np.stack(first.contents.places(), axis=1).tolist():
        offset = at if number > 1 else at + remote.header.data_offset_bytes
        known.setdefault(data, []).append(Elsewhere(listed[number - 1], offset, length))
    return {
        stored[data]: pieces
        for data, pieces in known.items()
        if data in stored and sum(piece.length_bytes for piece in pieces) == stored[data][1]
    }
