"""Who may write, what others see meanwhile, and what is left of an edit that ends in any of its ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sqlimage
from sqlimage.errors import RefusedError
from sqlimage.image.edits import begin, resume
from tests.conftest import CHECKOUT
from tests.image.edits import SIZE, captured, check_whole, content_of, medium
from tests.images import noise

UNIT = 4096

_TRY = """
import sys, sqlimage
from sqlimage.image.edits import begin
try:
    begin(sys.argv[1])
except sqlimage.RefusedError as problem:
    print(problem)
"""
_READ = """
import sys, sqlimage
image = sqlimage.open(sys.argv[1])
for line in sys.stdin:
    with sqlimage.open(sys.argv[1]) as fresh:
        drivers = [image.driver(), fresh.driver()]
        assert all(len(opened.audit()) > 0 for opened in (image, fresh))
        contents = {driver.read(0, driver.size_bytes) for driver in drivers}
        for driver in drivers:
            driver.close()
    print(*(content == open(sys.argv[2], "rb").read() for content in contents), flush=True)
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return captured(tmp_path / "i.sqlimage", medium(UNIT), UNIT)


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)


def test_a_second_writer_is_refused_and_told_who_the_first_is(image: Path) -> None:
    with begin(str(image)) as edit:
        edit.driver.write(0, b"first")
        for open_again in (begin, resume):
            with pytest.raises(sqlimage.RefusedError, match=f"process {os.getpid()}, editing"):
                open_again(str(image))
        said, _ = process(_TRY, image).communicate(timeout=60)
        assert f"process {os.getpid()}, editing" in said
        edit.driver.flush()
    with begin(str(image)) as edit:
        assert edit.driver.read(0, 5) == b"first"
        edit.driver.write(0, b"then!")


def test_a_refused_writer_leaves_the_first_ones_lock_in_place(image: Path) -> None:
    with begin(str(image)) as edit:
        for _ in range(3):
            with pytest.raises(sqlimage.RefusedError):
                begin(str(image))
        edit.driver.write(0, b"x")
    assert sorted(path.name for path in image.parent.iterdir()) == [image.name]


