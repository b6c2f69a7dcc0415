"""``sqlimage join``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, here
from .output import CAME_WHOLE, on_interruption, print_json, printable, progress_bar

EXAMPLE = "sqlimage join /media/usb laptop.sqlimage"


def command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where the segments are.")],
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", callback=here, help="The image to make, or one that segments are missing of."),
    ],
    name: Annotated[str | None, typer.Option(help="Which image, where DIR holds several.")] = None,
    json: JsonOption = False,
) -> None:
    """Make an image of segments, each compared with its digest before it counts.

    Segments that are missing are told by number (exit code 3). The image is there all the same, and can be read in
    part; the same command fills it in when they are there.
    """
    on_interruption(CAME_WHOLE)
    with progress_bar("joining") as progress:
        report = sqlimage.join(directory, image, name=name, progress=progress)
    if json:
        print_json(report)
        return
    print(
        f"{printable(report.image)} is whole: {report.segments} segments, {format_size(report.fetched_bytes)} read, "
        f"{format_size(report.here_bytes)} were here"
    )
