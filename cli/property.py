"""``sqlimage property``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage
from sqlimage import parse_property

from .arguments import ImageArgument, JsonOption, opened
from .output import UNCOVERED, cell, message, print_json, print_table

EXAMPLE = "sqlimage property set laptop.sqlimage os.name=Debian os.version=12"
app = typer.Typer(no_args_is_help=True, help="List, read, set and remove the properties by which an image is found.")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Dotted words, as os.version.")]


@app.command("list", epilog="Example: sqlimage property list laptop.sqlimage")
def list_(image: ImageArgument, json: JsonOption = False) -> None:
    """Show every property of a version."""
    with opened(image) as version:
        properties = version.properties()
    if json:
        print_json(properties)
        return
    print_table(["name", "value"], sorted(properties.items()))


@app.command(epilog="Example: sqlimage property get laptop.sqlimage os.version")
def get(image: ImageArgument, name: NameArgument, json: JsonOption = False) -> None:
    """Show one property."""
    with opened(image) as version:
        properties = version.properties()
    if name not in properties:
        raise sqlimage.NotFoundError(f"{image}: no property {name!r}", hint="`sqlimage property list` shows all")
    if json:
        print_json({name: properties[name]})
        return
    print(cell(properties[name]))


@app.command("set", epilog=f"Example: {EXAMPLE}")
def set_(
    image: ImageArgument,
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help='Quotes keep text: build="42".')],
) -> None:
    """Set properties; each change is audited."""
    parsed = [parse_property(text) for text in values]
    with opened(image, writable=True) as version:
        for name, value in parsed:
            version.set_property(name, value)
        if version.signers():
            message(UNCOVERED)


@app.command(epilog="Example: sqlimage property unset laptop.sqlimage os.version")
def unset(image: ImageArgument, name: NameArgument) -> None:
    """Remove a property; the change is audited."""
    with opened(image, writable=True) as version:
        version.unset_property(name)
        if version.signers():
            message(UNCOVERED)
