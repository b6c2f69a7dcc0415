"""``sqlimage sql``."""

from __future__ import annotations

import csv as csv_module
import sys
from typing import Annotated

import typer

import sqlimage

from .arguments import JsonOption, PlaceArgument, opened
from .output import message, print_json, print_table, printable

EXAMPLE = 'sqlimage sql laptop.sqlimage "SELECT path, bytes FROM file ORDER BY bytes DESC LIMIT 5"'


def command(
    image: PlaceArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One SQL statement that reads.")],
    json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values instead.")] = False,
) -> None:
    """Ask an image in SQL. The image is opened read-only; a statement that writes is refused.

    The function content(path), or content(volume, path), gives a file's bytes, to search inside files; NULL where it
    has more than 64 MiB.
    """
    if json and csv:
        raise sqlimage.UsageError("--json and --csv exclude each other")
    with opened(image) as version, sqlimage.Query(version) as asked:
        answer = asked.run(query)
        for note in asked.notes:
            message(f"note: {note}")
        if json:
            print_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
        elif csv:
            writer = csv_module.writer(sys.stdout)
            writer.writerow(answer.columns)
            # A program gets every value as it is; on a terminal none may do more than be seen.
            shown = printable if sys.stdout.isatty() else str
            writer.writerows(
                [v.hex() if isinstance(v, bytes) else shown(v) if isinstance(v, str) else v for v in row]
                for row in answer.rows
            )
        elif answer.columns:
            print_table(answer.columns, answer.rows)
