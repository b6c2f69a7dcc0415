"""``sqlimage capture``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size, parse_property

from .arguments import JsonOption
from .output import message, print_json, print_pairs, progress_bar

EXAMPLE = "sqlimage capture /dev/sdb1 laptop.sqlimage --label golden --property site=Berlin"


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A raw file or a block device.")],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image file to make; it must not exist.")],
    label: Annotated[str | None, typer.Option(help="A name for this version.")] = None,
    partition: Annotated[int | None, typer.Option(help="Take only this partition, by number.", min=1)] = None,
    property_: Annotated[
        list[str] | None, typer.Option("--property", metavar="NAME=VALUE", help="A property to find it by. Repeatable.")
    ] = None,
    store: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Keep matching files uncompressed. Repeatable.")
    ] = None,
    keep_page_files: Annotated[
        bool, typer.Option("--keep-page-files", help="Take pagefile.sys, swapfile.sys and hiberfil.sys too.")
    ] = False,
    preset: Annotated[str, typer.Option(help="fast, balanced or archive.")] = "balanced",
    level: Annotated[int | None, typer.Option(help="Compression level of zstd, 1 to 22, instead.")] = None,
    hidden_sectors: Annotated[
        int | None, typer.Option(help="Sectors before the volume, where the boot sector is wrong.", min=0)
    ] = None,
    geometry: Annotated[str | None, typer.Option(metavar="C/H/S", help="Geometry of the medium.")] = None,
    json: JsonOption = False,
) -> None:
    """Capture a volume or a disk into a new image.

    Free clusters, zeros, page and hibernation files are left out; what occurs twice is stored once. The image appears
    whole and synced, or not at all.
    """
    with progress_bar("capturing") as progress:
        report = sqlimage.capture(
            source,
            image,
            label=label,
            partition=partition,
            property_values=dict(parse_property(text) for text in property_ or []),
            store=store or [],
            keep_page_files=keep_page_files,
            preset=preset,
            level=level,
            hidden_sectors=hidden_sectors,
            geometry=sqlimage.Geometry.parse(geometry) if geometry else None,
            progress=progress,
        )
    for warning in report.warnings:
        message(f"note: {warning}")
    if json:
        print_json(report)
        return
    for volume in report.volumes:
        taken = f"{volume.names} names" if volume.captured_as == "files" else "raw"
        print(f"volume {volume.number}: {volume.file_system or 'unknown'} {volume.label or ''}".rstrip() + f", {taken}")
        if volume.left_out:
            print(f"  left out {', '.join(volume.left_out)} ({format_size(volume.left_out_bytes)})")
    print_pairs(
        [
            ("medium", format_size(report.medium_bytes)),
            ("allocated", format_size(report.allocated_bytes)),
            ("met twice", format_size(report.repeated_bytes)),
            ("image", f"{format_size(report.image_bytes)}, {report.image}"),
            ("uuid", report.uuid),
        ]
    )
