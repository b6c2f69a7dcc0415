"""Keys as they lie in files: passphrases, key files, X25519 identities and recipients (RFC 7748, RFC 8410)."""

from __future__ import annotations

import os
import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sqlimage.codec.ways import LEAST_KEY_FILE_BYTES, MOST_KEY_FILE_BYTES, KeyFile, Passphrase, Recipient
from sqlimage.errors import DeviceError, NotFoundError, RefusedError, UsageError

_MOST_PASSPHRASE_BYTES = 4096
_MOST_PEM_BYTES = 64 << 10
_HEX = re.compile("[0-9a-fA-F]{64}")


def read_passphrase(where: str | int) -> Passphrase:
    """From a file, or a descriptor that is open already; a line's end at its end does not count.

    Raises :class:`~sqlimage.errors.UsageError` where it is empty or longer than 4096 bytes.
    """
    told = f"descriptor {where}" if isinstance(where, int) else where
    content = _read(where, _MOST_PASSPHRASE_BYTES + 2)
    for ending in (b"\r\n", b"\n"):
        if content.endswith(ending):
            content = content[: -len(ending)]
            break
    return passphrase(content, told)


def passphrase(secret: bytes, told: str = "the passphrase") -> Passphrase:
    """Raises :class:`~sqlimage.errors.UsageError` for one that is empty or longer than 4096 bytes."""
    if not 1 <= len(secret) <= _MOST_PASSPHRASE_BYTES:
        raise UsageError(f"{told}: a passphrase has 1 to {_MOST_PASSPHRASE_BYTES} bytes")
    return Passphrase(secret)


def read_key_file(path: str) -> KeyFile:
    """Raises :class:`~sqlimage.errors.UsageError` where it has too few bytes to be a key, or too many."""
    content = _read(path, MOST_KEY_FILE_BYTES + 1)
    if not LEAST_KEY_FILE_BYTES <= len(content) <= MOST_KEY_FILE_BYTES:
        raise UsageError(
            f"{path}: a key file has {LEAST_KEY_FILE_BYTES} bytes to 8 MiB",
            hint="`head -c 64 /dev/urandom > FILE` makes one",
        )
    return KeyFile(content)


def read_identity(path: str) -> X25519PrivateKey:
    """A private key in PEM, as `openssl genpkey -algorithm x25519` makes it."""
    try:
        found = load_pem_private_key(_read(path, _MOST_PEM_BYTES), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, X25519PrivateKey):
        raise UsageError(f"{path}: is no X25519 private key in PEM", hint="`sqlimage key generate FILE` makes one")
    return found


def read_recipient(text: str) -> Recipient:
    """A public key: a PEM file, or 64 hexadecimal digits."""
    if _HEX.fullmatch(text):
        return _agreeable(X25519PublicKey.from_public_bytes(bytes.fromhex(text)), text)
    try:
        found = load_pem_public_key(_read(text, _MOST_PEM_BYTES))
    except (ValueError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, X25519PublicKey):
        raise UsageError(
            f"{text}: is no X25519 public key in PEM", hint="`sqlimage key generate FILE` makes FILE and FILE.pub"
        )
    return _agreeable(found, text)


def _agreeable(key: X25519PublicKey, told: str) -> Recipient:
    """Raise :class:`~sqlimage.errors.UsageError` for a point of small order: what is agreed on would be no secret."""
    try:
        X25519PrivateKey.generate().exchange(key)
    except ValueError:
        raise UsageError(
            f"{told}: is no public key that anybody has", hint="`sqlimage key generate FILE` makes FILE and FILE.pub"
        ) from None
    return Recipient(key)


def generate_identity(path: str) -> str:
    """Make a private key in a file that only its owner reads, and the public one in ``path.pub``; the public key in
    hexadecimal. Raises :class:`~sqlimage.errors.RefusedError` where one of the files exists."""
    key = X25519PrivateKey.generate()
    public = key.public_key()
    private_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if os.path.lexists(f"{path}.pub"):
        raise RefusedError(f"{path}.pub: exists already", hint="choose another name")
    write_new(path, private_pem, 0o600)
    write_new(f"{path}.pub", public_pem, 0o644)
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def write_new(path: str, content: bytes, mode: int) -> None:
    """A file that did not exist. Raises :class:`~sqlimage.errors.RefusedError` where it does."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise RefusedError(f"{path}: exists already", hint="choose another name") from None
    except OSError as problem:
        raise DeviceError(f"{path}: cannot be made ({problem.strerror})") from None
    try:
        os.write(fd, content)
        os.fsync(fd)
    except OSError as problem:
        os.unlink(path)
        raise DeviceError(f"{path}: cannot be written ({problem.strerror})") from None
    finally:
        os.close(fd)


def _read(where: str | int, most: int) -> bytes:
    """All of a file, or as much as shows that it is too long."""
    try:
        if isinstance(where, int):
            with os.fdopen(os.dup(where), "rb") as stream:
                return stream.read(most)
        with open(where, "rb") as stream:
            return stream.read(most)
    except FileNotFoundError:
        raise NotFoundError(f"{where}: no such key") from None
    except IsADirectoryError:
        raise UsageError(f"{where}: is a directory, not a key") from None
    except OSError as problem:
        told = f"descriptor {where}" if isinstance(where, int) else where
        raise DeviceError(f"{told}: cannot be read ({problem.strerror})") from None
