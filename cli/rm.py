"""``sqlimage rm``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage

from .arguments import ImageArgument, IntoOption, JsonOption, LabelOption, MessageOption, UserOption, split_image
from .output import print_changed

EXAMPLE = "sqlimage rm laptop.sqlimage /Users/joe/secret.txt"


def command(
    image: ImageArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files or empty directories in the image.")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Directories with all that is in them.")] = False,
    into: IntoOption = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Remove files from an image, as a new version; the old one still has them."""
    file, version = split_image(image)
    with sqlimage.changing(file, version, into=into, label=label, message=message, user=user) as changes:
        for path in paths:
            changes.remove(path, recursive=recursive)
    print_changed(changes, json)
