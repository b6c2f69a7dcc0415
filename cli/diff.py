"""``sqlimage diff``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, PlaceArgument, opened
from .output import message, print_json, print_pairs, print_table

EXAMPLE = "sqlimage diff laptop.sqlimage@1 laptop.sqlimage@golden"


def command(
    before: PlaceArgument,
    after: PlaceArgument,
    clusters: Annotated[
        bool, typer.Option("--clusters", help="Show the runs of clusters that differ instead of the files.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare two versions, of one image or of two: the files that were created, changed, deleted or renamed."""
    with opened(before) as old, opened(after) as new:
        found = sqlimage.diff(old, new, clusters=clusters)
    if json:
        print_json(found)
        return
    for number in found.raw_volumes:
        message(f"note: volume {number} is not read by files in one of the two; --clusters tells where it differs")
    if found.medium_bytes_before != found.medium_bytes_after:
        sizes = (format_size(found.medium_bytes_before), format_size(found.medium_bytes_after))
        message(f"note: the medium has {sizes[1]} instead of {sizes[0]}")
    if found.clusters is not None:
        print_table(
            ["start cluster", "end cluster", "bytes"],
            (
                (
                    run.start_cluster,
                    run.end_cluster,
                    (run.end_cluster - run.start_cluster + 1) * found.bytes_per_cluster,
                )
                for run in found.clusters
            ),
        )
        print_pairs([("differing", format_size(found.differing_bytes or 0))])
        return
    print_table(
        ["change", "bytes before", "after", "path", "what"],
        (
            (
                change.action,
                change.bytes_before,
                change.bytes_after,
                change.path if change.old_path is None else f"{change.old_path} -> {change.path}",
                ", ".join(change.what),
            )
            for change in found.changes
        ),
    )
