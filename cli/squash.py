"""``sqlimage squash``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import ImageFile, JsonOption, MessageOption, UserOption
from .output import UNCOVERED, print_json, print_pairs
from .output import message as say

EXAMPLE = "sqlimage squash laptop.sqlimage --from 1 --to monday"


def command(
    image: ImageFile,
    from_: Annotated[str, typer.Option("--from", metavar="VERSION", help="The oldest of them.")],
    to: Annotated[str, typer.Option(metavar="VERSION", help="The newest of them, which is left.")],
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Make one version of several that follow each other.

    The newest stays, with its number, label and UUID, and reads as before; the others are gone, with all that only they
    had. Refused where something else builds on one of those, in this file or in a child file beside it or in the
    directories of --search and SQLIMAGE_PATH.
    """
    report = sqlimage.squash(image, from_, to, message=message, user=user)
    if report.was_signed:
        say(UNCOVERED)
    if json:
        print_json(report)
        return
    print_pairs(
        [
            ("version", report.version),
            ("uuid", report.uuid),
            ("squashed", ", ".join(map(str, report.squashed))),
            ("freed", f"{report.contents} contents ({format_size(report.freed_bytes)})"),
            ("image", f"{format_size(report.image_bytes)}, {report.image}"),
        ]
    )
    say(report.searched)
