"""Images, and files beside them, that a stranger made: nothing they say is followed, and nothing they claim costs."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

import sqlimage
from sqlimage.codec.chunk import decode
from sqlimage.streams.database import recover
from sqlimage.units import GIB, MIB, TIB
from tests.image.mutations import HARMFUL
from tests.image.strangers import Base, bases, lax
from tests.images import run_tool
from tests.make.cost import PATIENCE

_HARMS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_LOG_MAGIC = bytes.fromhex("377f0682")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return {base.name: base for base in bases(tmp_path_factory.mktemp("bases"))}


@pytest.fixture
def image(right: dict[str, Base], tmp_path: Path) -> Path:
    """Of a FAT volume."""
    path = tmp_path / "i.sqlimage"
    path.write_bytes(right["fat"].files["fat.sqlimage"])
    return path


# What lies beside an image


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "link", "link to nothing"])
@pytest.mark.parametrize("has_log", [False, True])
def test_what_is_no_file_in_the_place_of_a_journal_or_a_log_is_refused_at_once(
    image: Path, tmp_path: Path, suffix: str, kind: str, has_log: bool
) -> None:
    precious, beside = tmp_path / "precious", Path(f"{image}{suffix}")
    precious.write_bytes(b"not the image's")
    if has_log:
        with image.open("r+b") as file:
            file.seek(18)
            file.write(b"\2\2")
    if kind == "pipe":
        os.mkfifo(beside)
    elif kind == "directory":
        beside.mkdir()
    else:
        beside.symlink_to(precious if kind == "link" else tmp_path / "made")
    for command in (["info", image], ["verify", image, "--recover"], ["property", "set", image, "a=1"]):
        done = run_tool(*command)
        assert done.returncode == 4
        assert f"{suffix}: is in the way" in done.stderr
    assert precious.read_bytes() == b"not the image's"
    assert sorted(os.listdir(tmp_path)) == sorted(["i.sqlimage", "precious", beside.name])


def test_a_journal_cannot_have_another_file_removed(image: Path, tmp_path: Path) -> None:
    """SQLite removes the file that a journal names at its end, when it has taken that journal back."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"not the image's")
    journal = _interrupted(image)
    name = os.fsencode(precious)
    named = struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + _JOURNAL_MAGIC
    before = image.read_bytes()
    with journal.open("ab") as file:
        file.write(named)
    for command in (["info", image], ["verify", image, "--recover"], ["property", "set", image, "a=1"]):
        done = run_tool(*command)
        assert done.returncode == 4
        assert "names another file" in done.stderr
    with pytest.raises(sqlimage.RefusedError):
        recover(str(image))
    assert precious.exists()
    assert image.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, _JOURNAL_MAGIC + b"\xff" * 5000, _JOURNAL_MAGIC], ids=len)
def test_a_journal_that_is_none_changes_nothing(image: Path, content: bytes) -> None:
    before = image.read_bytes()
    Path(f"{image}-journal").write_bytes(content)
    assert run_tool("info", image).returncode in (0, 4)
    assert run_tool("verify", image, "--recover").returncode == 0
    assert image.read_bytes() == before
    assert os.listdir(image.parent) == ["i.sqlimage"]


def test_the_log_of_another_image_is_never_taken_for_right(right: dict[str, Base], image: Path, tmp_path: Path) -> None:
    """It is whole, and SQLite has no means to tell whose it is; but no content is another one for it."""
    before = bytearray(image.read_bytes())
    before[18:20] = b"\2\2"
    image.write_bytes(before)
    Path(f"{image}-wal").write_bytes(_log_of(right["ext"].files["ext.sqlimage"], tmp_path / "other"))
    assert run_tool("verify", image).returncode in (0, 1, 5)
    if run_tool("restore", image, tmp_path / "out").returncode == 0:
        assert (tmp_path / "out").read_bytes() in right["fat"].media.values()
    assert image.read_bytes() == before