def test_an_image_behind_a_symbolic_link_is_the_same_image(image: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.sqlimage"
    link.symlink_to(image)
    assert content_of(link) == medium(UNIT)
    with begin(str(image)) as edit:
        with pytest.raises(sqlimage.RefusedError):
            begin(str(link))
        edit.driver.write(0, b"x")


def test_a_lock_file_left_by_a_process_that_is_gone_stops_nobody(image: Path) -> None:
    image.with_name(image.name + "-edit").write_text('{"sqlimage-writer": 1, "pid": 1}')
    with begin(str(image)) as edit:
        edit.driver.write(0, b"x")
    assert not image.with_name(image.name + "-edit").exists()


@pytest.mark.timeout(20)
def test_what_only_looks_like_a_lock_is_neither_written_nor_removed_nor_waited_for(image: Path, tmp_path: Path) -> None:
    mine = image.with_name(image.name + "-edit")
    mine.write_text("notes of somebody")
    with pytest.raises(RefusedError, match="in the way"):
        begin(str(image))
    assert mine.read_text() == "notes of somebody"
    mine.unlink()
    os.mkfifo(mine)
    with sqlimage.open(str(image)) as opened:
        assert opened.unfinished() == []
    with pytest.raises(RefusedError, match="in the way"):
        begin(str(image))
    mine.unlink()
    with pytest.raises(sqlimage.UsageError, match="another name"):
        begin(str(image), into=tmp_path / "x.sqlimage-wal")


def test_once_an_edit_ends_nobody_writes_into_it(image: Path) -> None:
    edit = begin(str(image))
    edit.driver.write(0, b"before")
    driver = edit.driver
    edit.commit()
    with pytest.raises(RefusedError, match="has ended"):
        driver.write(0, b"after")
    with pytest.raises(RefusedError, match="has ended"):
        driver.zero(0, 4096)
    driver.flush()
    with sqlimage.open(str(image)) as opened:
        reader = opened.driver()
        assert reader.read(0, 6) == b"before"
        reader.close()


def test_an_edit_that_cannot_begin_leaves_nothing_behind(image: Path, tmp_path: Path) -> None:
    child = tmp_path / "elsewhere" / "child.sqlimage"
    child.parent.mkdir()
    begin(str(image), into=child).close()
    before = sorted(os.listdir(child.parent))
    with pytest.raises(sqlimage.NotFoundError, match="needs its parent"):
        sqlimage.open(str(child), writable=True).resume()
    assert sorted(os.listdir(child.parent)) == before


def test_readers_in_other_processes_go_on_reading_their_sealed_version(image: Path, tmp_path: Path) -> None:
    (tmp_path / "expected").write_bytes(medium(UNIT))
    reader = process(_READ, image, tmp_path / "expected")
    assert reader.stdin is not None
    assert reader.stdout is not None
    edit = begin(str(image))
    try:
        for turn in range(8):
            edit.driver.write(turn * 9000, noise(turn, 30_000))
            edit.driver.flush()
            reader.stdin.write("go\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "True\n", turn
        edit.commit()
    finally:
        reader.stdin.close()
        reader.wait(timeout=30)
    assert content_of(image, "1") == medium(UNIT)
    assert content_of(image) != medium(UNIT)
    check_whole(image)


def test_the_latest_version_is_the_newest_that_is_sealed(image: Path) -> None:
    with begin(str(image), label="second") as edit:
        edit.driver.write(0, b"2")
    edit = begin(str(image), label="third")
    edit.driver.write(0, b"3")
    edit.driver.flush()
    with sqlimage.open(str(image)) as opened:
        for wanted in (None, "latest", "2", "second"):
            assert opened.version(wanted).number == 2
        assert [opened.version(wanted).control.state for wanted in ("3", "third")] == ["open", "open"]
    edit.close()
    with pytest.raises(sqlimage.RefusedError, match="not finished"):
        begin(str(image), "third")
    with begin(str(image)) as fourth:
        assert fourth.number == 4
        assert fourth.control.parent_uuid != edit.control.uuid
        fourth.driver.write(0, b"4")
    third = resume(str(image))
    assert third.driver.read(0, 1) == b"3"
    third.commit()
    assert [content_of(image, str(n))[:1] for n in (2, 3, 4)] == [b"2", b"3", b"4"]


def test_which_edit_is_meant_must_be_said_where_there_are_several(image: Path) -> None:
    with pytest.raises(sqlimage.NotFoundError, match="no unfinished edit"):
        resume(str(image))
    for _ in range(2):
        edit = begin(str(image))
        edit.driver.write(0, noise(edit.number, 5000))
        edit.driver.flush()
        edit.close()
    with pytest.raises(sqlimage.UsageError, match="2, 3"):
        resume(str(image))
    with pytest.raises(sqlimage.UsageError, match="sealed"):
        resume(str(image), "1")
    resume(str(image), "2").discard()
    assert resume(str(image)).commit().version == 3
    check_whole(image)


def test_a_discarded_edit_gives_its_space_back_and_stays_in_the_audit_trail(image: Path) -> None:
    size = image.stat().st_size
    edit = begin(str(image), user="joe", message="never mind")
    edit.driver.write(0, noise("discarded", 280_000))
    edit.driver.flush()
    edit.discard()
    assert [(row.action, row.version, row.user) for row in _audit(image)[-2:]] == [
        ("edit-begin", 2, "joe"),
        ("edit-discard", 2, "joe"),
    ]
    assert content_of(image) == medium(UNIT)
    check_whole(image)
    assert image.stat().st_size <= size + 4 * 4096
    with begin(str(image)) as again:
        assert again.number == 3, "a number is not given twice"
        again.driver.write(0, b"x")


def test_an_edit_is_discarded_in_the_middle_of_a_write_back(image: Path) -> None:
    for turn in range(10):
        edit = begin(str(image), write_back_bytes=200_000)
        for at in range(0, 160_000, 20_000):
            edit.driver.write(at, noise((turn, at), 20_000))
        edit.discard()
    assert content_of(image) == medium(UNIT)
    check_whole(image)


def test_a_block_that_raises_discards_its_edit(image: Path) -> None:
    with pytest.raises(KeyError), begin(str(image)) as edit:
        edit.driver.write(0, b"x" * 10_000)
        edit.driver.flush()
        raise KeyError
    with sqlimage.open(str(image)) as opened:
        assert len(opened.versions()) == 1
    assert _audit(image)[-1].action == "edit-discard"
    check_whole(image)


def test_a_commit_without_a_write_makes_no_version(image: Path) -> None:
    with begin(str(image)) as edit:
        edit.driver.read(0, SIZE)
    with sqlimage.open(str(image)) as opened:
        assert len(opened.versions()) == 1
    assert json.loads(_audit(image)[-1].detail)["why"] == "nothing was written"
    assert begin(str(image)).commit().version is None
    check_whole(image)


@pytest.mark.parametrize("end", ["commit", "discard"])
def test_a_child_into_which_nothing_was_written_is_not_left_behind(image: Path, tmp_path: Path, end: str) -> None:
    edit = begin(str(image), into=tmp_path / "child.sqlimage")
    assert getattr(edit, end)() is None or end == "commit"
    assert not (tmp_path / "child.sqlimage").exists()


def test_a_child_never_overwrites_a_file(image: Path, tmp_path: Path) -> None:
    (tmp_path / "child.sqlimage").write_bytes(b"precious")
    with pytest.raises(sqlimage.SqlimageError, match="exists"):
        begin(str(image), into=tmp_path / "child.sqlimage")
    assert (tmp_path / "child.sqlimage").read_bytes() == b"precious"


@pytest.mark.parametrize("into", [False, True])
def test_content_that_is_there_already_is_not_stored_again(image: Path, tmp_path: Path, into: bool) -> None:
    again, new = noise("again", UNIT), noise("new", UNIT)
    with begin(str(image)) as edit:
        edit.driver.write(0, again)
    target = tmp_path / "child.sqlimage" if into else image
    edit = begin(str(image), into=target if into else None)
    for cluster in (5, 9, 13):
        edit.driver.write(cluster * UNIT, again)
    edit.driver.write(17 * UNIT, new)
    edit.driver.zero(21 * UNIT, 3 * UNIT)
    report = edit.commit()
    assert report.written_bytes == 7 * UNIT
    assert UNIT // 2 < report.stored_bytes <= UNIT
    with sqlimage.open(str(target)) as opened:
        driver = opened.driver()
        assert [driver.read(n * UNIT, UNIT) for n in (5, 9, 13, 17)] == [again, again, again, new]
        driver.close()
        here = opened.database.rows("SELECT count(*) FROM data WHERE bytes IS NOT NULL AND length = ?", [UNIT])
        assert here == [(1 if into else 2,)]
    check_whole(target)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_child_relies_on_its_ancestors_only_not_on_what_else_is_in_their_file(
    image: Path, tmp_path: Path, is_sealed: bool
) -> None:
    """An edit in the parent's file may be discarded, a sibling pruned: nobody there knows of the child."""
    mine = noise("mine", UNIT)
    sibling = begin(str(image), "1")
    sibling.driver.write(0, mine)
    sibling.driver.flush()
    if is_sealed:
        sibling.commit()
    with begin(str(image), "1", into=tmp_path / "child.sqlimage") as edit:
        edit.driver.write(5 * UNIT, mine)
    with sqlimage.open(str(tmp_path / "child.sqlimage")) as child:
        assert child.database.rows("SELECT id FROM data WHERE bytes IS NULL") == []
    if not is_sealed:
        sibling.discard()
    assert content_of(tmp_path / "child.sqlimage")[5 * UNIT : 6 * UNIT] == mine


def test_content_that_was_overwritten_before_the_commit_is_not_kept_also_over_a_resumption(image: Path) -> None:
    edit = begin(str(image))
    for turn in range(4):
        edit.driver.write(0, noise(turn, 100_000))
        edit.driver.flush()
        if turn % 2:
            edit.close()
            edit = resume(str(image))
    edit.commit()
    check_whole(image)
    assert content_of(image)[:100_000] == noise(3, 100_000)


def test_an_edit_in_an_image_that_is_open_ends_with_the_log_gone(image: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        assert len(opened.versions()) == 1
        with opened.edit(user="joe") as edit:
            edit.driver.write(0, b"through the image")
        assert sorted(path.name for path in image.parent.iterdir()) == [image.name]
        assert opened.version().number == 2
        driver = opened.driver()
        assert driver.read(0, 17) == b"through the image"
        driver.close()


def test_threads_that_write_parts_of_one_cluster_do_not_lose_each_others(image: Path) -> None:
    with begin(str(image), write_back_bytes=32 * UNIT) as edit:

        def fill(part: int) -> None:
            for cluster in range(40):
                edit.driver.write(cluster * UNIT + part * 512, bytes([part + 1]) * 512)

        threads = [threading.Thread(target=fill, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert edit.driver.read(0, 40 * UNIT) == b"".join(bytes([part + 1]) * 512 for part in range(8)) * 40


def _audit(image: Path) -> list[sqlimage.AuditRow]:
    with sqlimage.open(str(image)) as opened:
        return opened.audit()
