"""``sqlimage put``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage

from .arguments import ImageArgument, IntoOption, JsonOption, LabelOption, MessageOption, UserOption, split_image
from .output import print_changed

EXAMPLE = "sqlimage put laptop.sqlimage ./hosts /Windows/System32/drivers/etc/hosts"


def command(
    image: ImageArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file or a directory here; - is standard input.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Its path in the image, or a directory there.")],
    into: IntoOption = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a file or a tree into an image, as a new version: whole, or not at all."""
    file, version = split_image(image)
    with sqlimage.changing(file, version, into=into, label=label, message=message, user=user) as changes:
        changes.put(source, path)
    print_changed(changes, json)
