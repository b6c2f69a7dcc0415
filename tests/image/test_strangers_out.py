"""What comes out of an image that a stranger made: nothing steers a terminal, and nothing lands outside its place."""

from __future__ import annotations

import json
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sqlimage.journey.take_back import take_back
from tests.image.mutations import HARMFUL
from tests.image.strangers import Base, bases, lax
from tests.images import run_tool
from tests.make.cost import PATIENCE

_HARMS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return {base.name: base for base in bases(tmp_path_factory.mktemp("bases"))}


@pytest.fixture
def image(right: dict[str, Base], tmp_path: Path) -> Path:
    """Of a FAT volume."""
    path = tmp_path / "i.sqlimage"
    path.write_bytes(right["fat"].files["fat.sqlimage"])
    return path


@pytest.fixture
def ext(right: dict[str, Base], tmp_path: Path) -> Path:
    """Of a volume with links and a pipe."""
    path = tmp_path / "e.sqlimage"
    path.write_bytes(right["ext"].files["ext.sqlimage"])
    return path


# What is printed


def test_no_command_prints_what_would_steer_a_terminal(ext: Path, tmp_path: Path) -> None:
    statements = [
        f"UPDATE control SET label = '{HARMFUL}', source = '{HARMFUL}', created_at = '{HARMFUL}', "
        f"partition_scheme = '{HARMFUL}', disk_id = '{HARMFUL}', parent_name = '{HARMFUL}'",
        f"UPDATE volume SET label = '{HARMFUL}', serial = '{HARMFUL}', file_system = '{HARMFUL}', "
        f"raw_reason = '{HARMFUL}', os_name = '{HARMFUL}', partition_name = '{HARMFUL}'",
        f"UPDATE file SET path = path || '{HARMFUL}', modified_at = '{HARMFUL}' WHERE kind = 'file'",
        f"UPDATE file SET kind = '{HARMFUL}' WHERE path LIKE '/empty%'",
        f"UPDATE audit SET at = '{HARMFUL}', user = '{HARMFUL}', host = '{HARMFUL}', tool = '{HARMFUL}', "
        f"action = '{HARMFUL}', path = '{HARMFUL}', detail = '{HARMFUL}'",
        f"INSERT INTO property VALUES (1, '{HARMFUL}', '{HARMFUL}'), (1, 'text', '{HARMFUL}')",
    ]
    bad = lax(ext, tmp_path / "bad.sqlimage", *statements)
    name = f"/a/text{HARMFUL}"
    commands: list[list[object]] = [
        ["info", bad], ["versions", bad], ["ls", bad, "-ra"], ["audit", bad], ["verify", bad, "--files"],
        ["property", "list", bad], ["property", "get", bad, HARMFUL], ["extent", bad, name], ["diff", bad, ext],
        ["diff", ext, bad], ["find", tmp_path, "--where", "1"], ["sql", bad, "SELECT * FROM effective_file"],
        ["sql", bad, "SELECT * FROM audit"], ["edit", "list", bad], ["info", f"{bad}@{HARMFUL}x"],
    ]  # fmt: skip
    for command in commands:
        for more in ([], ["--json"]):
            done = run_tool(*command, *more)
            assert done.returncode in (0, 1, 3), (command, done.stderr)
            assert not _HARMS.search(done.stdout + done.stderr), command
            if more and done.stdout:
                json.loads(done.stdout)
    done = run_tool("get", bad, "/", tmp_path / "tree")
    assert not _HARMS.search(done.stdout + done.stderr)


def test_comma_separated_values_are_exact_in_a_file_and_harmless_on_a_terminal(image: Path, tmp_path: Path) -> None:
    bad = lax(image, tmp_path / "bad.sqlimage", f"UPDATE control SET label = '{HARMFUL}'")
    command = ["sql", str(bad), "SELECT label FROM control", "--csv"]
    tool = Path(sys.executable).with_name("sqlimage")
    assert HARMFUL.encode() in subprocess.run([tool, *command], capture_output=True, check=True).stdout
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen([tool, *command], stdout=theirs, stdin=subprocess.DEVNULL)
        assert process.wait(timeout=30 * PATIENCE) == 0
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"label" in shown
    assert b"\x1b" not in shown


# What is extracted


def test_nothing_is_written_through_a_link_of_the_image(ext: Path, tmp_path: Path) -> None:
    """A directory and its files where the image also has a link to elsewhere."""
    (tmp_path / "in").mkdir()
    bad = lax(
        ext,
        tmp_path / "bad.sqlimage",
        "INSERT INTO file SELECT version, volume, '/up/escaped', kind, bytes, modified_at, record, stream, attributes, "
        "digest, deleted FROM file WHERE path = '/a/text'",
        "INSERT INTO file SELECT version, volume, '/up/', kind, bytes, modified_at, record, stream, attributes, "
        "digest, deleted FROM file WHERE path = '/a/text'",
    )
    assert run_tool("get", bad, "/", tmp_path / "in" / "tree").returncode == 0
    assert os.readlink(tmp_path / "in" / "tree" / "up") == "../../escaped"
    assert sorted(os.listdir(tmp_path)) == ["bad.sqlimage", "e.sqlimage", "in"]
    assert os.listdir(tmp_path / "in") == ["tree"]


