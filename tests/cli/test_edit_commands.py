"""put, rm, mkdir and mv: each a new version, whole or not at all, told file by file in the audit trail."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import noise, tool
from tests.mount.volumes import is_same_tree
from tests.session import media
from tests.session.use import (
    PROGRAM,
    actions,
    beside,
    check_at_rest,
    clear,
    digest,
    needs_fuse,
    refused,
    restored,
    states,
    told,
)

pytestmark = needs_fuse


@pytest.fixture(autouse=True)
def _clear_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    try:
        yield
    finally:
        clear(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree to be copied in."""
    top = tmp_path / "source"
    for name, content in {"a/b/deep.txt": b"deep\n", "a/blob.bin": noise("put", 70_000), "x.txt": b"x\n"}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    os.utime(top / "x.txt", (1_600_000_000, 1_600_000_000))
    return top


def content(image: object, path: str) -> bytes:
    return subprocess.run([PROGRAM, "cat", str(image), path], capture_output=True, check=True).stdout


def changes_of(*arguments: object) -> list[tuple[str, str, str | None]]:
    """What a command says it changed."""
    report = told(*arguments)
    return [(change["action"], change["path"], change["old_path"]) for change in report["changes"]]


@pytest.mark.parametrize(
    "kind", ["ntfs", pytest.param("fat16", marks=pytest.mark.slow), pytest.param("fat32", marks=pytest.mark.slow)]
)
def test_files_and_trees_are_put_moved_and_removed_and_every_step_is_a_version(
    place: Path, source: Path, kind: str
) -> None:
    volume = media.ntfs() if kind == "ntfs" else media.fat_volume(int(kind[3:]))
    image = media.image_of(volume, place)
    before = restored(image, place / "before.raw")
    assert changes_of("put", image, source / "x.txt", "/long file name.txt") == [
        ("created", "/long file name.txt", None)
    ]
    made = {("created", path, None) for path in ("/new", "/new/dir")}
    assert set(changes_of("mkdir", image, "/new/dir", "--parents")) == made
    tree = {
        ("created", f"/new/dir/source{path}", None)
        for path in ("", "/a", "/a/b", "/a/b/deep.txt", "/a/blob.bin", "/x.txt")
    }
    assert set(changes_of("put", image, source, "/new/dir/")) == tree
    assert changes_of("mv", image, "/long file name.txt", "/new/moved file.txt") == [
        ("renamed", "/new/moved file.txt", "/long file name.txt")
    ]
    assert changes_of("put", image, source / "a/blob.bin", "/new/moved file.txt")[0][:2] in (
        ("changed", "/new/moved file.txt"), ("created", "/new/moved file.txt"), ("deleted", "/new/moved file.txt"),
    )  # fmt: skip
    assert set(changes_of("rm", image, "/new/moved file.txt", "/new/dir/source/x.txt")) == {
        ("deleted", "/new/moved file.txt", None), ("deleted", "/new/dir/source/x.txt", None)
    }  # fmt: skip
    assert states(image) == [(number, "sealed") for number in range(1, 8)]
    assert content(f"{image}@2", "/long file name.txt") == b"x\n"
    assert content(f"{image}@5", "/new/moved file.txt") == b"x\n"
    assert content(f"{image}@6", "/new/moved file.txt") == noise("put", 70_000)
    (source / "x.txt").unlink()
    tool("get", image, "/new/dir/source", place / "got")
    assert is_same_tree(place / "got", source)
    row = next(row for row in told("ls", f"{image}@4", "/new/dir/source") if row["path"].endswith("/x.txt"))
    assert row["modified_at"].startswith("2020-09-13T12:26:40")
    assert ("renamed", "/new/moved file.txt") in actions(image)
    assert restored(f"{image}@1", place / "after.raw") == before
    check_at_rest(image)


def test_on_a_disk_the_first_component_says_which_volume(place: Path, source: Path) -> None:
    image = media.image_of(media.disk(), place)
    tool("mkdir", image, "/0/both", "/1/both")
    tool("put", image, source / "x.txt", "/0/both/x.txt")
    tool("put", image, source / "x.txt", "/1/both/x.txt")
    tool("mv", image, "/1/readme.txt", "/1/both/")
    assert changes_of("rm", image, "/0/pagefile.sys", "/1/DATA", "--recursive") != []
    assert content(image, "/0/both/x.txt") == content(image, "/1/both/x.txt") == b"x\n"
    assert content(image, "/1/both/readme.txt") == media.FAT_TREE["readme.txt"]
    told_of = set(actions(image))
    assert {
        ("created", "/0/both"), ("created", "/1/both"), ("created", "/0/both/x.txt"), ("created", "/1/both/x.txt"),
        ("renamed", "/1/both/readme.txt"), ("deleted", "/0/pagefile.sys"), ("deleted", "/1/DATA/inside.txt"),
    } <= told_of  # fmt: skip
    refused(2, "another volume", "mv", image, "/0/both/x.txt", "/1/both/y.txt")
    refused(3, "no volume 7", "mkdir", image, "/7/x")
    check_at_rest(image)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ntfs", "fat16"])
