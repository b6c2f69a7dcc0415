"""``sqlimage split``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size, parse_size

from .arguments import ImageArgument, JsonOption, SegmentSizeOption, split_image
from .output import ARE_WHOLE, on_interruption, print_json, printable, progress_bar

EXAMPLE = "sqlimage split laptop.sqlimage@golden /media/usb --segment-size 64MiB"


def command(
    image: ImageArgument,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where the segments go.")],
    segment_size: SegmentSizeOption = "64MiB",
    json: JsonOption = False,
) -> None:
    """Cut an image into segments of equal length, in the order in which a restore or a boot reads them.

    The first lies in DIR under the name of the image and holds all streams but the rest of the data; the others lie in
    DIR/segments under their SHA-256. IMAGE@VERSION takes that version and its ancestors; a child's segments hold only
    its own data. `sqlimage join` puts them together, and any web server that serves DIR makes it a place to pull from.
    """
    path, version = split_image(image)
    on_interruption(ARE_WHOLE)
    with progress_bar("splitting") as progress:
        report = sqlimage.split(path, version, directory, segment_bytes=parse_size(segment_size), progress=progress)
    if json:
        print_json(report)
        return
    print(
        f"{report.segments} segments in {printable(directory)}: "
        f"{format_size(report.sent_bytes)} written, {format_size(report.there_bytes)} were there"
    )
