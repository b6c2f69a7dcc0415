"""A file is an image only if it is one in every respect; what is not, is refused in one line."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

import sqlimage
from sqlimage.streams import schema
from tests.conftest import run
from tests.images import run_tool, sample_volume


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("image")
    sqlimage.capture(sample_volume(place / "sample.ntfs"), place / "i.sqlimage", label="golden")
    return place / "i.sqlimage"


def changed(image: Path, tmp_path: Path, *statements: str) -> Path:
    """A copy of the image after a hand with the sqlite3 library was at it."""
    copy = tmp_path / "changed.sqlimage"
    shutil.copy(image, copy)
    connection = apsw.Connection(str(copy))
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return copy


def test_the_sqlite3_shell_of_an_older_release_reads_an_image(image: Path) -> None:
    tables = run("sqlite3", "-readonly", image, ".tables").stdout.decode()
    assert {"control", "data", "cluster_map", "bitmap", "audit", "property", "effective_file"} <= set(tables.split())
    label = run("sqlite3", "-readonly", image, "SELECT label FROM control").stdout.decode().strip()
    assert label == "golden"
    assert run("sqlite3", "-readonly", image, "PRAGMA integrity_check").stdout == b"ok\n"
    owner = "SELECT path FROM owner WHERE start_cluster <= 4 AND end_cluster >= 4"
    assert run("sqlite3", "-readonly", image, owner).stdout.decode().strip() == "/$MFT"


def test_an_image_at_rest_is_one_file_with_the_identity_of_the_format(image: Path) -> None:
    assert sorted(os.listdir(image.parent)) == ["i.sqlimage", "sample.ntfs"]
    connection = sqlite3.connect(f"file:{image}?mode=ro&immutable=1", uri=True)
    assert connection.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.FORMAT_VERSION,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_reading_never_changes_a_byte_and_read_only_media_work(image: Path, tmp_path: Path) -> None:
    place = tmp_path / "media"
    place.mkdir()
    copy = Path(shutil.copy(image, place / "i.sqlimage"))
    before, times = copy.read_bytes(), copy.stat().st_mtime_ns
    copy.chmod(0o444)
    place.chmod(0o555)
    for command in (["info"], ["ls"], ["audit"], ["verify"], ["property", "list"], ["sql"]):
        arguments = [*command, copy] + (["SELECT count(*) FROM file"] if command == ["sql"] else [])
        assert run_tool(*arguments).returncode == 0
    place.chmod(0o755)
    assert copy.read_bytes() == before
    assert copy.stat().st_mtime_ns == times
    assert os.listdir(place) == ["i.sqlimage"]


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("CREATE TRIGGER x AFTER INSERT ON property BEGIN SELECT 1; END", "schema"),
        ("CREATE VIEW x AS SELECT 1", "schema"),
        ("CREATE TABLE x (a)", "schema"),
        ("CREATE INDEX x ON audit (at)", "schema"),
        ("DROP VIEW owner", "schema"),
        ("CREATE VIRTUAL TABLE x USING fts5(a)", "schema"),
        ("ALTER TABLE property ADD COLUMN more TEXT", "schema"),
        ("PRAGMA user_version = 99", "format version 99"),
        ("PRAGMA application_id = 1", "application id"),
        ("INSERT INTO feature VALUES ('time-machine', 1)", "time-machine"),
        ("UPDATE format SET value = 2 WHERE name = 'oldest_reader'", "reader"),
        ("INSERT INTO fixup VALUES (0, x'00', x'01', 'left over')", "fix-ups"),
        ("UPDATE control SET bytes_per_cluster = 4097", "4097"),
        ("UPDATE control SET encryption = 'rot13'", "rot13"),
        ("UPDATE volume SET length_bytes = 1 << 60", "volume 0"),
        ("DELETE FROM control", "no version"),
    ],
)
def test_what_is_not_the_format_is_refused_by_name(image: Path, tmp_path: Path, statement: str, says: str) -> None:
    done = run_tool("info", changed(image, tmp_path, statement))
    assert done.returncode == 5, done
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_optional_feature_that_is_not_known_does_no_harm(image: Path, tmp_path: Path) -> None:
    copy = changed(image, tmp_path, "INSERT INTO feature VALUES ('colour', 0)")
    assert run_tool("info", copy).returncode == 0


@pytest.mark.parametrize(
    "content", [b"", b"SQLite format 3\0", b"x" * 8192, b"SQLite format 3\0" + b"\xff" * 8192], ids=len
)
def test_any_other_file_is_told_from_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.sqlimage"
    path.write_bytes(content)
    done = run_tool("info", path)
    assert done.returncode == 5
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO cluster_map VALUES (1, 3, 5, 1, 0, 0)",
        "UPDATE cluster_map SET end_cluster = 1 << 40 WHERE start_cluster > 2000",
        "UPDATE cluster_map SET data = 4711 WHERE start_cluster = 0",
        "UPDATE cluster_map SET data_offset = 1 << 40 WHERE start_cluster = 0",
        "UPDATE data SET length = length + 1 WHERE id = 1",
        "UPDATE data SET flags = 77 WHERE id = 1",
        "UPDATE data SET flags = 0",
        "UPDATE data SET bytes = zeroblob(30) WHERE id = 1",
        "UPDATE data SET bytes = x'28b52ffda00000001000000000' WHERE id = 1",
        "UPDATE data SET bytes = NULL WHERE id = 1",
        "UPDATE data SET digest = zeroblob(32) WHERE id = 1",
    ],
)
def test_a_map_or_a_content_that_lies_is_found_by_verify_and_never_read_as_right(
    image: Path, tmp_path: Path, statement: str
) -> None:
    copy = changed(image, tmp_path, statement)
    if "= NULL" not in statement:
        assert run_tool("verify", copy).returncode == 1
    done = run_tool("restore", copy, tmp_path / "out")
    assert done.returncode == 5
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with sqlimage.open(str(copy)) as opened, pytest.raises(sqlimage.FormatError):
        driver = opened.driver()
        driver.read(0, driver.size_bytes)


def test_every_flipped_bit_is_harmless_or_reported(image: Path, tmp_path: Path) -> None:
    """Over the whole file: verify finds it, or what is restored is what it was."""
    good, copy = bytearray(image.read_bytes()), tmp_path / "flipped.sqlimage"
    with sqlimage.open(str(image)) as opened:
        sqlimage.restore(opened.version(), tmp_path / "good")
    right = (tmp_path / "good").read_bytes()
    silent = 0
    for n in range(150):
        place = (n * 2654435761) % (len(good) * 8)
        flipped = bytearray(good)
        flipped[place // 8] ^= 1 << place % 8
        copy.write_bytes(flipped)
        try:
            with sqlimage.open(str(copy)) as opened:
                if not sqlimage.verify(opened).is_whole:
                    continue
                sqlimage.restore(opened.version(), tmp_path / "out", force=True)
                assert (tmp_path / "out").read_bytes() == right, place
                silent += 1
        except sqlimage.SqlimageError:
            continue
    assert silent < 100, "most flips should hit something that is checked"


def test_a_journal_beside_an_image_is_told_and_taken_back_on_request(image: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(image, tmp_path / "i.sqlimage"))
    before = copy.read_bytes()
    script = (
        "import apsw, os, sys\n"
        "c = apsw.Connection(sys.argv[1])\n"
        "c.execute('PRAGMA cache_size = 1; BEGIN')\n"
        "c.executemany('INSERT INTO property VALUES (1, ?, zeroblob(2000))', [(f'p{n}',) for n in range(300)])\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, copy], check=False)
    assert Path(f"{copy}-journal").exists()
    done = run_tool("info", copy)
    assert done.returncode == 4
    assert "--recover" in done.stderr
    assert run_tool("verify", copy, "--recover").returncode == 0
    assert copy.read_bytes() == before
    assert not Path(f"{copy}-journal").exists()


def test_a_foreign_write_ahead_log_beside_an_image_is_refused(image: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(image, tmp_path / "i.sqlimage"))
    Path(f"{copy}-wal").write_bytes(b"\x37\x7f\x06\x82" + bytes(4096))
    assert run_tool("info", copy).returncode == 4
