"""How an image is cut into segments: planned whole before a byte of contents is read, and the same each time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from sqlimage.errors import RefusedError, SqlimageError, UsageError
from sqlimage.image.chunks import Connections
from sqlimage.streams import control
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.transfer import rows
from sqlimage.transfer.contents import OWN, Contents, SegmentInfo, most_packed_bytes
from sqlimage.transfer.order import in_reading_order
from sqlimage.transfer.segment import (
    HEADER_BYTES,
    LARGEST_BYTES,
    MOST_SEGMENTS,
    SMALLEST_BYTES,
    Header,
    Part,
    most_contents_bytes,
)
from sqlimage.units import format_size

_STORED = "SELECT id, digest, stored_bytes, flags FROM main.data WHERE bytes IS NOT NULL"

_PACKERS = 2
_MOST_TURNS = 5

Stored = tuple[bytes, int, int]
"""Digest, stored bytes and flags: two rows of the data stream that agree in them have the same content, and each may
stand for the other."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where a piece of a content lies already: a segment that was cut before, and the place in it, bytes from its
    beginning."""

    segment: SegmentInfo
    offset_bytes: int
    length_bytes: int


Known = Mapping[Stored, Sequence[Elsewhere]]
"""The pieces of contents that lie somewhere already."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What lies of a content in a segment that is to be cut, in bytes."""

    data: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """An image in segments."""

    versions: Sequence[Control]
    segment_bytes: int
    streams: bytes
    rest: bytes
    cut: Sequence[Sequence[Piece]]
    """What lies in each segment that is to be cut, in order; the first segment is the first of them."""
    lengths: Sequence[int]
    """Of each segment that is to be cut, in bytes."""
    stored: Mapping[int, Stored]
    used: Mapping[int, Sequence[Elsewhere]]
    """Contents that lie in segments which were cut before."""
    data_offset_bytes: int
    """Where in the first segment contents begin, at the latest."""

    @property
    def newest(self) -> Control:
        return self.versions[-1]

    def used_segments(self) -> list[SegmentInfo]:
        """The segments that were cut before and are part of the image, each once."""
        return list(dict.fromkeys(piece.segment for pieces in self.used.values() for piece in pieces))

    @property
    def new_bytes(self) -> int:
        """What is to be cut, in bytes."""
        return sum(self.lengths)

    def header(self, number: int) -> Header:
        """The header of a segment after the first."""
        return Header(self.newest.uuid, number, len(self.cut), self.segment_bytes, self.lengths[number - 1])

    def first(self, digests: Sequence[bytes]) -> tuple[Header, bytes]:
        """The header of the first segment, but for the digest of its contents, and what follows it up to where they
        begin; ``digests`` are those of the segments after it."""
        contents = self._contents(digests).pack()
        streams_at = HEADER_BYTES + len(contents)
        data_at = streams_at + len(self.streams)
        assert data_at <= self.data_offset_bytes
        rest_at = self.lengths[0] - len(self.rest)
        header = Header(
            self.newest.uuid,
            1,
            len(self.cut),
            self.segment_bytes,
            self.lengths[0],
            _part(HEADER_BYTES, contents),
            _part(streams_at, self.streams),
            _part(rest_at, self.rest),
            data_at,
        )
        return header, contents + self.streams

    def _contents(self, digests: Sequence[bytes]) -> Contents:
        """Where each content lies, once all digests are known."""
        listed = [SegmentInfo(OWN, self.lengths[0])]
        listed += [SegmentInfo(digest, length) for digest, length in zip(digests, self.lengths[1:], strict=True)]
        listed += self.used_segments()
        places: list[tuple[int, int, int, int]] = []
        for number, cut in enumerate(self.cut, 1):
            at = 0 if number == 1 else HEADER_BYTES
            for piece in cut:
                places.append((piece.data, number, at, piece.length))
                at += piece.length
        number_of = {one.digest: number for number, one in enumerate(listed, 1)}
        places += [
            (content, number_of[piece.segment.digest], piece.offset_bytes, piece.length_bytes)
            for content, pieces in self.used.items()
            for piece in pieces
        ]
        return Contents(listed, *np.array(places, dtype=np.int64).reshape(-1, 4).T)


def _part(offset_bytes: int, content: bytes) -> Part:
    return Part(offset_bytes, len(content), hashlib.sha256(content).digest())


