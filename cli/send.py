"""``sqlimage send``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size, parse_size

from .arguments import ImageArgument, SegmentSizeOption, split_image
from .output import message, progress_bar

EXAMPLE = "sqlimage send laptop.sqlimage | ssh host sqlimage receive laptop.sqlimage"


def command(
    image: ImageArgument,
    begin: Annotated[int, typer.Option("--from", metavar="N", help="Begin with this segment.", min=1)] = 1,
    segment_size: SegmentSizeOption = "64MiB",
) -> None:
    """Write an image to stdout as segments, for `sqlimage receive` on the other end of a pipe.

    Where the pipe broke, the receiver tells from which segment on to send again.
    """
    if sys.stdout.isatty():
        raise sqlimage.UsageError("stdout is a terminal", hint="send into a pipe: `| ssh host sqlimage receive IMAGE`")
    path, version = split_image(image)
    with progress_bar("sending") as progress:
        report = sqlimage.send(
            path, version, sys.stdout.buffer, segment_bytes=parse_size(segment_size), begin=begin, progress=progress
        )
    message(f"{report.sent_segments} of {report.segments} segments sent ({format_size(report.sent_bytes)})")
