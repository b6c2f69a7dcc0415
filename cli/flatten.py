"""``sqlimage flatten``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import ImageArgument, JsonOption, MessageOption, UserOption, here, opened
from .output import print_json, print_pairs, progress_bar

EXAMPLE = "sqlimage flatten monday.sqlimage whole.sqlimage"


def command(
    image: ImageArgument,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", callback=here, help="The image file to make; it must not exist.")
    ],
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Make an image of one version that needs no other: all it has from its ancestors comes along.

    It reads as the version does, and is a version of its own, under a new UUID.
    """
    with opened(image) as version, progress_bar("flattening") as progress:
        report = sqlimage.flatten(version, destination, message=message, user=user, progress=progress)
    if json:
        print_json(report)
        return
    print_pairs(
        [
            ("flattened", f"{report.versions} versions"),
            ("contents", f"{report.contents} ({format_size(report.stored_bytes)})"),
            ("image", f"{format_size(report.image_bytes)}, {report.image}"),
            ("uuid", report.uuid),
        ]
    )
