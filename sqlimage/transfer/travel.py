"""Images to and from places, by their URLs; and into directories, to be carried."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.streams import segments
from sqlimage.streams.database import Database
from sqlimage.transfer import places
from sqlimage.transfer.pull import PullReport, file_for
from sqlimage.transfer.pull import pull as _pull
from sqlimage.transfer.push import PushReport, name_for
from sqlimage.transfer.push import push as _push
from sqlimage.transfer.remote import look
from sqlimage.transfer.segment import USUAL_BYTES
from sqlimage.transfer.stores.address import is_url, open_store, without_userinfo
from sqlimage.transfer.stores.contract import Store
from sqlimage.transfer.stores.directory import DirectoryStore
from sqlimage.transfer.stores.wrappers import Checked, Limited, Retrying
from sqlimage.units import Progress

_MOST_WHOLE = 4
"""Images that are kept whole, to go on where a restore was interrupted."""


def push(
    path: str,
    version: str | None,
    url: str,
    *,
    segment_bytes: int = USUAL_BYTES,
    bytes_per_second: int | None = None,
    mount_from: Sequence[str] = (),
    parents: bool = True,
    replace: bool = False,
    search: Sequence[str] = (),
    progress: Progress | None = None,
) -> PushReport:
    """Put an image, or one version with its ancestors in the same file, into the place of a URL: ``s3://bucket/a/NAME``,
    ``oci://registry/repository:NAME``, ``file:///directory/NAME``, and others.

    Only what is not there is sent, so after an interruption, or a change, the same call goes on. ``bytes_per_second``
    bounds how fast. ``mount_from`` names repositories of the same registry that may have segments already. See
    :func:`sqlimage.transfer.push.push`.
    """
    store, name = open_store(url, mount_from=mount_from)
    shelf = _wrapped(store, bytes_per_second)
    try:
        return _push(
            path,
            version,
            shelf,
            name,
            segment_bytes=segment_bytes,
            parents=parents,
            replace=replace,
            search=search,
            progress=progress,
        )
    finally:
        shelf.close()


def pull(
    url: str,
    path: str,
    *,
    bytes_per_second: int | None = None,
    parents: bool = True,
    search: Sequence[str] = (),
    progress: Progress | None = None,
) -> PullReport:
    """Fetch the image at a URL into a new file, or what is missing of one that an earlier call has begun. See
    :func:`sqlimage.transfer.pull.pull`."""
    store, name = open_store(url)
    shelf = _wrapped(store, bytes_per_second)
    try:
        told = without_userinfo(url)
        return _pull(shelf, name, path, url=told, parents=parents, search=search, progress=progress)
    finally:
        shelf.close()


@contextmanager
def fetched(
    url: str, *, bytes_per_second: int | None = None, search: Sequence[str] = (), progress: Progress | None = None
) -> Iterator[str]:
    """The image at a URL as a whole file in the cache, with its parents, while the block runs; what has arrived stays
    for the next call where the block, or the fetching, ends with an error, and goes where it does not."""
    store, name = open_store(url)
    shelf = _wrapped(store, bytes_per_second)
    try:
        identity = look(shelf, name).identity
        every = os.path.join(places.cache_directory(), "whole")
        directory = os.path.join(every, identity)
        fd = places.hold(directory)
        places.forget_oldest(every, _MOST_WHOLE)
        try:
            path = file_for(directory, name)
            with places.alone(directory):  # who needs the same image at the same time waits, and finds it there
                _pull(shelf, name, path, search=search, progress=progress)
        except BaseException:
            os.close(fd)
            raise
    finally:
        shelf.close()
    try:
        yield path
    finally:
        os.close(fd)
    places.clear(directory)  # unless another process reads what is there, and will do that


def resume_pull(
    path: str,
    *,
    bytes_per_second: int | None = None,
    parents: bool = True,
    search: Sequence[str] = (),
    progress: Progress | None = None,
) -> PullReport:
    """Fetch what is missing of an image that this user has begun to pull, from where it came.

    Raises :class:`~sqlimage.errors.NotFoundError` where that is not known.
    """
    with Database.open(path, structure_only=True) as database:
        found = segments.read(database)
    url = places.origin_of(found[0].image) if found else None
    if url is None:
        raise NotFoundError(f"{path}: it is not known where it comes from", hint="tell it: `sqlimage pull URL IMAGE`")
    return pull(url, path, bytes_per_second=bytes_per_second, parents=parents, search=search, progress=progress)


def _wrapped(store: Store, bytes_per_second: int | None) -> Store:
    return Retrying(Checked(store if bytes_per_second is None else Limited(store, bytes_per_second)))


def split(
    path: str,
    version: str | None,
    directory: str,
    *,
    segment_bytes: int = USUAL_BYTES,
    progress: Progress | None = None,
) -> PushReport:
    """Cut an image into segments that lie in a directory: under their digests in ``segments/``, and under the name of
    the image which of them is the first. Any web server makes it a place to pull from.

    Raises :class:`~sqlimage.errors.RefusedError` where the directory holds something else under that name.
    """
    if is_url(directory):
        raise UsageError(f"{without_userinfo(directory)}: is no directory", hint="`sqlimage push` takes a URL")
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise RefusedError(f"{directory}: is no directory", hint="name one, which may be a new one")
    store = DirectoryStore(directory)  # made when the first segment goes there
    return _push(path, version, store, name_for(path), segment_bytes=segment_bytes, parents=False, progress=progress)


def join(directory: str, path: str, *, name: str | None = None, progress: Progress | None = None) -> PullReport:
    """Make an image of the segments in a directory; of the only one there, unless told its name.

    What is missing in the directory is told by :class:`~sqlimage.errors.NotFoundError`; the image is there without it,
    and another call fills it in.
    """
    if not os.path.isdir(directory):
        raise NotFoundError(f"{directory}: no such directory")
    store = DirectoryStore(directory)
    if name is None:
        found = sorted(one for one in store.list() if "/" not in one)
        if len(found) != 1:
            what = "holds no image in segments" if not found else f"holds {len(found)} images: {', '.join(found[:10])}"
            raise NotFoundError(f"{directory}: {what}", hint="name the one with --name" if found else "")
        name = found[0]
    return _pull(Checked(store), name, path, parents=False, progress=progress)
