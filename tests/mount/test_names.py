"""Every list of names a reader can give becomes a tree."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from sqlimage.filesystem.contract import EntryKind
from sqlimage.mount.names import Names, safe_name
from tests.mount.test_tree import ROOT, ToldFileSystem

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=8), st.sampled_from(["", ".", "..", "a", "A", "x" * 300])
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
KINDS = st.sampled_from([EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK])


@given(st.dictionaries(PATHS, KINDS, max_size=12))
def test_every_shown_name_is_one_component_and_every_parent_is_a_directory(found: dict[str, EntryKind]) -> None:
    rows = [(path, kind, 10 + number, "", b"") for number, (path, kind) in enumerate(found.items())]
    names = Names(ToldFileSystem([ROOT, *rows]).scan())
    for path in names.row:
        if path != "/":
            parent, _, name = path.rpartition("/")
            assert name in names.children[parent or "/"]
            assert 0 < len(os.fsencode(name)) <= 255
            assert name not in (".", "..")
            assert "\0" not in name
    assert sum(map(len, names.children.values())) == len(names.row) - 1


@given(st.lists(NAMES, max_size=8, unique=True))
def test_every_name_of_the_root_directory_is_shown(listed: list[str]) -> None:
    listed = [name for name in listed if name and "/" not in name]
    rows = [("/" + name, EntryKind.FILE, 10 + number, "", b"") for number, name in enumerate(listed)]
    names = Names(ToldFileSystem([ROOT, *rows]).scan())
    assert len(names.children["/"]) == len(listed)
    assert sorted(names.row[path] for path in names.row if path != "/") == list(range(1, len(listed) + 1))


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=60))
def test_a_good_name_stays_as_it_is(name: str) -> None:
    assert name in (".", "..") or safe_name(name) == name
