"""What ties files and versions together is not cut unseen: by a longer parent, a hidden ancestor, a child that cannot
be opened just now, a command beside another one, or a stranger's file."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

import sqlimage
from sqlimage.image.edits import begin, resume
from sqlimage.streams.newfile import NewImage
from tests.image.edits import check_whole, content_of
from tests.images import noise, run_tool, tool

KIB, MIB = 1 << 10, 1 << 20
FIRST = noise("first", 2 * MIB)
APART = noise("apart", 160 * KIB)
"""Content that a version brings and the next one hides."""
POPULAR = noise("popular", 160 * KIB)
"""Content that anybody may have."""


def captured(content: bytes, image: Path, **options: object) -> Path:
    sqlimage.capture(sqlimage.MemoryDevice(content), image, preset="fast", **options)  # type: ignore[arg-type]
    return image


def laid(content: bytes, part: bytes, place: int) -> bytes:
    return content[:place] + part + content[place + len(part) :]


def changed(image: Path, *statements: str) -> None:
    """Done by a hand that knows the format."""
    connection = apsw.Connection(str(image))
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_rebase_onto_a_longer_parent_leaves_the_medium_as_long_as_it_is(tmp_path: Path) -> None:
    image = captured(FIRST[:MIB], tmp_path / "p.sqlimage")
    captured(FIRST[: 525 * KIB + 100], image, append=True)
    captured(noise("long", MIB + 300 * KIB), image, append=True, parent_version="1")
    longer = FIRST[: 525 * KIB + 100] + bytes(300 * KIB)
    captured(longer, image, append=True, parent_version="2")
    sqlimage.rebase(image, image, version="2", onto_version="3")
    assert content_of(image, "2") == FIRST[: 525 * KIB + 100]
    assert content_of(image, "4") == longer
    check_whole(image)


def test_rebase_is_refused_where_a_child_file_has_something_from_a_hidden_ancestor(tmp_path: Path) -> None:
    image = captured(laid(FIRST, APART, 0), tmp_path / "p.sqlimage")
    captured(FIRST, image, append=True)
    captured(laid(FIRST, APART, MIB), image, append=True)
    child = captured(laid(FIRST, APART, 512 * KIB), tmp_path / "c.sqlimage", parent=image, parent_version="3")
    before = content_of(child)
    try:
        sqlimage.rebase(image, image, version="3", onto_version="2")
    except sqlimage.RefusedError as problem:
        assert "c.sqlimage refers to contents" in str(problem)
    assert content_of(child) == before
    assert content_of(image, "3") == laid(FIRST, APART, MIB)
    check_whole(child)


def test_a_grandchild_with_contents_of_a_child_file_does_not_stand_in_the_way(tmp_path: Path) -> None:
    parent = captured(FIRST, tmp_path / "p.sqlimage")
    other = captured(FIRST, tmp_path / "q.sqlimage")
    child = captured(laid(FIRST, APART, 0), tmp_path / "c.sqlimage", parent=parent)
    grandchild = captured(laid(FIRST, APART, MIB), tmp_path / "g.sqlimage", parent=child)
    sqlimage.rebase(child, other)
    parent.unlink()
    assert content_of(grandchild) == laid(FIRST, APART, MIB)
    check_whole(grandchild)


def test_merge_brings_what_only_a_file_between_holds(tmp_path: Path) -> None:
    image = captured(FIRST, tmp_path / "a.sqlimage")
    between = captured(laid(FIRST, APART, 0), tmp_path / "b.sqlimage", parent=image)
    captured(FIRST, between, append=True)
    sqlimage.merge(between, image)
    # The file that was merged is still there, and its contents are gone from the other one.
    shutil.move(between, tmp_path / "kept")
    sqlimage.squash(image, "2", "3")
    shutil.move(tmp_path / "kept", between)
    child = captured(laid(FIRST, APART, MIB), tmp_path / "c.sqlimage", parent=between)
    sqlimage.merge(child, image)
    between.unlink()
    child.unlink()
    assert content_of(image) == laid(FIRST, APART, MIB)
    check_whole(image)


def test_nothing_is_merged_beneath_an_edit_that_is_not_finished(tmp_path: Path) -> None:
    image = captured(FIRST, tmp_path / "p.sqlimage")
    edit = begin(str(image))
    edit.driver.write(0, b"A" * 4096)
    edit.driver.flush()
    edit.close()
    (tmp_path / "q").mkdir()
    copy = Path(shutil.copy(image, tmp_path / "q" / "q.sqlimage"))
    resume(str(copy)).commit()
    child = captured(laid(FIRST, APART, 0), tmp_path / "q" / "c.sqlimage", parent=copy)
    with pytest.raises(sqlimage.RefusedError, match="not finished"):
        sqlimage.merge(child, image, search=[str(copy.parent)])
    with sqlimage.open(str(image)) as opened:
        assert len(opened.versions()) == 2


def test_a_child_that_cannot_be_looked_at_just_now_counts_as_one(tmp_path: Path) -> None:
    image = captured(FIRST, tmp_path / "p.sqlimage")
    captured(laid(FIRST, APART, 0), image, append=True)
    child = captured(FIRST, tmp_path / "c.sqlimage", parent=image)
    (tmp_path / "c.sqlimage-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    (tmp_path / "no-image.sqlimage").write_bytes(b"somebody's own")
    done = run_tool("prune", image, "2")
    assert done.returncode == 4 and "may be a child" in done.stderr and "c.sqlimage" in done.stderr
    os.unlink(tmp_path / "c.sqlimage-journal")
    assert "c.sqlimage needs it" in run_tool("prune", image, "2").stderr
    child.unlink()
    tool("prune", image, "2")


@pytest.mark.parametrize("rearrange", [lambda p: sqlimage.prune(p, ["2"]), lambda p: sqlimage.squash(p, "1", "2")])
def test_a_parent_that_is_rearranged_while_a_child_is_made_leaves_no_orphan(
    tmp_path: Path, rearrange: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = captured(laid(FIRST, APART, 0), tmp_path / "p.sqlimage")
    captured(FIRST, image, append=True)
    make_indexes = NewImage.make_indexes

    def meanwhile(new: NewImage) -> None:
        rearrange(image)
        make_indexes(new)

    monkeypatch.setattr(NewImage, "make_indexes", meanwhile)
    with pytest.raises(sqlimage.RefusedError, match="rearranged"):
        captured(laid(FIRST, APART, MIB), tmp_path / "c.sqlimage", parent=image)
    assert [path.name for path in tmp_path.iterdir()] == ["p.sqlimage"]


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE control SET uuid = 'golden'",
        "UPDATE control SET label = '2'",
        f"INSERT INTO data VALUES (1000, x'{hashlib.sha256(POPULAR).hexdigest()}', 4096, 10, 1, NULL);"
        "INSERT INTO cluster_map VALUES (1, 500, 500, 1000, 0, 0)",
        "UPDATE cluster_map SET end_cluster = 1000000",
        "UPDATE cluster_map SET data_offset = 1000000000",
        "UPDATE audit SET user = 'nobody'",
    ],
)
def test_a_child_that_would_do_harm_is_not_merged(tmp_path: Path, harm: str) -> None:
    image = captured(FIRST, tmp_path / "p.sqlimage", label="golden")
    child = captured(laid(FIRST, APART, 0), tmp_path / "c.sqlimage", parent=image)
    connection = apsw.Connection(str(child))
    drop = [
        f"DROP TRIGGER {name}" for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='trigger'")
    ]
    made = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'")]
    for statement in (*drop, harm, *made):
        connection.execute(statement)
    connection.close()
    with pytest.raises(sqlimage.SqlimageError):
        sqlimage.merge(child, image)
    check_whole(image)
    with sqlimage.open(str(image)) as opened:
        assert [version.control.label for version in opened.versions()] == ["golden"]
    captured(laid(FIRST, POPULAR, MIB), image, append=True)
    assert content_of(image) == laid(FIRST, POPULAR, MIB)


def test_a_capture_does_not_rely_on_what_is_damaged_in_the_parent(tmp_path: Path) -> None:
    image = captured(FIRST, tmp_path / "p.sqlimage")
    captured(laid(FIRST, APART, 0), image, append=True)
    captured(FIRST, image, append=True)
    rotten = hashlib.sha256(APART).hexdigest()
    changed(image, f"UPDATE data SET bytes = zeroblob(length(bytes)) WHERE digest = x'{rotten}'")
    child = captured(laid(FIRST, APART, MIB), tmp_path / "c.sqlimage", parent=image)
    assert content_of(child) == laid(FIRST, APART, MIB)


def test_records_and_media_beyond_all_bounds_end_soon(tmp_path: Path) -> None:
    image = captured(FIRST, tmp_path / "p.sqlimage")
    captured(laid(FIRST, APART, 0), image, append=True)
    huge = Path(shutil.copy(image, tmp_path / "h.sqlimage"))
    changed(
        huge,
        "UPDATE control SET medium_bytes = 1 << 61",
        "INSERT INTO cluster_map VALUES (2, 5000, (1 << 60) / 4096, NULL, 0, 0)",
    )
    for arguments in (
        ("diff", f"{huge}@1", f"{huge}@2", "--clusters"),
        ("flatten", huge, tmp_path / "f.sqlimage"),
        ("compact", huge),
    ):
        assert run_tool(*arguments).returncode in (0, 4, 5), arguments
    changed(image, "UPDATE data SET length = 2147483648")
    (tmp_path / "source").write_bytes(FIRST)
    done = run_tool("capture", tmp_path / "source", tmp_path / "c.sqlimage", "--parent", image)
    assert done.returncode == 5 and "length" in done.stderr


def test_a_version_of_a_medium_without_a_byte_is_one_like_others(tmp_path: Path) -> None:
    image = captured(FIRST, tmp_path / "p.sqlimage")
    captured(b"", image, append=True)
    child = captured(FIRST[:MIB], tmp_path / "c.sqlimage", parent=image)
    assert (content_of(image), content_of(child)) == (b"", FIRST[:MIB])
    tool("flatten", image, tmp_path / "flat.sqlimage")
    assert content_of(tmp_path / "flat.sqlimage") == b""


def test_a_reader_beside_many_rearrangements_holds_no_more_files_than_before(tmp_path: Path) -> None:
    image = captured(FIRST, tmp_path / "p.sqlimage")
    with sqlimage.open(str(image)) as opened:
        driver = opened.driver()
        for turn in range(30):
            changed(image, "INSERT INTO format VALUES ('rearranged', 1) ON CONFLICT DO UPDATE SET value = value + 1")
            assert driver.read(turn * 64 * KIB, 4096) == FIRST[turn * 64 * KIB :][:4096]
            if turn == 4:
                early = len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) <= early + 25
        driver.close()


def test_squash_goes_on_hiding_what_a_version_hid_under_a_path_that_is_used_again(tmp_path: Path) -> None:
    """As a file system does that uses names and records again: /x was record 400, and is record 402 now."""
    image = captured(FIRST, tmp_path / "p.sqlimage")
    captured(laid(FIRST, APART, 0), image, append=True)
    captured(laid(FIRST, APART, MIB), image, append=True)
    row = "INSERT INTO file VALUES ({}, 0, '/x', {}, NULL, NULL, {}, '', 0, NULL, {})"
    changed(
        image,
        row.format(1, "'file'", 400, 0),
        "INSERT INTO extent VALUES (1, 0, 400, '', 0, 57, 40)",
        row.format(2, "NULL", 400, 1),
        row.format(3, "'file'", 402, 0),
        "INSERT INTO extent VALUES (3, 0, 402, '', 0, 69, 20)",
    )
    sqlimage.squash(image, "2", "3")
    with sqlimage.open(str(image)) as opened:
        ask = "SELECT record, start_cluster FROM effective_extent WHERE version = 3"
        assert opened.database.rows(ask) == [(402, 69)]
        names = "SELECT path, record FROM effective_file WHERE version = 3"
        assert opened.database.rows(names) == [("/x", 402)]
