"""``sqlimage find``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption
from .output import message, print_json, print_table

EXAMPLE = "sqlimage find /srv/images --where \"os.name = 'Debian' AND os.version >= 12\""


def command(
    directories: Annotated[list[str], typer.Argument(metavar="DIR...", help="Directories with images.")],
    where: Annotated[str, typer.Option(metavar="EXPR", help="SQL over properties; a dotted name is a property.")],
    json: JsonOption = False,
) -> None:
    """Find the images of a directory tree whose properties match.

    Columns beside the properties: path, version, uuid, label, state, created_at, medium_bytes, file_system,
    volume_label, serial, volumes, source. property('any name') reaches names that are words of SQL.
    """
    found = []
    for image in sqlimage.find(directories, where):
        if isinstance(image, sqlimage.Found):
            found.append(image)
        else:
            message(f"passed over: {image.path}: {image.why}")
    if json:
        print_json(found)
        return
    print_table(
        ["image", "version", "label", "created", "medium", "uuid"],
        ((f.path, f.version, f.label, f.created_at, format_size(f.medium_bytes), f.uuid) for f in found),
    )