def check_segment_bytes(segment_bytes: int) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` for what segments cannot have as their length."""
    if not SMALLEST_BYTES <= segment_bytes <= LARGEST_BYTES:
        raise UsageError(
            f"segments of {format_size(segment_bytes)} are not possible",
            hint=f"choose {format_size(SMALLEST_BYTES)} to {format_size(LARGEST_BYTES)}",
        )


def chosen(database: Database, wanted: str | None) -> list[Control]:
    """The versions of a file that travel, oldest first: all, or one with its ancestors.

    Raises :class:`~sqlimage.errors.RefusedError` where that cannot be: an edit that is not finished, contents that have
    not arrived themselves, part of what is sealed as one.
    """
    known = control.versions(database)
    database.check_whole()
    if wanted is not None:
        newest = control.find_version(database, wanted)
        by_uuid = {version.uuid: version for version in known}
        line = [newest]
        while line[-1].parent_uuid in by_uuid:
            line.append(by_uuid[line[-1].parent_uuid])
        if database.is_sealed and len(line) < len(known):
            raise RefusedError(
                f"{database.path}: is encrypted as a whole, so all its versions travel together",
                hint="leave the version out, or prune the others in a copy",
            )
        known = sorted(line, key=lambda version: version.version)
    unfinished = [version for version in known if version.state != "sealed"]
    if unfinished and (database.is_sealed or len(unfinished) == len(known) or wanted is not None):
        raise RefusedError(
            f"{database.path}: version {unfinished[0].version} is an edit that is not finished",
            hint="commit or discard it first",
        )
    return [version for version in known if version.state == "sealed"]


def plan_for(database: Database, wanted: str | None, segment_bytes: int, known: Known | None = None) -> Plan:
    """Choose and plan what does not change meanwhile: another process may prune or merge versions beside this one.

    Raises what :func:`chosen` and :func:`make_plan` raise.
    """
    for _ in range(_MOST_TURNS):
        versions = chosen(database, wanted)
        try:
            plan = make_plan(database, versions, segment_bytes, known)
        except (KeyError, SqlimageError):
            if chosen(database, wanted) == versions:
                raise
            continue
        if chosen(database, wanted) == versions:
            return plan
    raise RefusedError(
        f"{database.path}: its versions change again and again meanwhile", hint="run the command when that has ended"
    )


def make_plan(
    database: Database,
    versions: Sequence[Control],
    segment_bytes: int,
    known: Known | None = None,
) -> Plan:
    """Plan the segments of some versions of a file. What ``known`` holds is not cut again.

    Raises :class:`~sqlimage.errors.UsageError` where segments of that length are too short for the image.
    """
    check_segment_bytes(segment_bytes)
    numbers = [version.version for version in versions]
    pool = ThreadPoolExecutor(_PACKERS, thread_name_prefix="pack")
    with closing(Connections(database)) as connections:
        try:
            packed = rows.pack(connections, numbers, pool)
            order = in_reading_order(database, list(versions), is_sealed=database.is_sealed)
            streams, rest = (rows.join(one) for one in packed)
        finally:
            pool.shutdown(cancel_futures=True)
    stored: dict[int, Stored] = {
        number: (digest, length, flags) for number, digest, length, flags in database.query(_STORED)
    }
    used = {n: known[stored[n]] for n in order.tolist() if stored[n] in known} if known else {}
    to_cut = [number for number in order.tolist() if number not in used]
    total = sum(stored[number][1] for number in to_cut)
    pieces_used = [piece for pieces in used.values() for piece in pieces]
    most_segments = 2 + total // most_contents_bytes(segment_bytes) + len({one.segment for one in pieces_used})
    most_pieces = len(to_cut) + most_segments + len(pieces_used)
    data_at = HEADER_BYTES + most_packed_bytes(most_segments, most_pieces) + len(streams)
    if data_at + len(rest) > segment_bytes or most_segments > MOST_SEGMENTS:
        needed = max(data_at + len(rest), 2 * total // MOST_SEGMENTS)
        raise UsageError(
            f"{database.path}: segments of {format_size(segment_bytes)} are too short, for the first holds all streams",
            hint=f"choose at least {format_size(needed + needed // 8)}",
        )
    cut, lengths = _cut(to_cut, stored, segment_bytes, data_at, len(rest))
    return Plan(versions, segment_bytes, streams, rest, cut, lengths, stored, used, data_at)


def _cut(
    order: Sequence[int], stored: Mapping[int, Stored], segment_bytes: int, data_at: int, rest_bytes: int
) -> tuple[list[list[Piece]], list[int]]:
    """What lies in which segment, and how long each is: all but the last as long as was chosen."""
    cut: list[list[Piece]] = [[]]
    free = segment_bytes - data_at - rest_bytes
    for number in order:
        start, end = 0, stored[number][1]
        while start < end:
            if not free:
                cut.append([])
                free = most_contents_bytes(segment_bytes)
            length = min(end - start, free)
            cut[-1].append(Piece(number, start, length))
            start, free = start + length, free - length
    lengths = [segment_bytes] * len(cut)
    lengths[-1] -= free
    return cut, lengths
