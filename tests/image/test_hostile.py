"""Images that lie: types STRICT does not hold, ranges, circles, values no text is. One clear line, never harm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sqlimage
from tests.image.strangers import lax
from tests.images import run_tool, sample_volume
from tests.make.cost import PATIENCE


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    sqlimage.capture(sample_volume(place / "v"), place / "i.sqlimage", preset="fast")
    return place / "i.sqlimage"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE control SET medium_bytes = 'x'",
        "UPDATE control SET medium_bytes = 1 << 62",
        "UPDATE control SET source = CAST(x'ff' AS TEXT)",
        "UPDATE control SET label = x'00'",
        "UPDATE volume SET number = '/tmp/outside'",
        "UPDATE volume SET offset_clusters = -5",
        "UPDATE bitmap SET end_cluster = 9223372036854775807",
        "UPDATE cluster_map SET data = -data",
        "UPDATE cluster_map SET data = 'x'",
        "UPDATE cluster_map SET data_offset = -8192",
        "UPDATE cluster_map SET end_cluster = 9000000000000000000",
        "UPDATE data SET id = -id",
        "UPDATE data SET length = 'x'",
        "UPDATE data SET bytes = 'text'",
        "UPDATE data SET bytes = NULL",
        "UPDATE file SET record = 'x' WHERE path = '/Users'",
        "UPDATE file SET path = CAST(x'2fff' AS TEXT) WHERE path = '/Users'",
        "UPDATE audit SET user = CAST(x'ff' AS TEXT)",
        "UPDATE control SET parent_uuid = uuid",
        "INSERT INTO cluster_map VALUES (1, 6, 6, NULL, 0, 0)",
    ],
)
def test_a_value_of_the_wrong_kind_is_told_by_every_command_and_harms_nothing(
    image: Path, tmp_path: Path, statement: str
) -> None:
    bad = lax(image, tmp_path / "bad.sqlimage", statement)
    place = tmp_path / "work"
    place.mkdir()
    commands = (
        ("info", bad), ("ls", bad, "-r"), ("verify", bad), ("audit", bad), ("find", tmp_path, "--where", "1"),
        ("restore", bad, place / "out"), ("get", bad, "/", place / "tree"),
    )  # fmt: skip
    codes = []
    for command in commands:
        done = run_tool(*command)
        assert done.returncode in (0, 1, 2, 3, 4, 5), (command, done.returncode, done.stderr)
        codes.append(done.returncode)
    assert any(code in (1, 5) for code in codes), "nobody noticed"
    assert set(os.listdir(place)) <= {"out", "tree"}
    assert not Path("/tmp/outside").exists()


def test_restored_bytes_are_right_or_the_restore_is_refused(image: Path, tmp_path: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        sqlimage.restore(opened.version(), tmp_path / "right")
    for n, statement in enumerate(
        (
            "UPDATE data SET id = -id; UPDATE cluster_map SET data = -data",
            "UPDATE cluster_map SET data_offset = -8192 WHERE start_cluster > 100",
            "INSERT INTO cluster_map SELECT 1, start_cluster + 1, start_cluster + 1, NULL, 0, 0 FROM cluster_map "
            "WHERE end_cluster > start_cluster + 3 LIMIT 1",
        )
    ):
        bad = lax(image, tmp_path / f"{n}.sqlimage", statement)
        done = run_tool("restore", bad, tmp_path / f"{n}.out")
        assert done.returncode == 5, statement
        with sqlimage.open(str(bad)) as opened, pytest.raises(sqlimage.FormatError):
            opened.driver().read(0, 8 << 20)


def test_versions_in_a_circle_or_without_end_are_refused_at_once(image: Path, tmp_path: Path) -> None:
    circle = lax(
        image,
        tmp_path / "circle.sqlimage",
        "WITH RECURSIVE n(x) AS (SELECT 2 UNION ALL SELECT x + 1 FROM n WHERE x < 20000) "
        "INSERT INTO control SELECT x, 'u' || x, 'u' || x, NULL, NULL, 'sealed', created_at, medium_bytes, "
        "bytes_per_cluster, bytes_per_sector, 1, 1, 1, NULL, NULL, 4096, 'zstd', 'none', 0, NULL FROM n, control",
    )
    begin = time.monotonic()
    assert run_tool("info", circle).returncode == 5
    assert time.monotonic() - begin < 10 * PATIENCE


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has begun to wait for a signal, which would end it before."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


def test_a_query_without_end_can_be_interrupted(image: Path) -> None:
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    tool = Path(sys.executable).with_name("sqlimage")
    process = subprocess.Popen([tool, "sql", image, endless], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 6 * PATIENCE
    while not catches(process.pid, signal.SIGTERM) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(1)
    process.terminate()
    _, errors = process.communicate(timeout=6 * PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_what_is_no_regular_file_is_neither_read_nor_replaced(image: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "f.sqlimage"
    os.mkfifo(fifo)
    assert run_tool("info", fifo).returncode == 5
    assert "passed over" in run_tool("find", tmp_path, "--where", "1").stderr
    assert run_tool("restore", image, fifo, "--force").returncode == 4
    assert fifo.is_fifo()
    assert run_tool("restore", image, "/dev/null", "--force").returncode == 4
    assert Path("/dev/null").is_char_device()


def test_names_that_are_not_unicode_are_taken_as_they_are(image: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.sqlimage"))
    shutil.copy(image, odd)
    assert run_tool("info", odd).returncode == 0
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff.img"))
    source.write_bytes(b"raw" * 1000)
    assert run_tool("capture", source, tmp_path / "new.sqlimage").returncode == 0


def test_a_forged_file_digest_is_found_when_files_are_verified(image: Path, tmp_path: Path) -> None:
    bad = lax(image, tmp_path / "bad.sqlimage", "UPDATE file SET digest = zeroblob(32) WHERE path LIKE '%/driver.bin'")
    assert run_tool("verify", image, "--files").returncode == 0
    done = run_tool("verify", bad, "--files")
    assert done.returncode == 1
    assert "driver.bin" in done.stdout
