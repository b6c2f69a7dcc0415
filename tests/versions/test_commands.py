"""The commands for versions as their users meet them: tables, JSON, and refusals in one line that change nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import sqlimage
from tests.image.edits import check_whole, content_of
from tests.images import run_tool, sample_volume, tool


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """golden (1) <- second (2) <- third (3) in one file, and a child file of the second."""
    place = tmp_path_factory.mktemp("commands")
    volume, image = sample_volume(place / "disk.img"), place / "golden.sqlimage"
    tool("capture", volume, image, "--label", "golden", "--property", "site=Berlin")
    for label in ("second", "third"):
        text = place / "text"
        text.write_text(f"{label}\n" * 40)
        tool("put", image, text, f"/Users/joe/{label}.txt", "--label", label)
    tool("edit", "begin", f"{image}@second", "--into", place / "child.sqlimage", "--label", "child")
    with sqlimage.open(str(place / "child.sqlimage"), writable=True) as opened, opened.resume("1") as edit:
        edit.driver.write(7 << 20, b"the child's own" * 1000)
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    for name in ("golden.sqlimage", "child.sqlimage", "disk.img"):
        shutil.copy(template / name, tmp_path / name)
    return tmp_path


def digests(*paths: Path) -> list[bytes]:
    return [hashlib.sha256(path.read_bytes()).digest() for path in paths]


def test_versions_are_shown_as_a_tree_with_their_sizes_and_children(place: Path) -> None:
    image = place / "golden.sqlimage"
    shown = run_tool("versions", image)
    lines = shown.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["1", "golden"], ["2", "second"], ["3", "third"]]
    assert lines[2].startswith("  2") and lines[3].startswith("    3")
    assert str(place / "child.sqlimage") in shown.stderr
    told = json.loads(tool("versions", image, "--json"))
    assert [branch["depth"] for branch in told["branches"]] == [0, 1, 2]
    assert all(branch["own_bytes"] + branch["shared_bytes"] > 0 for branch in told["branches"])
    child = json.loads(tool("versions", place / "child.sqlimage", "--json"))["branches"]
    assert (child[0]["parent_file"], child[0]["parent_uuid"]) == (str(image), told["branches"][1]["uuid"])
    image.rename(place / "elsewhere")
    assert "not found" in tool("versions", place / "child.sqlimage")


def test_diff_tells_what_became_of_files_and_clusters(place: Path) -> None:
    image = place / "golden.sqlimage"
    told = json.loads(tool("diff", f"{image}@golden", f"{image}@third", "--json"))
    assert [(c["action"], c["path"]) for c in told["changes"]] == [
        ("created", "/Users/joe/second.txt"),
        ("created", "/Users/joe/third.txt"),
    ]
    assert json.loads(tool("diff", f"{image}@third", f"{image}@golden", "--json"))["counts"]["deleted"] == 2
    assert json.loads(tool("diff", image, image, "--json", "--clusters"))["clusters"] == []
    between = json.loads(tool("diff", f"{image}@third", place / "child.sqlimage", "--json", "--clusters"))
    a, b, unit = content_of(image, "third"), content_of(place / "child.sqlimage"), between["bytes_per_cluster"]
    wanted = {n for n in range(len(a) // unit) if a[n * unit : (n + 1) * unit] != b[n * unit : (n + 1) * unit]}
    assert {n for run in between["clusters"] for n in range(run["start_cluster"], run["end_cluster"] + 1)} == wanted


def test_a_merged_child_is_there_under_its_uuid_with_its_story_and_can_be_removed(place: Path) -> None:
    image, child = place / "golden.sqlimage", place / "child.sqlimage"
    before, content = digests(child), content_of(child)
    uuid = json.loads(tool("info", child, "--json"))["uuid"]
    told = json.loads(tool("merge", child, "--into", image, "--message", "bring it home", "--json"))
    assert [(one["uuid"], one["label"]) for one in told["versions"]] == [(uuid, "child")]
    assert digests(child) == before
    again = run_tool("merge", child, "--into", image)
    assert again.returncode == 0 and "is there already" in again.stderr
    child.unlink()
    assert content_of(image, uuid) == content
    check_whole(image)
    rows = json.loads(tool("audit", image, "--json"))
    assert [row["action"] for row in rows][-3:] == ["edit-begin", "edit-commit", "merge"]
    assert json.loads(rows[-1]["detail"])["message"] == "bring it home"
    with sqlimage.open(str(image)) as opened:
        assert opened.version(uuid).properties()["site"] == "Berlin"


def test_labels_that_would_be_there_twice_get_a_number(place: Path) -> None:
    image, child = place / "golden.sqlimage", place / "again.sqlimage"
    tool("capture", place / "disk.img", child, "--parent", f"{image}@third", "--label", "second")
    tool("merge", child, "--into", image)
    assert json.loads(tool("info", f"{image}@second~2", "--json"))["version"] == 4


def test_what_something_builds_on_is_not_removed_and_the_file_is_as_it_was(place: Path) -> None:
    image, child = place / "golden.sqlimage", place / "child.sqlimage"
    tool("edit", "begin", f"{image}@third", "--label", "open")
    before = digests(image, child)
    for arguments, code, said in (
        (("prune", image, "second"), 4, "version 3 is its child"),
        (("prune", image, "third"), 4, "version 4 is its child"),
        (("prune", image, "open"), 4, "is an edit that is not finished"),
        (("prune", image, "9"), 3, "no version '9'"),
        (("prune", child, "1"), 4, "nothing would be left"),
        (("squash", image, "--from", "2", "--to", "3"), 4, "child.sqlimage needs it"),
        (("squash", image, "--from", "3", "--to", "2"), 4, "is no ancestor of"),
        (("squash", image, "--from", "2", "--to", "2"), 2, "is one version already"),
        (("squash", child, "--from", "golden", "--to", "1"), 3, "no version 'golden'"),
        (("merge", image, "--into", image), 4, "into itself"),
        (("merge", image, "--into", child), 4, "edit that is not finished"),
        (("rebase", f"{image}@1", "--onto", f"{image}@3"), 4, "descends from it"),
        (("rebase", image, "--onto", child), 2, "not clear which version is meant"),
        (("flatten", child, image), 4, "exists"),
        (("diff", image, place / "none"), 3, "no such image"),
    ):
        done = run_tool(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), (arguments, done.stderr)
        assert said in done.stderr, (arguments, done.stderr)
    assert digests(image, child) == before
    assert sorted(path.name for path in place.iterdir()) == ["child.sqlimage", "disk.img", "golden.sqlimage"]


def test_a_child_in_another_directory_is_seen_where_it_is_named(place: Path) -> None:
    image, away = place / "golden.sqlimage", place / "away"
    away.mkdir()
    shutil.move(place / "child.sqlimage", away / "child.sqlimage")
    refused = run_tool("squash", image, "--from", "2", "--to", "3", "--search", away)
    assert refused.returncode == 4 and "away/child.sqlimage needs it" in refused.stderr
    assert tool("restore", away / "child.sqlimage", place / "c.raw", "--search", place)
    told = run_tool("squash", image, "--from", "2", "--to", "3")
    assert told.returncode == 0 and "--search" in told.stderr  # says where it looked


def test_squash_prune_rebase_flatten_and_compact_leave_every_byte_of_what_is_left(place: Path) -> None:
    image, child = place / "golden.sqlimage", place / "child.sqlimage"
    third, own = content_of(image, "third"), content_of(child)
    tool("flatten", child, place / "flat.sqlimage")
    assert content_of(place / "flat.sqlimage") == own
    tool("rebase", child, "--onto", f"{image}@third", "--message", "to the newest")
    assert content_of(child) == own
    # The child now has in the third version's file what only the second one shows.
    refused = run_tool("squash", image, "--from", "golden", "--to", "third")
    assert refused.returncode == 4 and "child.sqlimage refers to contents that would be gone" in refused.stderr
    tool("rebase", child, "--onto", place / "flat.sqlimage")
    assert json.loads(tool("versions", child, "--json"))["branches"][0]["changed_bytes"] == 0
    told = json.loads(tool("squash", image, "--from", "golden", "--to", "third", "--json"))
    assert (told["version"], told["squashed"]) == (3, [1, 2])
    assert (content_of(image, "third"), content_of(child)) == (third, own)
    tool("compact", image)
    tool("compact", child)
    assert (content_of(image), content_of(child)) == (third, own)
    for path in (image, child, place / "flat.sqlimage"):
        check_whole(path)
        with sqlimage.open(str(path)) as opened:
            assert sqlimage.verify_files(opened.version()) == []
            assert opened.version().properties()["site"] == "Berlin"
    actions = [row["action"] for row in json.loads(tool("audit", image, "--json"))]
    assert actions[0] == "capture" and actions[-3:] == ["squash", "compact", "compact"]
    assert [row["action"] for row in json.loads(tool("audit", place / "flat.sqlimage", "--json"))][-1] == "flatten"
