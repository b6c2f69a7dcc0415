"""Keys on the command line: the options that give them to any command, and the ways to a new key."""

from __future__ import annotations

import functools
import getpass
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, get_type_hints

import typer

import sqlimage

PASSPHRASE_VARIABLE, KEY_VARIABLE, IDENTITY_VARIABLE = (
    "SQLIMAGE_PASSPHRASE_FILE",
    "SQLIMAGE_KEY_FILE",
    "SQLIMAGE_IDENTITY",
)
"""Files that are read where no option names one."""

PassphraseFile = Annotated[
    str | None, typer.Option(metavar="FILE", help=f"The passphrase is in this file. Also {PASSPHRASE_VARIABLE}.")
]
PassphraseFd = Annotated[
    int | None, typer.Option(metavar="N", help="The passphrase is read from this open descriptor.", min=0)
]
KeyFile = Annotated[str | None, typer.Option(metavar="FILE", help=f"A key file. Also {KEY_VARIABLE}.")]
Identity = Annotated[
    str | None, typer.Option(metavar="FILE", help=f"An X25519 private key, in PEM. Also {IDENTITY_VARIABLE}.")
]
_OPTIONS = {"passphrase_file": PassphraseFile, "passphrase_fd": PassphraseFd, "key_file": KeyFile, "identity": Identity}


_given_by_option: list[str | int] = []
"""What of it this command was given by its options."""


def with_keys(command: Callable[..., object]) -> Callable[..., object]:
    """The command with the options that unlock images."""

    @functools.wraps(command)
    def wrapped(*arguments: object, **options: object) -> object:
        given = {name: options.pop(name, None) for name in _OPTIONS}
        _unlock_with(**given)  # type: ignore[arg-type]
        return command(*arguments, **options)

    hints = {**get_type_hints(command, include_extras=True), **_OPTIONS}
    known = list(inspect.signature(command).parameters.values())
    for name, annotation in _OPTIONS.items():
        known.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    wrapped.__signature__ = inspect.Signature(known)  # type: ignore[attr-defined]
    wrapped.__annotations__ = hints
    return wrapped


def _unlock_with(
    passphrase_file: str | None, passphrase_fd: int | None, key_file: str | None, identity: str | None
) -> None:
    """Give the process the keys, and somebody to ask where there is a terminal."""
    keyring = sqlimage.keyring
    _given_by_option[:] = [one for one in (passphrase_file, passphrase_fd, key_file, identity) if one is not None]
    passphrase_file = passphrase_file or os.environ.get(PASSPHRASE_VARIABLE)
    key_file = key_file or os.environ.get(KEY_VARIABLE)
    identity = identity or os.environ.get(IDENTITY_VARIABLE)
    if passphrase_fd is not None:
        keyring.add(sqlimage.read_passphrase(passphrase_fd))
    elif passphrase_file:
        keyring.add(sqlimage.read_passphrase(passphrase_file))
    if key_file:
        keyring.add(sqlimage.read_key_file(key_file))
    if identity:
        keyring.add_identity(sqlimage.read_identity(identity))
    if _is_terminal():
        keyring.ask_with(lambda path: _asked(f"Passphrase of {path}: "))


def refuse_unused(recipients: list[str] | None, is_encrypted: bool) -> None:
    """Raise :class:`sqlimage.UsageError` where a key was given for a new image of which nothing is to be encrypted:
    whoever gives one believes that it is."""
    if not is_encrypted and (recipients or _given_by_option):
        raise sqlimage.UsageError(
            "a key was given, but nothing is to be encrypted", hint="add --encrypt-all or --encrypt GLOB"
        )


def ways_to_new_key(recipients: list[str] | None) -> list[sqlimage.Way]:
    """Every way that was given to this command, or a passphrase that is asked for."""
    ways: list[sqlimage.Way] = [*sqlimage.keyring.given()]
    ways += [sqlimage.read_recipient(text) for text in recipients or []]
    return ways or [new_passphrase()]


def new_passphrase() -> sqlimage.Passphrase:
    """Asked for twice. Raises :class:`sqlimage.UsageError` where there is no terminal."""
    if not _is_terminal():
        raise sqlimage.UsageError(
            "what is encrypted needs a key", hint="give --passphrase-file, --passphrase-fd, --key-file or a recipient"
        )
    secret = _asked("New passphrase: ")
    if secret != _asked("The same again: "):
        raise sqlimage.UsageError("the two passphrases differ")
    return sqlimage.passphrase(secret)


def _asked(question: str) -> bytes:
    try:
        return os.fsencode(getpass.getpass(question))
    except EOFError:
        return b""


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
