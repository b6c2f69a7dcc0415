"""A bucket as a store: who may use it, what becomes of it when the line or the server fails."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlimage.errors import NotFoundError, UsageError
from sqlimage.transfer.stores.cloud import CloudStore
from sqlimage.transfer.stores.contract import StoreError
from sqlimage.transfer.stores.wrappers import Checked, Retrying
from tests.make import misbehaving as bad
from tests.make.cutting import cutting
from tests.make.misbehaving import misbehaving
from tests.make.servers import BUCKET, SECRET_KEY, s3_server
from tests.transfer.stores.shelves import noise, segment_of

_SMALL, _LARGE = noise(1000, 1), noise(20 << 20, 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as (_, environment):
        yield environment


@pytest.fixture
def environment(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def url(environment: dict[str, str]) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def test_an_object_lies_under_the_prefix(url: str) -> None:
    CloudStore(url + "/deeper").put("image", _SMALL)
    assert CloudStore(url + "/deeper/").get("image", 1000) == _SMALL
    assert CloudStore(url).head("image") is None
    assert list(CloudStore(url).list()) == []


@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "Wr0ng"), ("AWS_ACCESS_KEY_ID", "nobody")])
def test_who_may_not_is_told(url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    CloudStore(url).put("image", _SMALL)
    monkeypatch.setenv(name, value)
    store = CloudStore(url)
    for ask in (
        lambda: store.put("image", b"x"),
        lambda: store.get("image", 1000),
        lambda: store.get_range("image", 0, 1),
        lambda: store.head("image"),
        lambda: store.publish("image", segment_of(_SMALL)),
        lambda: list(store.list()),
    ):
        with pytest.raises(StoreError, match="403 Forbidden") as raised:
            ask()
        assert not raised.value.is_transient
        assert "credentials" in raised.value.hint
        assert len(str(raised.value).splitlines()) == 1
        assert "Wr0ng" not in str(raised.value)
        assert SECRET_KEY not in str(raised.value)


@pytest.mark.usefixtures("environment")
def test_a_bucket_that_is_not_there_holds_nothing() -> None:
    with pytest.raises(NotFoundError, match="no such bucket"):
        CloudStore("s3://no-such-bucket/x").get("image", 1000)
    assert CloudStore("s3://no-such-bucket/x").head("image") is None


def test_a_server_that_does_not_answer_may_answer_later(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="error sending request") as raised:
        CloudStore(url).get("image", 1000)
    assert raised.value.is_transient
    assert len(str(raised.value).splitlines()) == 1


def test_lines_that_break_are_got_over(url: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    with cutting(environment["AWS_ENDPOINT_URL"].removeprefix("http://")) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{line.host}")
        store = Retrying(Checked(CloudStore(url)), sleep=lambda _: None)
        line.cuts = [1 << 20, 2 << 20, 100, 3 << 20, 1 << 20, 0, 1 << 20]
        store.put(segment_of(_LARGE), _LARGE)
        assert line.cuts == []
        assert store.get(segment_of(_LARGE), 1 << 30) == _LARGE


def test_a_body_that_was_cut_is_asked_for_again(
    url: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    CloudStore(url).put(segment_of(_LARGE), _LARGE)
    with cutting(environment["AWS_ENDPOINT_URL"].removeprefix("http://")) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{line.host}")
        store = Retrying(CloudStore(url), sleep=lambda _: None)
        line.back_cuts = [1 << 20, 5 << 20, 100]
        assert store.get(segment_of(_LARGE), 1 << 30) == _LARGE
        line.back_cuts = [1 << 20, 5 << 20, 100]
        assert store.get_range(segment_of(_LARGE), 1000, 9 << 20) == _LARGE[1000 : 1000 + (9 << 20)]


@pytest.mark.parametrize(
    ("code", "is_transient"), [(500, True), (503, True), (429, True), (408, True), (400, False), (418, False)]
)
def test_what_a_server_answers_says_whether_to_ask_again(
    url: str, monkeypatch: pytest.MonkeyPatch, code: int, is_transient: bool
) -> None:
    with misbehaving(_SMALL) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.removesuffix("/shelf"))
        server.always = bad.status(code)
        with pytest.raises(StoreError, match=str(code)) as raised:
            CloudStore(url).get("image", 1000)
        assert raised.value.is_transient is is_transient


def test_a_server_that_says_nothing_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with misbehaving(_SMALL) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.removesuffix("/shelf"))
        server.always = bad.silent
        with pytest.raises(StoreError) as raised:
            CloudStore(url, silence_s=0.2).get("image", 1000)
        assert raised.value.is_transient


@pytest.mark.parametrize(
    "value", ["127.0.0.1:8333", "foo", "http://", "ftp://host", "http://host:70000", "http://h st"]
)
def test_an_endpoint_that_is_no_address_is_told_by_its_variable(
    url: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(UsageError, match=r"^AWS_ENDPOINT_URL: is not the address of a server; write http://HOST:PORT"):
        CloudStore(url)


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_variable_with_a_line_end_is_told_by_its_name(url: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "secret\r")
    with pytest.raises(UsageError, match=f"^{name}: holds a character that cannot be in it") as raised:
        CloudStore(url)
    assert "secret" not in str(raised.value)


def test_what_obstore_does_not_survive_is_told_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlimage.transfer.stores.cloud._check_environment", lambda scheme: None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a\nb")
    with pytest.raises(StoreError, match="check its environment variables"):
        CloudStore(url).head("image")


def test_other_clouds_need_their_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="az://container"):
        CloudStore("az://container/x")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="gs://bucket"):
        CloudStore("gs://bucket/x")