@pytest.mark.parametrize("log", [b"", _LOG_MAGIC + b"\xff" * 9000, b"\0" * 32], ids=len)
@pytest.mark.parametrize("index", [b"", b"\xff" * 32768, b"\0" * 100], ids=len)
def test_a_log_that_is_none_adds_nothing_to_an_image(image: Path, log: bytes, index: bytes) -> None:
    """Though the image says that it has one."""
    before = bytearray(image.read_bytes())
    before[18:20] = b"\2\2"
    image.write_bytes(before)
    Path(f"{image}-wal").write_bytes(log)
    Path(f"{image}-shm").write_bytes(index)
    assert run_tool("verify", image).returncode == 0
    assert image.read_bytes() == before
    assert run_tool("verify", image, "--recover").returncode == 0
    before[18:20] = b"\1\1"
    assert [a for a, b in enumerate(zip(image.read_bytes(), before, strict=True)) if b[0] != b[1] and a >= 100] == []


def _interrupted(image: Path) -> Path:
    """The journal of a change that was interrupted in the middle."""
    script = (
        "import apsw, os, sys\n"
        "c = apsw.Connection(sys.argv[1])\n"
        "c.execute('PRAGMA cache_size = 1; BEGIN')\n"
        "c.executemany('INSERT INTO property VALUES (1, ?, zeroblob(2000))', [(f'p{n}',) for n in range(300)])\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, image], check=False)
    return Path(f"{image}-journal")


def _log_of(content: bytes, place: Path) -> bytes:
    """A whole log with one commit, of an image of its own."""
    place.mkdir()
    other = place / "o.sqlimage"
    other.write_bytes(content)
    connection = apsw.Connection(str(other))
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("INSERT INTO property VALUES (1, 'from.another', 1)")
    log = Path(f"{other}-wal").read_bytes()
    connection.close()
    return log


# The database


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE x (a, b AS (a || a) STORED)",
        "CREATE VIEW x AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "CREATE VIRTUAL TABLE x USING rtree(a, b, c)",
        "ANALYZE",
        "CREATE TRIGGER x INSTEAD OF INSERT ON owner BEGIN DELETE FROM data; END",
        "DROP VIEW owner; CREATE VIEW owner AS SELECT * FROM data",
        "DROP INDEX extent_by_cluster; CREATE INDEX extent_by_cluster ON extent (version, start_cluster + 0)",
        "DROP TABLE segment; CREATE VIEW segment AS SELECT load_extension('x')",
        "DROP TRIGGER audit_is_not_changed",
        "DROP TABLE key_slot; CREATE TABLE key_slot (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, parameters TEXT NOT "
        "NULL, wrapped_key BLOB NOT NULL AS (kind)) STRICT",
    ],
)
def test_a_schema_that_differs_in_one_object_is_refused_before_it_is_used(image: Path, statement: str) -> None:
    connection = apsw.Connection(str(image))
    connection.execute(statement)
    connection.close()
    done = run_tool("info", image)
    assert done.returncode == 5
    assert "schema" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'data') "
        "WHERE name = 'cluster_map'",
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'bitmap') "
        "WHERE name = 'cluster_map'",
        "UPDATE sqlite_schema SET rootpage = 1 WHERE name = 'file'",
        "UPDATE sqlite_schema SET rootpage = 0 WHERE name = 'control'",
        "UPDATE sqlite_schema SET rootpage = 4000000000 WHERE name = 'data'",
        "UPDATE sqlite_schema SET tbl_name = 'data' WHERE name = 'extent_by_cluster'",
        "INSERT INTO sqlite_schema SELECT * FROM sqlite_schema WHERE name = 'data'",
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE data AS SELECT 1' WHERE name = 'data'",
        "UPDATE sqlite_schema SET sql = NULL WHERE name = 'data'",
    ],
)
def test_a_schema_whose_tables_lie_elsewhere_gives_no_wrong_bytes(image: Path, tmp_path: Path, change: str) -> None:
    connection = apsw.Connection(str(image))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute(f"PRAGMA writable_schema = ON; {change}")
    connection.close()
    assert run_tool("info", image).returncode in (0, 5)
    assert run_tool("verify", image).returncode in (1, 5)
    assert run_tool("restore", image, tmp_path / "out").returncode == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pages", [0, 1, 5, 1 << 20, (1 << 31) - 1, (1 << 32) - 2])
