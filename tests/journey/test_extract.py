"""Nothing is written outside the destination, whatever the names in an image are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sqlimage
from sqlimage.journey.extract import safe_name
from tests.images import sample_volume


@given(st.text(max_size=400))
def test_a_safe_name_is_one_component_that_a_directory_takes(name: str) -> None:
    safe = safe_name(name)
    encoded = os.fsencode(safe)
    assert safe not in ("", ".", "..")
    assert b"/" not in encoded
    assert b"\0" not in encoded
    assert len(encoded) <= 255


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("extract")
    sqlimage.capture(sample_volume(place / "v"), place / "i.sqlimage")
    return place / "i.sqlimage"


def with_paths(image: Path, target: Path, *renames: tuple[str, str]) -> Path:
    """A copy whose file table was forged: paths renamed to what no file system would hold."""
    shutil.copy(image, target)
    connection = apsw.Connection(str(target))
    for old, new in renames:
        connection.execute("UPDATE file SET path = ? WHERE path = ?", [new, old])
    connection.close()
    return target


@pytest.mark.parametrize(
    "path",
    ["/../../escaped", "/Users/../../escaped", "/Users/joe/../../../escaped", "//etc/escaped", "/..", "/Users/..",
     "/Users/.", "/Users/joe/" + "n" * 5000, "/Users/a\0b", "/Users//escaped", "escaped", "/Users/joe/a\\..\\b"],
)  # fmt: skip
def test_a_forged_path_stays_below_the_destination(image: Path, tmp_path: Path, path: str) -> None:
    place = tmp_path / "in" / "here"
    place.mkdir(parents=True)
    forged = with_paths(image, tmp_path / "forged.sqlimage", ("/Windows/System32/driver.bin", path))
    with sqlimage.open(str(forged)) as opened:
        sqlimage.extract(opened.version(), "/", place / "out")
    outside = [p for p in tmp_path.rglob("*") if "escaped" in p.name and (place / "out") not in p.parents]
    assert outside == []
    assert sorted(os.listdir(tmp_path)) == ["forged.sqlimage", "in"]
    assert os.listdir(place) == ["out"]
    assert not any(p.is_symlink() for p in place.rglob("*"))


def test_names_that_would_be_one_become_two(image: Path, tmp_path: Path) -> None:
    forged = with_paths(
        image,
        tmp_path / "forged.sqlimage",
        ("/Users/joe/Documents/chapter 01.txt", "/Users/joe/Documents/x" + "y" * 400),
        ("/Users/joe/Documents/chapter 02.txt", "/Users/joe/Documents/x" + "y" * 401),
    )
    with sqlimage.open(str(forged)) as opened:
        report = sqlimage.extract(opened.version(), "/Users/joe/Documents", tmp_path / "out")
    assert len(os.listdir(tmp_path / "out")) == report.files
    assert len(report.renamed) == 2


def test_a_link_beside_the_destination_is_not_followed(image: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with sqlimage.open(str(image)) as opened, pytest.raises(sqlimage.RefusedError, match="exists already"):
        sqlimage.extract(opened.version(), "/", tmp_path / "out")
    assert os.listdir(tmp_path / "elsewhere") == []
