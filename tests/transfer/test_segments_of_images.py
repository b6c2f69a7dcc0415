"""An image in segments: of equal length, in the order of reading, the same each time; and put together again."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import sqlimage
from sqlimage.errors import DamagedError, FormatError, NotFoundError, RefusedError, SqlimageError, UsageError
from sqlimage.streams.database import Database
from sqlimage.transfer import columns, rows
from sqlimage.transfer.arrive import First, Incoming, make_image
from sqlimage.transfer.contents import unpack_contents
from sqlimage.transfer.cut import cut, cut_first, digests
from sqlimage.transfer.pipe import receive, send
from sqlimage.transfer.plan import chosen, make_plan
from sqlimage.transfer.segment import HEADER_BYTES, read_header
from sqlimage.units import KIB, MIB
from tests.images import kept_bytes, noise, run_tool, sample_volume, tool
from tests.make import travelling
from tests.make.travelling import SEGMENT_BYTES, rows_of, segments_of
from tests.transfer.made import check_one_line


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return travelling.image(tmp_path_factory.mktemp("travelling"), label="golden")


@pytest.fixture(scope="module")
def segments(image: Path) -> list[bytes]:
    return segments_of(image)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Segments of another image of the same volume."""
    return segments_of(travelling.image(tmp_path_factory.mktemp("others")))


def joined(segments: list[bytes], target: Path) -> Path:
    receive(io.BytesIO(b"".join(segments)), str(target))
    return target


def test_segments_are_of_the_chosen_length_and_each_says_which_it_is(segments: list[bytes], image: Path) -> None:
    assert len(segments) > 10
    assert {len(segment) for segment in segments[:-1]} == {SEGMENT_BYTES}
    assert HEADER_BYTES < len(segments[-1]) <= SEGMENT_BYTES
    uuid = sqlimage.open(str(image)).version().control.uuid
    for number, segment in enumerate(segments, 1):
        header = read_header("x", segment)
        assert (header.image, header.number, header.count) == (uuid, number, len(segments))
        assert (header.segment_bytes, header.length_bytes) == (SEGMENT_BYTES, len(segment))


def test_cutting_the_same_image_again_gives_the_same_bytes(segments: list[bytes], image: Path) -> None:
    assert segments_of(image) == segments


def test_the_first_tells_everything_but_the_rest_of_the_data(
    segments: list[bytes], tmp_path: Path, image: Path
) -> None:
    target = tmp_path / "head.sqlimage"
    first = First.from_segment("x", segments[0])
    make_image(str(target), first)
    expected, found = rows_of(image), rows_of(target)
    assert [row[:-1] for row in found.pop("data")] == [row[:-1] for row in expected.pop("data")]
    assert found == expected
    assert tool("ls", target, "/a") == tool("ls", image, "/a")
    with sqlimage.open(str(target)) as opened:
        states = opened.database.rows("SELECT number, bytes, hex(digest), state FROM segment ORDER BY number")
    assert [row[:2] + row[3:] for row in states] == [(n, len(s), "missing") for n, s in enumerate(segments, 1)]
    assert [row[2].lower() for row in states] == [hashlib.sha256(segment).hexdigest() for segment in segments]


def test_what_belongs_to_no_file_comes_first_and_files_by_their_place(segments: list[bytes], image: Path) -> None:
    header = read_header("x", segments[0])
    order = unpack_contents(
        "x", segments[0][header.contents.offset_bytes : header.contents.end_bytes], header.streams.length_bytes
    ).data.tolist()
    with sqlimage.open(str(image)) as opened:
        place: dict[int, int] = dict(
            opened.database.rows("SELECT data, min(start_cluster) FROM cluster_map GROUP BY data")
        )
        of_files = {
            row[0]
            for row in opened.database.rows(
                "SELECT DISTINCT data FROM cluster_map JOIN owner ON owner.start_cluster <= cluster_map.start_cluster "
                "AND owner.end_cluster >= cluster_map.start_cluster JOIN file USING (path) WHERE kind = 'file'"
            )
        }
    kinds = [(data in of_files and place[data] > 0, place[data]) for data in order]
    assert all(before <= after for before, after in pairwise(kinds))
    assert kinds[0] == (False, 0)


