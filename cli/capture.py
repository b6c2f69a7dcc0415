"""``sqlimage capture``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size, parse_property

from .arguments import JsonOption, here, split_image
from .keys import refuse_unused, ways_to_new_key
from .output import message, print_explanation, print_json, print_pairs, printable, progress_bar

EXAMPLE = "sqlimage capture /dev/sdb1 monday.sqlimage --parent sunday.sqlimage --label monday"


def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A disk: a raw file, a block device, or qcow2, VHDX, ...")
    ],
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            callback=here,
            help="The image file to make; it must not exist. With --append the one to add to.",
        ),
    ],
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="PARENT[@VERSION]",
            callback=here,
            help="Make a child file that holds only what differs from PARENT.",
        ),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add a version to IMAGE that holds only what differs from its latest one.")
    ] = False,
    label: Annotated[str | None, typer.Option(help="A name for this version.")] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="The format of SOURCE, as raw, where its own bytes shall not decide."
        ),
    ] = None,
    partition: Annotated[int | None, typer.Option(help="Take only this partition, by number.", min=1)] = None,
    property_: Annotated[
        list[str] | None, typer.Option("--property", metavar="NAME=VALUE", help="A property to find it by. Repeatable.")
    ] = None,
    store: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Keep matching files uncompressed. Repeatable.")
    ] = None,
    encrypt: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Encrypt matching files. Repeatable.")
    ] = None,
    encrypt_all: Annotated[
        bool, typer.Option("--encrypt-all", help="Encrypt everything, the names of files and volumes too.")
    ] = False,
    recipient: Annotated[
        list[str] | None,
        typer.Option(metavar="PUBLIC", help="The holder of this X25519 key shall open it. Repeatable."),
    ] = None,
    keep_page_files: Annotated[
        bool, typer.Option("--keep-page-files", help="Take pagefile.sys, swapfile.sys and hiberfil.sys too.")
    ] = False,
    defragment: Annotated[
        bool, typer.Option("--defragment", help="Lay out NTFS and FAT volumes anew: every file in one piece.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="With --defragment: print what would be changed, and make no image.")
    ] = False,
    preset: Annotated[str, typer.Option(help="fast, balanced or archive.")] = "balanced",
    level: Annotated[int | None, typer.Option(help="Compression level of zstd, 1 to 22, instead.")] = None,
    hidden_sectors: Annotated[
        int | None, typer.Option(help="Sectors before the volume, where the boot sector is wrong.", min=0)
    ] = None,
    geometry: Annotated[str | None, typer.Option(metavar="C/H/S", help="Geometry of the medium.")] = None,
    json: JsonOption = False,
) -> None:
    """Capture a volume or a disk into a new image, or on top of an older one.

    Free clusters, zeros, page and hibernation files are left out; what occurs twice is stored once, and with --parent
    or --append what an older version has is not stored again. The image, or the new version, is there whole and synced,
    or not at all.
    """
    if explain:
        if not defragment:
            raise sqlimage.UsageError("--explain tells what --defragment would do", hint="add --defragment")
        print_explanation(sqlimage.explain_capture(source, source_format=format_, partition=partition), json)
        return
    target, parent_version = split_image(image) if append else (image, None)
    if parent is not None:
        parent, parent_version = split_image(parent)
    if parent is None and not append:
        refuse_unused(recipient, bool(encrypt or encrypt_all))
    with progress_bar("capturing") as progress:
        report = sqlimage.capture(
            source,
            target,
            parent=parent,
            append=append,
            parent_version=parent_version,
            label=label,
            source_format=format_,
            partition=partition,
            property_values=dict(parse_property(text) for text in property_ or []),
            store=store or [],
            encrypt=encrypt or [],
            encrypt_all=encrypt_all,
            ways=lambda: ways_to_new_key(recipient),
            keep_page_files=keep_page_files,
            defragment=defragment,
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
        taken = f"{volume.names} names" if volume.captured_as == "files" else volume.captured_as
        named = f"volume {volume.number}: {volume.file_system or 'unknown'} {volume.label or ''}".rstrip()
        print(f"{printable(named)}, {taken}")
        if volume.moved_bytes is not None:
            print(f"  defragmented: {format_size(volume.moved_bytes)} moved, {volume.fixups} fix-ups")
        if volume.left_out:
            left_out = printable(", ".join(volume.left_out))
            print(f"  left out {left_out} ({format_size(volume.left_out_bytes)})")
    print_pairs(
        [
            ("version", report.version if append else None),
            ("parent", report.parent_uuid),
            ("files", report.files and ", ".join(f"{number} {action}" for action, number in report.files.items())),
            ("medium", format_size(report.medium_bytes)),
            ("allocated", format_size(report.allocated_bytes)),
            ("met twice", format_size(report.repeated_bytes)),
            ("stored", format_size(report.stored_bytes)),
            ("image", f"{format_size(report.image_bytes)}, {report.image}"),
            ("uuid", report.uuid),
        ]
    )
