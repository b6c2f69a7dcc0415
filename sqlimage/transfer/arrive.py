"""The receiving side: an image made of a first segment, in which contents are filled as their segments arrive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from sqlimage.errors import DamagedError, FormatError, RefusedError
from sqlimage.streams import control, segments
from sqlimage.streams.connecting import check_identity
from sqlimage.streams.database import Database
from sqlimage.streams.newfile import NewImage
from sqlimage.streams.segments import HERE, MISSING, Segment
from sqlimage.streams.translation import translated
from sqlimage.streams.writer import WriterLock
from sqlimage.transfer import rows
from sqlimage.transfer.contents import Contents, unpack_contents
from sqlimage.transfer.segment import HEADER_BYTES, Header, Part, read_header

_STORED = "SELECT id, stored_bytes FROM main.data WHERE id IN (SELECT data FROM main.place)"


@dataclass(frozen=True, slots=True)
class First:
    """What the first segment tells; each part of it was checked against the digest in the header."""

    where: str
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
        parts = [
            part_of(where, view[one.offset_bytes : one.end_bytes], one)
            for one in (header.contents, header.streams, header.rest)
        ]
        return cls(where, header, checked_contents(where, header, parts[0]), parts[1], parts[2])

    @property
    def identity(self) -> str:
        return self.header.identity

    def listed(self) -> list[Segment]:
        """What is to arrive, as rows of the stream: nothing is here yet."""
        identity = self.identity
        found = [Segment(identity, 1, self.header.length_bytes, bytes.fromhex(identity), MISSING)]
        for number, one in enumerate(self.contents.segments[1:], 2):
            found.append(Segment(identity, number, one.length_bytes, one.digest, MISSING))
        return found


def checked_contents(where: str, header: Header, packed: bytes | memoryview) -> Contents:
    """The list of contents, as far as it can be that of this segment."""
    contents = unpack_contents(where, packed)
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

    Raises :class:`~sqlimage.errors.RefusedError` where ``target`` exists, and
    :class:`~sqlimage.errors.FormatError` for what no image holds.
    """
    with NewImage(target) as new:
        database = new.begin_copy()
        rows.fill(new, database, first.streams, first.rest)
        if control.by_uuid(database, first.header.image) is None:
            raise FormatError(f"{first.where}: its streams are of another image than its header says")
        found, at = first.contents, first.contents.offset.copy()
        at[found.segment == 1] += first.header.data_offset_bytes
        segments.write(database, first.listed(), np.stack([found.data, found.segment, at], axis=1).tolist())
        odd = database.row("SELECT count(*) FROM main.place WHERE data NOT IN (SELECT id FROM main.data)")
        if odd != (0,):
            raise FormatError(f"{first.where}: places contents that are not in its data stream")
        new.make_indexes()
        with translated(target):  # what anybody sent is looked at as any image of a stranger's is
            check_identity(target, new.connection)
        new.publish()


class Incoming:
    """An image that segments are still missing of, open to be filled. Use as a context manager.

    Raises what :meth:`~sqlimage.streams.database.Database.open` raises, and
    :class:`~sqlimage.errors.RefusedError` where somebody else is writing to it.
    """

    def __init__(self, path: str, doing: str = "receiving it") -> None:
        self._lock = WriterLock(path, doing)
        try:
            self.database = Database.open(path, writable=True, structure_only=True, partial=True)
        except BaseException:
            self._lock.close()
            raise
        try:
            self.segments = segments.read(self.database)
            self._read_places()
        except BaseException:
            self.close()
            raise

    def _read_places(self) -> None:
        stored = np.array(self.database.rows(_STORED), dtype=np.int64).reshape(-1, 2)
        at = np.array(segments.places(self.database), dtype=np.int64).reshape(-1, 3)
        rank = np.argsort(stored[:, 0], kind="stable")
        row = np.searchsorted(stored[rank, 0], at[:, 0]) if len(stored) else np.zeros(0, dtype=np.int64)
        lengths = stored[rank, 1][row] if len(stored) else np.zeros(0, dtype=np.int64)
        table = np.column_stack([at, lengths])
        self._places = table[np.lexsort((table[:, 2], table[:, 1]))]
        """Content, segment, offset and stored bytes, by segment and place."""

    @property
    def identity(self) -> str | None:
        """Of the transfer; None of an image that never was one."""
        return self.segments[0].image if self.segments else None

    def missing(self) -> list[Segment]:
        """The segments that have not arrived, by number."""
        return [one for one in self.segments if not one.is_here]

    def find(self, segment: bytes | memoryview) -> Segment | None:
        """Which of the image's segments this is; None where it is none of them."""
        view = memoryview(segment)
        digest = hashlib.sha256(view).digest()
        for one in self.segments[1:]:
            if one.digest == digest:
                return one
        head = bytes(view[:HEADER_BYTES])
        if self.segments and hashlib.sha256(head).digest() == self.segments[0].digest:
            return self.segments[0] if read_header(self.database.path, head).vouches_for(view) else None
        return None

    def put(self, number: int, segment: bytes | memoryview) -> None:
        """Fill in what lies in a segment, in one transaction; when this returns, it survives a power cut.

        Raises :class:`~sqlimage.errors.DamagedError`, and writes nothing, where it is not that segment.
        """
        row = self.segments[number - 1]
        view = memoryview(segment)
        found = self.find(view)
        if found is None or found.number != number or len(view) != row.length_bytes:
            raise DamagedError(f"{self.database.path}: what arrived as segment {number} is not that; it was not used")
        if row.is_here:
            return
        with self.database.transaction():
            segments.fill(self.database, self._contents(number, view), number)
        self.segments[number - 1] = Segment(row.image, number, row.length_bytes, row.digest, HERE)

    def _contents(self, number: int, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        low, high = np.searchsorted(self._places[:, 1], [number, number + 1])
        for data, _, at, length in self._places[low:high].tolist():
            if at < 0 or at + length > len(view):
                raise FormatError(f"{self.database.path}: data {data} would lie beyond the end of segment {number}")
            yield data, view[at : at + length]

    def close(self) -> None:
        if hasattr(self, "database"):
            self.database.close()
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
