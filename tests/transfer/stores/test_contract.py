"""What every store promises, said of each kind, over its real server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.errors import FormatError, NotFoundError, RefusedError, UsageError
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, Store, StoreError
from sqlimage.transfer.stores.wrappers import Retrying
from tests.transfer.stores.shelves import KINDS, MakeStore, noise, segment_of, shelves

_SMALL, _LARGE = noise(1000, 1), noise(20 << 20, 2)
"""The large one goes up in several parts wherever there are parts."""


@pytest.fixture(scope="module", params=KINDS)
def make_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeStore]:
    with shelves(request.param, tmp_path_factory.mktemp(request.param)) as make:
        yield make


@pytest.fixture
def store(make_store: MakeStore) -> Iterator[Store]:
    made = make_store()
    yield made
    made.close()


def test_what_was_put_is_read_back(store: Store) -> None:
    for content in (_SMALL, _LARGE, b"x"):
        store.put(segment_of(content), content)
        assert store.get(segment_of(content), len(content)) == content
        assert store.head(segment_of(content)) == len(content)


def test_an_object_may_be_empty(store: Store) -> None:
    store.put(segment_of(b""), b"")
    assert store.get(segment_of(b""), 0) == b""
    assert store.head(segment_of(b"")) == 0
    assert store.get_range(segment_of(b""), 0, 10) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_content_may_be_any_kind_of_bytes(store: Store, kind: type) -> None:
    store.put(segment_of(_SMALL), kind(_SMALL))
    assert store.get(segment_of(_SMALL), 1 << 20) == _SMALL


def test_a_part_is_read_and_ends_where_the_object_ends(store: Store) -> None:
    name = segment_of(_LARGE)
    store.put(name, _LARGE)
    for offset, length in ((0, 1), (0, 100), (7 << 20, 3 << 20), (len(_LARGE) - 5, 5), (len(_LARGE) - 5, 500)):
        assert store.get_range(name, offset, length) == _LARGE[offset : offset + length]
    assert store.get_range(name, len(_LARGE), 10) == b""
    assert store.get_range(name, len(_LARGE) + 10, 10) == b""
    assert store.get_range(name, 10, 0) == b""


def test_parts_are_those_of_the_bytes_that_were_put(store: Store) -> None:
    name = segment_of(_SMALL)
    store.put(name, _SMALL)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 1100), st.integers(0, 1100))
    def check(offset: int, length: int) -> None:
        assert store.get_range(name, offset, length) == _SMALL[offset : offset + length]

    check()


def test_no_part_begins_before_the_object(store: Store) -> None:
    store.put("image", _SMALL)
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(UsageError):
            store.get_range("image", offset, length)


def test_more_than_was_allowed_is_refused(store: Store) -> None:
    store.put(segment_of(_LARGE), _LARGE)
    with pytest.raises(StoreError, match="more than the 1000 bytes") as raised:
        store.get(segment_of(_LARGE), 1000)
    assert not raised.value.is_transient


def test_what_is_not_there_is_told(store: Store) -> None:
    for name in (SEGMENTS + "0" * 64, VERSIONS + str(uuid.UUID(int=0)), "image"):
        assert store.head(name) is None
        with pytest.raises(NotFoundError):
            store.get(name, 1000)
        with pytest.raises(NotFoundError):
            store.get_range(name, 0, 1)
        with pytest.raises(NotFoundError):
            store.get_range(name, 0, 0)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "segments/x", "segments", "-x", ".x", "x" * 129, "ä", "a b"]
)
def test_other_names_are_refused(store: Store, name: str) -> None:
    for ask in (
        lambda: store.put(name, b""),
        lambda: store.get(name, 1),
        lambda: store.get_range(name, 0, 1),
        lambda: store.head(name),
        lambda: store.publish(name, SEGMENTS + "0" * 64),
    ):
        with pytest.raises(UsageError):
            ask()


def test_small_objects_are_replaced(store: Store) -> None:
    for name in (VERSIONS + str(uuid.UUID(int=5)), "image.sqlimage"):
        store.put(name, b"first")
        assert store.get(name, 100) == b"first"
        store.put(name, b"the second")
        assert store.get(name, 100) == b"the second"
        assert store.head(name) == 10
        assert store.get_range(name, 4, 3) == b"sec"


def test_an_image_stands_for_a_segment(store: Store) -> None:
    for content in (_SMALL, _LARGE):
        store.put(segment_of(content), content)
    for content in (_LARGE, _SMALL, _SMALL, _LARGE):
        store.publish("image", segment_of(content), [segment_of(_SMALL)])
        assert store.first("image") == segment_of(content)
        assert store.get(segment_of(content), 1 << 30) == content


def test_two_images_may_stand_for_one_segment(store: Store) -> None:
    store.put(segment_of(_SMALL), _SMALL)
    store.publish("one", segment_of(_SMALL))
    store.publish("two", segment_of(_SMALL), [segment_of(_SMALL)])
    assert store.first("one") == store.first("two") == segment_of(_SMALL)


def test_a_name_of_something_else_is_no_image(store: Store) -> None:
    for content in (b"", b"something else", b"{}", b"[]", b'{"format": "sqlimage", "first": 7}', _LARGE):
        store.put("image", content)
        if not store.where.startswith("oci://"):  # there the name tells what it stands for, and not the bytes
            with pytest.raises(FormatError, match="not an image"):
                store.first("image")


def test_no_image_stands_for_what_was_not_put(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.publish("image", SEGMENTS + "0" * 64)
    assert store.head("image") is None
    with pytest.raises(NotFoundError):
        store.first("image")


@pytest.mark.parametrize("name", [SEGMENTS + "0" * 64, VERSIONS + str(uuid.UUID(int=0))])
def test_only_an_image_stands_for_a_segment_and_for_nothing_else(store: Store, name: str) -> None:
    store.put(segment_of(_SMALL), _SMALL)
    with pytest.raises(UsageError):
        store.publish(name, segment_of(_SMALL))
    with pytest.raises(UsageError):
        store.publish("image", "image")
    with pytest.raises(UsageError):
        store.first(name)


def test_names_are_listed(store: Store) -> None:
    version = VERSIONS + str(uuid.UUID(int=7))
    assert list(store.list()) == []
    store.put(segment_of(_SMALL), _SMALL)
    store.put(version, b"image")
    for name in ("image", "imagination", "web.2"):
        store.publish(name, segment_of(_SMALL))
    named = {version, "image", "imagination", "web.2"}
    assert {name for name in store.list() if not name.startswith(SEGMENTS)} == named
    assert sorted(store.list("imag")) == ["image", "imagination"]
    assert list(store.list("imagi")) == ["imagination"]
    assert list(store.list(VERSIONS)) == [version]
    assert list(store.list(version[:12])) == [version]
    assert list(store.list("nothing")) == []
    try:
        assert list(store.list(SEGMENTS)) == [segment_of(_SMALL)]
        assert set(store.list()) == {*named, segment_of(_SMALL)}
    except RefusedError:
        assert store.where.startswith("oci://")


def test_several_threads_share_a_store(store: Store) -> None:
    # asking again, since Debian's registry writes a tag in place, and who reads it just then gets a 500
    store = Retrying(store, attempts=20, first_delay_s=0.01)
    contents = [noise(200_000 + seed, seed) for seed in range(12)]
    failed: list[object] = []

    def work(content: bytes) -> None:
        try:
            store.put(segment_of(content), content)
            store.put("shared", content)
            assert store.get(segment_of(content), 1 << 20) == content
            assert store.get_range(segment_of(content), 1000, 1000) == content[1000:2000]
        except BaseException as problem:
            failed.append(problem)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert store.get("shared", 1 << 20) in contents