def test_a_page_count_that_lies_costs_nothing_and_gives_no_wrong_bytes(
    right: dict[str, Base], image: Path, tmp_path: Path, pages: int
) -> None:
    with image.open("r+b") as file:
        file.seek(28)
        file.write(struct.pack(">I", pages))
    for command in (["info", image], ["ls", image, "-r"], ["verify", image]):
        assert run_tool(*command).returncode in (0, 1, 5)
    if run_tool("restore", image, tmp_path / "out").returncode == 0:
        assert (tmp_path / "out").read_bytes() in right["fat"].media.values()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_told(image: Path, tmp_path: Path, share: float) -> None:
    os.truncate(image, int(image.stat().st_size * share))
    assert run_tool("verify", image).returncode in (1, 5)
    assert run_tool("restore", image, tmp_path / "out").returncode == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE data SET bytes = zeroblob(100000000) WHERE id = 1",
        "UPDATE property SET value = zeroblob(100000000) WHERE name = 'capture.tool'",
        "UPDATE control SET source = printf('%.*c', 100000000, 'A')",
        "UPDATE audit SET detail = printf('%.*c', 100000000, 'A')",
        "UPDATE file SET path = '/' || printf('%.*c', 100000000, 'A') WHERE path = '/text'",
    ],
)
def test_a_value_of_a_hundred_million_bytes_takes_no_more_memory_than_a_gibibyte(
    image: Path, tmp_path: Path, statement: str
) -> None:
    bad = lax(image, tmp_path / "bad.sqlimage", statement)
    limited = [sys.executable, "-c", _LIMITED, str(Path(sys.executable).with_name("sqlimage"))]
    for command in (
        ["info", bad],
        ["ls", bad, "-r"],
        ["audit", bad],
        ["verify", bad],
        ["restore", bad, tmp_path / "o"],
    ):
        done = subprocess.run([*limited, *map(str, command)], capture_output=True, check=False, timeout=30 * PATIENCE)
        assert done.returncode in (0, 1, 5), (command, done.stderr[-500:])


def test_a_value_larger_than_any_that_the_format_has_is_told(image: Path, tmp_path: Path) -> None:
    for statement, command in (
        ("UPDATE control SET source = printf('%.*c', 17 << 20, 'A')", ["info"]),
        ("UPDATE file SET path = '/' || printf('%.*c', 17 << 20, 'A') WHERE path = '/text'", ["ls", "-r"]),
        ("UPDATE data SET bytes = zeroblob(17 << 20) WHERE id = 1", ["restore"]),
    ):
        bad = lax(image, tmp_path / "bad.sqlimage", statement)
        more = [tmp_path / "out"] if command == ["restore"] else []
        done = run_tool(command[0], bad, *command[1:], *more)
        assert done.returncode == 5
        assert "larger than the format allows" in done.stderr


