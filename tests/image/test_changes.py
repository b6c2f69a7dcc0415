"""What an edit did to the files of a volume, told from the rows before and after."""

from __future__ import annotations

from sqlimage.image.changes import Change, Places, Side, changed_rows, story
from sqlimage.image.describe import FileColumns


def row(
    path: str, record: int, size: int | None = 3, digest: bytes | None = b"d", time: str = "t", kind: str = "file"
) -> FileColumns:
    if kind == "directory":
        size, digest = None, None
    return (2, 0, path, kind, size, time, record, "", 0, digest)


def told(before: list[FileColumns], after: list[FileColumns]) -> list[Change]:
    old = Side({one[2]: one for one in before}, Places([]))
    new = Side({one[2]: one for one in after}, Places([]))
    return story(old, new, changed_rows(old, new, (), ()), ())


def test_a_directory_that_was_renamed_is_one_change_whatever_is_in_it() -> None:
    before = [row("/a", 1, kind="directory"), row("/a/x", 2), row("/a/y", 3)]
    after = [row("/b", 1, kind="directory"), row("/b/x", 2), row("/b/y", 3)]
    assert [(c.action, c.old_path, c.path) for c in told(before, after)] == [("renamed", "/a", "/b")]


def test_a_file_that_changed_in_a_renamed_directory_is_changed_not_deleted_and_created() -> None:
    before = [row("/a", 1, kind="directory"), row("/a/x", 2, digest=b"old")]
    after = [row("/b", 1, kind="directory"), row("/b/x", 2, size=5, digest=b"new")]
    changes = told(before, after)
    assert [(c.action, c.old_path, c.path) for c in changes] == [("renamed", "/a", "/b"), ("changed", "/a/x", "/b/x")]
    assert changes[1].what == ("content", "size")
    assert (changes[1].bytes_before, changes[1].bytes_after) == (3, 5)


def test_a_new_directory_in_the_record_of_a_deleted_one_is_not_taken_for_it() -> None:
    before, after = [row("/a", 1, kind="directory", time="1")], [row("/b", 1, kind="directory", time="2")]
    assert [(c.action, c.path) for c in told(before, after)] == [("deleted", "/a"), ("created", "/b")]


def test_a_file_whose_record_was_used_again_is_deleted_and_the_new_one_created() -> None:
    assert [(c.action, c.path) for c in told([row("/a", 1, digest=b"1")], [row("/b", 1, digest=b"2")])] == [
        ("deleted", "/a"),
        ("created", "/b"),
    ]


def test_on_a_medium_of_several_volumes_a_change_says_on_which() -> None:
    change = Change("renamed", 3, "/new", "file", 1, 1, old_path="/old").on_its_volume()
    assert (change.path, change.old_path) == ("/3/new", "/3/old")
