"""Keys on the command line: how they are given, changed, and asked for."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import run
from tests.images import run_tool, sample_volume, tool
from tests.make.cost import PATIENCE

FILE = "/Users/joe/Documents/haystack.txt"
PROGRAM = str(Path(sys.executable).with_name("sqlimage"))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with one slot, for the passphrase in the file beside it."""
    place = tmp_path_factory.mktemp("sealed")
    (place / "phrase").write_text("correct horse\n")
    volume = sample_volume(place / "disk.img")
    tool("capture", volume, place / "i.sqlimage", "--encrypt-all", "--passphrase-file", place / "phrase")
    return place


@pytest.fixture
def place(sealed: Path, tmp_path: Path) -> Path:
    for name in ("i.sqlimage", "phrase"):
        shutil.copy(sealed / name, tmp_path)
    (tmp_path / "office.key").write_bytes(os.urandom(64))
    (tmp_path / "wrong.key").write_bytes(os.urandom(64))
    return tmp_path


def opens(place: Path, *key: str | Path) -> bool:
    code = run_tool("ls", place / "i.sqlimage", *key).returncode
    assert code in (0, 7)
    return code == 0


def test_slots_are_added_changed_and_removed(place: Path) -> None:
    image, phrase = place / "i.sqlimage", ("--passphrase-file", place / "phrase")
    size = image.stat().st_size
    tool("key", "add", image, *phrase, "--new-key-file", place / "office.key")
    tool("key", "generate", place / "mine")
    tool("key", "add", image, "--key-file", place / "office.key", "--recipient", place / "mine.pub")
    listed = json.loads(tool("key", "list", image, "--json"))
    assert [(one["slot"], one["kind"]) for one in listed] == [(1, "passphrase"), (2, "key-file"), (3, "x25519")]
    assert opens(place, "--key-file", place / "office.key") and opens(place, "--identity", place / "mine")
    (place / "new").write_text("a new one")
    tool("key", "change", image, "1", *phrase, "--new-passphrase-file", place / "new")
    assert not opens(place, *phrase) and opens(place, "--passphrase-file", place / "new")
    tool("key", "remove", image, "2", "--identity", place / "mine")
    assert not opens(place, "--key-file", place / "office.key")
    tool("key", "remove", image, "1", "--identity", place / "mine")
    done = run_tool("key", "remove", image, "3", "--identity", place / "mine")
    assert done.returncode == 4 and "is the last one" in done.stderr
    assert opens(place, "--identity", place / "mine")
    assert image.stat().st_size <= size + 65536, "no data is written anew"
    actions = [row["action"] for row in json.loads(tool("audit", image, "--identity", place / "mine", "--json"))]
    assert actions == ["capture", "key-add", "key-add", "key-change", "key-remove", "key-remove"]


def test_nobody_changes_slots_without_a_key(place: Path) -> None:
    image, before = place / "i.sqlimage", (place / "i.sqlimage").read_bytes()
    for command in (("remove", image, "1"), ("add", image), ("change", image, "1")):
        new = () if command[0] == "remove" else ("--new-key-file", place / "office.key")
        for key in ((), ("--key-file", place / "wrong.key")):
            done = run_tool("key", *command, *new, *key)
            assert done.returncode == 7, done
            assert done.stderr.count("\n") == 1
    assert image.read_bytes() == before


def test_an_image_without_a_key_has_none_to_change(place: Path, sealed: Path) -> None:
    tool("capture", sealed / "disk.img", place / "plain.sqlimage")
    assert "nothing in it is encrypted" in tool("key", "list", place / "plain.sqlimage")
    done = run_tool("key", "add", place / "plain.sqlimage", "--new-key-file", place / "office.key")
    assert done.returncode == 2 and "it has no key" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("--passphrase-file", b"", "a passphrase has 1 to 4096 bytes"),
        ("--passphrase-file", b"\n", "a passphrase has 1 to 4096 bytes"),
        ("--passphrase-file", b"x" * 5000, "a passphrase has 1 to 4096 bytes"),
        ("--key-file", b"short", "a key file has 16 bytes to 8 MiB"),
        ("--identity", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is no X25519 private key"),
        ("--identity", b"", "is no X25519 private key"),
    ],
)
def test_what_is_no_key_is_told(place: Path, name: str, content: bytes, told: str) -> None:
    (place / "bad").write_bytes(content)
    done = run_tool("ls", place / "i.sqlimage", name, place / "bad")
    assert done.returncode == 2
    assert told in done.stderr and done.stderr.count("\n") == 1
    for missing in (place / "nowhere", place):
        assert run_tool("ls", place / "i.sqlimage", name, missing).returncode in (2, 3)