_LIMITED = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({GIB}, {GIB}))
os.execv(sys.argv[1], sys.argv[1:])
"""


# Ranges and lineages


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE volume SET length_clusters = 1 << 50", "clusters"),
        ("UPDATE volume SET length_clusters = 0", "clusters"),
        ("UPDATE volume SET length_bytes = length_bytes - 1048576, offset_clusters = -1", "volume 0"),
        ("UPDATE control SET bytes_per_sector = 0", "sectors of 0"),
        ("UPDATE control SET bytes_per_sector = -512", "sectors of -512"),
        ("UPDATE control SET chunk_bytes = 0", "chunks of 0"),
        ("UPDATE control SET chunk_bytes = 1 << 62", "chunks of"),
    ],
)
def test_a_size_that_cannot_be_is_refused_by_name(image: Path, tmp_path: Path, statement: str, says: str) -> None:
    bad = lax(image, tmp_path / "bad.sqlimage", statement)
    done = run_tool("restore", bad, tmp_path / "out", "--volume", 0)
    assert done.returncode == 5
    assert says in done.stderr


def test_a_place_in_a_content_near_the_end_of_all_numbers_is_out_of_range(image: Path, tmp_path: Path) -> None:
    """Sums with it would begin anew below zero."""
    for place in ((1 << 63) - 1, (1 << 63) - 4096, 1 << 62, 1 << 55):
        bad = lax(image, tmp_path / f"{place}.sqlimage", f"UPDATE cluster_map SET data_offset = {place}")
        for command in (
            ["verify", bad], ["restore", bad, tmp_path / "out"], ["restore", bad, tmp_path / "out", "--volume", 0],
            ["diff", bad, image, "--clusters"], ["get", bad, "/", tmp_path / "tree"],
        ):  # fmt: skip
            assert run_tool(*command).returncode in (1, 5), command
        assert not (tmp_path / "out").exists()


def test_a_parent_is_not_looked_for_at_a_path_that_the_child_suggests(right: dict[str, Base], tmp_path: Path) -> None:
    for name in ("children", "elsewhere"):
        (tmp_path / name).mkdir()
    base, child, parent = right["child"], tmp_path / "children" / "c.sqlimage", tmp_path / "elsewhere" / "p.sqlimage"
    parent.write_bytes(base.files["parent.sqlimage"])
    original = tmp_path / "original"
    original.write_bytes(base.files["child.sqlimage"])
    os.mkfifo(child.parent / "pipe")
    names = (
        "../elsewhere/p.sqlimage",
        str(parent),
        "..",
        "/",
        "",
        ".",
        "pipe",
        "p\0.sqlimage",
        "../elsewhere",
        HARMFUL,
    )
    for name in names:
        connection_text = name.encode().hex()
        lax(original, child, f"UPDATE control SET parent_name = CAST(x'{connection_text}' AS TEXT)")
        done = run_tool("restore", child, tmp_path / "out")
        assert done.returncode == 3, name
        assert not _HARMS.search(done.stderr)
    assert run_tool("restore", child, tmp_path / "out", "--search", parent.parent).returncode == 0


def test_a_circle_of_parents_over_two_files_is_told(right: dict[str, Base], tmp_path: Path) -> None:
    base = right["child"]
    for name, content in base.files.items():
        (tmp_path / name).write_bytes(content)
    with sqlimage.open(str(tmp_path / base.opened)) as image:
        (uuid,) = [version.control.uuid for version in image.versions()]
    lax(tmp_path / "parent.sqlimage", tmp_path / "new", f"UPDATE control SET parent_uuid = '{uuid}'")
    (tmp_path / "new").rename(tmp_path / "parent.sqlimage")
    for command in (["info"], ["ls"], ["restore"], ["versions"], ["verify"]):
        more = [tmp_path / "out"] if command == ["restore"] else []
        done = run_tool(*command, tmp_path / base.opened, *more)
        assert done.returncode == (0 if command == ["versions"] else 1 if command == ["verify"] else 5)
        if command != ["versions"]:
            assert "its own ancestor" in done.stderr + done.stdout


# Contents


@pytest.mark.parametrize("claim", [TIB, (1 << 64) - 3, 8 * MIB])
def test_a_kibibyte_that_claims_a_tebibyte_fails_in_under_a_second(image: Path, tmp_path: Path, claim: int) -> None:
    """A frame of blocks that are one byte repeated 128 KiB times each."""
    block = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    frame = bytes.fromhex("28b52ffde0") + struct.pack("<Q", claim) + block * 252
    assert len(frame) <= 1024 + 8
    begin = time.monotonic()
    for length in (claim, 8 * MIB, 4096):
        with pytest.raises(sqlimage.DamagedError):
            decode(frame, 1, length, bytes(32))
    assert time.monotonic() - begin < PATIENCE
    bad = lax(image, tmp_path / "bad.sqlimage", f"UPDATE data SET bytes = x'{frame.hex()}'")
    begin = time.monotonic()
    assert run_tool("restore", bad, tmp_path / "out").returncode == 5
    assert time.monotonic() - begin < PATIENCE


def test_a_row_of_the_audit_trail_of_the_wrong_types_is_told(image: Path, tmp_path: Path) -> None:
    for column, value in (
        ("previous_hash", "'x'"),
        ("hash", "1"),
        ("detail", "x'00'"),
        ("at", "x'ff'"),
        ("bytes", "1.5"),
    ):
        bad = lax(image, tmp_path / f"{column}.sqlimage", f"UPDATE audit SET {column} = {value}")
        done = run_tool("verify", bad)
        assert done.returncode == 1
        assert "audit holds a" in done.stdout
