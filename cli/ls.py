"""``sqlimage ls``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

import sqlimage

from .arguments import JsonOption, PlaceArgument, VolumeOption, on_volume, opened
from .output import print_json, print_table

EXAMPLE = "sqlimage ls laptop.sqlimage /Users --recursive"


def command(
    image: PlaceArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory or a file in the image.")] = "/",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All that lies below, too.")] = False,
    all_: Annotated[bool, typer.Option("--all", "-a", help="The file system's own metadata files, too.")] = False,
    volume: VolumeOption = None,
    json: JsonOption = False,
) -> None:
    """List files. A medium with several volumes has them as /0, /1 and so on."""
    with opened(image) as version:
        path = on_volume(version, path, volume)
        rows = [found for found in _rows(version, path, recursive) if all_ or found[1].kind != "metadata"]
    if json:
        print_json([row for _, row in rows])
        return
    print_table(
        ["kind", "size", "modified", "path"],
        ((row.kind, row.size_bytes, row.modified_at, name) for name, row in rows),
    )


def _rows(version: sqlimage.Version, path: str, recursive: bool) -> Iterator[tuple[str, sqlimage.FileRow]]:
    numbers = [volume.number for volume in version.volumes()]
    if len(numbers) > 1 and path.strip("/") == "":
        for number in numbers:
            yield f"/{number}", sqlimage.FileRow(number, "/", "directory", None, None, None, None, None, None)
            if recursive and version.volume(number).captured_as == "files":
                yield from _rows(version, f"/{number}/", True)
        return
    volume, inside = version.split_path(path)
    prefix = f"/{volume}" if len(numbers) > 1 else ""
    row = version.find_file(path) if inside != "/" or version.volume(volume).raw_reason else None
    if row and row.kind != "directory":
        yield prefix + row.path, row
        return
    depth = 1 if inside == "/" else inside.count("/") + 1
    for found in version.below(path):
        if recursive or found.path.count("/") == depth:
            yield prefix + found.path, found
