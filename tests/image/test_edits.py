"""Edits told by file: whatever program wrote, the new version says what a fresh capture of the changed volume says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sqlimage
from sqlimage.image.changes import Change
from sqlimage.image.edit import EditReport
from sqlimage.image.edits import begin
from tests.conftest import run
from tests.image.edits import check_whole, content_of
from tests.images import noise
from tests.make.ntfs import VolumeBytes, make_volume, mounted, write_tree

_FILE = "volume, path, kind, bytes, modified_at, record, stream, attributes, digest"
_STREAMS = {
    "effective_file": f"SELECT {_FILE} FROM effective_file WHERE version = ?",
    "effective_extent": "SELECT volume, record, stream, file_offset, start_cluster, clusters FROM effective_extent "
    "WHERE version = ?",
    "owner": "SELECT volume, path, start_cluster, end_cluster FROM owner WHERE version = ?",
    "volume": "SELECT number, offset_clusters, length_clusters, length_bytes, hidden_sectors, partition_number, "
    "partition_type, partition_uuid, file_system, format_version, label, serial, bytes_per_sector, "
    "bytes_per_cluster, total_clusters, clusters_per_record, dirty, hibernated, captured_as, raw_reason "
    "FROM volume WHERE version = ?",
}


def put(image: Path, changed: bytes, **options: object) -> EditReport:
    """Write what differs into an edit, cluster by cluster, as a guest's disk would; commit."""
    edit = begin(str(image), **options)  # type: ignore[arg-type]
    unit, old = edit.control.bytes_per_cluster, edit.driver.read(0, len(changed))
    for at in range(0, len(changed), unit):
        if old[at : at + unit] != changed[at : at + unit]:
            edit.driver.write(at, changed[at : at + unit])
    return edit.commit()


def streams(image: Path, version: str | None = None) -> dict[str, list[tuple[object, ...]]]:
    """All that a version says of its files and places."""
    with sqlimage.open(str(image)) as opened:
        found = opened.version(version)
        opened.attach_parents(found.control)
        told = {name: sorted(opened.database.rows(sql, [found.number]), key=repr) for name, sql in _STREAMS.items()}
        told["bitmap"] = list(found.allocated())
        return told


def check_like_a_fresh_capture(image: Path, changed: bytes, place: Path, version: str | None = None) -> None:
    fresh = place / "fresh.sqlimage"
    fresh.unlink(missing_ok=True)
    sqlimage.capture(sqlimage.MemoryDevice(changed), fresh, preset="fast")
    told, expected = streams(image, version), streams(fresh)
    # What a bare medium does not tell of itself stays as it was captured.
    hidden = {row[0]: row[4] for row in told["volume"]}
    expected["volume"] = [
        (*row[:4], row[4] if row[4] is not None else hidden[row[0]], *row[5:]) for row in expected["volume"]
    ]
    # An edit may have hashed what a capture spares itself (files that are all holes); verify_files checks it.
    spared = {row[:-1] for row in expected["effective_file"] if row[-1] is None}
    told["effective_file"] = [(*row[:-1], None) if row[:-1] in spared else row for row in told["effective_file"]]
    for name in expected:
        assert [row for row in told[name] if row not in expected[name]] == [], name
        assert [row for row in expected[name] if row not in told[name]] == [], name
    check_whole(image)
    with sqlimage.open(str(image)) as opened:
        assert sqlimage.verify_files(opened.version(version)) == []


def told(image: Path, report: EditReport) -> set[tuple[str, str]]:
    """Action and path of every change, in the report and, the same, in the audit trail."""
    with sqlimage.open(str(image)) as opened:
        rows = [row for row in opened.audit() if row.version == report.version and row.path is not None]
        assert {(row.action, row.path) for row in rows} == {
            (change.action, change.path if len(opened.version().volumes()) == 1 else f"/{change.volume}{change.path}")
            for change in report.changes
        }
        for row, change in zip(rows, report.changes, strict=True):
            detail = json.loads(row.detail)
            assert detail.get("bytes_before") == change.bytes_before
            assert detail.get("bytes_after") == change.bytes_after
            assert detail.get("old_path") == change.old_path
    return {(change.action, change.path) for change in report.changes}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NTFS volume with a bit of everything, raw, and its capture beside it."""
    raw = make_volume(tmp_path_factory.mktemp("base") / "raw", 6 << 20)
    with mounted(raw) as root:
        write_tree(
            root,
            {
                "same": noise("same", 30_000),
                "changed": noise("changed", 40_000),
                "grown": noise("grown", 20_000),
                "gone": noise("gone", 25_000),
                "old name": noise("renamed", 50_000),
                "small": b"resident",
                "emptied": noise("emptied", 30_000),
                "directory/one": noise("one", 9000),
                "directory/deep/two": noise("two", 9000),
                "directory/three": b"resident too",
                "nothing": b"",
            },
        )
        write_tree(root, {"same:stream": noise("stream", 5000), "old name:beside": b"s" * 3000})
        os.link(root / "same", root / "directory" / "same again")
        os.link(root / "directory" / "one", root / "directory" / "one again")
    sqlimage.capture(raw, raw.with_name("i.sqlimage"), preset="fast")
    return raw


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The raw volume and its image, to be changed."""
    return Path(shutil.copy(base, tmp_path / "raw")), Path(shutil.copy(base.with_name("i.sqlimage"), tmp_path))


