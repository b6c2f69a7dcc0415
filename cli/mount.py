"""``sqlimage mount``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage

from .arguments import (
    CacheOption,
    IntoOption,
    JsonOption,
    LabelOption,
    MessageOption,
    PlaceArgument,
    UserOption,
    cache_of,
    split_place,
)
from .output import message as say
from .output import print_json, print_outcome, printable

EXAMPLE = "sqlimage mount laptop.sqlimage /mnt --writable"


def command(
    image: PlaceArgument,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An empty directory.")],
    writable: Annotated[bool, typer.Option("--writable", "-w", help="Writes go to an edit on top.")] = False,
    volume: Annotated[int | None, typer.Option(help="Which volume; all of them, unless told.", min=0)] = None,
    device: Annotated[
        bool, typer.Option("--device", help="Show the medium and its volumes as files, for losetup and other tools.")
    ] = False,
    way: Annotated[
        str | None,
        typer.Option(metavar="WAY", help="kernel, ntfs-3g, fuse2fs, exfat-fuse or reader (our own)."),
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", "-f", help="Stay until it is unmounted.")] = False,
    log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the background process tells of trouble.")
    ] = None,
    into: IntoOption = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    cache: CacheOption = "4GiB",
    json: JsonOption = False,
) -> None:
    """Mount an image: the files of its volumes, or with --device the disk itself.

    By a driver that is there (the kernel's, ntfs-3g, ...), else, for reading, by sqlimage's own reader, which needs no
    driver and no root; --way reader takes that in any case. Writable, every program writes into a new version:
    `sqlimage unmount DIR` commits it, `sqlimage unmount DIR --discard` throws it away, and a crash leaves it to be
    resumed.
    """
    path, version = split_place(image)
    told = sqlimage.mount(
        path,
        directory,
        version,
        volume=volume,
        show_devices=device,
        way=way,
        writable=writable,
        foreground=foreground,
        log=log,
        into=into,
        label=label,
        user=user,
        message=message,
        cache=cache_of(cache),
    )
    if json:
        print_json(told)
        return
    if foreground:
        for problem in told["problems"]:
            say(f"note: {problem}")
        print_outcome(sqlimage.Outcome.from_plain(told["result"]))
        return
    ways = ", ".join(f"{name} by {chosen}" for name, chosen in told["ways"].items()) or ", ".join(told["devices"])
    print(printable(f"version {told['version']} of {told['image']} is mounted at {told['directory']} ({ways})"))
    if writable:
        place = printable(str(told["directory"]))
        print(f"`sqlimage unmount {place}` commits what is written, with --discard it is thrown away")
