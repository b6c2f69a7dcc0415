"""``sqlimage edit``: begin, list, commit, discard, resume."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import ImageArgument, JsonOption, LabelOption, MessageOption, UserOption, split_image
from .output import message as say
from .output import print_changes, print_json, print_pairs, print_table, printable

EXAMPLE = "sqlimage edit begin laptop.sqlimage --message 'new drivers'"

app = typer.Typer(
    help="Edits: versions that are being written, until they are committed or discarded.",
    epilog=f"Example: {EXAMPLE}",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog=f"Example: {EXAMPLE}")
def begin(
    image: ImageArgument,
    into: Annotated[
        str | None, typer.Option(metavar="CHILD", help="Write into a new child file; IMAGE stays as it is.")
    ] = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Open a new version on top of a sealed one, to be written through `serve`, `mount` or `boot`."""
    path, version = split_image(image)
    with sqlimage.Image.open(path, writable=into is None) as opened:
        edit = opened.edit(version, into=into, label=label, message=message, user=user)
        edit.close()
    place = printable(f"{edit.path}@{edit.number}")
    if json:
        print_json({"image": edit.path, "version": edit.number, "uuid": edit.control.uuid})
        return
    print(f"version {edit.number} is open in {printable(edit.path)}")
    print(
        f"write it with `sqlimage mount {place} DIR --writable`, `serve` or `boot`; then `sqlimage edit commit {place}`"
    )


@app.command("list", epilog="Example: sqlimage edit list laptop.sqlimage")
def list_(image: ImageArgument, json: JsonOption = False) -> None:
    """Show the edits that are neither committed nor discarded."""
    with sqlimage.Image.open(split_image(image)[0]) as opened:
        found = opened.unfinished()
    if json:
        print_json(found)
        return
    print_table(
        ["version", "begun", "by", "written", "label", "message", "in use by"],
        ((e.version, e.begun_at, e.user, format_size(e.written_bytes), e.label, e.message, e.held_by) for e in found),
    )


@app.command(epilog="Example: sqlimage edit commit laptop.sqlimage@3")
def commit(
    image: ImageArgument, message: MessageOption = None, user: UserOption = None, json: JsonOption = False
) -> None:
    """Seal an edit: it becomes a version that never changes, and the audit trail tells what was done, file by file."""
    path, version = split_image(image)
    with sqlimage.Image.open(path, writable=True) as opened:
        report = opened.resume(version, message=message, user=user).commit()
    if json:
        print_json(report)
        return
    print_changes(report)


@app.command(epilog="Example: sqlimage edit discard laptop.sqlimage@3")
def discard(image: ImageArgument, message: MessageOption = None, user: UserOption = None) -> None:
    """Remove an edit and all that was written in it."""
    path, version = split_image(image)
    with sqlimage.Image.open(path, writable=True) as opened:
        edit = opened.resume(version, message=message, user=user)
        edit.discard()
    say(f"version {edit.number} is gone")


@app.command(epilog="Example: sqlimage edit resume laptop.sqlimage@3")
def resume(image: ImageArgument, json: JsonOption = False) -> None:
    """Take up an edit after a crash: check it, bring the file to rest, and say how to go on."""
    path, version = split_image(image)
    with sqlimage.Image.open(path, writable=True) as opened:
        edit = opened.resume(version)
        edit.close()
        found = next(one for one in opened.unfinished() if one.version == edit.number)
    if json:
        print_json(found)
        return
    print_pairs(
        [
            ("version", found.version),
            ("begun", found.begun_at),
            ("by", found.user),
            ("message", found.message),
            ("written", format_size(found.written_bytes)),
        ]
    )
    place = printable(f"{path}@{found.version}")
    print(f"go on with `sqlimage mount {place} DIR --writable`, `serve` or `boot`; or `sqlimage edit commit {place}`")