def test_a_passphrase_is_any_bytes_but_the_line_end(place: Path) -> None:
    image = place / "i.sqlimage"
    (place / "odd").write_bytes(b" \xff\x00p\xc3\xa4ss \r\n")
    tool("key", "change", image, "1", "--passphrase-file", place / "phrase", "--new-passphrase-file", place / "odd")
    (place / "same").write_bytes(b" \xff\x00p\xc3\xa4ss ")
    assert opens(place, "--passphrase-file", place / "same")


def test_keys_come_from_variables_and_descriptors_too(place: Path) -> None:
    image = str(place / "i.sqlimage")
    environment = {**os.environ, "SQLIMAGE_PASSPHRASE_FILE": str(place / "phrase")}
    assert run(PROGRAM, "ls", image, env=environment).stdout
    with (place / "phrase").open("rb") as phrase:
        fd = phrase.fileno()
        assert run(PROGRAM, "ls", image, "--passphrase-fd", str(fd), pass_fds=[fd]).stdout
    assert run(PROGRAM, "ls", image, "--passphrase-fd", "0", input=b"correct horse\n").stdout
    done = subprocess.run([PROGRAM, "ls", image, "--passphrase-fd", "77"], capture_output=True, text=True, check=False)
    assert done.returncode == 6 and done.stderr.count("\n") == 1 and "descriptor 77" in done.stderr


@pytest.mark.slow
def test_on_a_terminal_it_is_asked_for(place: Path) -> None:
    image = str(place / "i.sqlimage")
    code, shown = on_terminal([PROGRAM, "ls", image], ["correct horse"])
    assert code == 0 and "Passphrase of" in shown and "Users" in shown and "correct" not in shown
    code, shown = on_terminal([PROGRAM, "ls", image], ["wrong horse"])
    assert code == 7 and "none of the keys that were given opens it" in shown
    new = str(place / "new.sqlimage")
    command = [PROGRAM, "capture", str(place / "phrase"), new, "--encrypt-all"]
    assert on_terminal(command, ["one", "two"])[0] == 2 and not Path(new).exists()
    assert on_terminal(command, ["one", "one"])[0] == 0
    assert on_terminal([PROGRAM, "info", new], ["one"])[0] == 0


def test_a_key_for_an_image_that_would_be_plain_is_refused(place: Path) -> None:
    for key in (("--key-file", place / "office.key"), ("--recipient", "09" + "00" * 31)):
        done = run_tool("capture", place / "phrase", place / "new.sqlimage", *key)
        assert done.returncode == 2 and "nothing is to be encrypted" in done.stderr
        assert not (place / "new.sqlimage").exists()


def test_where_nobody_can_be_asked_that_is_said(place: Path) -> None:
    done = run_tool("capture", place / "phrase", place / "new.sqlimage", "--encrypt-all")
    assert done.returncode == 2 and "needs a key" in done.stderr
    assert not (place / "new.sqlimage").exists()


def test_a_generated_key_is_one_that_openssl_reads_and_is_never_overwritten(place: Path) -> None:
    public = json.loads(tool("key", "generate", place / "mine", "--json"))["public_key"]
    assert (place / "mine").stat().st_mode & 0o777 == 0o600
    text = run("openssl", "pkey", "-in", place / "mine", "-noout", "-text").stdout.decode().replace(":", "")
    assert public in "".join(text.split())
    assert run_tool("key", "generate", place / "mine").returncode == 4
    run("openssl", "genpkey", "-algorithm", "x25519", "-out", place / "theirs")
    run("openssl", "pkey", "-in", place / "theirs", "-pubout", "-out", place / "theirs.pub")
    image, phrase = place / "i.sqlimage", ("--passphrase-file", place / "phrase")
    tool("key", "add", image, *phrase, "--recipient", place / "theirs.pub")
    tool("key", "add", image, *phrase, "--recipient", public)
    assert opens(place, "--identity", place / "theirs") and opens(place, "--identity", place / "mine")


def on_terminal(command: list[str], answers: list[str]) -> tuple[int, str]:
    """Run a command on a terminal and answer what it asks; its exit code, and all it shows."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    shown = b""
    answered = 0
    while select.select([fd], [], [], 6.0 * PATIENCE)[0]:
        try:
            part = os.read(fd, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
        if shown.count(b": ", shown.rfind(b"\n") + 1) and answered < len(answers) and shown.endswith(b": "):
            os.write(fd, answers[answered].encode() + b"\n")
            answered += 1
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode("utf-8", "replace")
