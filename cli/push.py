"""``sqlimage push``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size, parse_size

from .arguments import ImageArgument, JsonOption, LimitOption, SegmentSizeOption, UrlArgument, limit_of, split_image
from .output import ARE_WHOLE, on_interruption, print_json, printable, progress_bar

EXAMPLE = "sqlimage push laptop.sqlimage@golden s3://images/laptops/golden.sqlimage"


def command(
    image: ImageArgument,
    url: UrlArgument,
    segment_size: SegmentSizeOption = "64MiB",
    limit: LimitOption = None,
    parents: Annotated[bool, typer.Option(help="Also push parents in other files that are not there.")] = True,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where versions that are there would be lost.")
    ] = False,
    mount_from: Annotated[
        list[str] | None,
        typer.Option(metavar="REPO", help="A repository of the same registry that may have segments. Repeatable."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put an image elsewhere, in segments. Only what is not there is sent.

    After an interruption the same command goes on. The URL stands for the image once everything is there. Credentials
    are taken from the usual places: AWS_ACCESS_KEY_ID and the like, the files of docker and podman.
    """
    path, version = split_image(image)
    on_interruption(ARE_WHOLE)
    with progress_bar("pushing") as progress:
        report = sqlimage.push(
            path,
            version,
            url,
            segment_bytes=parse_size(segment_size),
            bytes_per_second=limit_of(limit),
            mount_from=mount_from or (),
            parents=parents,
            replace=replace,
            progress=progress,
        )
    if json:
        print_json(report)
        return
    for each in (*report.parents, report):
        print(
            f"{printable(each.url)}: {each.segments} segments; {each.sent_segments} sent "
            f"({format_size(each.sent_bytes)}), {format_size(each.there_bytes)} were there"
        )
