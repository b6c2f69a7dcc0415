"""``sqlimage sign``."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Annotated

import typer

import sqlimage

from .arguments import JsonOption, MessageOption, UserOption, split_image
from .output import message as say
from .output import print_json, print_pairs, print_table

EXAMPLE = "sqlimage sign laptop.sqlimage --key release"


def command(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE",
            help="An image file, or IMAGE@VERSION: a number, a label, the beginning of a UUID, or `latest`.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The private Ed25519 key: PEM, or as ssh-keygen makes it."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Sign every sealed version of the file.")] = False,
    key_passphrase_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The passphrase of the key is in this file.")
    ] = None,
    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="FILE", help="Make a key: private in FILE, public in FILE.pub."),
    ] = None,
    message: MessageOption = None,
    user: UserOption = None,
    json: JsonOption = False,
) -> None:
    """Sign a version: its rows, the digests of its contents, its ancestors, and the audit trail up to now.

    Nothing of the data is rewritten. `sqlimage verify IMAGE --trust PUBLIC` proves that all of it is as it was signed.
    Without @VERSION the latest one is meant.
    """
    if new_key is not None:
        if key is not None:
            raise sqlimage.UsageError("--new-key and --key exclude each other")
        made = sqlimage.SigningKey.make(new_key)
        if image is None:
            _print_key(new_key, made, json)
            return
        say(f"{new_key} holds the new private key, {new_key}.pub the public one")
    elif key is not None:
        made = sqlimage.SigningKey.read(key, lambda: _passphrase(key, key_passphrase_file))
        if made.is_exposed:
            say(f"note: {key}: others than its owner may read this key; `chmod 600` stops that")
    else:
        raise sqlimage.UsageError("no key was named", hint="say --key FILE, or --new-key FILE to make one")
    if image is None:
        raise sqlimage.UsageError("no image was named", hint="say what to sign: sqlimage sign IMAGE --key FILE")
    path, version = split_image(image)
    if every and version is not None:
        raise sqlimage.UsageError("--all and @VERSION exclude each other")
    report = sqlimage.sign(path, made, version=version, every=every, user=user, message=message)
    if json:
        print_json(report)
        return
    rows = [(one.version, one.uuid, one.digest.hex(), one.audit_id) for one in report.versions]
    print_table(["version", "uuid", "digest", "audit rows"], rows)
    print_pairs([("signed by", report.public_key.hex())])


def _print_key(path: str, key: sqlimage.SigningKey, as_json: bool) -> None:
    if as_json:
        print_json({"private": path, "public": f"{path}.pub", "public_key": key.public})
    else:
        print_pairs([("private", path), ("public", f"{path}.pub"), ("public key", key.public.hex())])


def _passphrase(key: str, path: str | None) -> bytes:
    if path is not None:
        return sqlimage.read_passphrase(path).secret
    if not sys.stdin.isatty():
        raise sqlimage.UsageError(
            f"{key}: is protected by a passphrase", hint="name a file that holds it: --key-passphrase-file"
        )
    try:
        return os.fsencode(getpass.getpass(f"Passphrase of {key}: "))
    except EOFError:
        raise sqlimage.UsageError(f"{key}: no passphrase was given") from None
