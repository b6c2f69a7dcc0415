"""``sqlimage boot``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import parse_size

from .arguments import (
    CacheOption,
    CommitOption,
    DiscardOption,
    IntoOption,
    LabelOption,
    MessageOption,
    PlaceArgument,
    UserOption,
    cache_of,
    how_it_ends,
    split_place,
)
from .output import message as say
from .output import print_outcome

EXAMPLE = "sqlimage boot laptop.sqlimage --commit -- -nic user"


def command(
    image: PlaceArgument,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- QEMU ARGS]", help="Passed to QEMU as they are.")
    ] = None,
    commit: CommitOption = False,
    discard: DiscardOption = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="No edit: what the machine writes vanishes when it stops.")
    ] = False,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="The machine's memory.")] = "1GiB",
    processors: Annotated[int, typer.Option(help="The machine's processors.", min=1, max=64)] = 1,
    interface: Annotated[str, typer.Option(help="ide (every system boots from it) or virtio (faster).")] = "ide",
    accelerator: Annotated[str, typer.Option("--accel", help="tcg or kvm.")] = "tcg",
    display: Annotated[
        str | None, typer.Option(help="QEMU's display, as gtk or vnc=:0; a serial console here, unless told.")
    ] = None,
    into: IntoOption = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    cache: CacheOption = "4GiB",
) -> None:
    """Boot a machine from an image, in QEMU. It writes into a new version; the one it starts from never changes.

    The new version stays open at the end unless --commit or --discard says otherwise. A bare volume is shown as a disk
    with a partition table and boot code around it.
    """
    if interface not in ("ide", "virtio") or accelerator not in ("tcg", "kvm"):
        raise sqlimage.UsageError("--interface is ide or virtio, --accel is tcg or kvm")
    path, version = split_place(image)
    machine = sqlimage.Machine(
        memory_bytes=parse_size(memory),
        interface="virtio" if interface == "virtio" else "ide",
        accelerator="kvm" if accelerator == "kvm" else "tcg",
        processors=processors,
        display=display,
        extra=tuple(arguments or ()),
    )
    if sqlimage.is_url(path) and not read_only:
        say("note: an image elsewhere is only read; what the guest writes vanishes at the end")
        read_only = True
    code, outcome = sqlimage.boot_image(
        path,
        version,
        machine=machine,
        writable=not read_only,
        end=how_it_ends(commit, discard),
        into=into,
        label=label,
        user=user,
        message=message,
        cache=cache_of(cache),
        on_note=say,
    )
    print_outcome(outcome)
    if code:
        say(f"the machine's program ended with {code}")
        raise typer.Exit(6)
