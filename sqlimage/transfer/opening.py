"""Images elsewhere, used as if they were here: their streams in the cache, their contents fetched on demand."""

from __future__ import annotations

import os
from contextlib import suppress

from sqlimage.errors import FormatError, NotFoundError, RefusedError, SqlimageError
from sqlimage.image import elsewhere
from sqlimage.streams import segments
from sqlimage.streams.database import Database
from sqlimage.transfer import places
from sqlimage.transfer.arrive import make_image
from sqlimage.transfer.kept import Kept
from sqlimage.transfer.origin import StoreOrigin
from sqlimage.transfer.pull import DEEPEST, file_for
from sqlimage.transfer.remote import Remote, look
from sqlimage.transfer.stores.address import open_store
from sqlimage.transfer.stores.contract import Store, segment_name
from sqlimage.transfer.stores.wrappers import Retrying
from sqlimage.transfer.there import pointer

_held: dict[str, int] = {}
"""Directories of the cache that this process reads in, as long as it lives."""
_MOST_HEADS = 32
"""Images whose streams are kept."""
_OTHER_PARENTS = (
    "SELECT DISTINCT parent_uuid FROM main.control WHERE parent_uuid NOT IN (SELECT uuid FROM main.control)"
)


def local_image(url: str, *, with_rest: bool = True, prefetch: bool = False) -> str:
    """The path of a file that reads as the image at a URL does; what is read of it is fetched, and kept for a while.

    Without the rest, files have no digests there, and there is no audit trail: enough to read. ``prefetch`` fetches all
    contents in the background, in the order in which a boot reads them. Parents come along, where the same place has
    them. Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.FormatError`,
    :class:`~sqlimage.errors.DeviceError`.
    """
    store, name = open_store(url)
    shelf = Retrying(store)
    remote = look(shelf, name)
    directory = os.path.join(places.cache_directory(), "images", remote.identity)
    if not os.path.isdir(directory) and not with_rest:
        directory += "-part"
    if directory not in _held:
        _held[directory] = places.hold(directory)
    path = _one(remote, directory, with_rest=with_rest, prefetch=prefetch)
    wanted = _parents_of(path)
    seen: set[str] = set()
    while wanted and len(seen) < DEEPEST:
        uuid = wanted.pop()
        image = None if uuid in seen else pointer(shelf, uuid)
        seen.add(uuid)
        if image is not None:
            with suppress(NotFoundError, FormatError):  # perhaps it is at hand, or not needed
                above = _one(look(shelf, image), directory, with_rest=with_rest, prefetch=False)
                wanted += _parents_of(above)
    places.forget_oldest(os.path.dirname(directory), _MOST_HEADS)
    return path


def _one(remote: Remote, directory: str, *, with_rest: bool, prefetch: bool) -> str:
    """One file of a lineage, and where its contents come from."""
    path = os.path.realpath(file_for(directory, remote.name))
    if os.path.exists(path) and _identity_of(path) != remote.identity:
        with suppress(OSError):
            os.unlink(path)
    if not os.path.exists(path):
        first = remote.first(with_rest=with_rest)
        with suppress(RefusedError):  # somebody was faster
            make_image(path, first)
    origin = origin_over(remote.store, path, remote.begins)
    elsewhere.register(path, origin)
    if prefetch:
        origin.prefetch()
    return path


def _identity_of(path: str) -> str | None:
    """Of an image in the cache; None where it is damaged, for then it is made anew."""
    try:
        with Database.open(path, structure_only=True) as database:
            found = segments.read(database)
            is_sound = database.row("PRAGMA main.quick_check(1)") == ("ok",)
    except (FormatError, NotFoundError):
        return None
    return found[0].image if found and is_sound else None


def _parents_of(path: str) -> list[str]:
    with Database.open(path, structure_only=True) as database:
        return [str(row[0]) for row in database.query(_OTHER_PARENTS)]


def origin_over(store: Store, path: str, early: bytes = b"") -> StoreOrigin:
    """Where the missing contents of the image ``path`` lie, by what it says of its segments itself."""
    with Database.open(path, structure_only=True) as database:
        found = segments.read(database)
        at = segments.places(database)
    for data, _, segment, offset, length, _ in at:
        if not 1 <= segment <= len(found) or not 0 <= offset <= found[segment - 1].length_bytes - length or length < 1:
            raise FormatError(f"{path}: places data {data} where no segment has anything")
    if not found:
        raise FormatError(f"{path}: never travelled")
    names = [segment_name(row.digest) for row in found]
    return StoreOrigin(store, found[0].image, names, at, Kept(), early)


def origin_of_partial(path: str) -> StoreOrigin | None:
    """Where what is missing of a partly pulled image can be had, where this user has pulled it; else None."""
    try:
        with Database.open(path, structure_only=True) as database:
            found = segments.read(database)
    except SqlimageError:
        return None
    if all(row.is_here for row in found):
        return None
    url = places.origin_of(found[0].image)
    if url is None:
        return None
    return origin_over(Retrying(open_store(url)[0]), path)
