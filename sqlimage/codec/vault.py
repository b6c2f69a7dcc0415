"""What the data key of an image is used for: contents and streams that only its holders read.

Every encryption has a key of its own, made from the data key and a fresh salt of 24 bytes (HMAC-SHA256), so that no
nonce can ever repeat, neither after a crash nor in two copies of one file. AES-256-GCM (NIST SP 800-38D) does the rest.
"""

from __future__ import annotations

import hmac
import os

# What is needed of `cryptography` is imported where it is used: images in plain, which most are, open faster so.

KEY_BYTES = 32
SALT_BYTES = 24
OVERHEAD_BYTES = SALT_BYTES + 16
"""By how much what is encrypted grows: the salt before it, the tag behind it."""
_NONCE = bytes(12)
"""A key that is used once needs no other."""

Bytes = bytes | bytearray | memoryview


class NotAuthentic(Exception):
    """What is to be decrypted is not what was encrypted under that key for that place."""


class Vault:
    """An unlocked data key. Safe from any thread.

    ``is_whole``: of images that are encrypted as a whole. The name of the key tells, so that nobody passes such an
    image off as one that is encrypted by file, of which the map is not checked.
    """

    def __init__(self, data_key: bytes, *, is_whole: bool = False) -> None:
        if len(data_key) != KEY_BYTES:
            raise ValueError(f"a data key of {len(data_key)} bytes; it has {KEY_BYTES}")
        self.data_key = data_key
        self.is_whole = is_whole
        self.key_id = derived(data_key, "identity of a whole" if is_whole else "identity", 16).hex()
        """What a file says of the key it needs; it tells nothing of the key."""
        self._contents = derived(data_key, "contents")
        self._names = derived(data_key, "names")
        self._streams = derived(data_key, "streams")

    def __repr__(self) -> str:
        return f"Vault({self.key_id})"  # never the key: this ends in logs

    def name(self, digest: bytes) -> bytes:
        """The keyed digest of a content, by which it is found again: HMAC-SHA256 of its SHA-256."""
        return hmac.digest(self._names, digest, "sha256")

    def fingerprint(self, digest: bytes) -> bytes:
        """A digest of more than one content, for the holders of the key alone."""
        return hmac.digest(self._streams, b"fingerprint" + digest, "sha256")

    def encrypt_content(self, content: Bytes, name: bytes, length: int, flags: int) -> bytes:
        """A chunk as it is stored, bound to its keyed digest, its length before compression and its flags."""
        return encrypt(self._contents, content, _identity(name, length, flags))

    def decrypt_content(self, stored: Bytes, name: bytes, length: int, flags: int) -> bytes:
        """The reverse. Raises :class:`NotAuthentic`."""
        return decrypt(self._contents, stored, _identity(name, length, flags))

    def encrypt_stream(self, content: Bytes, place: bytes) -> bytes:
        """A part of a sealed stream, bound to its place."""
        return encrypt(self._streams, content, b"sqlimage stream 1\0" + place)

    def decrypt_stream(self, stored: Bytes, place: bytes) -> bytes:
        """The reverse. Raises :class:`NotAuthentic`."""
        return decrypt(self._streams, stored, b"sqlimage stream 1\0" + place)


def new_data_key() -> bytes:
    return os.urandom(KEY_BYTES)


def derived(key: bytes, purpose: str, length: int = KEY_BYTES, salt: bytes | None = None) -> bytes:
    """A key for one purpose: HKDF-SHA256 (RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), length, salt, b"sqlimage 1 " + purpose.encode()).derive(key)


def encrypt(key: bytes, content: Bytes, bound_to: bytes) -> bytes:
    """Salt, cipher text and tag."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt = os.urandom(SALT_BYTES)
    return salt + AESGCM(hmac.digest(key, salt, "sha256")).encrypt(_NONCE, content, bound_to)


def decrypt(key: bytes, stored: Bytes, bound_to: bytes) -> bytes:
    """The reverse of :func:`encrypt`. Raises :class:`NotAuthentic`."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(stored) < OVERHEAD_BYTES:
        raise NotAuthentic
    view = memoryview(stored)
    try:
        return AESGCM(hmac.digest(key, view[:SALT_BYTES], "sha256")).decrypt(_NONCE, view[SALT_BYTES:], bound_to)
    except InvalidTag:
        raise NotAuthentic from None


def _identity(name: bytes, length: int, flags: int) -> bytes:
    return b"sqlimage chunk 1\0" + name + length.to_bytes(8, "big") + flags.to_bytes(8, "big")
