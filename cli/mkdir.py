"""``sqlimage mkdir``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage

from .arguments import ImageArgument, IntoOption, JsonOption, LabelOption, MessageOption, UserOption, split_image
from .output import print_changed

EXAMPLE = "sqlimage mkdir laptop.sqlimage /Users/joe/new --parents"


def command(
    image: ImageArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Directories to make in the image.")],
    parents: Annotated[bool, typer.Option("--parents", "-p", help="Those above them, too; they may be there.")] = False,
    into: IntoOption = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Make directories in an image, as a new version."""
    file, version = split_image(image)
    with sqlimage.changing(file, version, into=into, label=label, message=message, user=user) as changes:
        for path in paths:
            changes.make_directory(path, parents=parents)
    print_changed(changes, json)
