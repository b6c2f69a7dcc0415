"""An image in a store, looked at by ranges: what it is, and where its contents lie, without fetching them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlimage.errors import DamagedError, FormatError
from sqlimage.transfer.arrive import First, checked_contents, part_of
from sqlimage.transfer.segment import HEADER_BYTES, Header, Part, read_header
from sqlimage.transfer.stores.contract import Content, Store, address, digest_in
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
    segment: str
    """The name of its first segment."""
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

    @property
    def digest(self) -> bytes:
        """SHA-256 of its first segment, as the store says."""
        return bytes.fromhex(digest_in(self.segment) or "")

    def first(self, *, with_rest: bool) -> First:
        """All that the first segment tells; without the rest, enough to read files. What does not match its digest is
        asked for once more.

        Raises :class:`~sqlimage.errors.DamagedError` where it still does not.
        """
        try:
            return self._first(with_rest)
        except DamagedError:
            self.begins = self.store.get_range(self.segment, 0, len(self.begins))
            return self._first(with_rest)

    def _first(self, with_rest: bool) -> First:
        header = self.header
        if len(self.begins) < header.data_offset_bytes:
            self._fetch_until(min(header.data_offset_bytes + _AHEAD_BYTES, header.rest.offset_bytes))
        contents = checked_contents(self.where, header, self._part(header.contents))
        rest = None
        if with_rest:
            fetched = self.store.get_range(self.segment, header.rest.offset_bytes, header.rest.length_bytes)
            rest = part_of(self.where, fetched, header.rest)
        return First(self.where, self.digest, header, contents, self._part(header.streams), rest)

    def _part(self, part: Part) -> bytes:
        return bytes(part_of(self.where, memoryview(self.begins)[part.offset_bytes : part.end_bytes], part))

    def _fetch_until(self, end: int) -> None:
        here = len(self.begins)
        if here < end:
            self.begins += self.store.get_range(self.segment, here, end - here)

    def whole_first(self) -> Content:
        """The first segment, fetched whole."""
        segment = self.store.get(self.segment, self.header.length_bytes)
        if segment[:HEADER_BYTES] != self.header.pack():
            raise DamagedError(f"{self.where}: its first bytes came damaged before", hint="run the command again")
        return segment


def look(store: Store, name: str) -> Remote:
    """Look at an image in a store: two requests.

    Raises :class:`~sqlimage.errors.NotFoundError` and :class:`~sqlimage.errors.FormatError`.
    """
    where = address(store, name)

    def probe() -> Remote:
        segment = store.first(name)
        begins = store.get_range(segment, 0, PROBE_BYTES)
        return Remote(store, name, segment, read_header(where, begins), begins)

    try:
        remote = probe()
    except FormatError:  # the line may be at fault
        remote = probe()
    if not remote.header.is_first:
        raise FormatError(f"{where}: is segment {remote.header.number} of an image, and not its first")
    return remote
