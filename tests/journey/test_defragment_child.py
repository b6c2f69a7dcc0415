"""Versions on top of others, laid out anew or not: what a capture by itself would be, and they hold what changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import sqlimage
from sqlimage.filesystem.fat import FatVolume
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.image.edits import content_of
from tests.images import noise, tool
from tests.journey.test_child_capture import told
from tests.make import fat_oracle
from tests.make.defragmented import Fat, check_at_rest, check_fat, check_ntfs, digest_of, files_of, restored, torn
from tests.make.ntfs import make_volume, mounted, scatter_free_space, write_tree
from tests.make.ntfs_scattered import read_through_driver

FILES = {
    "large.bin": noise("large", 3 * MIB),
    "docs/a.txt": b"a text\n" * 9000,
    "docs/b.bin": noise("b", 70_000),
    "old/gone.bin": noise("gone", 300_000),
}
CHANGED = {"large.bin": FILES["large.bin"][:MIB] + b"changed in place" + FILES["large.bin"][MIB + 16 :]}
NEW = {"new/file.bin": noise("new", 200_000), "docs/c.bin": noise("c", 20_000)}
CHANGED_BYTES = 270_000
"""What the second volume has that the first has not, and what its records and directories come to."""


@dataclass(frozen=True)
class Made:
    """A fragmented volume, the same one later, and images of the first: as it is, and laid out anew."""

    first: Path
    second: Path
    plain: Path
    anew: Path
    files: dict[str, bytes]
    """Of the second volume."""
    stored_bytes: int
    """Of the image of the first."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("children")
    first = make_volume(place / "v1.img", 12 * MIB, cluster_bytes=4096)
    with mounted(first) as root:
        small = scatter_free_space(root, 12_000)
        for n in range(1, 200, 4):  # so that gaps lie side by side, too
            (root / f"fill{n}").unlink(missing_ok=True)
            small.pop(f"fill{n}", None)
        write_tree(root, FILES)
    second = place / "v2.img"
    shutil.copy(first, second)
    with mounted(second) as root:
        with (root / "large.bin").open("r+b") as file:
            file.seek(MIB)
            file.write(b"changed in place")
        (root / "docs/a.txt").rename(root / "docs/renamed.txt")
        write_tree(root, NEW)
        shutil.rmtree(root / "old")
    files = {**small, **FILES, **CHANGED, **NEW, "docs/renamed.txt": FILES["docs/a.txt"]}
    del files["docs/a.txt"], files["old/gone.bin"]
    sqlimage.capture(first, place / "plain.sqlimage")
    report = sqlimage.capture(first, place / "anew.sqlimage", defragment=True)
    assert len(torn(place / "plain.sqlimage")) > 50
    return Made(first, second, place / "plain.sqlimage", place / "anew.sqlimage", files, report.stored_bytes)


def parent_in(place: Path, image: Path) -> Path:
    return Path(shutil.copy(image, place / "parent.sqlimage"))


def check_like_one_by_itself(volume: Path, image: Path, defragment: bool, version: str | None = None) -> None:
    """It reads, lists and maps as a capture of the same volume without a parent, with the same wish."""
    alone = image.with_name("alone.sqlimage")
    alone.unlink(missing_ok=True)
    sqlimage.capture(volume, alone, defragment=defragment)
    assert content_of(image, version) == content_of(alone)
    assert told(image, version) == told(alone)
    check_at_rest(image)


@pytest.mark.parametrize(
    ("anew", "defragment"),
    [(True, True), (False, True), *(pytest.param(anew, False, marks=pytest.mark.slow) for anew in (True, False))],
)
def test_a_child_stores_what_changed_whether_its_parent_or_it_is_laid_out_anew(
    made: Made, tmp_path: Path, anew: bool, defragment: bool
) -> None:
    parent = parent_in(tmp_path, made.anew if anew else made.plain)
    before = digest_of(parent)
    report = sqlimage.capture(made.second, tmp_path / "child.sqlimage", parent=parent, defragment=defragment)
    assert digest_of(parent) == before
    assert report.stored_bytes < CHANGED_BYTES + (0 if anew == defragment else 100_000) < made.stored_bytes / 5
    assert report.files is not None
    assert report.files["created"] + report.files["renamed"] == 4, "a new directory, two new files, another name"
    assert report.files["deleted"] + report.files["renamed"] == 3
    assert (report.volumes[0].moved_bytes is not None) == defragment
    assert (torn(tmp_path / "child.sqlimage") == []) == defragment
    check_like_one_by_itself(made.second, tmp_path / "child.sqlimage", defragment)
    with sqlimage.open(str(tmp_path / "child.sqlimage")) as opened:
        detail = json.loads(opened.audit()[0].detail)
    assert ("defragmented" in detail) == defragment
    assert detail["parent"] == report.parent_uuid