Work = Callable[[Path], object]


def is_stream_of_a_linked_file(change: Change) -> bool:
    """A stream is listed beside the first name of its file, which another name may have become."""
    return (change.action, change.kind) == ("renamed", "stream")


def write_in_place(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, (1_500_000_000, 1_500_000_000))


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        pytest.param(
            lambda root: write_tree(root, {"new": noise("new", 30_000), "made/too": b"x"}),
            {("created", "/new"), ("created", "/made"), ("created", "/made/too")},
            id="created",
        ),
        pytest.param(
            lambda root: write_in_place(root / "changed", 10_000, b"in place"),
            {("changed", "/changed")},
            id="changed-in-place",
        ),
        pytest.param(
            lambda root: write_in_place(root / "small", 0, b"RESIDENT"), {("changed", "/small")}, id="resident"
        ),
        pytest.param(
            lambda root: (root / "grown").open("ab").write(noise("more", 300_000)), {("changed", "/grown")}, id="grown"
        ),
        pytest.param(lambda root: (root / "gone").unlink(), {("deleted", "/gone")}, id="deleted"),
        pytest.param(lambda root: (root / "emptied").write_bytes(b""), {("changed", "/emptied")}, id="emptied"),
        pytest.param(lambda root: os.truncate(root / "emptied", 100), {("changed", "/emptied")}, id="shortened"),
        pytest.param(lambda root: (root / "nothing").write_bytes(b"now"), {("changed", "/nothing")}, id="filled"),
        pytest.param(
            lambda root: (root / "old name").rename(root / "new name"),
            {("renamed", "/new name"), ("renamed", "/new name:beside")},
            id="renamed",
        ),
        pytest.param(
            lambda root: (root / "nothing").rename(root / "still nothing"),
            {("renamed", "/still nothing")},
            id="renamed-empty",
        ),
        pytest.param(
            lambda root: (root / "directory").rename(root / "moved"), {("renamed", "/moved")}, id="renamed-directory"
        ),
        pytest.param(
            lambda root: (root / "same").rename(root / "directory" / "same"),
            {("renamed", "/directory/same")},
            id="moved-one-of-two-links",
        ),
        pytest.param(
            lambda root: os.link(root / "changed", root / "linked"), {("created", "/linked")}, id="hard-linked"
        ),
        pytest.param(
            lambda root: (root / "directory" / "same again").unlink(),
            {("deleted", "/directory/same again")},
            id="one-of-two-links-deleted",
        ),
        pytest.param(
            lambda root: (root / "same:stream").write_bytes(noise("other", 5000)),
            {("changed", "/same:stream")},
            id="stream",
        ),
        pytest.param(
            lambda root: (root / "changed:added").write_bytes(b"beside"),
            {("created", "/changed:added")},
            id="new-stream",
        ),
        pytest.param(
            lambda root: write_tree(root, {f"many/{n:04}": b"" for n in range(300)}),
            {("created", "/many")} | {("created", f"/many/{n:04}") for n in range(300)},
            id="many",
        ),
        pytest.param(
            lambda root: (root / "gone").unlink() or (root / "gone").write_bytes(noise("again", 25_000)),
            {("changed", "/gone")},
            id="replaced",
        ),
    ],
)  # fmt: skip
def test_the_audit_trail_names_exactly_what_was_done(
    copy: tuple[Path, Path], work: Work, expected: set[tuple[str, str]], tmp_path: Path
) -> None:
    raw, image = copy
    before, content = streams(image), content_of(image)
    with mounted(raw) as root:
        work(root)
    report = put(image, raw.read_bytes(), user="joe", message="by hand")
    # The system may note times of files that it only opened; nothing else may be told.
    assert expected <= told(image, report)
    beyond = {change for change in report.changes if (change.action, change.path) not in expected}
    assert all(change.what == ("modified_at",) or is_stream_of_a_linked_file(change) for change in beyond), beyond
    check_like_a_fresh_capture(image, raw.read_bytes(), tmp_path)
    assert streams(image, "1") == before
    assert content_of(image, "1") == content
    with sqlimage.open(str(image)) as opened:
        commit = opened.audit()[-1]
        assert (commit.action, commit.user, json.loads(commit.detail)["message"]) == ("edit-commit", "joe", "by hand")


