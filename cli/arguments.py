"""Arguments that several commands take, and what they mean."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, get_type_hints

import typer

import sqlimage

ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="An image file, or IMAGE@VERSION: a number, a label, the beginning of a UUID, or `latest`.",
        show_default=False,
    ),
]
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


def cache_of(text: str) -> sqlimage.Cache:
    """What ``--cache`` means."""
    return sqlimage.Cache(memory_bytes=128 << 20, scratch_bytes=sqlimage.parse_size(text))


def how_it_ends(commit: bool, discard: bool) -> str:
    """What becomes of an edit when the command ends."""
    if commit and discard:
        raise sqlimage.UsageError("--commit and --discard exclude each other")
    return "commit" if commit else "discard" if discard else "keep"


def split_image(text: str) -> tuple[str, str | None]:
    """File and version of ``IMAGE@VERSION``. A file whose name holds an @ is taken as it is."""
    if os.path.exists(text) or "@" not in text:
        return text, None
    path, _, version = text.rpartition("@")
    return path, version


def on_volume(version: sqlimage.Version, path: str, volume: int | None) -> str:
    """A path on a volume as it is told where the medium has several."""
    if volume is None:
        return path
    version.volume(volume)
    return path if len(version.volumes()) == 1 else f"/{volume}/{path.lstrip('/')}"


@contextmanager
def opened(text: str, *, writable: bool = False) -> Iterator[sqlimage.Version]:
    """The version that an IMAGE argument means, its image open while the block runs."""
    path, version = split_image(text)
    with sqlimage.Image.open(path, writable=writable) as image:
        yield image.version(version)
