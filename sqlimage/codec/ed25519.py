"""Keys for signatures: Ed25519 (RFC 8032), in the files that ``openssl genpkey`` and ``ssh-keygen`` make."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sqlimage.codec.keyfiles import write_new
from sqlimage.errors import DeviceError, NotFoundError, UsageError

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
_MOST_BYTES = 65_536
_HEXADECIMAL = re.compile("[0-9a-fA-F]{64}")
_MAKE_ONE = "`sqlimage sign --new-key FILE` makes one, as do `ssh-keygen -t ed25519` and `openssl genpkey`"
Passphrase = Callable[[], bytes]
"""Asks for the passphrase of a key, where it has one."""


class SigningKey:
    """A private key."""

    def __init__(self, key: Ed25519PrivateKey, *, is_exposed: bool = False) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()
        """The public key, 32 bytes."""
        self.is_exposed = is_exposed
        """Whether others than its owner may read its file."""

    @classmethod
    def read(cls, path: str | os.PathLike[str], passphrase: Passphrase | None = None) -> SigningKey:
        """A key from a file: PEM (PKCS #8) or OpenSSH; ``passphrase`` is called where it is protected by one.

        Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.DeviceError` where the file cannot be
        read, and :class:`~sqlimage.errors.UsageError` where it holds no such key or the passphrase is not its own.
        """
        name, (content, mode) = os.fspath(path), _content(path)
        try:
            key = _load_private(content, None)
        except TypeError:  # it has a passphrase
            if passphrase is None:
                raise UsageError(
                    f"{name}: is protected by a passphrase", hint="name a file that holds it: --key-passphrase-file"
                ) from None
            given = passphrase()
            try:
                key = _load_private(content, given)
            except (ValueError, TypeError, UnsupportedAlgorithm):
                raise UsageError(f"{name}: that is not its passphrase") from None
        except (ValueError, UnsupportedAlgorithm):
            what = "is a public key" if _public(content) is not None else "holds no private key that is known"
            raise UsageError(f"{name}: {what}", hint=f"a private Ed25519 key is needed; {_MAKE_ONE}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{name}: holds a key of another kind ({_kind(key)})", hint=f"use Ed25519; {_MAKE_ONE}")
        return cls(key, is_exposed=bool(mode & 0o077))

    @classmethod
    def make(cls, path: str | os.PathLike[str]) -> SigningKey:
        """A new key: private in ``path``, which only its owner may read, public in ``path`` with ``.pub``; both PEM,
        synced, never over a file that is there. Raises :class:`~sqlimage.errors.RefusedError` and
        :class:`~sqlimage.errors.DeviceError`."""
        key, private = Ed25519PrivateKey.generate(), os.fspath(path)
        write_new(
            private + ".pub",
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            0o644,
        )
        try:
            write_new(
                private,
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
                0o600,
            )
        except BaseException:
            os.unlink(private + ".pub")
            raise
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)


def is_signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature is of that message and by that key."""
    if len(public_key) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_public_key(text: str) -> bytes:
    """A public key, 32 bytes: a file (PEM, or a line of OpenSSH), or 64 hexadecimal digits.

    Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.DeviceError` and
    :class:`~sqlimage.errors.UsageError`.
    """
    if _HEXADECIMAL.fullmatch(text) and not os.path.exists(text):
        return bytes.fromhex(text)
    content, _ = _content(text)
    key = _public(content)
    if isinstance(key, Ed25519PublicKey):
        return key.public_bytes_raw()
    if key is not None:
        raise UsageError(f"{text}: holds a key of another kind ({_kind(key)})", hint="a public Ed25519 key is needed")
    is_private = b"PRIVATE KEY-----" in content
    raise UsageError(
        f"{text}: {'holds a private key' if is_private else 'holds no public key that is known'}",
        hint="name a public Ed25519 key: a file in PEM, a .pub of OpenSSH, or 64 hexadecimal digits",
    )


def _load_private(content: bytes, passphrase: bytes | None) -> object:
    if b"BEGIN OPENSSH PRIVATE KEY" in content:
        return serialization.load_ssh_private_key(content, passphrase)
    return serialization.load_pem_private_key(content, passphrase)


def _public(content: bytes) -> object | None:
    with suppress(ValueError, UnsupportedAlgorithm):
        return serialization.load_pem_public_key(content)
    lines = [line for line in content.splitlines() if line.strip() and not line.startswith(b"#")]
    if len(lines) == 1:
        with suppress(ValueError, UnsupportedAlgorithm):
            return serialization.load_ssh_public_key(lines[0])
    return None


def _kind(key: object) -> str:
    return type(key).__name__.removeprefix("_").removesuffix("PrivateKey").removesuffix("PublicKey")


def _content(path: str | os.PathLike[str]) -> tuple[bytes, int]:
    """What a small file holds, and its mode."""
    name = os.fspath(path)
    try:
        # Not to wait for a writer where it is a pipe that nobody writes to.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            content = file.read(_MOST_BYTES + 1) or b""
    except FileNotFoundError:
        raise NotFoundError(f"{name}: no such key file", hint=_MAKE_ONE) from None
    except (OSError, ValueError) as problem:
        raise DeviceError(f"{name}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from None
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{name}: is larger than any key file ({_MOST_BYTES} bytes)")
    return content, stat.S_IMODE(mode)
