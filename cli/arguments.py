"""Arguments that several commands take, and what they mean."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, get_type_hints

import typer

import sqlimage

from .output import progress_bar, stands_for


def here(text: str) -> str:
    """What an argument names, unless it is a URL: what lies elsewhere is only read."""
    if text is not None and sqlimage.is_url(text):  # of an argument that was left out None comes
        told = sqlimage.without_userinfo(text)  # who asks, and the password, are told to nobody
        raise sqlimage.RefusedError(
            f"{told}: an image elsewhere is only read", hint="name a file here; `sqlimage pull` makes one"
        )
    return text


ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        callback=here,
        help="An image file, or IMAGE@VERSION: a number, a label, the beginning of a UUID, or `latest`.",
        show_default=False,
    ),
]
ImageFile = Annotated[str, typer.Argument(metavar="IMAGE", callback=here, help="An image file.", show_default=False)]
PlaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="An image file or the URL of one, or IMAGE@VERSION: a number, a label, the beginning of a UUID, `latest`.",
        show_default=False,
    ),
]
UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="s3://bucket/dir/NAME, gs://, az://, oci://registry/repository:NAME, https://host/dir/NAME, "
        "file:///dir/NAME",
        show_default=False,
    ),
]
LimitOption = Annotated[str | None, typer.Option("--limit", metavar="SIZE", help="At most so much a second, as 5MiB.")]
SegmentSizeOption = Annotated[str, typer.Option(metavar="SIZE", help="How long segments are, but for the last.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]

MessageOption = Annotated[str | None, typer.Option("--message", "-m", help="Why, for the audit trail.")]
UserOption = Annotated[str | None, typer.Option(help="Who, for the audit trail; whoever runs this, unless told.")]
LabelOption = Annotated[str | None, typer.Option(help="A name for the new version.")]
IntoOption = Annotated[str | None, typer.Option(metavar="CHILD", help="Write into a new child file, not into IMAGE.")]
CommitOption = Annotated[bool, typer.Option("--commit", help="At the end, make what was written a sealed version.")]
DiscardOption = Annotated[bool, typer.Option("--discard", help="At the end, throw away what was written.")]
CacheOption = Annotated[str, typer.Option(metavar="SIZE", help="Temporary file for decoded data; 0 for none.")]
VolumeOption = Annotated[
    int | None, typer.Option(metavar="N", help="PATH is on this volume; the same as /N before it.", min=0)
]

SearchOption = Annotated[
    list[str] | None,
    typer.Option(metavar="DIR", help="Look for parents and children in this directory, too. Repeatable."),
]


def with_search(command: Callable[..., object]) -> Callable[..., object]:
    """The command with an option ``--search DIR``, which does what the environment variable does, for it and for every
    process it starts."""

    @functools.wraps(command)
    def wrapped(*arguments: object, search: list[str] | None = None, **options: object) -> object:
        if search:
            search_in(search)
        return command(*arguments, **options)

    hints = {**get_type_hints(command, include_extras=True), "search": SearchOption}
    known = [one.replace(annotation=hints[name]) for name, one in inspect.signature(command).parameters.items()]
    option = inspect.Parameter("search", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SearchOption)
    wrapped.__signature__ = inspect.Signature([*known, option])  # type: ignore[attr-defined]
    wrapped.__annotations__ = hints
    return wrapped


def search_in(directories: list[str]) -> None:
    """Have parents looked for in these directories first."""
    for directory in directories:
        if ":" in directory:
            raise sqlimage.UsageError(f"--search {directory!r}: a directory with a colon cannot be searched")
        if not os.path.isdir(directory):
            raise sqlimage.NotFoundError(f"--search {directory}: no such directory")
    known = os.environ.get(sqlimage.SEARCH_VARIABLE, "")
    os.environ[sqlimage.SEARCH_VARIABLE] = ":".join(filter(None, [*map(os.path.abspath, directories), known]))


def limit_of(text: str | None) -> int | None:
    """What ``--limit`` means, in bytes a second."""
    if text is None:
        return None
    limit = sqlimage.parse_size(text)
    if limit < 1:
        raise sqlimage.UsageError(f"--limit {text}: nothing would ever arrive", hint="name at least 1 byte")
    return limit


def cache_of(text: str) -> sqlimage.Cache:
    """What ``--cache`` means."""
    return sqlimage.Cache(memory_bytes=128 << 20, scratch_bytes=sqlimage.parse_size(text))


def how_it_ends(commit: bool, discard: bool) -> str:
    """What becomes of an edit when the command ends."""
    if commit and discard:
        raise sqlimage.UsageError("--commit and --discard exclude each other")
    return "commit" if commit else "discard" if discard else "keep"


def split_image(text: str) -> tuple[str, str | None]:
    """File and version of ``IMAGE@VERSION``. A file whose name holds an @ is taken as it is.

    Raises :class:`sqlimage.RefusedError` for a URL.
    """
    return split_place(here(text))


def split_place(text: str) -> tuple[str, str | None]:
    """The same, where it may be a URL."""
    # what stands before the @ of a host is who asks
    name = text.partition("://")[2].partition("/")[2].rpartition("/")[2] if sqlimage.is_url(text) else text
    if os.path.exists(text) or "@" not in name or "@sha256:" in name:
        return text, None
    path, _, version = text.rpartition("@")
    return path, version


def split_to_read(text: str, *, with_rest: bool = True) -> tuple[str, str | None]:
    """The same, where it may be a URL and is only read: then the file is one that stands for it. Without the rest,
    files have no digests in it, and there is no audit trail."""
    path, version = split_place(text)
    if not sqlimage.is_url(path):
        return path, version
    local = sqlimage.local_image(path, with_rest=with_rest)
    stands_for(local, path)
    return local, version


def on_volume(version: sqlimage.Version, path: str, volume: int | None) -> str:
    """A path on a volume as it is told where the medium has several."""
    if volume is None:
        return path
    version.volume(volume)
    return path if len(version.volumes()) == 1 else f"/{volume}/{path.lstrip('/')}"


@contextmanager
def opened_whole(text: str, limit: str | None) -> Iterator[sqlimage.Version]:
    """The same, of an image at a URL once all of it is here; ``limit`` bounds how fast that comes."""
    path, version = split_place(text)
    with ExitStack() as stack:
        if sqlimage.is_url(path):
            url = path
            with opened(text):  # is the version there, and a key, before all of it is fetched
                pass
            with progress_bar("fetching") as progress:
                path = stack.enter_context(sqlimage.fetched(url, bytes_per_second=limit_of(limit), progress=progress))
            stands_for(path, url)
        yield stack.enter_context(sqlimage.Image.open(path)).version(version)


@contextmanager
def opened(text: str, *, writable: bool = False, with_rest: bool = True) -> Iterator[sqlimage.Version]:
    """The version that an IMAGE argument means, its image open while the block runs."""
    path, version = split_image(text) if writable else split_to_read(text, with_rest=with_rest)
    with sqlimage.Image.open(path, writable=writable) as image:
        yield image.version(version)
