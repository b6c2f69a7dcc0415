"""``sqlimage extent``."""

from __future__ import annotations

from typing import Annotated

import typer

from sqlimage import format_size

from .arguments import JsonOption, PlaceArgument, VolumeOption, on_volume, opened
from .output import message, print_json, print_table

EXAMPLE = "sqlimage extent laptop.sqlimage /Users/joe/note.txt"


def command(
    image: PlaceArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a stream or a directory in the image.")],
    volume: VolumeOption = None,
    json: JsonOption = False,
) -> None:
    """Show where the bytes of a file lie on the medium: its runs of clusters, in the order of the file."""
    with opened(image) as version:
        runs = version.extents(on_volume(version, path, volume))
        unit = version.control.bytes_per_cluster
    if json:
        print_json(runs)
        return
    if not runs:
        message(f"note: {path} has no clusters: it is empty, nothing but holes, or lies inside control information")
    print_table(
        ["file offset", "start cluster", "clusters", "length", "byte of the medium"],
        (
            (
                run.file_offset,
                run.start_cluster,
                run.clusters,
                format_size(run.clusters * unit),
                run.start_cluster * unit,
            )
            for run in runs
        ),
    )
