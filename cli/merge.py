"""``sqlimage merge``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, MessageOption, UserOption, here
from .output import message as say
from .output import print_json, print_pairs, print_table

EXAMPLE = "sqlimage merge monday.sqlimage --into laptop.sqlimage"


def command(
    child: Annotated[str, typer.Argument(metavar="CHILD", callback=here, help="A child file; it is only read.")],
    into: Annotated[str, typer.Option(metavar="PARENT", callback=here, help="The file that holds its parent.")],
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Bring the versions of a child file into the file of their parent.

    They keep their UUIDs, so whatever else builds on the parent stays valid, and the child file can be removed. What
    the parent has is not copied. PARENT is as before or holds all of it, whenever this is interrupted.
    """
    report = sqlimage.merge(child, into, message=message, user=user)
    if json:
        print_json(report)
        return
    for uuid in report.present:
        say(f"note: {uuid} is there already")
    print_table(
        ["in the child", "version", "label", "uuid"],
        ((one.number_in_child, one.version, one.label, one.uuid) for one in report.versions),
    )
    print_pairs(
        [
            ("contents", f"{report.contents} ({format_size(report.stored_bytes)})"),
            ("image", f"{format_size(report.image_bytes)}, {report.image}"),
        ]
    )
