"""``sqlimage unmount``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage

from .arguments import JsonOption
from .output import message as say
from .output import print_json, print_outcome

EXAMPLE = "sqlimage unmount /mnt"


def command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where an image is mounted.")],
    discard: Annotated[bool, typer.Option("--discard", help="Throw away what was written.")] = False,
    json: JsonOption = False,
) -> None:
    """End a mount. What was written is committed, and what changed is shown file by file.

    A mount whose process was killed is cleared; its edit is still open.
    """
    outcome, problems = sqlimage.unmount(directory, discard=discard)
    for problem in problems:
        say(f"note: {problem}")
    if json:
        print_json(outcome)
        return
    print_outcome(outcome)
