"""A mounted image is a directory to every program: what is read is what was captured, what is written is a version."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sqlimage.mount.mountpoint import mounted_at
from tests.conftest import run
from tests.images import kept_bytes, noise, run_tool, tool
from tests.mount.volumes import is_same_tree
from tests.session import media
from tests.session.use import (
    PROGRAM,
    actions,
    beside,
    check_at_rest,
    digest,
    kill_mount,
    mount_record,
    needs_fuse,
    refused,
    restored,
    served,
    states,
    told,
)

pytestmark = needs_fuse
TREE = {"a/b/deep.txt": b"deep\n", "a/large.bin": noise("large", 150_000), "empty": b""}


@pytest.fixture
def at(tmp_path: Path) -> Path:
    path = tmp_path / "at"
    path.mkdir()
    return path


@pytest.fixture
def ntfs(place: Path) -> Path:
    return media.image_of(media.ntfs(), place)


def files_of(image: object) -> list[str]:
    return [row["path"] for row in told("ls", image, "/", "--recursive") if row["kind"] == "file"]


def check_same_as_cat(image: Path, at: Path, names: list[str]) -> None:
    assert names
    for name in names:
        done = subprocess.run([PROGRAM, "cat", image, name], capture_output=True, check=True)
        assert (at / name[1:]).read_bytes() == done.stdout, name


def test_our_reader_shows_what_ls_and_cat_show_and_changes_nothing(ntfs: Path, at: Path) -> None:
    before = digest(ntfs)
    ready = told("mount", ntfs, at, "--way", "reader")
    assert (ready["ways"], ready["version"], ready["writable"]) == ({"volume-0": "reader"}, 1, False)
    wanted = sorted(name for name in files_of(ntfs) if ":" not in name)
    assert sorted(f"/{path.relative_to(at)}" for path in at.rglob("*") if path.is_file()) == wanted
    sizes = {row["path"]: row["size_bytes"] for row in told("ls", ntfs, "/", "--recursive")}
    assert all((at / name[1:]).stat().st_size == sizes[name] for name in wanted)
    check_same_as_cat(ntfs, at, [name for name in wanted if "0" in name or "Über" in name or "library" in name][:5])
    with pytest.raises(OSError):
        (at / "new").touch()
    tool("unmount", at)
    assert digest(ntfs) == before
    assert beside(ntfs) == []


@pytest.mark.slow
def test_every_driver_shows_the_same_files_of_an_ntfs_volume(ntfs: Path, at: Path, tmp_path: Path) -> None:
    tool("get", ntfs, "/", tmp_path / "got")
    (tmp_path / "got/Users/joe/Documents/haystack.txt:comment").unlink()  # mounts have no names for streams
    for way in ("ntfs-3g", "reader"):
        tool("mount", ntfs, at, "--way", way)
        run("cp", "-r", at, tmp_path / way)
        tool("unmount", at)
        assert is_same_tree(tmp_path / way, tmp_path / "got"), way


def test_a_disk_is_mounted_with_a_directory_for_each_volume(place: Path, at: Path) -> None:
    image = media.image_of(media.disk(), place)
    tool("mount", image, at)
    assert sorted(path.name for path in at.iterdir()) == ["0", "1"]
    check_same_as_cat(image, at, ["/0/Users/joe/Documents/haystack.txt", "/1/DATA/blob.bin", "/1/readme.txt"])
    tool("unmount", at)
    tool("mount", image, at, "--volume", "1")
    assert {name: (at / name).read_bytes() for name in media.FAT_TREE} == media.FAT_TREE
    tool("unmount", at)
    refused(2, "several volumes", "mount", image, at, "--writable")
    assert states(image) == [(1, "sealed")], "what could not be mounted leaves no edit"
    assert beside(image) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kernel", "fuse2fs"])
def test_an_ext4_volume_is_mounted_though_it_was_captured_raw(place: Path, at: Path, way: str) -> None:
    image = media.image_of(media.ext4(), place)
    before = digest(image)
    assert told("mount", image, at, "--way", way)["ways"] == {"volume-0": way}
    assert (at / "hello").read_text() == "hello\n"
    tool("unmount", at)
    assert digest(image) == before


def test_devices_are_files_for_losetup_and_fsck(place: Path, at: Path) -> None:
    image = media.image_of(media.ext4(), place)
    assert told("mount", image, at, "--device")["devices"] == ["medium", "volume-0"]
    assert (at / "medium").read_bytes() == media.ext4().read_bytes()
    loop = run("losetup", "--read-only", "--find", "--show", at / "volume-0").stdout.decode().strip()
    try:
        run("e2fsck", "-fn", loop)
        refused(4, "in use", "unmount", at)
    finally:
        run("losetup", "--detach", loop)
    tool("unmount", at)
    assert mounted_at(str(at)) is None


def test_what_is_done_in_a_writable_mount_is_the_new_version_and_exactly_that(ntfs: Path, at: Path) -> None:
    tree = at.parent / "tree"
    for name, content in TREE.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    tool("mount", ntfs, at, "--writable", "--label", "worked", "-m", "a morning's work", "--user", "joe")
    documents = at / "Users/joe/Documents"
    (at / "new.txt").write_text("new\n")
    with (documents / "chapter 05.txt").open("a") as file:
        file.write("another needle\n")
    (documents / "chapter 03.txt").unlink()
    (documents / "chapter 04.txt").rename(documents / "renamed.txt")
    run("cp", "-a", tree, at / "tree")
    outcome = told("unmount", at)
    found = {
        (change["action"], change["path"], change["old_path"])
        for change in outcome["report"]["changes"]
    }  # fmt: skip
    documents_path = "/Users/joe/Documents"
    assert found == {
        ("created", "/new.txt", None),
        ("changed", f"{documents_path}/chapter 05.txt", None),
        ("deleted", f"{documents_path}/chapter 03.txt", None),
        ("renamed", f"{documents_path}/renamed.txt", f"{documents_path}/chapter 04.txt"),
        *(("created", f"/tree{path}", None) for path in ("", "/a", "/a/b", "/a/b/deep.txt", "/a/large.bin", "/empty")),
    }
    rows = [row for row in told("audit", ntfs) if row["version"] == 2]
    assert {(row["action"], row["path"]) for row in rows[1:-1]} == {(action, path) for action, path, _ in found}
    assert [rows[0]["action"], rows[-1]["action"]] == ["edit-begin", "edit-commit"]
    assert {row["user"] for row in rows} == {"joe"} and "a morning's work" in rows[-1]["detail"]
    check_at_rest(ntfs)
    tool("get", f"{ntfs}@worked", "/tree", at.parent / "got")
    assert is_same_tree(at.parent / "got", tree)
    assert tool("cat", ntfs, f"{documents_path}/chapter 05.txt").endswith("another needle\n")
    assert f"{documents_path}/chapter 03.txt" in files_of(f"{ntfs}@1")
    assert "another needle" not in tool("cat", f"{ntfs}@1", f"{documents_path}/chapter 05.txt")
    assert f"{documents_path}/chapter 03.txt" not in files_of(ntfs)


def test_an_unmount_may_discard_and_any_umount_commits(ntfs: Path, at: Path) -> None:
    wanted = kept_bytes(ntfs, media.ntfs().read_bytes())
    tool("mount", ntfs, at, "--writable")
    shutil.rmtree(at / "Users")
    assert tool("unmount", at, "--discard").splitlines()[-1] == "what was written is gone"
    assert states(ntfs) == [(1, "sealed")]
    assert restored(ntfs, at.parent / "r.raw") == wanted
    tool("mount", ntfs, at, "--writable")
    (at / "new.txt").write_text("new\n")
    run("umount", at)
    assert "/new.txt" in tool("unmount", at), "what came of it can be asked for afterwards"
    assert states(ntfs)[-1][1] == "sealed"
    refused(3, "nothing there", "unmount", at)
    check_at_rest(ntfs)


def test_a_killed_mount_is_cleared_and_its_edit_goes_on(ntfs: Path, at: Path) -> None:
    tool("mount", ntfs, at, "--writable")
    (at / "first.txt").write_text("first\n")
    fd = os.open(at / "first.txt", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    kill_mount(at)
    assert mounted_at(str(at)) is not None
    assert states(ntfs)[-1] == (2, "open")
    done = run_tool("unmount", at)
    assert done.returncode == 0 and f"edit commit {ntfs}@2" in done.stdout and "was killed" in done.stderr
    assert mounted_at(str(at)) is None
    tool("mount", f"{ntfs}@2", at, "--writable")
    assert (at / "first.txt").read_text() == "first\n"
    (at / "second.txt").write_text("second\n")
    tool("unmount", at)
    assert (2, "open") in states(ntfs) or states(ntfs)[-1] == (2, "sealed")
    if states(ntfs)[-1] == (2, "open"):
        tool("edit", "commit", f"{ntfs}@2")
    assert {("created", "/first.txt"), ("created", "/second.txt")} <= set(actions(ntfs))
    check_at_rest(ntfs)


@pytest.mark.slow
def test_a_new_mount_takes_the_place_of_a_killed_one(ntfs: Path, at: Path) -> None:
    tool("mount", ntfs, at, "--way", "reader")
    kill_mount(at)
    with pytest.raises(OSError):
        list((at / "Windows").iterdir())
    tool("mount", ntfs, at, "--way", "reader")
    assert (at / "Users").is_dir()
    tool("unmount", at)
    assert beside(ntfs) == []


def test_a_busy_mount_stays_and_goes_once_it_is_free(ntfs: Path, at: Path) -> None:
    tool("mount", ntfs, at, "--writable")
    with (at / "open.txt").open("w") as file:
        file.write("written while it was busy\n")
        refused(4, "is in use", "unmount", at)
        assert mount_record(at).is_running
    assert "/open.txt" in tool("unmount", at)
    assert tool("cat", ntfs, "/open.txt") == "written while it was busy\n"


@pytest.mark.slow
def test_what_cannot_be_mounted_is_said_in_one_line_and_leaves_nothing(ntfs: Path, at: Path, tmp_path: Path) -> None:
    for options in ((), ("--writable",)):
        refused(3, "no such image", "mount", tmp_path / "nothing.sqlimage", at, *options)
        refused(3, "no such directory", "mount", ntfs, tmp_path / "nowhere", *options)
    refused(3, "no version", "mount", f"{ntfs}@9", at)
    refused(2, "volume-9", "mount", ntfs, at, "--volume", "9")
    refused(2, "is no driver", "mount", ntfs, at, "--way", "magic")
    refused(2, "--writable", "mount", ntfs, at, "--into", tmp_path / "child.sqlimage")
    refused(3, "nothing there", "unmount", at)
    (at / "file").touch()
    refused(4, "not empty", "mount", ntfs, at, "--writable")
    (at / "file").unlink()
    plain = media.image_of(media.plain(), tmp_path)
    refused(6, "file system", "mount", plain, at, "--writable")
    tool("mount", ntfs, at, "--way", "reader")
    refused(4, "mounted there already", "mount", ntfs, at)
    tool("unmount", at)
    assert states(ntfs) == states(plain) == [(1, "sealed")]
    assert beside(ntfs) == beside(plain) == []
    assert list(at.iterdir()) == []


@pytest.mark.slow
def test_one_image_is_mounted_twice_and_served_at_the_same_time(ntfs: Path, at: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    before = digest(ntfs)
    tool("mount", ntfs, at, "--way", "reader")
    tool("mount", ntfs, other, "--way", "ntfs-3g")
    with served(ntfs, sock=tmp_path / "x.sock") as server:
        run("nbdcopy", server.uri(), tmp_path / "copy.raw")
        assert is_same_tree(at / "Users", other / "Users")
        server.end()
    assert (tmp_path / "copy.raw").read_bytes() == kept_bytes(ntfs, media.ntfs().read_bytes())
    tool("unmount", at)
    assert (other / "Users").is_dir()
    tool("unmount", other)
    assert digest(ntfs) == before
    assert beside(ntfs) == []


@pytest.mark.slow
def test_a_written_ext4_volume_is_a_version_whose_written_clusters_are_told(place: Path, at: Path) -> None:
    image = media.image_of(media.ext4(), place)
    tool("mount", image, at, "--writable")
    assert mounted_at(str(at)).file_system == "ext4"  # type: ignore[union-attr]
    (at / "new.bin").write_bytes(noise("new", 300_000))
    (at / "hello").unlink()
    report = told("unmount", at)["report"]
    assert report["changes"] == [] and report["written_bytes"] >= 300_000
    assert [action for action, _ in actions(image)] == ["edit-begin", "edit-commit"]
    commit = told("audit", image)[-1]
    assert commit["length_bytes"] == report["written_bytes"]
    restored(image, at.parent / "r.raw")
    run("e2fsck", "-fn", at.parent / "r.raw")
    tool("mount", image, at)
    assert (at / "new.bin").read_bytes() == noise("new", 300_000)
    assert not (at / "hello").exists()
    tool("unmount", at)
    assert restored(f"{image}@1", at.parent / "old.raw") == media.ext4().read_bytes()
    check_at_rest(image)
