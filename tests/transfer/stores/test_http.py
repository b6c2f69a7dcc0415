"""A directory that a store filled, read through a real web server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, StoreError
from sqlimage.transfer.stores.directory import DirectoryStore
from sqlimage.transfer.stores.http import HttpStore
from tests.make.servers import web_server
from tests.transfer.stores.shelves import noise, segment_of

_CONTENT = noise(3 << 20)
_SMALL = noise(1000, 1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("web") / "root"
    shelf = DirectoryStore(directory / "a" / "shelf")
    for content in (_CONTENT, _SMALL, b""):
        shelf.put(segment_of(content), content)
    shelf.publish("image", segment_of(_CONTENT), [segment_of(_SMALL)])
    shelf.put(VERSIONS + "0" * 36, b"image")
    with web_server(directory) as served:
        yield f"{served}/a/shelf"


@pytest.fixture(scope="module")
def store(url: str) -> Iterator[HttpStore]:
    made = HttpStore(url)
    yield made
    made.close()


def test_what_was_put_in_the_directory_is_read(store: HttpStore) -> None:
    for content in (_CONTENT, _SMALL, b""):
        assert store.get(segment_of(content), len(content)) == content
        assert store.head(segment_of(content)) == len(content)
    assert store.get(segment_of(_CONTENT), 1 << 30) == _CONTENT
    assert store.first("image") == segment_of(_CONTENT)
    assert store.get(VERSIONS + "0" * 36, 100) == b"image"


def test_parts_are_those_of_the_bytes_that_were_put(store: HttpStore) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 1100), st.integers(0, 1100))
    def check(offset: int, length: int) -> None:
        assert store.get_range(segment_of(_SMALL), offset, length) == _SMALL[offset : offset + length]

    check()
    assert store.get_range(segment_of(b""), 0, 10) == b""
    assert store.get_range(segment_of(_CONTENT), 1 << 20, 1 << 20) == _CONTENT[1 << 20 : 2 << 20]


def test_more_than_was_allowed_is_refused(store: HttpStore) -> None:
    with pytest.raises(StoreError, match="more than the 999 bytes"):
        store.get(segment_of(_CONTENT), 999)


def test_what_is_not_there_is_told(store: HttpStore) -> None:
    for name in (SEGMENTS + "0" * 64, VERSIONS + "1" * 36, "nothing"):
        assert store.head(name) is None
        with pytest.raises(NotFoundError):
            store.get(name, 1)
        for length in (0, 1):
            with pytest.raises(NotFoundError):
                store.get_range(name, 0, length)


def test_a_web_server_is_only_read(store: HttpStore) -> None:
    for ask in (
        lambda: store.put("image", b""),
        lambda: store.publish("image", segment_of(_SMALL)),
        lambda: store.list(),
    ):
        with pytest.raises(RefusedError):
            ask()


def test_a_slash_at_the_end_says_the_same(url: str) -> None:
    store = HttpStore(url + "/")
    assert store.head(segment_of(_CONTENT)) == len(_CONTENT)
    assert store.where == url


@pytest.mark.parametrize(
    "url", ["http://", "ftp://host/x", "http://host:port/", "http://host/x?y", "http://host/x#y", "http://[::1/x", "x"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        HttpStore(url)


def test_a_server_that_does_not_answer_may_answer_later(tmp_path: Path) -> None:
    with web_server(tmp_path) as url:
        pass
    with pytest.raises(StoreError, match="connection failed") as raised:
        HttpStore(url).get("image", 1)
    assert raised.value.is_transient
