"""The receiving side: an image made of a first segment, in which contents are filled as their segments arrive."""

from __future__ import annotations

import hashlib
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from sqlimage.errors import DamagedError, DeviceError, FormatError, RefusedError
from sqlimage.nameless import start_writeback
from sqlimage.streams import control, segments
from sqlimage.streams.connecting import check_identity
from sqlimage.streams.database import Database
from sqlimage.streams.newfile import NewImage
from sqlimage.streams.segments import HERE, MISSING, Segment
from sqlimage.streams.translation import translated
from sqlimage.streams.writer import WriterLock
from sqlimage.transfer import rows
from sqlimage.transfer.contents import Contents, unpack_contents
from sqlimage.transfer.segment import Header, Part, read_header
from sqlimage.units import KIB

_PAGE_BYTES = 8 * KIB
"""Twice as large as of other images: they are written in a third less time, and the image is hardly larger (0.6%)."""
_LONGEST_S = 1.0
"""How long what was put may wait to be made durable, where it may."""


@dataclass(frozen=True, slots=True)
class First:
    """What the first segment tells; each part of it was checked against the digest in the header."""

    where: str
    digest: bytes
    """Of all of it."""
    header: Header
    contents: Contents
    streams: bytes | memoryview
    rest: bytes | memoryview | None = None

    @classmethod
    def from_segment(cls, where: str, segment: bytes | memoryview) -> First:
        """Out of a whole first segment. Raises :class:`~sqlimage.errors.FormatError` and
        :class:`~sqlimage.errors.DamagedError`."""
        view = memoryview(segment)
        header = read_header(where, view)
        if not header.is_first:
            raise FormatError(f"{where}: is segment {header.number} of an image, and the first is needed")
        if len(view) != header.length_bytes:
            raise DamagedError(f"{where}: has {len(view)} bytes, and its header says {header.length_bytes}")
        if not header.vouches_for(view):
            raise DamagedError(f"{where}: the first segment does not match its digests")
        told, streams, rest = (
            view[one.offset_bytes : one.end_bytes] for one in (header.contents, header.streams, header.rest)
        )
        contents = checked_contents(where, header, told)
        return cls(where, hashlib.sha256(view).digest(), header, contents, streams, rest)

    @property
    def identity(self) -> str:
        return self.header.identity

    def listed(self) -> list[Segment]:
        """What is to arrive, as rows of the stream: nothing is here yet."""
        identity = self.identity
        found = [Segment(identity, 1, self.header.length_bytes, self.digest, MISSING)]
        for number, one in enumerate(self.contents.segments[1:], 2):
            found.append(Segment(identity, number, one.length_bytes, one.digest, MISSING))
        return found


def checked_contents(where: str, header: Header, packed: bytes | memoryview) -> Contents:
    """The list of contents, as far as it can be that of this segment."""
    contents = unpack_contents(where, packed, header.streams.length_bytes)
    if contents.segments[0].length_bytes != header.length_bytes:
        raise FormatError(f"{where}: the list of its segments is that of another one")
    return contents


def part_of(where: str, content: bytes | memoryview, expected: Part) -> bytes | memoryview:
    """A part of the first segment, compared with its digest. Raises :class:`~sqlimage.errors.DamagedError`."""
    if len(content) != expected.length_bytes or hashlib.sha256(content).digest() != expected.digest:
        raise DamagedError(f"{where}: the streams in the first segment do not match their digest")
    return content


def make_image(target: str, first: First) -> None:
    """A new image with all rows but the bytes of contents. It is there at once, or not at all.

    Raises what :class:`Arrival` raises.
    """
    with Arrival(target, first) as arrival:
        arrival.publish()