def test_a_child_of_the_same_volume_laid_out_the_same_way_holds_nothing(made: Made, tmp_path: Path) -> None:
    parent = parent_in(tmp_path, made.anew)
    report = sqlimage.capture(made.first, tmp_path / "child.sqlimage", parent=parent, defragment=True)
    assert (report.stored_bytes, report.chunks) == (0, 0)
    with sqlimage.open(str(tmp_path / "child.sqlimage")) as image:
        for table in ("data", "cluster_map", "file", "extent", "bitmap", "fixup"):
            assert image.database.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    check_like_one_by_itself(made.first, tmp_path / "child.sqlimage", True)


def test_laid_out_anew_on_top_of_itself_as_it_is_a_version_costs_next_to_nothing(made: Made, tmp_path: Path) -> None:
    image = parent_in(tmp_path, made.plain)
    first = content_of(image)
    report = sqlimage.capture(made.first, image, append=True, defragment=True)
    assert report.version == 2
    assert report.stored_bytes < 100_000
    assert content_of(image, "1") == first
    assert torn(image, "1") != [] and torn(image, "2") == []
    assert report.files is not None and report.files["created"] == report.files["deleted"] == 0
    check_like_one_by_itself(made.first, image, True, "2")


def test_versions_that_are_added_are_right_to_every_reader(made: Made, tmp_path: Path) -> None:
    image = parent_in(tmp_path, made.anew)
    first = content_of(image)
    tool("capture", made.second, image, "--append", "--defragment", "--label", "second")
    sqlimage.capture(made.second, image, append=True, label="as it is")
    sqlimage.capture(made.first, image, append=True, defragment=True, label="first again")
    assert content_of(image, "1") == content_of(image, "first again") == first
    assert torn(image, "second") == torn(image, "first again") == []
    check_at_rest(image)
    copy = restored(image, tmp_path / "copy.img", version="second")
    check_ntfs(copy)
    read_through_driver(copy, made.files)
    assert files_of(image, "second") == files_of(image, "as it is")


@pytest.mark.slow
def test_a_chain_of_children_in_files_of_their_own(made: Made, tmp_path: Path) -> None:
    parent = parent_in(tmp_path, made.anew)
    tool("capture", made.second, tmp_path / "child.sqlimage", "--parent", parent, "--defragment")
    tool(
        "capture", made.first, tmp_path / "grandchild.sqlimage", "--parent", tmp_path / "child.sqlimage", "--defragment"
    )
    assert content_of(tmp_path / "grandchild.sqlimage") == content_of(parent)
    assert (tmp_path / "grandchild.sqlimage").stat().st_size < parent.stat().st_size / 5
    check_like_one_by_itself(made.first, tmp_path / "grandchild.sqlimage", True)


@pytest.mark.parametrize(
    "shape",
    [Fat(12, 1440 * KIB, 1), pytest.param(Fat(16, 9 * MIB, 1), marks=pytest.mark.slow)],
    ids=lambda shape: f"fat{shape.bits}",
)
@pytest.mark.parametrize("defragment", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_volume_whose_clusters_are_smaller_than_its_lineages(shape: Fat, defragment: bool, tmp_path: Path) -> None:
    """They are told in whole ones, and every file is right."""
    source = shape.make(tmp_path / "v.img")
    sqlimage.capture(MemoryDevice(noise("older", 2 * MIB)), tmp_path / "parent.sqlimage")
    volume = FatVolume(MemoryDevice(source.read_bytes()))
    digests = fat_oracle.digests(volume, volume.scan())
    for image, options in ((tmp_path / "child.sqlimage", True), (tmp_path / "parent.sqlimage", False)):
        parent = tmp_path / "parent.sqlimage" if options else None
        report = sqlimage.capture(source, image, parent=parent, append=not options, defragment=defragment)
        assert report.bytes_per_cluster == 4096
        assert (report.volumes[0].moved_bytes is not None) == defragment
        check_at_rest(image)
        copy = restored(image, tmp_path / "copy.img")
        if defragment:
            check_fat(copy, digests)
        assert fat_oracle.mtools_digests(copy, tmp_path / "tree") == digests


def test_a_volume_that_got_dirty_is_a_child_as_it_is_and_later_laid_out_again(tmp_path: Path) -> None:
    source = Fat(12, 1440 * KIB, 1).make(tmp_path / "v.img")
    image = tmp_path / "i.sqlimage"
    sqlimage.capture(source, image, defragment=True)
    content = bytearray(source.read_bytes())
    content[37] |= 1
    report = sqlimage.capture(MemoryDevice(content), image, append=True, defragment=True)
    assert any("is not defragmented: the volume is marked as in use" in warning for warning in report.warnings)
    assert torn(image) != []
    assert report.stored_bytes < 20_000
    report = sqlimage.capture(source, image, append=True, defragment=True)
    assert report.volumes[0].moved_bytes and torn(image) == []
    assert content_of(image, "3") == content_of(image, "1")
    check_at_rest(image)
