"""What every place that keeps segments is to the rest of the library: objects under names, put whole, read in parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from sqlimage.errors import DeviceError, UsageError

Bytes = bytes | bytearray | memoryview
Content = bytes | memoryview
"""What nobody changes any more."""
SEGMENTS = "segments/"
"""What the names of segments begin with; the rest is the SHA-256 of the whole object in lower-case hexadecimal."""
VERSIONS = "versions/"
"""What the names of pointers begin with that say which image of this shelf holds a version; the rest is its UUID."""
MOST_SMALL_BYTES = 64 << 10
"""The most that is read of what is not a segment."""
_SEGMENT = re.compile(r"segments/([0-9a-f]{64})")
_PLAIN = re.compile(r"(?:versions/[0-9a-f-]{36}|[A-Za-z0-9_][A-Za-z0-9._-]{0,127})")


class StoreError(DeviceError):
    """A store did not do what was asked. ``is_transient`` tells whether asking again may help, ``retry_after_s`` how
    long the server wants to be left alone before (0: it did not say)."""

    def __init__(self, message: str, *, hint: str = "", is_transient: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.is_transient = is_transient
        self.retry_after_s = retry_after_s


class Store(Protocol):
    """A shelf of objects. Implementations MUST be safe to call from several threads at once.

    A name is ``segments/<SHA-256>``, ``versions/<UUID>``, or the name of an image: up to 128 letters, digits, dots,
    dashes and underscores. An object is there whole or not at all; what a cut connection or a killed process leaves is
    never seen under its name.

    Every method raises :class:`StoreError`: transient where the line, or the server for the moment, is at fault.
    Reading raises :class:`~sqlimage.errors.NotFoundError` where there is no such object.
    """

    @property
    def where(self) -> str:
        """The place as messages tell it: its URL, without credentials."""
        ...

    def put(self, name: str, content: Bytes) -> bool:
        """Keep ``content`` under a name; what was there under it is replaced. Of a segment the store MAY take the
        name's word that it has it already, or can have it from somewhere nearer. Whether the bytes were sent."""
        ...

    def get(self, name: str, most_bytes: int) -> Content:
        """A whole object. One of more than ``most_bytes`` is refused before it is in memory."""
        ...

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """Part of an object; fewer bytes where it ends earlier, none where it begins beyond the end."""
        ...

    def head(self, name: str) -> int | None:
        """The length of an object, or None where there is none."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """The names that begin with ``prefix``, in no order. Not every place can tell: raises
        :class:`~sqlimage.errors.RefusedError` where it cannot."""
        ...

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        """Have the name of an image stand for a segment that was put before, its first. At once: a reader sees what was
        there before, or this. ``keep`` names the other segments that the image needs: the store MUST NOT clear them
        away for as long as the name stands for this one. Raises :class:`~sqlimage.errors.NotFoundError` where the
        segment is not there."""
        ...

    def first(self, name: str) -> str:
        """The name of the segment that the name of an image stands for. Raises
        :class:`~sqlimage.errors.FormatError` where it stands for something else."""
        ...

    def close(self) -> None: ...


def address(store: Store, name: str) -> str:
    """Where an image is, as messages tell it, and as one would write it."""
    between = ":" if store.where.startswith("oci") else "/"
    return f"{store.where.rstrip('/')}{between}{name}"


def check_name(name: str) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` for what is no name of an object."""
    if name in ("segments", "versions"):
        raise UsageError(f"{name!r} cannot be the name of an image in a store: it is a directory there")
    if not _SEGMENT.fullmatch(name) and not _PLAIN.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of an image in a store",
            hint="use up to 128 letters, digits, dots, dashes and underscores, and no dot or dash at the beginning",
        )


def segment_name(digest: bytes) -> str:
    """Under which a segment of this SHA-256 lies."""
    return SEGMENTS + digest.hex()


def digest_in(name: str) -> str | None:
    """The SHA-256 that the name of a segment holds; None for other names."""
    found = _SEGMENT.fullmatch(name)
    return found[1] if found else None
