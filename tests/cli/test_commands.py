"""The command line as its users meet it: output, JSON, exit codes, one clear line for what went wrong."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import run
from tests.images import noise, run_tool, sample_volume, tool


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("cli")
    sample_volume(here / "sample.ntfs")
    tool("capture", here / "sample.ntfs", here / "i.sqlimage", "--label", "golden", "--property", "os.name=Windows")
    return here


def refused(code: int, says: str, *arguments: object) -> None:
    done = run_tool(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_json_is_one_document_on_stdout_whatever_the_command(place: Path) -> None:
    image = place / "i.sqlimage"
    made = json.loads(tool("capture", place / "sample.ntfs", place / "json.sqlimage", "--json"))
    assert made["volumes"][0]["left_out"] == ["/pagefile.sys"]
    info = json.loads(tool("info", image, "--json"))
    assert (info["label"], info["volumes"][0]["file_system"]) == ("golden", "ntfs")
    assert info["properties"]["os.name"] == "Windows"
    assert {row["path"] for row in json.loads(tool("ls", image, "--json"))} >= {"/Users", "/Windows"}
    assert json.loads(tool("audit", image, "--json"))[0]["action"] == "capture"
    assert json.loads(tool("verify", image, "--json"))["problems"] == []
    assert json.loads(tool("property", "list", image, "--json"))["os.name"] == "Windows"
    assert json.loads(tool("sql", image, "SELECT 1 AS one, x'ff' AS two", "--json")) == [{"one": 1, "two": "ff"}]
    out = json.loads(tool("restore", image, place / "json.out", "--json"))
    assert out["medium_bytes"] == 8 << 20
    found = json.loads(tool("find", place, "--where", "os.name = 'Windows'", "--json"))
    assert [Path(row["path"]).name for row in found] == ["i.sqlimage"]
    assert json.loads(tool("get", image, "/Users", place / "json.users", "--json"))["files"] > 20


def test_a_version_is_named_by_number_label_uuid_or_latest(place: Path) -> None:
    image = place / "i.sqlimage"
    uuid = json.loads(tool("info", image, "--json"))["uuid"]
    for name in ("1", "golden", uuid, uuid[:8], "latest", ""):
        assert json.loads(tool("info", f"{image}@{name}", "--json"))["uuid"] == uuid
    refused(3, "no version 'silver'", "info", f"{image}@silver")
    shutil.copy(image, place / "odd@name")
    assert json.loads(tool("info", place / "odd@name", "--json"))["uuid"] == uuid
    assert json.loads(tool("info", f"{place}/odd@name@golden", "--json"))["uuid"] == uuid


def test_a_file_comes_out_as_it_went_in(place: Path) -> None:
    image, path = place / "i.sqlimage", "/Windows/System32/library.dll"
    done = subprocess.run(["ntfscat", place / "sample.ntfs", path[1:]], capture_output=True, check=True)
    tool("get", image, path, place / "library.dll")
    assert (place / "library.dll").read_bytes() == done.stdout
    digest = json.loads(tool("sql", image, f"SELECT digest FROM file WHERE path = '{path}'", "--json"))[0]["digest"]
    assert digest == hashlib.sha256(done.stdout).hexdigest()
    assert tool("cat", image, "/Users/joe/Documents/haystack.txt:comment") == "a stream beside the file\n"


def test_a_tree_comes_out_whole_and_the_file_systems_own_files_stay_in(place: Path) -> None:
    tool("get", place / "i.sqlimage", "/", place / "all")
    names = {str(path.relative_to(place / "all")) for path in (place / "all").rglob("*")}
    assert "Users/joe/Documents/Übersicht — größer.txt" in names
    assert not [name for name in names if name.startswith("$")]
    assert (place / "all/Users/joe/sparse.bin").stat().st_size == 2 << 20
    assert (place / "all/Users/joe/sparse.bin").stat().st_blocks * 512 < 2 << 20
    refused(4, "exists already", "get", place / "i.sqlimage", "/", place / "all")


def test_csv_is_what_a_spreadsheet_reads(place: Path) -> None:
    text = tool("sql", place / "i.sqlimage", "SELECT path, bytes FROM file WHERE kind = 'file'", "--csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["path", "bytes"]
    assert len(rows) > 20


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit",
        "INSERT INTO property VALUES (1, 'a', 1)",
        "ATTACH '/tmp/x.db' AS x",
        "CREATE TABLE x (a)",
        "PRAGMA journal_mode = WAL",
        "PRAGMA writable_schema = ON",
        "VACUUM INTO '/tmp/x.db'",
        "BEGIN IMMEDIATE",
        "SELECT load_extension('x')",
        "SELECT writefile('/tmp/x', 'y')",
        "SELECT 1; DELETE FROM audit",
    ],
)
def test_a_statement_that_writes_or_reaches_out_is_refused(place: Path, statement: str) -> None:
    before = (place / "i.sqlimage").read_bytes()
    done = run_tool("sql", place / "i.sqlimage", statement)
    assert done.returncode in (2, 4)
    assert len(done.stderr.strip().splitlines()) == 1
    assert (place / "i.sqlimage").read_bytes() == before


def test_what_is_wrong_with_a_command_is_said_in_one_line_with_the_documented_code(place: Path) -> None:
    image, volume = place / "i.sqlimage", place / "sample.ntfs"
    refused(3, "no such file", "capture", place / "nothing", place / "x.sqlimage")
    refused(4, "exists already", "capture", volume, image)
    refused(3, "no such directory", "capture", volume, place / "no" / "x.sqlimage")
    refused(2, "preset", "capture", volume, place / "x.sqlimage", "--preset", "huge")
    refused(2, "level", "capture", volume, place / "x.sqlimage", "--level", "99999999999999999999")
    refused(2, "NAME=VALUE", "capture", volume, place / "x.sqlimage", "--property", "novalue")
    refused(2, "property name", "capture", volume, place / "x.sqlimage", "--property", "a b=1")
    refused(2, "label", "capture", volume, place / "x.sqlimage", "--label", "17")
    refused(3, "no partition table", "capture", volume, place / "x.sqlimage", "--partition", "1")
    refused(2, "", "capture", volume)
    refused(2, "", "frobnicate")
    refused(3, "no such image", "info", place / "nothing.sqlimage")
    refused(5, "not an sqlimage", "info", volume)
    refused(3, "no '/nothing'", "cat", image, "/nothing")
    refused(2, "directory", "cat", image, "/Users")
    refused(3, "no property", "property", "get", image, "nothing")
    refused(2, "SQL", "sql", image, "SELEKT 1")
    refused(2, "--where", "find", place, "--where", "os.name ==== 1")
    refused(3, "no such directory", "find", place / "nowhere", "--where", "1")
    assert not (place / "x.sqlimage").exists()


def test_restore_refuses_what_would_be_lost_before_it_writes_a_byte(place: Path, tmp_path: Path) -> None:
    image, full = place / "i.sqlimage", tmp_path / "full.img"
    full.write_bytes(b"precious")
    refused(4, "not empty", "restore", image, full)
    assert full.read_bytes() == b"precious"
    refused(4, "is a directory", "restore", image, tmp_path)
    refused(4, "is the image itself", "restore", image, image, "--force")
    tool("restore", image, full, "--force")
    assert full.stat().st_size == 8 << 20
    (tmp_path / "empty.img").touch()
    tool("restore", image, tmp_path / "empty.img")


def test_restore_to_a_block_device(place: Path, tmp_path: Path) -> None:
    small, large = tmp_path / "small.img", tmp_path / "large.img"
    for path, size in ((small, 4 << 20), (large, 12 << 20)):
        with path.open("wb") as file:
            file.truncate(size)
    loops = [run("losetup", "--find", "--show", path).stdout.decode().strip() for path in (small, large)]
    try:
        refused(4, "needs", "restore", place / "i.sqlimage", loops[0])
        refused(4, "in use", "restore", place / "i.sqlimage", large)
        tool("restore", place / "i.sqlimage", loops[1])
        refused(4, "not empty", "restore", place / "i.sqlimage", loops[1])
        Path(loops[1]).write_bytes(noise("stale", 8 << 20))
        tool("restore", place / "i.sqlimage", loops[1], "--force", "--wipe")
        tool("restore", place / "i.sqlimage", tmp_path / "file.img")
        run("cmp", "-n", str(8 << 20), loops[1], tmp_path / "file.img")
        tool("capture", loops[1], tmp_path / "again.sqlimage")
        again = json.loads(tool("info", tmp_path / "again.sqlimage", "--json"))
        assert (again["volumes"][0]["file_system"], again["medium_bytes"]) == ("ntfs", 12 << 20)
    finally:
        for loop in loops:
            run("losetup", "-d", loop)


def test_a_mounted_device_is_refused(place: Path, tmp_path: Path) -> None:
    disk, mount = tmp_path / "ext4.img", tmp_path / "mount"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    run("mke2fs", "-q", "-t", "ext4", disk)
    loop = run("losetup", "--find", "--show", disk).stdout.decode().strip()
    mount.mkdir()
    run("mount", loop, mount)
    try:
        refused(4, "in use", "restore", place / "i.sqlimage", loop, "--force")
    finally:
        run("umount", mount)
        run("losetup", "-d", loop)


def test_properties_are_typed_audited_and_found(tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    tool("capture", sample_volume(tmp_path / "v"), image)
    tool("property", "set", image, "os.name=Debian", "os.version=12", 'os.build="0012"', "load=0.5")
    assert json.loads(tool("property", "list", image, "--json")).items() >= {
        ("os.name", "Debian"), ("os.version", 12), ("os.build", "0012"), ("load", 0.5)
    }  # fmt: skip
    for where in (
        "os.name = 'Debian' AND os.version >= 12",
        "os.build LIKE '00%' AND load < 1",
        "file_system = 'ntfs' AND medium_bytes = 8388608 AND os.missing IS NULL",
        "property('os.name') IN ('Debian', 'Fedora')",
    ):
        assert str(image) in tool("find", tmp_path, "--where", where), where
    assert str(image) not in tool("find", tmp_path, "--where", "os.version < 12")
    tool("property", "unset", image, "os.version")
    assert run_tool("property", "get", image, "os.version").returncode == 3
    actions = [row["action"] for row in json.loads(tool("audit", image, "--json"))]
    assert actions == ["capture"] + ["property"] * 5
    assert run_tool("verify", image).returncode == 0


def test_names_that_would_drive_a_terminal_are_shown_harmless(tmp_path: Path) -> None:
    volume = tmp_path / "v.fat"
    with volume.open("wb") as file:
        file.truncate(2 << 20)
    run("mkfs.fat", "-n", "EVIL", volume)
    (tmp_path / "x").write_bytes(b"x")
    run("mcopy", "-i", volume, tmp_path / "x", "::a\u202egnp.exe")
    tool("capture", volume, tmp_path / "i.sqlimage", "--property", "note=\x1b[2J")
    labelled = tmp_path / "v.ext4"
    with labelled.open("wb") as file:
        file.truncate(4 << 20)
    run("mke2fs", "-q", "-L", "\x1b[2Jred", labelled)
    for command in (
        ("ls", tmp_path / "i.sqlimage"),
        ("info", tmp_path / "i.sqlimage"),
        ("capture", labelled, tmp_path / "labelled.sqlimage"),
    ):
        shown = tool(*command)
        assert "\x1b" not in shown
        assert "\u202e" not in shown


def test_output_into_a_pipe_that_closes_is_no_error(place: Path) -> None:
    done = subprocess.run(
        f"sqlimage sql '{place}/i.sqlimage' 'SELECT a.* FROM file a, file b, file c LIMIT 50000' | head -1",
        shell=True, capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.stderr == ""


def environment() -> dict[str, str]:
    import os
    import sys

    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
