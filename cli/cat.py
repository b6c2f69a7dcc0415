"""``sqlimage cat``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import sqlimage

from .arguments import PlaceArgument, VolumeOption, on_volume, opened

EXAMPLE = "sqlimage cat laptop.sqlimage /Users/joe/note.txt"


def command(
    image: PlaceArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file in the image, or a stream as /file:stream.")],
    volume: VolumeOption = None,
) -> None:
    """Write the bytes of one file to stdout."""
    with opened(image, with_rest=False) as version, version.content(on_volume(version, path, volume)) as content:
        for block in sqlimage.read_all(content):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