def test_what_fails_leaves_no_version_and_no_trace_in_the_volumes(place: Path, source: Path, kind: str) -> None:
    volume = media.ntfs() if kind == "ntfs" else media.fat_volume(16)
    image = media.image_of(volume, place)
    before = restored(image, place / "before.raw")
    full = "/Windows" if kind == "ntfs" else "/DATA"
    (source / "huge").write_bytes(noise("huge", volume.stat().st_size - (128 << 10)))
    refused(6, "", "put", image, source, "/")  # some of the tree is there when the volume is full
    refused(3, "no such file", "put", image, source / "missing", "/x")
    refused(3, "", "put", image, source / "x.txt", "/no/such/directory/x")
    refused(3, "", "put", image, source / "x.txt", "/x/")
    refused(3, "", "rm", image, "/nothing")
    refused(4, "something in it", "rm", image, full)
    refused(4, "exists already", "mkdir", image, full)
    refused(3, "", "mv", image, "/nothing", "/x")
    refused(2, "below it", "mv", image, full, f"{full}/x")
    refused(2, "..", "rm", image, "/../x")
    assert states(image) == [(1, "sealed")]
    assert {action for action, _ in actions(image)} <= {"edit-begin", "edit-discard"}
    assert restored(image, place / "after.raw") == before
    check_at_rest(image)


def test_several_paths_are_one_version_and_fail_together(place: Path) -> None:
    image = media.image_of(media.ntfs(), place)
    refused(3, "/nothing", "rm", image, "/pagefile.sys", "/nothing")
    assert states(image) == [(1, "sealed")]
    assert any(row["path"] == "/pagefile.sys" for row in told("ls", image))
    tool("mkdir", image, "/one", "/two", "/two/three")
    assert states(image) == [(1, "sealed"), (3, "sealed")]
    assert [path for action, path in actions(image) if action == "created"] == ["/one", "/two", "/two/three"]


def test_standard_input_becomes_a_file(place: Path) -> None:
    image = media.image_of(media.fat_volume(16), place)
    sent = noise("stdin", 300_000)
    done = subprocess.run([PROGRAM, "put", image, "-", "/piped.bin"], input=sent, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert content(image, "/piped.bin") == sent
    done = subprocess.run([PROGRAM, "put", image, "-", "/DATA"], input=sent, capture_output=True, check=False)
    assert done.returncode == 2 and b"is a directory" in done.stderr
    done = subprocess.run([PROGRAM, "put", image, "-", "/x"], input=bytes(17 << 20), capture_output=True, check=False)
    assert done.returncode == 4 and b"more bytes than the volume" in done.stderr
    assert states(image) == [(1, "sealed"), (2, "sealed")]
    assert beside(image) == []


def test_who_and_why_are_in_the_audit_trail_and_the_version_has_its_label(place: Path, source: Path) -> None:
    image = media.image_of(media.fat_volume(16), place)
    tool("put", image, source / "x.txt", "/x.txt", "--label", "with-x", "--message", "because", "--user", "joe")
    tool("rm", f"{image}@with-x", "/x.txt", "--user", "ann")
    rows = [row for row in told("audit", image) if row["action"] != "capture"]
    assert [(row["user"], row["action"]) for row in rows] == [
        ("joe", "edit-begin"), ("joe", "created"), ("joe", "edit-commit"),
        ("ann", "edit-begin"), ("ann", "deleted"), ("ann", "edit-commit"),
    ]  # fmt: skip
    assert [json.loads(row["detail"])["message"] for row in rows if row["action"] == "edit-commit"] == ["because", None]
    actions = [row["action"] for row in told("audit", image, "x.txt")]
    assert actions == ["created", "deleted"], "as everywhere, the first slash of a path may lack"
    assert content(f"{image}@with-x", "/x.txt") == b"x\n"
    refused(2, "with-x", "put", image, source / "x.txt", "/y.txt", "--label", "with-x")
    assert states(image) == [(1, "sealed"), (2, "sealed"), (3, "sealed")]


def test_a_child_takes_the_change_and_the_parent_keeps_every_byte(place: Path, source: Path) -> None:
    image, child = media.image_of(media.ntfs(), place), place / "child.sqlimage"
    before = digest(image)
    tool("put", image, source, "/put", "--into", child)
    assert digest(image) == before
    assert beside(image) == beside(child) == []
    assert content(child, "/put/a/blob.bin") == noise("put", 70_000)
    assert b"a needle" in content(child, "/Users/joe/Documents/haystack.txt")
    assert child.stat().st_size < image.stat().st_size
    refused(3, "put", "cat", image, "/put/x.txt")
    refused(4, "exists", "rm", image, "/pagefile.sys", "--into", child)
    refused(3, "", "rm", image, "/nothing", "--into", place / "second.sqlimage")
    assert not (place / "second.sqlimage").exists()
    assert digest(image) == before
    check_at_rest(child)


@pytest.mark.slow
def test_an_unfinished_edit_is_changed_where_it_is_named_and_stays_open(place: Path, source: Path) -> None:
    image = media.image_of(media.ntfs(), place)
    tool("edit", "begin", image)
    refused(4, "unfinished edit", "put", image, source / "x.txt", "/x.txt")
    tool("put", f"{image}@2", source / "x.txt", "/x.txt")
    refused(3, "", "rm", f"{image}@2", "/nothing")
    tool("mkdir", f"{image}@2", "/dir")
    assert states(image) == [(1, "sealed"), (2, "open")]
    tool("edit", "commit", f"{image}@2")
    assert {("created", "/x.txt"), ("created", "/dir")} <= set(actions(image))
    check_at_rest(image)
