"""``sqlimage verify``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

import sqlimage
from sqlimage import format_size

from .arguments import ImageArgument, JsonOption, split_image
from .output import message, print_json, printable, progress_bar

EXAMPLE = "sqlimage verify laptop.sqlimage"
_MOST_FILES = 10


def command(
    image: ImageArgument,
    recover: Annotated[bool, typer.Option("--recover", help="First take back a change that was interrupted.")] = False,
    files: Annotated[
        bool, typer.Option("--files", help="Also read every file and compare it with its digest in the file table.")
    ] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PUBLIC",
            help="Also require that every version, or the one of IMAGE@VERSION, is as the owner of this Ed25519 key "
            "has signed it: a file (PEM, OpenSSH), or 64 hexadecimal digits. Repeatable: any of them will do.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check every digest, range and reference, the audit chain and the database; exit 1 where something is wrong."""
    path, wanted = split_image(image)
    trusted = [sqlimage.read_public_key(one) for one in trust or []]
    if recover and sqlimage.recover(path):
        message(f"{path}: an interrupted change was taken back")
    signed = None
    with sqlimage.Image.open(path) as opened, progress_bar("verifying") as progress:
        version = opened.version(wanted)
        report = sqlimage.verify(opened, progress=progress)
        if files:
            report.problems.extend(sqlimage.verify_files(version))
        if trusted:
            signed = sqlimage.verify_signatures(opened, trusted, version=wanted)
            report.problems.extend(signed.problems)
    if json:
        told = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
        print_json(told if signed is None else {**told, "signatures": signed.signatures, "notes": signed.notes})
    else:
        for problem in report.problems:
            print(printable(problem.what))
            for file in problem.files[:_MOST_FILES]:
                print(f"  hits {printable(file)}")
            if len(problem.files) > _MOST_FILES:
                print(f"  and {len(problem.files) - _MOST_FILES} more files; --json lists them all")
        if signed is not None:
            _print_signed(signed)
        print(
            f"{report.chunks} chunks ({format_size(report.content_bytes)} in {format_size(report.stored_bytes)}), "
            f"{report.records} map records, {report.audit_rows} audit rows: "
            + ("whole" if report.is_whole else f"{len(report.problems)} problem" + "s" * (len(report.problems) > 1))
        )
    if not report.is_whole:
        raise typer.Exit(1)


def _print_signed(signed: sqlimage.TrustReport) -> None:
    for note in signed.notes:
        message(f"note: {note}")
    for one in signed.signatures:
        print(f"version {one.version}: is as it was signed at {printable(one.at)} by {one.public_key.hex()}")
