"""What all stores ask of their callers and tell them in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from sqlimage.errors import NotFoundError, UsageError
from sqlimage.transfer.stores.contract import VERSIONS, StoreError, check_name, digest_in

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


def check_published(name: str, segments: Sequence[str]) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` where not an image and segments are named."""
    check_image(name)
    for other in segments:
        if not digest_in(other):
            raise UsageError(f"{other!r} is not the name of a segment")


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
