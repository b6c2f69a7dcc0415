"""Keys as OpenSSL and OpenSSH make them, with a passphrase or without; what is no such key is told in one line."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import sqlimage
from sqlimage.codec.ed25519 import is_signed
from tests.conftest import run

PASSPHRASE = "correct horse"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of every kind, by name; each with its public half in ``NAME.pub``."""
    place = tmp_path_factory.mktemp("keys")
    for name, more in (("pem", ()), ("pem-locked", ("-aes256", "-pass", f"pass:{PASSPHRASE}"))):
        run("openssl", "genpkey", "-algorithm", "ed25519", *more, "-out", place / name)
        opened = ("-in", place / name, "-passin", f"pass:{PASSPHRASE}")
        run("openssl", "pkey", *opened, "-pubout", "-out", place / f"{name}.pub")
    for name, passphrase in (("ssh", ""), ("ssh-locked", PASSPHRASE), ("ssh-rsa", "")):
        kind = "rsa" if name == "ssh-rsa" else "ed25519"
        run("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", place / name)
    run("openssl", "genpkey", "-algorithm", "x25519", "-out", place / "x25519")
    run("openssl", "pkey", "-in", place / "x25519", "-pubout", "-out", place / "x25519.pub")
    sqlimage.SigningKey.make(place / "ours")
    return place


@pytest.mark.parametrize("name", ["pem", "ssh", "pem-locked", "ssh-locked", "ours"])
def test_keys_of_openssl_and_openssh_are_read(place: Path, name: str) -> None:
    key = sqlimage.SigningKey.read(place / name, PASSPHRASE.encode)
    public = sqlimage.read_public_key(str(place / f"{name}.pub"))
    assert key.public == public == sqlimage.read_public_key(public.hex())
    assert is_signed(public, b"a message", key.sign(b"a message"))
    assert not is_signed(public, b"another", key.sign(b"a message"))
    assert not is_signed(public[:31], b"a message", key.sign(b"a message"))
    assert not key.is_exposed


def test_a_key_that_others_may_read_says_so(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "key"
    copy.write_bytes((place / "pem").read_bytes())
    copy.chmod(0o640)
    assert sqlimage.SigningKey.read(copy).is_exposed


@pytest.mark.parametrize("name", ["pem-locked", "ssh-locked"])
def test_a_passphrase_is_asked_for_only_where_there_is_one_and_has_to_be_right(place: Path, name: str) -> None:
    with pytest.raises(sqlimage.UsageError, match="is protected by a passphrase"):
        sqlimage.SigningKey.read(place / name)
    with pytest.raises(sqlimage.UsageError, match="is not its passphrase"):
        sqlimage.SigningKey.read(place / name, lambda: b"wrong")
    with pytest.raises(sqlimage.UsageError, match="is not its passphrase"):
        sqlimage.SigningKey.read(place / name, bytes)

    def never() -> bytes:
        raise AssertionError("asked")

    sqlimage.SigningKey.read(place / "pem", never)


@pytest.mark.parametrize(
    ("read", "name", "says"),
    [
        (sqlimage.SigningKey.read, "ssh-rsa", "of another kind .RSA."),
        (sqlimage.SigningKey.read, "x25519", "of another kind .X25519."),
        (sqlimage.SigningKey.read, "pem.pub", "is a public key"),
        (sqlimage.SigningKey.read, "ssh.pub", "is a public key"),
        (sqlimage.read_public_key, "pem", "holds a private key"),
        (sqlimage.read_public_key, "ssh-locked", "holds a private key"),
        (sqlimage.read_public_key, "ssh-rsa.pub", "of another kind .RSA."),
        (sqlimage.read_public_key, "x25519.pub", "of another kind .X25519."),
    ],
)
def test_a_key_of_another_kind_is_told(place: Path, read: Callable[[str], object], name: str, says: str) -> None:
    with pytest.raises(sqlimage.UsageError, match=says):
        read(str(place / name))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 70_000, b"-----BEGIN PRIVATE KEY-----\nAAAA\n", b"ssh-ed25519 AAAA x"]
)
def test_what_is_no_key_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    for read in (sqlimage.SigningKey.read, sqlimage.read_public_key):
        with pytest.raises(sqlimage.UsageError) as told:
            read(str(path))
        assert "\n" not in str(told.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (sqlimage.SigningKey.read, sqlimage.read_public_key):
        with pytest.raises(sqlimage.NotFoundError):
            read(str(tmp_path / "none"))
        with pytest.raises(sqlimage.DeviceError):
            read(str(tmp_path))
        with pytest.raises(sqlimage.UsageError):  # at once, without waiting for who writes to it
            read(str(tmp_path / "pipe"))


def test_a_new_key_is_its_owners_alone_and_is_never_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        key = sqlimage.SigningKey.make(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_bytes(), (tmp_path / "key.pub").read_bytes()
    with pytest.raises(sqlimage.RefusedError, match="exists already"):
        sqlimage.SigningKey.make(path)
    (tmp_path / "key.pub").unlink()
    with pytest.raises(sqlimage.RefusedError, match="exists already"):
        sqlimage.SigningKey.make(path)
    assert path.read_bytes() == kept[0]
    assert not (tmp_path / "key.pub").exists()
    shown = run("openssl", "pkey", "-in", path, "-pubout").stdout
    assert shown == kept[1]
    assert sqlimage.SigningKey.read(path).public == key.public
    with pytest.raises(sqlimage.DeviceError):
        sqlimage.SigningKey.make(tmp_path / "none" / "key")
