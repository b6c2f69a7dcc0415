"""``sqlimage mv``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage

from .arguments import ImageArgument, IntoOption, JsonOption, LabelOption, MessageOption, UserOption, split_image
from .output import print_changed

EXAMPLE = "sqlimage mv laptop.sqlimage /Users/joe/old.txt /Users/joe/new.txt"


def command(
    image: ImageArgument,
    old: Annotated[str, typer.Argument(metavar="OLD", help="A file or a directory in the image.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new path, or a directory to move it into.")],
    into: IntoOption = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Rename or move a file or a directory in an image, as a new version."""
    file, version = split_image(image)
    with sqlimage.changing(file, version, into=into, label=label, message=message, user=user) as changes:
        changes.move(old, new)
    print_changed(changes, json)
