"""``sqlimage pull``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, LimitOption, here, limit_of, split_place
from .output import CAME_WHOLE, on_interruption, print_json, printable, progress_bar

EXAMPLE = "sqlimage pull s3://images/laptops/golden.sqlimage golden.sqlimage"


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the image is; with --resume the image itself.")],
    image: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE", callback=here, help="The file to make, or one that an earlier pull has begun."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with IMAGE, from where it was pulled: `pull --resume IMAGE`.")
    ] = False,
    limit: LimitOption = None,
    parents: Annotated[bool, typer.Option(help="Also pull parents that are nowhere to be found.")] = True,
    json: JsonOption = False,
) -> None:
    """Fetch an image from elsewhere, each segment compared with its digest before it counts.

    IMAGE is there, and can be read, as soon as the first segment is; what is missing is fetched when it is needed.
    After an interruption the same command fetches the rest.
    """
    if resume != (image is None):
        raise sqlimage.UsageError("name a URL and an image, or --resume and an image")
    whole, version = split_place(url)
    if version is not None and sqlimage.is_url(url):
        raise sqlimage.UsageError(
            f"{sqlimage.without_userinfo(whole)}: comes with all its versions", hint=f"leave out @{version}"
        )
    on_interruption(CAME_WHOLE)
    with progress_bar("pulling") as progress:
        if image is None:
            report = sqlimage.resume_pull(url, bytes_per_second=limit_of(limit), parents=parents, progress=progress)
        else:
            report = sqlimage.pull(url, image, bytes_per_second=limit_of(limit), parents=parents, progress=progress)
    if json:
        print_json(report)
        return
    for each in (*report.parents, report):
        print(
            f"{printable(each.image)} is whole: {each.segments} segments; {each.fetched_segments} fetched "
            f"({format_size(each.fetched_bytes)}), {format_size(each.here_bytes)} were here"
        )
