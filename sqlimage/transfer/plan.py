"""How an image is cut into segments: planned whole before a byte of contents is read, and the same each time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sqlimage.errors import RefusedError, UsageError
from sqlimage.streams import control
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.transfer import rows
from sqlimage.transfer.contents import OWN, Contents, Numbers, SegmentInfo, most_packed_bytes
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

Stored = tuple[bytes, int, int]
"""Digest, stored bytes and flags: two rows of the data stream that agree in them have the same content, and each may
stand for the other."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where a content lies already: a segment that was cut before, and the place in it, bytes from its beginning."""

    segment: SegmentInfo
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """An image in segments."""

    versions: Sequence[Control]
    segment_bytes: int
    streams: bytes
    rest: bytes
    cut: Sequence[Numbers]
    """The contents of each segment that is to be cut, by number in the data stream and in order; the first segment is
    the first of them."""
    lengths: Sequence[int]
    """Of each segment that is to be cut, in bytes."""
    stored: Mapping[int, Stored]
    used: Mapping[int, Elsewhere]
    """Contents that lie in segments which were cut before."""
    data_offset_bytes: int
    """Where in the first segment contents begin, at the latest."""

    @property
    def newest(self) -> Control:
        return self.versions[-1]

    @property
    def new_bytes(self) -> int:
        """What is to be cut, in bytes."""
        return sum(self.lengths)

    def header(self, number: int) -> Header:
        """The header of a segment after the first."""
        return Header(self.newest.uuid, number, len(self.cut), self.segment_bytes, self.lengths[number - 1])

    def first(self, digests: Sequence[bytes]) -> tuple[Header, bytes]:
        """The header of the first segment, but for the digest of its contents, and what follows it up to where those
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
        places: list[tuple[int, int, int]] = []
        for number, cut in enumerate(self.cut, 1):
            at = 0 if number == 1 else HEADER_BYTES
            for content in cut.tolist():
                places.append((content, number, at))
                at += self.stored[content][1]
        known = {one.digest: number for number, one in enumerate(listed, 1)}
        for content, elsewhere in self.used.items():
            if elsewhere.segment.digest not in known:
                listed.append(elsewhere.segment)
                known[elsewhere.segment.digest] = len(listed)
            places.append((content, known[elsewhere.segment.digest], elsewhere.offset_bytes))
        table = np.array(places, dtype=np.int64).reshape(-1, 3)
        return Contents(listed, table[:, 0], table[:, 1], table[:, 2])


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


def make_plan(
    database: Database,
    versions: Sequence[Control],
    segment_bytes: int,
    known: Mapping[Stored, Elsewhere] | None = None,
) -> Plan:
    """Plan the segments of some versions of a file. What ``known`` holds is not cut again.

    Raises :class:`~sqlimage.errors.UsageError` where segments of that length are too short for the image.
    """
    check_segment_bytes(segment_bytes)
    numbers = [version.version for version in versions]
    streams = rows.blocks(database, numbers, is_rest=False)
    rest = rows.blocks(database, numbers, is_rest=True)
    order = in_reading_order(database, list(versions), is_sealed=database.is_sealed)
    stored: dict[int, Stored] = {
        number: (digest, length, flags) for number, digest, length, flags in database.query(_STORED)
    }
    used = {n: known[stored[n]] for n in order.tolist() if stored[n] in known} if known else {}
    to_cut = [number for number in order.tolist() if number not in used]
    total = sum(stored[number][1] for number in to_cut)
    most_segments = (
        2 + 2 * (total // most_contents_bytes(segment_bytes)) + len({one.segment.digest for one in used.values()})
    )
    data_at = HEADER_BYTES + most_packed_bytes(most_segments, len(order)) + len(streams)
    needed = max(data_at + len(rest), HEADER_BYTES + max((stored[n][1] for n in to_cut), default=0))
    if needed > segment_bytes or most_segments > MOST_SEGMENTS:
        raise UsageError(
            f"{database.path}: segments of {format_size(segment_bytes)} are too short for it",
            hint=f"choose at least {format_size(max(needed, total // MOST_SEGMENTS * 4))}",
        )
    cut, lengths = _cut(to_cut, stored, segment_bytes, data_at, len(rest))
    return Plan(versions, segment_bytes, streams, rest, cut, lengths, stored, used, data_at)


def _cut(
    order: Sequence[int], stored: Mapping[int, Stored], segment_bytes: int, data_at: int, rest_bytes: int
) -> tuple[list[Numbers], list[int]]:
    """Which contents lie in which segment, and how long each is: all but the last as long as was chosen."""
    cut: list[list[int]] = [[]]
    free = segment_bytes - data_at - rest_bytes
    for number in order:
        length = stored[number][1]
        if length > free:
            cut.append([])
            free = most_contents_bytes(segment_bytes)
        cut[-1].append(number)
        free -= length
    lengths = [segment_bytes] * len(cut)
    last = sum(stored[number][1] for number in cut[-1])
    lengths[-1] = data_at + last + rest_bytes if len(cut) == 1 else HEADER_BYTES + last
    return [np.array(one, dtype=np.int64) for one in cut], lengths