def test_two_names_of_one_content_become_two_files_and_nothing_becomes_a_device(ext: Path, tmp_path: Path) -> None:
    bad = lax(
        ext,
        tmp_path / "bad.sqlimage",
        "INSERT INTO file SELECT version, volume, '/a/twin', kind, bytes, modified_at, record, stream, 8192, digest, "
        "deleted FROM file WHERE path = '/a/text'",
        "UPDATE file SET kind = 'file', attributes = 24576 + 511 WHERE path = '/fifo'",
        "UPDATE file SET attributes = attributes | 3584 WHERE kind = 'file'",
    )
    run_tool("get", bad, "/", tmp_path / "tree")
    twins = [tmp_path / "tree" / "a" / name for name in ("text", "twin")]
    assert twins[0].read_bytes() == twins[1].read_bytes()
    for path in (tmp_path / "tree").rglob("*"):
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)
        assert not status.st_mode & 0o7000
        assert stat.S_ISDIR(status.st_mode) or status.st_nlink == 1


def test_names_of_two_hundred_and_fifty_five_bytes_stay_and_longer_ones_are_told_apart(
    image: Path, tmp_path: Path
) -> None:
    fits, longer = "x" * 251 + "\U0001f600", "y" * 255 + "\u00e9"
    assert len(fits.encode()) == 255
    bad = lax(
        image,
        tmp_path / "bad.sqlimage",
        *(
            f"INSERT INTO file SELECT version, volume, '/{name}', kind, bytes, modified_at, record, stream, "
            "attributes, digest, deleted FROM file WHERE path = '/text'"
            for name in (fits, longer, longer + "1", longer + "2")
        ),
    )
    done = run_tool("get", bad, "/", tmp_path / "tree", "--json")
    assert done.returncode == 0, done.stderr
    names = os.listdir(tmp_path / "tree")
    assert fits in names
    assert len(json.loads(done.stdout)["renamed"]) == 3
    assert len([name for name in names if name.startswith("y")]) == 3


@pytest.mark.parametrize("time_told", ["2", "now", "2026-13-45T00:00:00Z", "0001-01-01T00:00:00", "9" * 400])
def test_a_time_that_is_none_is_not_set(image: Path, tmp_path: Path, time_told: str) -> None:
    bad = lax(image, tmp_path / "bad.sqlimage", f"UPDATE file SET modified_at = '{time_told}'")
    assert run_tool("get", bad, "/", tmp_path / "tree").returncode == 0
    assert (tmp_path / "tree" / "text").stat().st_size > 0


@pytest.mark.parametrize("is_good", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_tree_deeper_than_any_path_is_taken_out_as_far_as_it_can_be_named(
    image: Path, tmp_path: Path, is_good: bool
) -> None:
    """And is removed again where the work cannot go on."""
    bad = lax(
        image,
        tmp_path / "bad.sqlimage",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1500) INSERT INTO file "
        "SELECT 1, 0, replace(printf('%.*c', x, 'd'), 'd', '/d'), 'directory', 0, NULL, x, '', 0, NULL, 0 FROM n",
        "INSERT INTO file SELECT 1, 0, '/d/d/d/text', 'file', bytes, NULL, record, '', 0, digest, 0 FROM file "
        "WHERE path = '/text'",
        "UPDATE file SET bytes = bytes" if is_good else "UPDATE file SET record = 'x' WHERE path = '/text'",
    )
    target = tmp_path / "tree"
    done = run_tool("get", bad, "/", target, "--json")
    try:
        if is_good:
            assert done.returncode == 0, done.stderr
            assert len(json.loads(done.stdout)["skipped"]) > 400
            assert (target / "d/d/d/text").read_bytes() == (target / "text").read_bytes()
            assert (target / "/".join("d" * 999)).is_dir()
        else:
            assert done.returncode == 5, done.stderr
            assert not target.exists()
    finally:
        take_back(str(target))
    assert not target.exists()


def test_a_file_whose_record_is_not_there_is_told_and_the_others_come(ext: Path, tmp_path: Path) -> None:
    for record in (0, 31, -1, 1 << 62):
        bad = lax(ext, tmp_path / "bad.sqlimage", f"UPDATE file SET record = {record} WHERE path = '/a/text'")
        done = run_tool("get", bad, "/", tmp_path / f"tree{record}")
        assert done.returncode == 5
        assert "damaged: /a/text" in done.stderr
        assert (tmp_path / f"tree{record}" / "a" / "b" / "file").stat().st_size == 9000
