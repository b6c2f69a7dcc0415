"""``sqlimage receive``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, here
from .output import on_interruption, print_json, printable, progress_bar

EXAMPLE = "sqlimage receive laptop.sqlimage < segments"


def command(
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", callback=here, help="The file to make, or one that segments are missing of."),
    ],
    json: JsonOption = False,
) -> None:
    """Make an image of the segments that come on stdin, each compared with its digest before it counts.

    Where the pipe breaks, what came stays; the same command takes what is sent again.
    """
    if sys.stdin.isatty():
        raise sqlimage.UsageError("stdin is a terminal", hint="`sqlimage send IMAGE |` comes before it")
    on_interruption("segments that came whole stay; the same command takes the others")
    with progress_bar("receiving") as progress:
        report = sqlimage.receive(sys.stdin.buffer, image, progress=progress)
    if json:
        print_json(report)
    else:
        state = "is whole" if not report.missing else f"lacks {len(report.missing)} of its segments"
        print(
            f"{printable(report.image)} {state}: {report.segments} segments; {report.received_segments} came "
            f"({format_size(report.received_bytes)})"
        )
    if report.missing:
        raise sqlimage.DeviceError(
            f"{report.image}: segments are missing", hint=f"`sqlimage send --from {report.missing[0]}` goes on"
        )
