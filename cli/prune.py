"""``sqlimage prune``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import ImageFile, JsonOption, MessageOption, UserOption
from .output import message as say
from .output import print_json, print_pairs

EXAMPLE = "sqlimage prune laptop.sqlimage 7 failed-update"


def command(
    image: ImageFile,
    versions: Annotated[list[str], typer.Argument(metavar="VERSION...", help="Numbers, labels or UUIDs.")],
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Remove versions that nothing builds on, with all that only they had.

    Refused where something builds on one of them, in this file or in a child file beside it or in the directories of
    --search and SQLIMAGE_PATH; `squash` makes one version of it and the next instead.
    """
    report = sqlimage.prune(image, versions, message=message, user=user)
    if json:
        print_json(report)
        return
    print_pairs(
        [
            ("pruned", ", ".join(map(str, report.versions))),
            ("freed", f"{report.contents} contents ({format_size(report.freed_bytes)})"),
            ("image", f"{format_size(report.image_bytes)}, {report.image}"),
        ]
    )
    say(report.searched)
