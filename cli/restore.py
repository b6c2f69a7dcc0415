"""``sqlimage restore``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import ImageArgument, JsonOption, opened
from .output import message, print_json, progress_bar

EXAMPLE = "sqlimage restore laptop.sqlimage@golden /dev/sdb1"


def command(
    image: ImageArgument,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A file, a block device, or a disk image.")],
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="The format of a new file; else by its name: .qcow2, .vhdx, ..."),
    ] = None,
    volume: Annotated[
        int | None, typer.Option(metavar="N", help="Restore only this volume of the medium.", min=0)
    ] = None,
    partition: Annotated[int | None, typer.Option(help="Write into this partition of DEST.", min=1)] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a destination that is not empty.")] = False,
    wipe: Annotated[bool, typer.Option("--wipe", help="Zero the free clusters of a device or partition too.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a version back to a disk or a file, verifying every digest on the way.

    A destination that is too small, mounted or not empty is refused before a byte is written.
    """
    with opened(image) as version, progress_bar("restoring") as progress:
        report = sqlimage.restore(
            version,
            destination,
            volume=volume,
            destination_format=format_,
            partition=partition,
            force=force,
            wipe=wipe,
            progress=progress,
        )
    if report.padding_bytes:
        message(f"note: {report.padding_bytes} zeros follow the medium: {report.format} holds whole sectors only")
    if json:
        print_json(report)
        return
    print(
        f"restored version {report.version} of {report.image} to {report.destination} "
        f"({report.format}): "
        f"{format_size(report.medium_bytes)}, {format_size(report.written_bytes)} written, "
        f"{report.chunks_verified} chunks verified"
    )
