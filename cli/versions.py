"""``sqlimage versions``."""

from __future__ import annotations

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, PlaceArgument, split_to_read
from .output import message, print_json, print_table

EXAMPLE = "sqlimage versions laptop.sqlimage"


def command(image: PlaceArgument, json: JsonOption = False) -> None:
    """Show the versions of an image as the tree they are, and what each takes up.

    own: stored bytes that would be freed with the version; shared: stored bytes that other versions' records name, too;
    elsewhere: stored bytes that its parents' files hold.
    """
    with sqlimage.Image.open(split_to_read(image)[0]) as opened:
        tree = sqlimage.version_tree(opened)
    if json:
        print_json(tree)
        return
    print_table(
        ["version", "label", "state", "created", "changed", "own", "shared", "elsewhere", "uuid", "parent"],
        (
            (
                "  " * branch.depth + str(branch.version),
                branch.label,
                branch.state,
                branch.created_at[:19] + "Z",
                format_size(branch.changed_bytes),
                format_size(branch.own_bytes),
                format_size(branch.shared_bytes),
                format_size(branch.elsewhere_bytes),
                branch.uuid,
                _parent(branch),
            )
            for branch in tree.branches
        ),
    )
    for child in tree.child_files:
        message(f"child file: {child.path} ({child.versions} versions)")


def _parent(branch: sqlimage.Branch) -> str | None:
    """Where the parent is, for the versions whose parent does not stand above them."""
    if branch.depth or branch.parent_uuid is None:
        return None
    return f"{branch.parent_uuid} in {branch.parent_file}" if branch.parent_file else f"{branch.parent_uuid}, not found"
