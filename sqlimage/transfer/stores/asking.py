"""What all stores ask of their callers and tell them in the same words."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlimage.errors import FormatError, NotFoundError, UsageError
from sqlimage.transfer.stores.contract import (
    MOST_SMALL_BYTES,
    SEGMENTS,
    VERSIONS,
    Store,
    StoreError,
    address,
    check_name,
    digest_in,
)

_FORMAT = "sqlimage"
CREDENTIALS_HINT = "check the credentials and what they allow"


def check_part(offset_bytes: int, length_bytes: int) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` for what is no part of any object."""
    if offset_bytes < 0 or length_bytes < 0:
        raise UsageError(f"{length_bytes} bytes at {offset_bytes} are no part of an object")


def check_image(name: str) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` for what an image in a store cannot be called."""
    check_name(name)
    if digest_in(name) or name.startswith(VERSIONS):
        raise UsageError(f"{name!r} cannot be the name of an image", hint="use letters, digits, dots, dashes, no slash")


def check_published(name: str, segment: str, keep: Sequence[str]) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` where not an image, a segment and segments are named."""
    check_image(name)
    for other in (segment, *keep):
        if not digest_in(other):
            raise UsageError(f"{other!r} is not the name of a segment")


def reference(segment: str) -> bytes:
    """What a plain shelf of objects holds under the name of an image that stands for this segment."""
    return json.dumps({"format": _FORMAT, "first": digest_in(segment)}).encode()


def referred(store: Store, name: str) -> str:
    """The segment that an image's name stands for on such a shelf. Raises
    :class:`~sqlimage.errors.FormatError` where it is the name of something else."""
    check_image(name)
    content = store.get_range(name, 0, MOST_SMALL_BYTES)
    try:
        told = json.loads(content)
        segment = f"{SEGMENTS}{told['first']}"
        if told["format"] == _FORMAT and digest_in(segment):
            return segment
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    raise FormatError(f"{address(store, name)}: is not an image in segments", hint="`sqlimage push` makes them")


def missing(where: str, name: str) -> NotFoundError:
    return NotFoundError(f"{where}/{name}: no such object")


def too_long(where: str, name: str, most_bytes: int) -> StoreError:
    return StoreError(f"{where}/{name}: has more than the {most_bytes} bytes that it may have")


def is_name(text: str) -> bool:
    """Whether an object can be called this: what else lies in a place is nobody's business."""
    try:
        check_name(text)
    except UsageError:
        return False
    return True
