"""`sqlimage sign` and `verify --trust` as their users meet them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import sqlimage
from tests.conftest import run
from tests.images import noise, run_tool, tool


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("sign") / "i.sqlimage"
    sqlimage.capture(sqlimage.MemoryDevice(noise("x", 65536)), image, label="golden")
    return image


def test_the_command_line_signs_and_proves(tmp_path: Path) -> None:
    image, key = tmp_path / "i.sqlimage", tmp_path / "key"
    sqlimage.capture(sqlimage.MemoryDevice(noise("x", 65536)), image, label="golden")
    made = json.loads(tool("sign", "--new-key", key, "--json"))
    public = Path(made["public"])
    told = json.loads(tool("sign", f"{image}@golden", "--key", key, "--message", "for Bob", "--json"))
    assert told["public_key"] == made["public_key"] and told["versions"][0]["audit_id"] == 2
    shown = tool("verify", image, "--trust", public)
    assert f"version 1: is as it was signed at {told['at']} by {made['public_key']}" in shown
    assert json.loads(tool("verify", image, "--trust", public, "--json"))["signatures"][0]["version"] == 1
    assert "signatures" not in json.loads(tool("verify", image, "--json"))
    tool("property", "set", image, "a=1")
    failed = run_tool("verify", image, "--trust", public)
    assert failed.returncode == 1
    assert "the property table differs" in failed.stdout and "audit row 3 tells of a change since" in failed.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("sign", "IMAGE"), 2, "no key was named"),
        (("sign", "--key", "KEY"), 2, "no image was named"),
        (("sign", "IMAGE@1", "--key", "KEY", "--all"), 2, "exclude each other"),
        (("sign", "IMAGE@9", "--key", "KEY"), 3, "no version '9'"),
        (("sign", "IMAGE", "--key", "none"), 3, "no such key file"),
        (("verify", "IMAGE", "--trust", "none"), 3, "no such key file"),
        (("verify", "IMAGE", "--trust", "KEY"), 2, "holds a private key"),
        (("sign", "IMAGE", "--key", "KEY.pub"), 2, "is a public key"),
        (("sign", "--new-key", "KEY"), 4, "exists already"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    image: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    key = tmp_path / "key"
    sqlimage.SigningKey.make(key)
    copy, before = shutil.copy(image, tmp_path), image.read_bytes()
    named = [word.replace("IMAGE", str(copy)).replace("KEY", str(key)) for word in arguments]
    done = run_tool(*named)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert says in done.stderr
    assert Path(copy).read_bytes() == before


def test_a_passphrase_is_read_from_a_file_and_never_from_a_pipe(image: Path, tmp_path: Path) -> None:
    copy, key, passphrase = shutil.copy(image, tmp_path), tmp_path / "key", tmp_path / "passphrase"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "correct horse", "-f", key)
    refused = run_tool("sign", copy, "--key", key)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--key-passphrase-file" in refused.stderr
    for text, code in (("wrong\n", 2), ("correct horse\n", 0), ("correct horse", 0), ("correct horse\r\n", 0)):
        passphrase.write_text(text, newline="")
        assert run_tool("sign", copy, "--key", key, "--key-passphrase-file", passphrase).returncode == code
    assert run_tool("sign", copy, "--key", key, "--key-passphrase-file", tmp_path / "none").returncode == 3
    assert tool("verify", copy, "--trust", f"{key}.pub")


def test_a_key_that_others_can_read_is_used_and_told(image: Path, tmp_path: Path) -> None:
    copy, key = shutil.copy(image, tmp_path), tmp_path / "key"
    sqlimage.SigningKey.make(key)
    key.chmod(0o644)
    done = run_tool("sign", copy, "--key", key)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "others than its owner may read this key" in done.stderr


def test_a_new_key_can_sign_at_once(image: Path, tmp_path: Path) -> None:
    copy, key = shutil.copy(image, tmp_path), tmp_path / "key"
    tool("sign", copy, "--new-key", key)
    assert tool("verify", copy, "--trust", f"{key}.pub", "--trust", "ab" * 32)
