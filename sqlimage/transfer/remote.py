"""An image in a store, looked at by ranges: what it is, and where its contents lie, without fetching them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from sqlimage.errors import DamagedError, FormatError
from sqlimage.transfer.arrive import First, checked_contents, part_of
from sqlimage.transfer.segment import HEADER_BYTES, Header, Part, read_header
from sqlimage.transfer.stores.contract import Content, Store, address
from sqlimage.units import KIB

PROBE_BYTES = 720 * KIB
"""How much of an image is asked for before anything is known of it: on most lines a request takes longer than that, and
of images with up to some 70,000 files it holds all that is needed to read files."""
_AHEAD_BYTES = 64 * KIB
"""How much of the contents comes along with what lies before them: boot sectors, and the beginning of file tables."""


@dataclass(slots=True)
class Remote:
    """An image in a store."""

    store: Store
    name: str
    header: Header
    begins: bytes = field(repr=False)
    """The first bytes of its first segment, as far as they have been fetched."""

    @property
    def where(self) -> str:
        """For messages."""
        return address(self.store, self.name)

    @property
    def identity(self) -> str:
        return self.header.identity

    def first(self, *, with_rest: bool) -> First:
        """All that the first segment tells; without the rest, enough to read files. What does not match its digest is
        asked for once more.

        Raises :class:`~sqlimage.errors.DamagedError` where it still does not.
        """
        try:
            return self._first(with_rest)
        except DamagedError:
            self.begins = self.store.get_range(self.name, 0, len(self.begins))
            return self._first(with_rest)

    def _first(self, with_rest: bool) -> First:
        header = self.header
        if len(self.begins) < header.data_offset_bytes:
            self._fetch_until(min(header.data_offset_bytes + _AHEAD_BYTES, header.rest.offset_bytes))
        contents = checked_contents(self.where, header, self._part(header.contents))
        rest = None
        if with_rest:
            fetched = self.store.get_range(self.name, header.rest.offset_bytes, header.rest.length_bytes)
            rest = part_of(self.where, fetched, header.rest)
        return First(self.where, header, contents, self._part(header.streams), rest)

    def _part(self, part: Part) -> bytes:
        return bytes(part_of(self.where, memoryview(self.begins)[part.offset_bytes : part.end_bytes], part))

    def _fetch_until(self, end: int) -> None:
        here = len(self.begins)
        if here < end:
            self.begins += self.store.get_range(self.name, here, end - here)

    def whole_first(self) -> Content:
        """The first segment, fetched whole; once more where it does not match its digests, for the line may be at
        fault. No store can tell: the name of an image says nothing of its bytes."""
        for _ in range(2):
            segment = self.store.get(self.name, self.header.length_bytes)
            if hashlib.sha256(segment[:HEADER_BYTES]).hexdigest() != self.identity:
                problem = DamagedError(
                    f"{self.where}: was replaced by another image just now", hint="run the command again"
                )
            elif self.header.vouches_for(segment):
                return segment
            else:
                problem = DamagedError(
                    f"{self.where}: the first segment does not match its digests", hint="push the image again"
                )
        raise problem


def look(store: Store, name: str) -> Remote:
    """Look at an image in a store: one request.

    Raises :class:`~sqlimage.errors.NotFoundError` and :class:`~sqlimage.errors.FormatError`.
    """
    where = address(store, name)
    begins = store.get_range(name, 0, PROBE_BYTES)
    try:
        header = read_header(where, begins)
    except FormatError:  # the line may be at fault
        begins = store.get_range(name, 0, PROBE_BYTES)
        header = read_header(where, begins)
    if not header.is_first:
        raise FormatError(f"{where}: is segment {header.number} of an image, and not its first")
    return Remote(store, name, header, begins)