def test_put_together_it_is_the_image_row_for_row(segments: list[bytes], image: Path, tmp_path: Path) -> None:
    target = joined(segments, tmp_path / "whole.sqlimage")
    assert rows_of(target) == rows_of(image)
    tool("verify", target, "--files")
    with sqlimage.open(str(target)) as opened:
        assert opened.database.rows("SELECT DISTINCT state FROM segment") == [("here",)]
        assert opened.database.rows("SELECT * FROM place") == []


@pytest.mark.parametrize("seed", range(4))
def test_after_the_first_the_order_and_repetitions_do_not_matter(
    segments: list[bytes], image: Path, tmp_path: Path, seed: int
) -> None:
    rest = segments[1:] + random.Random(seed).sample(segments, 3)
    random.Random(seed).shuffle(rest)
    target = joined([segments[0], *rest], tmp_path / "whole.sqlimage")
    assert rows_of(target) == rows_of(image)


def test_what_was_dropped_is_known_by_number_and_comes_later(
    segments: list[bytes], image: Path, tmp_path: Path
) -> None:
    target = tmp_path / "part.sqlimage"
    report = receive(io.BytesIO(b"".join(s for n, s in enumerate(segments, 1) if n not in (3, 7))), str(target))
    assert report.missing == (3, 7)
    assert "2 of its" in tool("verify", target, code=1)
    report = receive(io.BytesIO(segments[6] + segments[2]), str(target))
    assert (report.missing, report.received_segments) == ((), 2)
    assert rows_of(target) == rows_of(image)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_segment_of_another_image_is_refused_and_not_used(
    segments: list[bytes], others: list[bytes], tmp_path: Path, number: int
) -> None:
    target = tmp_path / "part.sqlimage"
    receive(io.BytesIO(b"".join(segments[:4])), str(target))
    before = rows_of(target)
    with pytest.raises((FormatError, RefusedError)):
        receive(io.BytesIO(others[number - 1]), str(target))
    assert rows_of(target) == before


def test_a_stream_that_is_cut_keeps_what_was_whole(segments: list[bytes], image: Path, tmp_path: Path) -> None:
    """At every boundary, one byte before and one after it, and within headers."""
    stream = b"".join(segments)
    bounds = [sum(map(len, segments[:n])) for n in range(len(segments) + 1)]
    cuts = sorted({at + by for at in bounds[:6] for by in (-1, 0, 1, 100, HEADER_BYTES)} & set(range(len(stream))))
    for at in cuts:
        target = tmp_path / f"{at}.sqlimage"
        whole = sum(bound <= at for bound in bounds[1:])
        if at in bounds and whole:
            assert receive(io.BytesIO(stream[:at]), str(target)).missing == tuple(range(whole + 1, len(segments) + 1))
        else:
            with pytest.raises(SqlimageError):
                receive(io.BytesIO(stream[:at]), str(target))
        assert target.exists() == (whole > 0)
        if whole:
            with Incoming(str(target)) as incoming:
                assert len(incoming.missing()) == len(segments) - whole
    target = tmp_path / f"{bounds[2] + 1}.sqlimage"
    receive(io.BytesIO(b"".join(segments[2:])), str(target))
    assert rows_of(target) == rows_of(image)