class Arrival:
    """A new image, until it has its name: rows, and the bytes of contents, which can be taken in any order. Use as a
    context manager: what is not published is gone when it ends.

    Raises :class:`~sqlimage.errors.RefusedError` where ``target`` exists, and
    :class:`~sqlimage.errors.FormatError` for what no image holds.
    """

    def __init__(self, target: str, first: First) -> None:
        self._first = first
        found, self._at = first.contents, first.contents.offset.copy()
        self._at[found.segment == 1] += first.header.data_offset_bytes
        self._start = found.starts()
        _, content, pieces = np.unique(found.data, return_inverse=True, return_counts=True)
        self._is_whole = pieces[content] == 1
        self.segments = first.listed()
        self.is_broken = False
        """Whether it can no longer be published, for something went wrong while it was written."""
        self._new = NewImage(target, _PAGE_BYTES)
        try:
            self._write()
        except BaseException:
            self._new.close()
            raise

    def _write(self) -> None:
        """The rows without which no contents can be filled in; the others come with :meth:`go_on`."""
        self._database = database = self._new.begin_copy()
        first = self._first
        self._rows = rows.filling(database, first.streams, first.rest)
        for written in self._rows:
            if not rows.is_before_contents(written):
                break
        if control.by_uuid(database, first.header.image) is None:
            raise FormatError(f"{first.where}: its streams are of another image than its header says")
        found = first.contents
        table = np.stack([found.data, self._start, found.segment, self._at, found.length], axis=1)
        segments.write(database, self.segments, table.tolist())
        odd = segments.contradiction(database)
        if odd is not None:
            raise FormatError(f"{first.where}: the places of data {odd} are not those of all its bytes")

    def missing(self) -> list[Segment]:
        """The segments that have not been taken, by number."""
        return [one for one in self.segments if not one.is_here]

    def go_on(self) -> bool:
        """Write some more of the rows, for as long as there is nothing better to do; whether there were any."""
        self.is_broken = True
        has_more = next(self._rows, None) is not None
        self.is_broken = False
        return has_more

    def take(self, number: int, segment: bytes | memoryview) -> None:
        """Fill in what lies in a segment that has been compared with its digest."""
        found = self._first.contents
        here = found.segment == number
        columns = (found.data[here], self._start[here], self._at[here], found.length[here], self._is_whole[here])
        places = zip(*(column.tolist() for column in columns), strict=True)
        where = f"{self._first.where}: segment {number}"
        self.is_broken = True
        segments.fill(self._database, *_sorted_out(where, memoryview(segment), places), number)
        self.is_broken = False
        self.segments[number - 1] = replace(self.segments[number - 1], state=HERE)
        self._new.start_writeback()

    def publish(self) -> None:
        """Write what is left of the rows, make it durable and give it its name."""
        while self.go_on():
            pass
        self._new.make_indexes()
        with translated(self._new.target):  # what anybody sent is looked at as any image of a stranger's is
            check_identity(self._new.target, self._new.connection)
        self._new.publish()

    def __enter__(self) -> Arrival:
        return self

    def __exit__(self, *_: object) -> None:
        self._new.close()


Whole = tuple[int, memoryview]
"""A content and its bytes."""
Piece = tuple[int, int, memoryview]
"""A content, the byte of it that a piece begins with, and the bytes."""


def _sorted_out(
    where: str, segment: memoryview, places: Iterable[tuple[int, int, int, int, bool]]
) -> tuple[list[Whole], list[Piece]]:
    """What lies in a segment, by places: content, start, offset, length, and whether that is all of it."""
    whole: list[Whole] = []
    pieces: list[Piece] = []
    for data, start, at, length, is_whole in places:
        if at < 0 or at + length > len(segment):
            raise FormatError(f"{where}: data {data} would lie beyond its end")
        if is_whole:
            whole.append((data, segment[at : at + length]))
        else:
            pieces.append((data, start, segment[at : at + length]))
    return whole, pieces


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise DeviceError(f"{path}: cannot be opened ({problem.strerror})") from None


