"""Damage is told with the files it hits; the audit chain shows every hand that was at it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import apsw
import pytest

import sqlimage
from tests.images import run_tool, sample_volume, tool
from tests.make.signing import by_hand


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("verify")
    sqlimage.capture(sample_volume(place / "v"), place / "i.sqlimage", preset="fast")
    tool("property", "set", place / "i.sqlimage", "a=1", "b=2")
    return place / "i.sqlimage"


def changed(image: Path, tmp_path: Path, *statements: str) -> Path:
    copy = tmp_path / "changed.sqlimage"
    shutil.copy(image, copy)
    by_hand(copy, *statements)
    return copy


def test_a_damaged_chunk_is_reported_with_the_files_it_hits_and_the_rest_stays_readable(
    image: Path, tmp_path: Path
) -> None:
    with sqlimage.open(str(image)) as opened:
        found = opened.database.row(
            "SELECT m.data FROM owner JOIN cluster_map AS m ON owner.start_cluster BETWEEN m.start_cluster "
            "AND m.end_cluster WHERE path LIKE '%/library.dll'"
        )
        assert found
    copy = changed(image, tmp_path, f"UPDATE data SET bytes = zeroblob(stored_bytes) WHERE id = {found[0]}")
    done = run_tool("verify", copy, "--json")
    assert done.returncode == 1
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["data"] == found[0]
    assert "1:/Windows/System32/library.dll" in problem["files"]
    with sqlimage.open(str(copy)) as opened:
        version = opened.version()
        with version.content("/Windows/System32/library.dll") as content, pytest.raises(sqlimage.DamagedError):
            content.read(0, content.size_bytes)
    assert run_tool("cat", copy, "/Windows/System32/library.dll").returncode == 5
    assert not run_tool("ls", copy).returncode


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE audit SET user = 'somebody else' WHERE id = 2", "row 2 was changed"),
        ("DELETE FROM audit WHERE id = 2", "row 2 is missing"),
        ("UPDATE audit SET detail = '{}' WHERE id = 1", "row 1 was changed"),
        ("DELETE FROM audit", "empty"),
        ("INSERT INTO audit SELECT 9, version, at, user, host, tool, action, path, clusters, bytes, detail, "
         "previous_hash, hash FROM audit WHERE id = 3", "row 9"),
    ],
)  # fmt: skip
def test_a_hand_on_the_audit_trail_shows(image: Path, tmp_path: Path, statement: str, says: str) -> None:
    done = run_tool("verify", changed(image, tmp_path, statement))
    assert done.returncode == 1
    assert says in done.stdout


def test_the_trail_cannot_be_changed_by_accident(image: Path, tmp_path: Path) -> None:
    copy = shutil.copy(image, tmp_path / "i.sqlimage")
    connection = apsw.Connection(str(copy))
    for statement in ("UPDATE audit SET user = 'x'", "DELETE FROM audit"):
        with pytest.raises(apsw.ConstraintError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_an_image_whose_parent_is_not_here_is_not_read_as_if_it_had_none(image: Path, tmp_path: Path) -> None:
    copy = changed(image, tmp_path, "UPDATE control SET parent_uuid = '00000000-0000-4000-8000-000000000000'")
    done = run_tool("restore", copy, tmp_path / "out")
    assert done.returncode == 3
    assert "parent" in done.stderr
