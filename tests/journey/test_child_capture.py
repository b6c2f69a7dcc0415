"""A capture on top of a parent: it is what a capture by itself would be, and holds only what changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sqlimage
from tests.conftest import run
from tests.image.edits import check_whole, content_of
from tests.images import noise, run_tool, tool
from tests.make.ntfs import make_volume, mounted, write_tree

MIB = 1 << 20
Change = Callable[[Path], None]

FILES = {
    "large.bin": noise("large", 3 * MIB),
    "docs/a.txt": b"a text\n" * 900,
    "docs/b.bin": noise("b", 70_000),
    "docs/c.bin": noise("c", 20_000),
    "old/gone.bin": noise("gone", 500_000),
    "pagefile.sys": noise("page", MIB),
}
EFFECTIVE = {
    "effective_file": "volume, path, kind, bytes, modified_at, record, stream, attributes, digest",
    "effective_extent": "volume, record, stream, file_offset, start_cluster, clusters",
    "effective_bitmap": "start_cluster, end_cluster",
    "effective_property": "name, value",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a volume and its image."""
    place = tmp_path_factory.mktemp("child-capture")
    volume = make_volume(place / "v1.img", 24 * MIB, label="FIRST")
    with mounted(volume) as root:
        write_tree(root, FILES)
    sqlimage.capture(volume, place / "parent.sqlimage", label="first", property_values={"site": "Berlin"})
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    for name in ("v1.img", "parent.sqlimage"):
        shutil.copy(template / name, tmp_path / name)
    return tmp_path


def changed(place: Path, change: Change, of: str = "v1.img", name: str = "v2.img") -> Path:
    """The volume after somebody changed its files."""
    shutil.copy(place / of, place / name)
    with mounted(place / name) as root:
        change(root)
    return place / name


def told(image: Path, version: str | None = None) -> dict[str, list[tuple[object, ...]]]:
    """All that the effective views say of a version."""
    with sqlimage.open(str(image)) as opened:
        found = opened.version(version)
        opened.attach_parents(found.control)
        return {
            view: sorted(
                opened.database.rows(f"SELECT {columns} FROM {view} WHERE version = ?", [found.number]), key=str
            )
            for view, columns in EFFECTIVE.items()
        }


def check_like_a_capture_by_itself(volume: Path, image: Path, version: str | None = None) -> None:
    """It reads, lists and maps as a capture of the same volume without a parent."""
    alone = image.with_name("alone.sqlimage")
    alone.unlink(missing_ok=True)
    sqlimage.capture(volume, alone, property_values={"site": "Berlin"})
    assert content_of(image, version) == content_of(alone)
    assert told(image, version) == told(alone)
    with sqlimage.open(str(alone)) as a, sqlimage.open(str(image)) as b:
        ours, theirs = b.version(version), a.version()
        assert [(*_facts(v),) for v in ours.volumes()] == [(*_facts(v),) for v in theirs.volumes()]
        assert sqlimage.verify_files(ours) == []
    check_whole(image)


def _facts(volume: sqlimage.Volume) -> tuple[object, ...]:
    return tuple(getattr(volume, name) for name in volume.__dataclass_fields__ if name != "version")


def rewrite(root: Path) -> None:
    """A bit of everything."""
    with (root / "large.bin").open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"changed in place")
    (root / "docs/a.txt").rename(root / "docs/renamed.txt")
    (root / "docs/b.bin").write_bytes(b"head" + FILES["docs/b.bin"])
    write_tree(root, {"new/file.bin": noise("new", 300_000)})
    shutil.rmtree(root / "old")  # after it, so that no record is used again
    (root / "pagefile.sys").write_bytes(noise("other page", MIB))
    os.utime(root / "pagefile.sys", (1, 1))


def test_a_child_reads_and_lists_as_a_capture_by_itself(place: Path) -> None:
    volume = changed(place, rewrite)
    report = sqlimage.capture(volume, place / "child.sqlimage", parent=place / "parent.sqlimage", label="second")
    check_like_a_capture_by_itself(volume, place / "child.sqlimage")
    assert report.files == {"created": 2, "changed": 3, "deleted": 2, "renamed": 1}
    with sqlimage.open(str(place / "child.sqlimage")) as image:
        row = image.audit()[0]
        assert (row.action, json.loads(row.detail)["parent"]) == ("capture", report.parent_uuid)
        assert image.version().control.parent_name == "parent.sqlimage"


def test_a_version_that_is_added_is_the_same_and_the_older_one_is_as_it_was(place: Path) -> None:
    image, before = place / "parent.sqlimage", content_of(place / "parent.sqlimage")
    volume = changed(place, rewrite)
    report = sqlimage.capture(volume, image, append=True, label="second")
    assert report.version == 2
    check_like_a_capture_by_itself(volume, image, "second")
    assert content_of(image, "first") == before
    assert sorted(path.name for path in place.iterdir() if path.name.startswith("parent")) == ["parent.sqlimage"]


def test_an_unchanged_volume_adds_no_data(place: Path) -> None:
    report = sqlimage.capture(place / "v1.img", place / "child.sqlimage", parent=place / "parent.sqlimage")
    assert (report.stored_bytes, report.chunks) == (0, 0)
    with sqlimage.open(str(place / "child.sqlimage")) as image:
        for table in ("data", "cluster_map", "file", "extent", "bitmap"):
            assert image.database.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    check_like_a_capture_by_itself(place / "v1.img", place / "child.sqlimage")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: shutil.copy(root / "large.bin", root / "copy.bin"), id="copied"),
        pytest.param(lambda root: _rewrite_elsewhere(root, "large.bin"), id="moved"),
        pytest.param(lambda root: shutil.copytree(root / "docs", root / "docs2"), id="small files copied"),
    ],
)
def test_what_an_ancestor_has_elsewhere_costs_map_records_only(place: Path, change: Change) -> None:
    volume = changed(place, change)
    report = sqlimage.capture(volume, place / "child.sqlimage", parent=place / "parent.sqlimage")
    assert report.stored_bytes < 60_000  # records and directories of the volume
    check_like_a_capture_by_itself(volume, place / "child.sqlimage")