@pytest.mark.parametrize("number", [1, 2, -1])
def test_a_flipped_bit_anywhere_in_a_segment_is_found(segments: list[bytes], tmp_path: Path, number: int) -> None:
    """Each tenth or so of it."""
    segment = segments[number if number < 0 else number - 1]
    head = tmp_path / "head.sqlimage"
    make_image(str(head), First.from_segment("x", segments[0]))
    with Incoming(str(head)) as incoming:
        for at in range(0, len(segment), len(segment) // 10):
            wrong = bytearray(segment)
            wrong[at] ^= 1
            with pytest.raises(DamagedError):
                incoming.put(number if number > 0 else len(segments), bytes(wrong))
        assert len(incoming.missing()) == len(segments)


def test_an_image_that_is_not_whole_is_read_and_not_changed(segments: list[bytes], tmp_path: Path) -> None:
    target = joined(segments[:3], tmp_path / "part.sqlimage")
    assert "/a/file1.bin" not in tool("ls", target, "/b")
    for command in (
        ("put", target, "/etc/hostname", "/x"),
        ("compact", target),
        ("edit", "begin", target),
        ("split", target, tmp_path / "segments"),
        ("property", "set", target, "a=b"),
    ):
        done = sqlimage_fails(*command)
        assert "have not arrived" in done, command


def sqlimage_fails(*command: object) -> str:
    from tests.images import run_tool

    done = run_tool(*command)
    assert done.returncode == 4, (command, done.stderr)
    return done.stderr


def test_an_image_of_nothing_but_zeros_is_one_segment(tmp_path: Path) -> None:
    (tmp_path / "zeros.img").write_bytes(bytes(2 * MIB))
    image = tmp_path / "zeros.sqlimage"
    sqlimage.capture(str(tmp_path / "zeros.img"), str(image))
    segments = segments_of(image)
    assert len(segments) == 1 and len(segments[0]) < SEGMENT_BYTES
    assert rows_of(joined(segments, tmp_path / "back.sqlimage")) == rows_of(image)


def test_segments_that_cannot_be_are_refused_with_what_can(image: Path, tmp_path: Path) -> None:
    for size, told in (
        ("1KiB", "choose 4.0 KiB to 1.0 GiB"),
        ("2GiB", "choose 4.0 KiB"),
        ("4KiB", "choose at least"),
    ):
        with pytest.raises(UsageError, match=told):
            sqlimage.split(str(image), None, str(tmp_path / "s"), segment_bytes=sqlimage.parse_size(size))
    assert not list((tmp_path / "s").glob("*"))


def test_one_version_takes_its_ancestors_along_and_no_others(tmp_path: Path) -> None:
    image = travelling.image(tmp_path)
    for n in range(3):
        with sqlimage.changing(str(image), label=f"v{n}") as changes:
            (tmp_path / "x").write_bytes(noise(n, 50_000))
            changes.put(str(tmp_path / "x"), f"/new{n}.bin")
    out = io.BytesIO()
    send(str(image), "v0", out, segment_bytes=MIB)
    out.seek(0)
    target = tmp_path / "part.sqlimage"
    receive(out, str(target))
    with sqlimage.open(str(target)) as opened:
        assert [version.number for version in opened.versions()] == [1, 2]
    assert sum("new" in line for line in tool("ls", target, "/").splitlines()) == 1
    tool("verify", target, "--files")


def test_a_child_holds_only_its_own_data(tmp_path: Path) -> None:
    parent = travelling.image(tmp_path)
    child = travelling.child(parent)
    segments = segments_of(child)
    assert sum(map(len, segments)) < 200_000 < sum(map(len, segments_of(parent)))
    (tmp_path / "else").mkdir()
    target = joined(segments, tmp_path / "else" / "child.sqlimage")
    assert "needs its parent" in sqlimage_exit(3, "cat", target, "/a/file0.bin")
    tool("cat", target, "/a/file0.bin", "--search", tmp_path)
    tool("verify", target, "--search", tmp_path)


def sqlimage_exit(code: int, *command: object) -> str:
    from tests.images import run_tool

    done = run_tool(*command)
    assert done.returncode == code, (command, done.returncode, done.stderr)
    return done.stderr


def test_an_edit_that_is_not_finished_stays_at_home(tmp_path: Path) -> None:
    image = travelling.image(tmp_path)
    tool("edit", "begin", image)
    with Database.open(image) as database:
        assert [version.version for version in chosen(database, None)] == [1]
        with pytest.raises(RefusedError, match="not finished"):
            chosen(database, "2")
        with pytest.raises(NotFoundError):
            chosen(database, "3")
        plan = make_plan(database, chosen(database, None), SEGMENT_BYTES)
        assert plan.newest.version == 1


@pytest.mark.parametrize("change", ["DELETE FROM data WHERE id = {}", "UPDATE data SET bytes = NULL WHERE id = {}"])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_contents_that_are_gone_meanwhile_are_told(image: Path, tmp_path: Path, change: str, which: int) -> None:
    copy = Path(shutil.copy(image, tmp_path))
    with Database.open(copy, structure_only=True) as database:
        plan = make_plan(database, chosen(database, None), SEGMENT_BYTES)
        gone = plan.cut[1][which].data
        with closing(sqlite3.connect(copy)) as other, other:
            other.execute(change.format(gone))
        with pytest.raises(DamagedError, match=f"data {gone} is not stored"):
            cut(database, plan, 2)


@pytest.mark.parametrize(("table", "column"), [("extent", "start_cluster"), ("extent", "clusters"), ("file", "record")])
def test_what_is_no_number_is_told_in_one_line(image: Path, tmp_path: Path, table: str, column: str) -> None:
    """A stranger's tables were STRICT only after text was put into them."""
    copy = Path(shutil.copy(image, tmp_path))
    with closing(sqlite3.connect(copy)) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", [table]).fetchone()
    for told in (sql.replace("STRICT, ", ""), sql):
        with closing(sqlite3.connect(copy)) as connection, connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", [told, table])
        if told != sql:
            with closing(sqlite3.connect(copy)) as connection, connection:
                connection.execute(f"UPDATE {table} SET {column} = 'abc'")
    check_one_line(run_tool("split", copy, tmp_path / "shelf"), 5)


def test_streams_in_another_order_are_refused(image: Path, tmp_path: Path) -> None:
    """Contents are filled into the rows of the data stream as soon as it has come: no more rows of it may follow."""
    with Database.open(image, structure_only=True) as database:
        plan = make_plan(database, chosen(database, None), SEGMENT_BYTES)
        blocks = [bytes(block) for block in rows.split(plan.streams)]
        data = next(block for block in blocks if columns.decode(block).table == "data")
        for number, order in enumerate(
            [[one for one in blocks if one != data] + [data], blocks[::-1], [*blocks, data]]
        ):
            streams = b"".join(len(block).to_bytes(4, "little") + block for block in order)
            changed = replace(plan, streams=streams, data_offset_bytes=plan.data_offset_bytes + len(data) + 100)
            first = bytes(cut_first(database, changed, digests(database, changed)))
            with pytest.raises(FormatError, match=r"after those of tables|the places of data|of another image"):
                make_image(str(tmp_path / f"{number}.sqlimage"), First.from_segment("x", first))
    assert [*tmp_path.iterdir()] == []


def test_real_volumes_come_back_bit_for_bit(tmp_path: Path) -> None:
    source = sample_volume(tmp_path / "disk.img")
    image = tmp_path / "i.sqlimage"
    tool("capture", source, image)
    tool("split", image, tmp_path / "segments", "--segment-size", "64KiB")
    tool("join", tmp_path / "segments", tmp_path / "j.sqlimage")
    tool("restore", tmp_path / "j.sqlimage", tmp_path / "back.img")
    assert (tmp_path / "back.img").read_bytes() == kept_bytes(image, source.read_bytes())


def test_memory_is_bounded_by_the_segments_not_by_the_image(image: Path) -> None:
    """What a plan keeps of an image is its streams, never its contents."""
    with Database.open(image) as database:
        plan = make_plan(database, chosen(database, None), SEGMENT_BYTES)
        assert len(plan.streams) + len(plan.rest) < 16 * KIB < sum(plan.lengths)
