"""Arguments that several commands take, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

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


@contextmanager
def opened(text: str, *, writable: bool = False) -> Iterator[sqlimage.Version]:
    """The version that an IMAGE argument means, its image open while the block runs."""
    path, version = split_image(text)
    with sqlimage.Image.open(path, writable=writable) as image:
        yield image.version(version)
