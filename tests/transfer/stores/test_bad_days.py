"""What a reader gets when a web server or a line misbehaves: the right bytes after all, or an error that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqlimage.errors import NotFoundError
from sqlimage.transfer.stores import web
from sqlimage.transfer.stores.contract import StoreError
from sqlimage.transfer.stores.http import HttpStore
from sqlimage.transfer.stores.wrappers import Checked, Retrying
from tests.make import misbehaving as bad
from tests.make.misbehaving import Handler, Misbehaving, make_certificate, misbehaving
from tests.transfer.stores.shelves import noise, segment_of

_CONTENT = noise(400_000)
_NAME = segment_of(_CONTENT)
_MOST = 1 << 20
Fault = Callable[[Handler], None]


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving(_CONTENT) as state:
        yield state


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def store(server: Misbehaving, waits: list[float]) -> Iterator[Retrying]:
    made = Retrying(Checked(HttpStore(server.url)), sleep=waits.append)
    yield made
    made.close()


_PASSING: dict[str, Fault] = {
    "500": bad.status(500),
    "502": bad.status(502),
    "503": bad.status(503),
    "429": bad.status(429),
    "408": bad.status(408),
    "cut": bad.cut_after(100_000),
    "cut before the first byte": bad.cut_after(0),
    "reset": bad.cut_after(100_000, reset=True),
}


@pytest.mark.parametrize("fault", _PASSING.values(), ids=_PASSING)
def test_what_passes_is_asked_again(server: Misbehaving, store: Retrying, waits: list[float], fault: Fault) -> None:
    server.faults = [fault] * 2
    assert store.get(_NAME, _MOST) == _CONTENT
    server.faults = [fault] * 2
    assert store.get_range(_NAME, 1000, 200_000) == _CONTENT[1000:201_000]
    assert len(server.requests) == 6
    assert len(waits) == 4


@pytest.mark.parametrize("fault", _PASSING.values(), ids=_PASSING)
def test_the_length_is_asked_for_again(server: Misbehaving, store: Retrying, fault: Fault) -> None:
    server.faults = [fault]
    assert store.head(_NAME) == len(_CONTENT)


def test_a_server_that_says_nothing_is_asked_again(server: Misbehaving, waits: list[float]) -> None:
    store = Retrying(Checked(HttpStore(server.url, silence_s=0.5)), sleep=waits.append)
    server.faults = [bad.silent]
    assert store.get(_NAME, _MOST) == _CONTENT
    server.always = bad.silent
    with pytest.raises(StoreError, match="does not answer") as raised:
        Retrying(HttpStore(server.url, silence_s=0.1), attempts=2, sleep=waits.append).head(_NAME)
    assert raised.value.is_transient


def test_it_is_asked_six_times_and_each_time_after_longer(
    server: Misbehaving, store: Retrying, waits: list[float]
) -> None:
    server.always = bad.status(500)
    with pytest.raises(StoreError, match="500 Internal Server Error") as raised:
        store.get(_NAME, _MOST)
    assert raised.value.is_transient
    assert len(server.requests) == 6
    assert [0.1 * 2**n <= wait <= 0.2 * 2**n for n, wait in enumerate(waits)] == [True] * 5


def test_a_server_is_left_alone_as_long_as_it_says(server: Misbehaving, store: Retrying, waits: list[float]) -> None:
    server.faults = [bad.status(429, Retry_After="7"), bad.status(503, Retry_After="Fri, 31 Dec 2100 23:59:59 GMT")]
    assert store.get(_NAME, _MOST) == _CONTENT
    assert waits == [7, 300]


@pytest.mark.parametrize("code", [400, 401, 403, 405, 407, 418, 451, 501, 600])
def test_what_does_not_pass_is_not_asked_again(server: Misbehaving, store: Retrying, code: int) -> None:
    server.always = bad.status(code)
    with pytest.raises(StoreError, match=str(code)) as raised:
        store.get(_NAME, _MOST)
    assert ("credentials" in raised.value.hint) is (code in (401, 403, 407))
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [404, 410])
def test_what_is_not_there_is_not_asked_again(server: Misbehaving, store: Retrying, code: int) -> None:
    server.always = bad.status(code)
    with pytest.raises(NotFoundError):
        store.get(_NAME, _MOST)
    with pytest.raises(NotFoundError):
        store.get_range(_NAME, 0, 10)
    assert store.head(_NAME) is None
    assert len(server.requests) == 3


def test_a_segment_with_a_wrong_bit_is_fetched_again(server: Misbehaving, store: Retrying) -> None:
    server.faults = [bad.wrong_bytes]
    assert store.get(_NAME, _MOST) == _CONTENT
    server.always = bad.wrong_bytes
    with pytest.raises(StoreError, match="does not match its digest"):
        store.get(_NAME, _MOST)


def test_a_server_without_ranges_is_read_as_far_as_needed(server: Misbehaving, store: Retrying) -> None:
    server.content = noise(64 << 20, 5)
    server.always = bad.no_ranges
    for offset, length in ((0, 10), (1000, 100_000), (0, 1)):
        assert store.get_range("image", offset, length) == server.content[offset : offset + length]
    assert server.sent_bytes < 48 << 20
    for offset, length in ((len(server.content) - 10, 100), (len(server.content), 10), (1 << 40, 10)):
        assert store.get_range("image", offset, length) == server.content[offset : offset + length]


_OTHER_PARTS = {
    "another place": {"Content_Range": "bytes 0-199999/400000"},
    "longer": {"Content_Range": "bytes 1000-300000/400000"},
    "backwards": {"Content_Range": "bytes 1000-900/400000"},
    "beyond the end": {"Content_Range": "bytes 1000-200999/5"},
    "no numbers": {"Content_Range": "bytes x-y/z"},
    "other units": {"Content_Range": "pages 1000-200999/400000"},
    "long numbers": {"Content_Range": f"bytes 1000-{'9' * 5000}/*"},
    "several": {"Content_Type": "multipart/byteranges; boundary=x", "Content_Range": ""},
}


@pytest.mark.parametrize("headers", _OTHER_PARTS.values(), ids=_OTHER_PARTS)
def test_another_part_than_was_asked_for_is_not_taken(
    server: Misbehaving, store: Retrying, headers: dict[str, str]
) -> None:
    server.faults = [bad.lies(**headers)]
    assert store.get_range(_NAME, 1000, 200_000) == _CONTENT[1000:201_000]
    server.always = bad.lies(**headers)
    with pytest.raises(StoreError, match="another part than was asked for"):
        store.get_range(_NAME, 1000, 200_000)


def test_a_part_that_is_shorter_than_it_says_is_not_taken(server: Misbehaving, store: Retrying) -> None:
    server.faults = [bad.lies(Content_Length="10")]
    assert store.get_range(_NAME, 1000, 200_000) == _CONTENT[1000:201_000]
    server.always = bad.lies(Content_Length="10")
    with pytest.raises(StoreError, match="10 bytes came of 200000"):
        store.get_range(_NAME, 1000, 200_000)


def test_a_server_may_bring_parts_in_smaller_pieces(server: Misbehaving, store: Retrying) -> None:
    def small(handler: Handler) -> None:
        first, end = handler.asked() or (0, 0)
        end = min(end, first + 30_000)
        handler.answer(_CONTENT[first:end], Content_Range=f"bytes {first}-{end - 1}/*")

    server.always = small
    assert store.get_range(_NAME, 1000, 100_000) == _CONTENT[1000:101_000]


@pytest.mark.parametrize("length", ["3", "-5", "x", "99999999999999999999", "300000"])
def test_a_wrong_length_never_makes_wrong_bytes(server: Misbehaving, store: Retrying, length: str) -> None:
    server.faults = [bad.lies(Content_Length=length)]
    try:
        assert store.get(_NAME, _MOST) == _CONTENT
    except StoreError as problem:
        assert "more than" in problem.message


def test_what_is_longer_than_it_says_is_refused_as_it_comes(server: Misbehaving, store: Retrying) -> None:
    server.always = bad.endless
    with pytest.raises(StoreError, match="more than the 1048576 bytes"):
        store.get("image", _MOST)
    assert store.get_range("image", 100, 200) == bytes(200)


def test_a_body_that_comes_encoded_is_not_unpacked(server: Misbehaving, store: Retrying) -> None:
    server.always = bad.lies(Content_Encoding="gzip")
    with pytest.raises(StoreError, match="encoded"):
        store.get(_NAME, _MOST)
    assert server.requests[0][1]["accept-encoding"] == "identity"


def test_a_slow_body_is_waited_for(server: Misbehaving, store: Retrying) -> None:
    server.faults = [bad.dripping(10, 0.1)]
    assert store.get(_NAME, _MOST) == _CONTENT
    assert len(server.requests) == 1


def test_a_line_that_moves_next_to_nothing_counts_as_cut(
    server: Misbehaving, store: Retrying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(web, "_LEAST_BYTES_PER_S", 1 << 40)
    server.faults = [bad.dripping(3, 0.1)] * 3
    with pytest.raises(StoreError, match="more slowly than 1 KiB a second") as raised:
        HttpStore(server.url).get(_NAME, _MOST)
    assert raised.value.is_transient


def test_a_redirection_is_followed_and_takes_no_password_along(server: Misbehaving) -> None:
    with misbehaving(_CONTENT) as other:
        store = HttpStore(server.url.replace("//", "//someone:secret@"))
        server.faults = [bad.redirect(f"{server.url}/elsewhere"), bad.redirect(f"{other.url}/x?signed=1")]
        assert store.get_range(_NAME, 5, 500) == _CONTENT[5:505]
        assert "authorization" in server.requests[0][1]
        assert "authorization" in server.requests[1][1]
        assert "authorization" not in other.requests[0][1]
        assert other.requests[0][1]["range"] == "bytes=5-504"


def test_redirections_come_to_an_end(server: Misbehaving, store: Retrying) -> None:
    server.always = bad.redirect(f"{server.url}/again")
    with pytest.raises(StoreError, match="sends from one address to the next"):
        store.get(_NAME, _MOST)
    assert len(server.requests) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "http://", "gopher:x"])
def test_a_redirection_leads_nowhere_else(server: Misbehaving, store: Retrying, target: str) -> None:
    server.always = bad.redirect(target)
    with pytest.raises(StoreError):
        store.get(_NAME, _MOST)


def test_a_redirection_does_not_lead_out_of_https(
    server: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path / "certificate.pem")
    with misbehaving(_CONTENT, certificate) as secure:
        with pytest.raises(StoreError, match="certificate was not accepted") as raised:
            HttpStore(secure.url).get(_NAME, _MOST)
        assert not raised.value.is_transient
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        store = HttpStore(secure.url)
        assert store.get(_NAME, _MOST) == _CONTENT
        secure.faults = [bad.redirect(f"{server.url}/{_NAME}")]
        with pytest.raises(StoreError, match="from https to http"):
            store.get(_NAME, _MOST)
        assert server.requests == []


def test_a_length_that_no_answer_tells_is_asked_for_by_a_part(server: Misbehaving, store: Retrying) -> None:
    server.faults = [bad.status(405)]
    assert store.head(_NAME) == len(_CONTENT)
    server.faults = [bad.status(501)]
    server.content = b""
    assert store.head(_NAME) == 0


def test_credentials_come_from_netrc_and_are_never_shown(
    server: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password s3cr3t\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    store = HttpStore(server.url)
    store.head(_NAME)
    assert server.requests[0][1]["authorization"] == "Basic c29tZW9uZTpzM2NyM3Q="
    store = HttpStore(server.url.replace("//", "//a%40b:s3cr3t@"))
    server.always = bad.status(403)
    with pytest.raises(StoreError) as raised:
        store.get(_NAME, _MOST)
    assert server.requests[1][1]["authorization"] == "Basic YUBiOnMzY3IzdA=="
    assert "s3cr3t" not in str(raised.value) + store.where + repr(raised.value)
