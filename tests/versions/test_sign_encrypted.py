"""Signatures of images that are encrypted: whoever has the key proves them as any other, and who has not learns nothing
but that there are signatures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.streams import signature
from sqlimage.streams.database import Database
from tests.images import noise, run_tool, sample_volume
from tests.make import encrypted
from tests.make.encrypted import is_shown, with_key, without_keys
from tests.make.signing import KEY, by_hand, checked, problems


@pytest.fixture(autouse=True)
def the_key_is_known() -> Iterator[None]:
    with_key()
    yield
    without_keys()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """golden (1) <- second (2) in base, and a child file of the second; all signed."""
    place = tmp_path_factory.mktemp("encrypted") / "family"
    place.mkdir()
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    values: dict[str, str | int | float | bytes | None] = {"site": "canary"}
    volume = sample_volume(place.parent / "v")
    sqlimage.capture(
        volume, base, encrypt_all=True, ways=[encrypted.KEY], label="golden", property_values=values, preset="fast"
    )
    edit(base, "second")
    edit(base, "child", into=child)
    for image in (base, child):
        sqlimage.sign(image, KEY, every=True, user="canary", message="canary")
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "family"))


def edit(image: Path, label: str, *, into: Path | None = None) -> None:
    with sqlimage.open(str(image), writable=True) as opened, opened.edit(label=label, into=into) as edit:
        edit.driver.write(7 << 20, noise(label, 50_000))


def test_whoever_has_the_key_proves_them_and_who_has_not_is_told_so(place: Path) -> None:
    for name, count in (("base", 2), ("child", 1)):
        report = checked(place / f"{name}.sqlimage")
        assert (report.problems, len(report.signatures)) == ((), count)
    without_keys()
    done = run_tool("verify", place / "base.sqlimage", "--trust", KEY.public.hex())
    assert (done.returncode, done.stderr.count("\n")) == (7, 1)
    with pytest.raises(sqlimage.LockedError):
        sqlimage.sign(place / "base.sqlimage", KEY)


def test_what_a_signature_tells_openly_cannot_be_made_without_the_key(place: Path, tmp_path: Path) -> None:
    """Not a digest of what is sealed, nor of one row of it, is in the file: nobody can try out what it may be."""
    base = place / "base.sqlimage"
    with Database.open(base) as database:
        uuid = database.rows("SELECT uuid FROM control ORDER BY version")[0][0]
        (row,) = signature.of(database, uuid)
        hashes = [one[0] for one in database.rows("SELECT hash FROM audit")]
    plain = tmp_path / "plain.sqlimage"
    sqlimage.capture(sample_volume(tmp_path / "v"), plain, preset="fast", label="golden")
    sqlimage.sign(plain, KEY)
    with Database.open(plain) as database:
        (other,) = signature.of(database, database.rows("SELECT uuid FROM control")[0][0])
    both = [sqlimage_digests(statement) for statement in (row.statement, other.statement)]
    assert not both[0] & both[1]  # though label, files, bitmap and extents are the same
    assert is_shown(base, "canary", *hashes) == []


def sqlimage_digests(statement: bytes) -> set[str]:
    return {word for word in statement.decode().split('"') if len(word) == 64}


def test_what_a_hand_or_a_command_changes_is_found_as_in_any_image(place: Path) -> None:
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    with sqlimage.open(str(base), writable=True) as opened:
        opened.version("golden").set_property("site", "elsewhere")
    found = problems(base)
    assert found[0].startswith("version 1: the property table differs") and "version 2: its parent" in found[1]
    assert "the property table of" in problems(child)[0]
    sqlimage.sign(base, KEY, every=True)
    assert problems(base) == []
    by_hand(base, "UPDATE signature SET signature = zeroblob(64)")
    assert all("does not match what it states" in what for what in problems(base))


def test_a_merged_version_keeps_its_signature(place: Path) -> None:
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    sqlimage.merge(child, base)
    child.unlink()
    report = checked(base)
    assert (report.problems, len(report.signatures), len(report.notes)) == ((), 3, 1)
    edit(base, "fourth")
    sqlimage.prune(base, ["fourth"])
    assert problems(base) == []


def test_files_that_are_encrypted_one_by_one_are_signed_as_they_lie(tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    sqlimage.capture(sample_volume(tmp_path / "v"), image, preset="fast", encrypt=["*.txt"], ways=[encrypted.KEY])
    sqlimage.sign(image, KEY)
    without_keys()
    assert problems(image) == []  # nothing of what is signed is read by a key
