"""``sqlimage audit``."""

from __future__ import annotations

from typing import Annotated

import typer

from sqlimage import format_size

from .arguments import JsonOption, PlaceArgument, VolumeOption, on_volume, opened
from .output import print_json, print_table

EXAMPLE = "sqlimage audit laptop.sqlimage /Users/joe"


def command(
    image: PlaceArgument,
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="Only what was done to this file, or below this directory.")
    ] = None,
    volume: VolumeOption = None,
    json: JsonOption = False,
) -> None:
    """Show the audit trail: what was done to the image, by whom, where and when. `verify` proves it."""
    with opened(image) as version:
        rows = version.image.audit()
        if path is not None or volume is not None:
            parts = on_volume(version, path or "/", volume).split("/")
            top = "".join(f"/{part}" for part in parts if part)  # the first slash of a path may lack, as elsewhere
            rows = [row for row in rows if row.path is not None and f"{row.path}/".startswith(f"{top}/")]
    if json:
        print_json(rows)
        return
    print_table(
        ["id", "at", "user", "host", "tool", "action", "version", "path", "size", "detail"],
        (
            (
                row.id,
                row.at,
                row.user,
                row.host,
                row.tool,
                row.action,
                row.version,
                row.path,
                format_size(row.length_bytes) if row.length_bytes is not None else None,
                row.detail,
            )
            for row in rows
        ),
    )