class Incoming:
    """An image that segments are still missing of, open to be filled. Use as a context manager.

    Raises what :meth:`~sqlimage.streams.database.Database.open` raises, and
    :class:`~sqlimage.errors.RefusedError` where somebody else is writing to it.
    """

    def __init__(self, path: str, doing: str = "receiving it") -> None:
        self._lock = WriterLock(path, doing)
        self._fd = -1
        self._unsettled: list[int] = []
        self._since = 0.0
        try:
            self.database = Database.open(path, writable=True, structure_only=True, partial=True)
            self._fd = _opened(path)
            self.segments = segments.read(self.database)
            self._places = segments.places(self.database)
            self._segment_of = [place[2] for place in self._places]
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        """Whoever made the file, its segments are numbered from 1 and of one transfer, and contents lie in them."""
        count = len(self.segments)
        is_counted = all(one.number == number for number, one in enumerate(self.segments, 1))
        is_one = len({one.image for one in self.segments}) <= 1
        if not is_counted or not is_one or any(not 1 <= number <= count for number in self._segment_of):
            raise FormatError(f"{self.database.path}: contradicts itself on its segments", hint="fetch it anew")

    @property
    def identity(self) -> str | None:
        """Of the transfer; None of an image that never was one."""
        return self.segments[0].image if self.segments else None

    def missing(self) -> list[Segment]:
        """The segments that have not arrived, by number."""
        return [one for one in self.segments if not one.is_here]

    def go_on(self) -> bool:
        """There are no rows to be written."""
        return False

    def find(self, segment: bytes | memoryview) -> Segment | None:
        """Which of the image's segments this is; None where it is none of them."""
        digest = hashlib.sha256(segment).digest()
        return next((one for one in self.segments if one.digest == digest), None)

    def take(self, number: int, segment: bytes | memoryview) -> None:
        """Fill in what lies in a segment that has been compared with its digest; durable some seconds later, or when
        :meth:`settle` has returned."""
        self.put(number, segment, is_checked=True, may_wait=True)

    def put(
        self, number: int, segment: bytes | memoryview, *, is_checked: bool = False, may_wait: bool = False
    ) -> None:
        """Fill in what lies in a segment, all or nothing; when this returns, it survives a power cut, or where it
        ``may_wait``, it will when :meth:`settle` has returned, or some seconds later. ``is_checked``: the caller has
        compared it with its digest.

        Raises :class:`~sqlimage.errors.DamagedError`, and writes nothing, where it is not that segment.
        """
        row = self.segments[number - 1]
        view = memoryview(segment)
        found = row if is_checked else self.find(view)
        if found is None or found.number != number or len(view) != row.length_bytes:
            raise DamagedError(f"{self.database.path}: what arrived as segment {number} is not that; it was not used")
        if row.is_here:
            return
        low, high = bisect_left(self._segment_of, number), bisect_right(self._segment_of, number)
        places = ((one[0], one[1], one[3], one[4], one[4] == one[5]) for one in self._places[low:high])
        whole, pieces = _sorted_out(f"{self.database.path}: segment {number}", view, places)
        try:
            if not self._unsettled:
                self.database.run("BEGIN IMMEDIATE")
                self._since = time.monotonic()
            self._unsettled.append(number)
            segments.fill(self.database, whole, pieces, number)
        except BaseException:
            self._take_back()
            raise
        self.segments[number - 1] = replace(row, state=HERE)
        start_writeback(self._fd)  # while the next segment is on its way
        if not may_wait or time.monotonic() - self._since > _LONGEST_S:
            self.settle()

    def settle(self) -> None:
        """Make durable what was put."""
        if self._unsettled:
            try:
                self.database.run("COMMIT")
            except BaseException:
                self._take_back()
                raise
            self._unsettled.clear()

    def _take_back(self) -> None:
        with translated(self.database.path):
            self.database.roll_back()
        for number in self._unsettled:
            self.segments[number - 1] = replace(self.segments[number - 1], state=MISSING)
        self._unsettled.clear()

    def close(self) -> None:
        try:
            if hasattr(self, "segments"):
                self.settle()
        finally:
            if hasattr(self, "database"):
                self.database.close()
            if self._fd >= 0:
                os.close(self._fd)  # not earlier: it would let go of SQLite's locks
            self._lock.close()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self.close()


def check_is_this(path: str, incoming: Incoming, identity: str, where: str) -> None:
    """Raise :class:`~sqlimage.errors.RefusedError` where an image that exists is not the one that ``where`` has."""
    if incoming.identity != identity:
        raise RefusedError(
            f"{path}: exists already, and is not what {where} is now",
            hint="choose another name, or remove it",
        )