def test_edit_upon_edit_says_what_a_fresh_capture_says(copy: tuple[Path, Path], tmp_path: Path) -> None:
    raw, image = copy

    def replace_a_directory(root: Path) -> None:
        shutil.rmtree(root / "elsewhere")
        write_tree(root, {"directory/one": b"1" * 5000})

    def put_one_in_anothers_place(root: Path) -> None:
        (root / "grown").rename(root / "changed")
        (root / "same:stream").unlink()

    turns: list[Work] = [
        lambda root: (root / "gone").unlink(),
        lambda root: (root / "gone").write_bytes(noise("back", 12_000)),
        lambda root: (root / "directory").rename(root / "elsewhere"),
        replace_a_directory,
        put_one_in_anothers_place,
    ]
    seen = [streams(image)]
    for number, work in enumerate(turns, 2):
        with mounted(raw) as root:
            work(root)
        child = tmp_path / f"child{number}.sqlimage" if number in (3, 5) else None
        report = put(image, raw.read_bytes(), into=child)
        image = child or image
        assert report.changes
        check_like_a_fresh_capture(image, raw.read_bytes(), tmp_path)
        seen.append(streams(image))
    assert streams(tmp_path / "i.sqlimage", "1") == seen[0]
    assert streams(tmp_path / "i.sqlimage", "2") == seen[1]


def test_an_untouched_page_file_that_was_captured_on_request_did_not_change(base: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copy(base, tmp_path / "raw"))
    with mounted(raw) as root:
        (root / "pagefile.sys").write_bytes(noise("page", 20_000))
    sqlimage.capture(raw, tmp_path / "i.sqlimage", keep_page_files=True, preset="fast")
    with mounted(raw) as root:
        (root / "gone").unlink()
    report = put(tmp_path / "i.sqlimage", raw.read_bytes())
    assert told(tmp_path / "i.sqlimage", report) == {("deleted", "/gone")}
    with sqlimage.open(str(tmp_path / "i.sqlimage")) as opened:
        assert opened.version().find_file("/pagefile.sys").digest


