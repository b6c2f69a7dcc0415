"""``sqlimage key``."""

from __future__ import annotations

from typing import Annotated

import typer

import sqlimage

from .arguments import ImageFile, JsonOption, UserOption
from .keys import new_passphrase
from .output import print_json, print_pairs, print_table

EXAMPLE = "sqlimage key add vault.sqlimage --new-key-file office.key"
app = typer.Typer(
    help="The keys of an encrypted image: each slot is a way to it. No data is encrypted anew.",
    epilog=f"Example: {EXAMPLE}",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SlotNumber = Annotated[int, typer.Argument(metavar="SLOT", help="As `key list` numbers them.", show_default=False)]
NewPassphraseFile = Annotated[str | None, typer.Option(metavar="FILE", help="The new passphrase is in this file.")]
NewPassphraseFd = Annotated[
    int | None, typer.Option(metavar="N", help="The new passphrase is read from this open descriptor.", min=0)
]
NewKeyFile = Annotated[str | None, typer.Option(metavar="FILE", help="This file opens it from now on.")]
Recipient = Annotated[
    str | None,
    typer.Option(metavar="PUBLIC", help="The holder of this X25519 key opens it: PEM, or 64 hexadecimal digits."),
]


@app.command("list", epilog="Example: sqlimage key list vault.sqlimage")
def list_(image: ImageFile, json: JsonOption = False) -> None:
    """Show the key slots. Needs no key."""
    found = sqlimage.list_slots(image)
    if json:
        print_json(found)
        return
    if not found:
        print("nothing in it is encrypted")
        return
    print_table(["slot", "kind", "detail"], [(one.slot, one.kind, one.detail) for one in found])


@app.command(epilog=f"Example: {EXAMPLE}")
def add(
    image: ImageFile,
    new_passphrase_file: NewPassphraseFile = None,
    new_passphrase_fd: NewPassphraseFd = None,
    new_key_file: NewKeyFile = None,
    recipient: Recipient = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Let another passphrase, key file or recipient open the image, too. Unlock it with a key that it has."""
    way = _way(new_passphrase_file, new_passphrase_fd, new_key_file, recipient)
    _show("added", sqlimage.add_slot(image, way, user=user), json)


@app.command(epilog="Example: sqlimage key remove vault.sqlimage 2")
def remove(image: ImageFile, slot: SlotNumber, user: UserOption = None, json: JsonOption = False) -> None:
    """Take a way to the image away; the last one stays. Copies of the image keep it."""
    _show("removed", sqlimage.remove_slot(image, slot, user=user), json)


@app.command(epilog="Example: sqlimage key change vault.sqlimage 1 --new-passphrase-file new.txt")
def change(
    image: ImageFile,
    slot: SlotNumber,
    new_passphrase_file: NewPassphraseFile = None,
    new_passphrase_fd: NewPassphraseFd = None,
    new_key_file: NewKeyFile = None,
    recipient: Recipient = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Have a slot open with something else from now on."""
    way = _way(new_passphrase_file, new_passphrase_fd, new_key_file, recipient)
    _show("changed", sqlimage.change_slot(image, slot, way, user=user), json)


@app.command(epilog="Example: sqlimage key generate backup.key")
def generate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The private key; FILE.pub becomes the public one.")],
    json: JsonOption = False,
) -> None:
    """Make an X25519 key: whoever has FILE.pub can encrypt images that only FILE opens."""
    public = sqlimage.generate_identity(file)
    if json:
        print_json({"identity": file, "recipient": f"{file}.pub", "public_key": public})
        return
    print_pairs([("identity", file), ("recipient", f"{file}.pub"), ("public key", public)])


def _way(
    passphrase_file: str | None, passphrase_fd: int | None, key_file: str | None, recipient: str | None
) -> sqlimage.Way:
    """What the slot shall open with."""
    given = [one for one in (passphrase_file, passphrase_fd, key_file, recipient) if one is not None]
    if len(given) > 1:
        raise sqlimage.UsageError("a slot opens with one thing", hint="give one of the --new options or --recipient")
    if passphrase_file is not None:
        return sqlimage.read_passphrase(passphrase_file)
    if passphrase_fd is not None:
        return sqlimage.read_passphrase(passphrase_fd)
    if key_file is not None:
        return sqlimage.read_key_file(key_file)
    if recipient is not None:
        return sqlimage.read_recipient(recipient)
    return new_passphrase()


def _show(what: str, slot: sqlimage.SlotInfo, json: bool) -> None:
    if json:
        print_json(slot)
        return
    print(f"{what} slot {slot.slot}: {slot.kind}" + (f", {slot.detail}" if slot.detail else ""))
