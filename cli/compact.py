"""``sqlimage compact``."""

from __future__ import annotations

import sqlimage
from sqlimage import format_size

from .arguments import ImageFile, JsonOption, MessageOption, UserOption
from .output import message as say
from .output import print_json, print_pairs, progress_bar

EXAMPLE = "sqlimage compact laptop.sqlimage"


def command(
    image: ImageFile,
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Make an image file as small as it can be, in place and in small steps.

    Contents that no version names are dropped, what random writes left in small pieces is brought together, and the
    space goes back to the file system. What child files refer to and what signatures cover stays as it is; child files
    are looked for beside the image and in the directories of --search and SQLIMAGE_PATH, so name those where others
    lie.
    """
    with progress_bar("compacting") as progress:
        report = sqlimage.compact(image, message=message, user=user, progress=progress)
    if json:
        print_json(report)
        return
    print_pairs(
        [
            ("dropped", f"{report.dropped_contents} contents ({format_size(report.dropped_bytes)})"),
            ("cut anew", f"{report.recut_contents} contents into {report.recut_into}"),
            ("kept for child files", report.kept_for_children or None),
            ("kept for signatures", f"{report.kept_for_signatures} versions" if report.kept_for_signatures else None),
            ("before", format_size(report.bytes_before)),
            ("image", f"{format_size(report.bytes_after)}, {report.image}"),
        ]
    )
    say(report.searched)
