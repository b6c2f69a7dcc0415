"""``sqlimage restore``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import JsonOption, LimitOption, PlaceArgument, here, opened, opened_whole, split_place
from .output import message, on_interruption, print_explanation, print_json, printable, progress_bar

EXAMPLE = "sqlimage restore laptop.sqlimage@golden /dev/sdb1"


def command(
    image: PlaceArgument,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", callback=here, help="A file, a block device, or a disk image.")
    ],
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="The format of a new file; else by its name: .qcow2, .vhdx, ..."),
    ] = None,
    volume: Annotated[
        int | None, typer.Option(metavar="N", help="Restore only this volume of the medium.", min=0)
    ] = None,
    partition: Annotated[int | None, typer.Option(help="Write into this partition of DEST.", min=1)] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Lay it out anew for this size: 20GiB, minimum, or maximum (all of DEST)."),
    ] = None,
    hidden_sectors: Annotated[
        int | None, typer.Option(metavar="N", help="How many sectors lie before the volume, for its boot code.", min=0)
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(metavar="C/H/S", help="The geometry that boot sectors and partition tables state.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what would be moved and changed, and write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a destination that is not empty.")] = False,
    wipe: Annotated[bool, typer.Option("--wipe", help="Zero the free clusters of a device or partition too.")] = False,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """Write a version back to a disk or a file, verifying every digest on the way.

    From a URL everything is fetched first; after an interruption the same command goes on where it was.
    A destination that is too small, mounted or not empty is refused before a byte is written. With --size NTFS, FAT and
    ext volumes shrink or grow, and the partitions of a disk with them; every file is read again and compared.
    """
    wanted = sqlimage.parse_target_size(size) if size is not None else None
    shape = sqlimage.Geometry.parse(geometry) if geometry else None
    if explain:
        with opened(image) as version:
            explained = sqlimage.explain_restore(
                version,
                destination,
                volume=volume,
                partition=partition,
                size=wanted,
                hidden_sectors=hidden_sectors,
                geometry=shape,
            )
        print_explanation(explained, json)
        return
    sqlimage.check_destination(destination, partition=partition, force=force)
    place = split_place(image)[0]
    if sqlimage.is_url(place):
        on_interruption("what came whole is kept, a file that was being made is not there; the same command goes on")
    with opened_whole(image, limit) as version, progress_bar("restoring") as progress:
        report = sqlimage.restore(
            version,
            destination,
            size=wanted,
            hidden_sectors=hidden_sectors,
            geometry=shape,
            volume=volume,
            destination_format=format_,
            partition=partition,
            force=force,
            wipe=wipe,
            progress=progress,
        )
    if not sqlimage.is_url(place):
        place = report.image
    for note in report.notes:
        message(f"note: {note}")
    if report.padding_bytes:
        message(f"note: {report.padding_bytes} zeros follow the medium: {report.format} holds whole sectors only")
    if json:
        print_json(report)
        return
    print(
        f"restored version {report.version} of {printable(place)} to {printable(report.destination)} "
        f"({report.format}): "
        f"{format_size(report.medium_bytes)}, {format_size(report.written_bytes)} written, "
        f"{report.chunks_verified} chunks verified"
    )
    if report.files_compared:
        print(f"laid out anew: {report.fixups} fix-ups; {report.files_compared} contents read again, all as they were")
