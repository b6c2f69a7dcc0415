"""``sqlimage rebase``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import ImageArgument, JsonOption, MessageOption, UserOption, here, split_image
from .output import UNCOVERED, print_json, print_pairs
from .output import message as say

EXAMPLE = "sqlimage rebase monday.sqlimage --onto laptop.sqlimage@golden"


def command(
    image: ImageArgument,
    onto: Annotated[str, typer.Option(metavar="PARENT[@VERSION]", callback=here, help="The new parent.")],
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Give a version another parent.

    It reads as before and keeps its UUID; what differs from the new parent is recorded, what does not is dropped.
    Without @VERSION the version of IMAGE is meant whose parent lies in another file.
    """
    path, version = split_image(image)
    onto_path, onto_version = split_image(onto)
    report = sqlimage.rebase(path, onto_path, version=version, onto_version=onto_version, message=message, user=user)
    if report.was_signed:
        say(UNCOVERED)
    if json:
        print_json(report)
        return
    print_pairs(
        [
            ("version", report.version),
            ("uuid", report.uuid),
            ("parent before", report.parent_before),
            ("parent", report.parent_uuid),
            ("differs in", format_size(report.own_bytes)),
            ("copied", format_size(report.copied_bytes)),
            ("image", f"{format_size(report.image_bytes)}, {report.image}"),
        ]
    )
