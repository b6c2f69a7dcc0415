"""``sqlimage get``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, PlaceArgument, VolumeOption, on_volume, opened
from .output import message, print_json, printable

EXAMPLE = "sqlimage get laptop.sqlimage /Users/joe ./joe"
_MOST_TOLD = 20


def command(
    image: PlaceArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or a directory in the image; / for all.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Where to put it; it must not exist.")],
    volume: VolumeOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a file or a directory tree out of an image. Nothing is written outside DEST, whatever the names."""
    with opened(image, with_rest=False) as version:
        report = sqlimage.extract(version, on_volume(version, path, volume), destination)
    if json:
        print_json(report)
        raise typer.Exit(sqlimage.DamagedError.exit_code if report.damaged else 0)
    for what, rows in (
        ("renamed", report.renamed),
        ("link", report.links),
        ("skipped", report.skipped),
        ("damaged", report.damaged),
    ):
        for shown, why in rows[:_MOST_TOLD]:
            message(f"{what}: {shown}: {why}")
        if len(rows) > _MOST_TOLD:
            message(f"{what}: {len(rows) - _MOST_TOLD} more; --json lists them all")
    print(
        f"{report.files} files, {report.directories} directories, "
        + (f"{report.symbolic_links} symbolic links, " if report.symbolic_links else "")
        + f"{format_size(report.total_bytes)} "
        f"to {printable(report.destination)}"
    )
    if report.damaged:
        raise typer.Exit(sqlimage.DamagedError.exit_code)
