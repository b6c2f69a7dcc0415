"""One HTTP server and how it is talked to: what it may answer, how long it may take, where it may send on to.

Everything that a server says is hostile until checked. Bodies are read as far as was asked and no further, in the
encoding in which they are kept; a redirection never leads from https to http, and takes no credentials to another host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sqlimage.errors import NotFoundError, UsageError
from sqlimage.tool import TOOL
from sqlimage.transfer.stores.asking import CREDENTIALS_HINT
from sqlimage.transfer.stores.contract import StoreError
from sqlimage.transfer.stores.extra import load
from sqlimage.transfer.stores.sigpipe import without_sigpipe

if TYPE_CHECKING:
    import httpx

_MOST_REDIRECTIONS = 5
_MOST_RETRY_AFTER_S = 300.0
_MOST_CONNECTIONS = 64
_WORTH_ASKING_AGAIN = {408, 409, 425, 429}
_NOT_TO_ASK_AGAIN = {501, 505}
_LEAST_BYTES_PER_S = 1 << 10
_PATIENCE_S = 60.0
"""What a line may be slower than for this long, before it counts as cut."""

Body = bytes | Callable[[], Iterable[bytes | memoryview]]
"""What is sent: bytes, or what makes them anew each time that they are sent."""


class Line:
    """Requests to one place, over connections that are kept. Safe from any thread.

    Raises :class:`~sqlimage.transfer.stores.contract.StoreError`, transient where the line or the server for the moment
    is at fault.
    """

    def __init__(self, where: str, *, silence_s: float = 60.0) -> None:
        self._where = where
        self._httpx: Any = load("httpx")
        self._client: httpx.Client = self._httpx.Client(
            timeout=self._httpx.Timeout(silence_s, connect=min(10.0, silence_s), pool=None),
            limits=self._httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=_MOST_CONNECTIONS),
            headers={"User-Agent": TOOL.replace(" ", "/"), "Accept-Encoding": "identity", "Accept": "*/*"},
            follow_redirects=False,
        )

    def url(self, text: str, base: str | None = None) -> httpx.URL:
        """Raises :class:`~sqlimage.transfer.stores.contract.StoreError` for what is none."""
        try:
            url: httpx.URL = self._httpx.URL(base).join(text) if base else self._httpx.URL(text)
        except (self._httpx.InvalidURL, ValueError):
            raise StoreError(f"{self._where}: the server named an address that is none") from None
        if base and self._httpx.URL(base).scheme == "https" and url.scheme != "https":
            raise StoreError(f"{self._where}: the server sends on from https to {url.scheme}")
        return url

    @contextlib.contextmanager
    def ask(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Iterator[httpx.Response]:
        """The answer, whatever its status, with its body still to be read by :func:`read`. ``what`` is what messages
        call the object. Redirections are followed where nothing is sent."""
        with self._telling(what):
            content = body() if callable(body) else body
            request = self._client.build_request(method, url, headers=dict(headers or {}), content=content)  # type: ignore[arg-type]  # a view is as good as bytes
            for _ in range(_MOST_REDIRECTIONS + 1):
                response = self._client.send(request, stream=True)
                try:
                    if method == "HEAD" or response.next_request is not None:
                        drain(response)  # what nobody reads costs its connection
                    if response.next_request is None or method not in ("GET", "HEAD"):
                        yield response
                        return
                    request = self._checked(response.next_request, response, what)
                finally:
                    response.close()
        raise StoreError(f"{what}: the server sends from one address to the next, more than {_MOST_REDIRECTIONS} times")

    def _checked(self, following: httpx.Request, response: httpx.Response, what: str) -> httpx.Request:
        if following.url.scheme != "https" and (response.url.scheme == "https" or following.url.scheme != "http"):
            raise StoreError(f"{what}: the server sends on from {response.url.scheme} to {following.url.scheme}")
        return following

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            with without_sigpipe():
                yield
        except (self._httpx.UnsupportedProtocol, self._httpx.LocalProtocolError, self._httpx.InvalidURL) as problem:
            raise StoreError(f"{what}: cannot be asked for ({_line_of(problem)})") from None
        except self._httpx.TimeoutException:
            raise StoreError(f"{what}: the server does not answer", is_transient=True) from None
        except self._httpx.HTTPError as problem:
            reason = _line_of(problem)
            raise StoreError(
                f"{what}: the connection failed ({reason})",
                hint="its certificate was not accepted" if "CERTIFICATE" in reason else "",
                is_transient="CERTIFICATE" not in reason,
            ) from None

    def close(self) -> None:
        self._client.close()


def read(response: httpx.Response, what: str, most_bytes: int, *, skip_bytes: int = 0, is_cut: bool = False) -> bytes:
    """A body. One of more than ``most_bytes`` is refused as soon as that is known, or with ``is_cut`` read so far.

    ``skip_bytes`` of it are let go first. A body that ends before its ``Content-Length`` is a transient error.
    """
    if response.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
        raise StoreError(f"{what}: the server sends it encoded, though asked not to")
    pieces: list[bytes] = []
    got, skipping = 0, skip_bytes
    began, moved = time.monotonic(), 0
    for piece in response.iter_raw():
        moved += len(piece)
        if (waited := time.monotonic() - began) > _PATIENCE_S:
            if moved < waited * _LEAST_BYTES_PER_S:
                raise StoreError(f"{what}: comes more slowly than 1 KiB a second", is_transient=True)
            began, moved = time.monotonic(), 0
        if skipping:
            dropped = min(skipping, len(piece))
            skipping -= dropped
            piece = piece[dropped:]
        if got + len(piece) > most_bytes:
            if not is_cut:
                raise StoreError(f"{what}: has more than the {most_bytes} bytes that it may have")
            piece = piece[: most_bytes - got]
        pieces.append(piece)
        got += len(piece)
        if is_cut and got == most_bytes:
            break
    return b"".join(pieces)


def drain(response: httpx.Response) -> None:
    """Read what is left of a short answer, so that its connection can be used again; let go of a long one, and of one
    that fails, for nobody needs it."""
    left = 64 << 10
    with contextlib.suppress(load("httpx").HTTPError):
        for piece in response.iter_raw():
            left -= len(piece)
            if left <= 0:
                return


def length_told(response: httpx.Response) -> int | None:
    """``Content-Length``, or None where there is none that makes sense."""
    told = response.headers.get("Content-Length", "")
    return min(int(told[:20]), 1 << 63) if told.isascii() and told.isdigit() else None


def check_status(response: httpx.Response, what: str, *expected: int, detail: str = "") -> None:
    """Raise for a status that is not expected: what it means, and whether asking again may help."""
    status = response.status_code
    if status in expected:
        return
    if status in (404, 410):
        raise NotFoundError(f"{what}: no such object")
    told = f"{what}: the server answered {status} {_phrase(response)} {detail}".rstrip()
    if status in (401, 403, 407):
        raise StoreError(told, hint=CREDENTIALS_HINT)
    raise StoreError(
        told,
        is_transient=(500 <= status < 600 and status not in _NOT_TO_ASK_AGAIN) or status in _WORTH_ASKING_AGAIN,
        retry_after_s=_retry_after(response),
    )


def _phrase(response: httpx.Response) -> str:
    """The standard words for a status, not the server's own."""
    import http

    try:
        return http.HTTPStatus(response.status_code).phrase
    except ValueError:
        return ""


def _retry_after(response: httpx.Response) -> float:
    told = response.headers.get("Retry-After", "").strip()
    if told.isascii() and told.isdigit():
        return min(float(told[:9]), _MOST_RETRY_AFTER_S)
    import email.utils

    try:
        moment = email.utils.parsedate_to_datetime(told).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, min(moment - time.time(), _MOST_RETRY_AFTER_S))


def _line_of(problem: Exception) -> str:
    line = " ".join(str(problem).split())
    return "".join(letter for letter in line if letter.isprintable())[:200] or type(problem).__name__


def split_userinfo(url: str) -> tuple[str, str, str]:
    """A URL without what stands before its ``@``, and the user and the password that do ("" where none do)."""
    import urllib.parse

    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(f"{url.rpartition('@')[2]!r} is not a URL") from None
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    unquote = urllib.parse.unquote
    return urllib.parse.urlunsplit(bare), unquote(parts.username or ""), unquote(parts.password or "")


def basic(user: str, password: str) -> str:
    """The value of an ``Authorization`` header (RFC 7617)."""
    import base64

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