def _rewrite_elsewhere(root: Path, name: str) -> None:
    (root / "moved").write_bytes((root / name).read_bytes())
    (root / name).unlink()
    (root / "moved").rename(root / name)


def test_a_file_that_is_brought_back_is_found_in_an_older_ancestor(place: Path) -> None:
    gone = changed(place, lambda root: shutil.rmtree(root / "old"))
    sqlimage.capture(gone, place / "second.sqlimage", parent=place / "parent.sqlimage")
    back = changed(place, lambda root: write_tree(root, {"again.bin": FILES["old/gone.bin"]}), "v2.img", "v3.img")
    report = sqlimage.capture(back, place / "third.sqlimage", parent=place / "second.sqlimage")
    assert report.stored_bytes < 60_000
    check_like_a_capture_by_itself(back, place / "third.sqlimage")


def test_a_page_file_that_the_parent_kept_is_left_out_again(place: Path) -> None:
    kept = place / "kept.sqlimage"
    sqlimage.capture(place / "v1.img", kept, keep_page_files=True, property_values={"site": "Berlin"})
    sqlimage.capture(place / "v1.img", place / "child.sqlimage", parent=kept)
    check_like_a_capture_by_itself(place / "v1.img", place / "child.sqlimage")


def test_partitions_and_a_disk_without_them_are_compared_too(tmp_path: Path) -> None:
    """The medium becomes another one altogether: its clusters stay those of the lineage."""
    raw = bytearray(noise("raw", 2 * MIB))
    sqlimage.capture(sqlimage.MemoryDevice(bytes(raw)), tmp_path / "p.sqlimage")
    for name, content in {
        "longer": bytes(raw) + noise("tail", 100_000),
        "shorter": bytes(raw[: MIB + 512]),
        "zeroed": bytes(raw[:MIB]) + bytes(MIB),
        "shifted": noise("head", 4096) + bytes(raw[:-4096]),
        "empty": bytes(512),
    }.items():
        child = tmp_path / f"{name}.sqlimage"
        sqlimage.capture(sqlimage.MemoryDevice(content), child, parent=tmp_path / "p.sqlimage")
        assert content_of(child) == content
        check_whole(child)
        grandchild = tmp_path / f"{name}-2.sqlimage"
        report = sqlimage.capture(sqlimage.MemoryDevice(bytes(raw)), grandchild, parent=child)
        assert content_of(grandchild) == raw
        assert report.stored_bytes <= 2 * MIB
        check_whole(grandchild)


def test_what_cannot_be_is_one_line_and_nothing_is_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, volume = place / "parent.sqlimage", place / "v1.img"
    before = hashlib.sha256(parent.read_bytes()).digest()
    (place / "away").mkdir()
    orphan = place / "away" / "orphan.sqlimage"
    tool("capture", volume, orphan, "--parent", parent)
    for arguments, code, said in (
        ((volume, parent, "--parent", parent), 2, "--append"),
        ((volume, place / "n.sqlimage", "--parent", place / "none.sqlimage"), 3, "no such image"),
        ((volume, place / "n.sqlimage", "--parent", f"{parent}@7"), 3, "no version '7'"),
        ((volume, place / "n.sqlimage", "--append"), 3, "no such image"),
        ((volume, parent, "--append", "--label", "first"), 2, "there is a version with the label"),
        ((volume, parent, "--append", "--parent", parent), 2, "not both"),
        ((volume, place / "n.sqlimage", "--parent", volume), 5, "not an sqlimage file"),
        ((volume, place / "n.sqlimage", "--parent", orphan), 3, "--search"),
        ((place / "none.img", parent, "--append"), 3, "no such file"),
        ((volume, place / "n.sqlimage", "--parent", orphan, "--search", place / "nowhere"), 3, "no such directory"),
    ):
        done = run_tool("capture", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), (arguments, done.stderr)
        assert said in done.stderr, (arguments, done.stderr)
        assert not (place / "n.sqlimage").exists()
    assert hashlib.sha256(parent.read_bytes()).digest() == before
    tool("capture", volume, place / "n.sqlimage", "--parent", orphan, "--search", place)
    monkeypatch.setenv(sqlimage.SEARCH_VARIABLE, str(place / "away"))
    assert content_of(place / "n.sqlimage") == content_of(parent)


def test_a_volume_that_the_kernel_lays_out_is_compared_raw(tmp_path: Path) -> None:
    """ext4, until its reader exists: what differs is found by place."""
    volume = tmp_path / "e1.img"
    with volume.open("wb") as file:
        file.truncate(16 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-F", volume)
    sqlimage.capture(volume, tmp_path / "p.sqlimage")
    run("debugfs", "-w", "-R", f"write {Path(__file__)} test.py", volume)
    report = sqlimage.capture(volume, tmp_path / "c.sqlimage", parent=tmp_path / "p.sqlimage")
    assert content_of(tmp_path / "c.sqlimage") == volume.read_bytes()
    assert 0 < report.stored_bytes < 40_000
