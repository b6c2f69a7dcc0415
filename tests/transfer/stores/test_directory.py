"""A directory as a store: nothing outside it, nothing half, whatever its file system can."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, StoreError
from sqlimage.transfer.stores.directory import DirectoryStore
from tests.transfer.stores.shelves import noise, segment_of

_CONTENT = noise(100_000)
_NAME = segment_of(_CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore(tmp_path / "new" / "shelf")
    made.put(_NAME, _CONTENT)
    return made


def test_an_object_is_a_file_of_its_name(store: DirectoryStore) -> None:
    store.put(VERSIONS + str(uuid.UUID(int=1)), b"image")
    store.publish("image", _NAME)
    assert Path(store.where, _NAME).read_bytes() == _CONTENT
    assert json.loads(Path(store.where, "image").read_text()) == {
        "format": "sqlimage",
        "first": _NAME.removeprefix(SEGMENTS),
    }
    assert Path(store.where, VERSIONS, str(uuid.UUID(int=1))).read_bytes() == b"image"


def test_an_image_takes_no_room_beside_its_segments(store: DirectoryStore) -> None:
    store.publish("image", _NAME)
    store.publish("image", _NAME)
    assert Path(store.where, "image").stat().st_size < 200
    assert sorted(os.listdir(store.where)) == ["image", "segments"]


def test_what_was_damaged_is_whole_when_it_is_put_again(store: DirectoryStore) -> None:
    Path(store.where, _NAME).write_bytes(bytes(len(_CONTENT)))
    store.put(_NAME, _CONTENT)
    assert store.get(_NAME, 1 << 20) == _CONTENT


@pytest.mark.parametrize("name", [_NAME, "image"])
def test_links_lead_nowhere(store: DirectoryStore, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(_CONTENT)
    place = Path(store.where, name)
    place.unlink(missing_ok=True)
    place.symlink_to(outside)
    for ask in (lambda: store.get(name, 1 << 20), lambda: store.get_range(name, 0, 1), lambda: store.head(name)):
        with pytest.raises(StoreError):
            ask()
    assert name not in set(store.list())
    store.put(name, b"new")
    assert outside.read_bytes() == _CONTENT
    assert store.get(name, 100) == b"new"


def test_a_link_in_place_of_the_segments_leads_nowhere(store: DirectoryStore, tmp_path: Path) -> None:
    os.rename(Path(store.where, "segments"), tmp_path / "outside")
    Path(store.where, "segments").symlink_to(tmp_path / "outside")
    for ask in (
        lambda: store.get(_NAME, 1 << 20),
        lambda: store.put(_NAME, b"new"),
        lambda: store.publish("image", _NAME),
        lambda: list(store.list(SEGMENTS)),
    ):
        with pytest.raises(StoreError):
            ask()
    assert (tmp_path / "outside" / _NAME.removeprefix(SEGMENTS)).read_bytes() == _CONTENT


def test_the_place_itself_may_be_reached_by_a_link(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.where)
    assert DirectoryStore(tmp_path / "link").get(_NAME, 1 << 20) == _CONTENT
    assert list(DirectoryStore(tmp_path / "link").list()) == [_NAME]


def test_what_is_no_file_is_no_object(store: DirectoryStore) -> None:
    os.mkfifo(Path(store.where, "pipe"))
    Path(store.where, "folder").mkdir()
    for name in ("pipe", "folder"):
        for ask in (
            lambda name=name: store.get(name, 100),
            lambda name=name: store.put(name, b""),
            lambda name=name: store.publish(name, _NAME) if name == "folder" else store.head(name),
        ):
            with pytest.raises(StoreError):
                ask()
    assert list(store.list()) == [_NAME]


def test_what_others_left_is_not_listed(store: DirectoryStore) -> None:
    for name in (".sqlimage-0123.partial", "a b", "ä", "segments/notes.txt", "x" * 129):
        Path(store.where, name).write_bytes(b"x")
    assert list(store.list()) == [_NAME]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be made") as raised:
        DirectoryStore(tmp_path / "file" / "shelf").put("image", b"")
    assert not raised.value.is_transient


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_on_a_full_disk_nothing_half_is_left(small: Path) -> None:
    store = DirectoryStore(small)
    store.put(_NAME, _CONTENT)
    large = noise(2 << 20)
    with pytest.raises(StoreError, match="No space left") as raised:
        store.put(segment_of(large), large)
    assert not raised.value.is_transient
    assert os.listdir(small / "segments") == [_NAME.removeprefix(SEGMENTS)]
    with pytest.raises(StoreError, match="No space left"):
        store.put(_NAME, large)
    assert store.get(_NAME, 1 << 20) == _CONTENT
    store.put("image", _CONTENT)
    assert sorted(os.listdir(small)) == ["image", "segments"]
