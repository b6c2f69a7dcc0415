"""``sqlimage audit``."""

from __future__ import annotations

from sqlimage import format_size

from .arguments import ImageArgument, JsonOption, opened
from .output import print_json, print_table

EXAMPLE = "sqlimage audit laptop.sqlimage"


def command(image: ImageArgument, json: JsonOption = False) -> None:
    """Show the audit trail: what was done to the image, by whom, where and when. `verify` proves it."""
    with opened(image) as version:
        rows = version.image.audit()
    if json:
        print_json(rows)
        return
    print_table(
        ["id", "at", "user", "host", "tool", "action", "version", "path", "size", "detail"],
        (
            (
                row.id,
                row.at,
                row.user,
                row.host,
                row.tool,
                row.action,
                row.version,
                row.path,
                format_size(row.length_bytes) if row.length_bytes is not None else None,
                row.detail,
            )
            for row in rows
        ),
    )