def test_a_fat_volume_changed_by_mtools_is_told_by_file(tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "i.sqlimage"
    raw.write_bytes(bytes(4 << 20))
    run("mkfs.fat", "-F", "12", raw)
    for name, size in (("A.BIN", 40_000), ("B.BIN", 9000), ("Long file name.txt", 700), ("C.BIN", 5000)):
        (tmp_path / "x").write_bytes(noise(name, size))
        run("mcopy", "-m", "-i", raw, tmp_path / "x", f"::{name}")
    run("mmd", "-i", raw, "::dir")
    run("mcopy", "-i", raw, tmp_path / "x", "::dir/inner.bin")
    sqlimage.capture(raw, image, preset="fast")
    run("mdel", "-i", raw, "::B.BIN")
    run("mren", "-i", raw, "::A.BIN", "::Z.BIN")
    (tmp_path / "x").write_bytes(noise("new", 33_000))
    run("mcopy", "-i", raw, tmp_path / "x", "::New one.bin")
    run("mcopy", "-o", "-i", raw, tmp_path / "x", "::C.BIN")
    report = put(image, raw.read_bytes())
    assert told(image, report) == {
        ("deleted", "/B.BIN"),
        ("renamed", "/Z.BIN"),
        ("created", "/New one.bin"),
        ("changed", "/C.BIN"),
    }
    check_like_a_fresh_capture(image, raw.read_bytes(), tmp_path)


def test_a_volume_in_a_child_file_reads_and_lists_like_one_in_one_file(copy: tuple[Path, Path], tmp_path: Path) -> None:
    raw, image = copy
    with mounted(raw) as root:
        write_in_place(root / "changed", 4096, b"!" * 10_000)
        (root / "directory").rename(root / "moved")
    child = tmp_path / "child.sqlimage"
    before = image.read_bytes()
    report = put(image, raw.read_bytes(), into=child)
    assert image.read_bytes() == before
    assert told(child, report) == {("changed", "/changed"), ("renamed", "/moved")}
    check_like_a_fresh_capture(child, raw.read_bytes(), tmp_path)
    with sqlimage.open(str(child)) as opened:
        with opened.version().content("/moved/deep/two") as content:
            assert content.read(0, 9000) == noise("two", 9000)
        assert opened.version().properties()["capture.tool"]


def test_a_volume_left_dirty_is_sealed_all_the_same_and_marked(copy: tuple[Path, Path], tmp_path: Path) -> None:
    raw, image = copy
    # $Volume is record 3: set VOLUME_IS_DIRTY in its $VOLUME_INFORMATION.
    volume = VolumeBytes(raw.read_bytes())
    volume.patch_value(3, 0x70, 10, (1).to_bytes(2, "little"))
    report = put(image, bytes(volume.content))
    assert "volume 0 is marked dirty: it was not unmounted" in report.notes
    with sqlimage.open(str(image)) as opened:
        assert opened.version().volumes()[0].dirty == 1
        assert opened.version("1").volumes()[0].dirty == 0
        assert report.notes[0] in json.loads(opened.audit()[-1].detail)["notes"]
    check_like_a_fresh_capture(image, bytes(volume.content), tmp_path)


def test_a_volume_turned_into_garbage_is_sealed_raw_and_its_files_are_hidden(
    copy: tuple[Path, Path], tmp_path: Path
) -> None:
    raw, image = copy
    names = len(streams(image)["effective_file"])
    changed = noise("garbage", raw.stat().st_size)
    report = put(image, changed)
    assert sum(change.action == "deleted" for change in report.changes) > 10
    assert any("volume 0 is not read by files" in note for note in report.notes)
    assert content_of(image) == changed
    now = streams(image)
    assert (now["effective_file"], now["owner"], now["effective_extent"]) == ([], [], [])
    check_like_a_fresh_capture(image, changed, tmp_path)
    assert len(streams(image, "1")["effective_file"]) == names
    # And back again: the files are there as they were.
    put(image, raw.read_bytes())
    check_like_a_fresh_capture(image, raw.read_bytes(), tmp_path)


def disk(path: Path, table: str, *volumes: tuple[int, bytes]) -> bytes:
    """A disk of 20 MiB with the partitions, and the volumes at their sectors."""
    path.write_bytes(bytes(20 << 20))
    run("sfdisk", "-q", path, input=table.encode())
    content = bytearray(path.read_bytes())
    for sector, volume in volumes:
        content[sector * 512 : sector * 512 + len(volume)] = volume
    return bytes(content)


def test_a_disk_whose_partition_table_is_rewritten_has_the_new_volumes(base: Path, tmp_path: Path) -> None:
    ntfs, image, raw = base.read_bytes(), tmp_path / "i.sqlimage", tmp_path / "disk"
    one = "label: dos\nlabel-id: 0x1234\nstart=2048, size=12288, type=7\n"
    both = one + "start=16384, size=20000, type=83\n"
    first = disk(raw, both, (2048, ntfs), (16384, noise("other", 50_000)))
    sqlimage.capture(sqlimage.MemoryDevice(first), image, preset="fast")
    for table, count in ((one, 1), (both, 2), ("label: gpt\nstart=2048, size=12288\n", 1)):
        changed = disk(raw, table, (2048, ntfs))
        report = put(image, changed)
        with sqlimage.open(str(image)) as opened:
            assert len(opened.version().volumes()) == count
            assert opened.version().control.partition_scheme == ("gpt" if "gpt" in table else "mbr")
            assert opened.version().number == report.version
        check_like_a_fresh_capture(image, changed, tmp_path)
    # A table that is gone, and one whose only volume with files is gone.
    for changed in (bytes(20 << 20), disk(raw, "label: dos\nstart=4096, size=2048, type=83\n")):
        report = put(image, changed)
        check_like_a_fresh_capture(image, changed, tmp_path)


def test_a_second_volume_with_files_that_is_gone_takes_its_files_with_it(base: Path, tmp_path: Path) -> None:
    ntfs, image, raw = base.read_bytes(), tmp_path / "i.sqlimage", tmp_path / "disk"
    one = "label: dos\nlabel-id: 0x1234\nstart=2048, size=12288, type=7\n"
    sqlimage.capture(
        sqlimage.MemoryDevice(disk(raw, one + "start=16384, size=12288, type=7\n", (2048, ntfs), (16384, ntfs))), image
    )
    changed = disk(raw, one, (2048, ntfs))
    report = put(image, changed)
    assert {change.volume for change in report.changes} == {1}
    assert ("deleted", "/changed") in {(change.action, change.path) for change in report.changes}
    check_like_a_fresh_capture(image, changed, tmp_path)
