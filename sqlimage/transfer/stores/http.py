"""A directory of segments behind any web server: read, never written."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.transfer.stores.asking import check_part, referred
from sqlimage.transfer.stores.contract import Bytes, StoreError, check_name
from sqlimage.transfer.stores.web import Line, basic, check_status, drain, length_told, read, split_userinfo

_SCHEMES = ("http", "https")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)


class HttpStore:
    """``https://host/directory``: what a :class:`~sqlimage.transfer.stores.directory.DirectoryStore` filled, served.

    Servers that know no ranges are read up to what is asked for. Credentials are those of the URL, or of ``~/.netrc``
    (``$NETRC``); no message shows them. ``silence_s`` is how long the server may say nothing.
    """

    def __init__(self, url: str, *, silence_s: float = 60.0) -> None:
        bare, user, password = split_userinfo(url)
        parts = urllib.parse.urlsplit(bare)
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"{bare!r} is not the address of a directory", hint="write https://host/directory")
        self._where = bare.rstrip("/")
        self._headers: dict[str, str] = {}
        if not user:
            user, password = _from_netrc(parts.hostname)
        if user:
            self._headers["Authorization"] = basic(user, password)
        self._line = Line(self._where, silence_s=silence_s)

    @property
    def where(self) -> str:
        return self._where

    def get(self, name: str, most_bytes: int) -> bytes:
        url = self._url(name)
        with self._line.ask("GET", url, what=url, headers=self._headers) as response:
            check_status(response, url, 200)
            if (length_told(response) or 0) > most_bytes:
                raise StoreError(f"{url}: has more than the {most_bytes} bytes that it may have")
            return read(response, url, most_bytes)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        url = self._url(name)
        check_part(offset_bytes, length_bytes)
        if not length_bytes:
            if self.head(name) is None:
                raise NotFoundError(f"{url}: no such object")
            return b""
        return read_part(self._line, url, url, self._headers, offset_bytes, length_bytes)

    def head(self, name: str) -> int | None:
        url = self._url(name)
        try:
            with self._line.ask("HEAD", url, what=url, headers=self._headers) as response:
                if response.status_code not in (405, 501):
                    check_status(response, url, 200, 204)
                    if (told := length_told(response)) is not None:
                        return told
            return self._length_by_range(url)
        except NotFoundError:
            return None

    def put(self, name: str, content: Bytes) -> bool:
        raise self._only_read()

    def list(self, prefix: str = "") -> Iterator[str]:
        raise RefusedError(
            f"{self.where}: a web server does not tell what lies in a directory", hint="name the image in its address"
        )

    def first(self, name: str) -> str:
        return referred(self, name)

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        raise self._only_read()

    def close(self) -> None:
        self._line.close()

    def _only_read(self) -> RefusedError:
        return RefusedError(
            f"{self.where}: a web server is only read",
            hint="push to the directory that it serves, to s3:// or to oci://",
        )

    def _length_by_range(self, url: str) -> int:
        with self._line.ask("GET", url, what=url, headers={**self._headers, "Range": "bytes=0-0"}) as response:
            check_status(response, url, 200, 206, 416)
            told = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status_code != 200 and told.isascii() and told.isdigit() and len(told) < 19:
                drain(response)
                return int(told)
            if response.status_code == 200 and (length := length_told(response)) is not None:
                return length
        raise StoreError(f"{url}: the server does not tell how long it is")

    def _url(self, name: str) -> str:
        check_name(name)
        return f"{self._where}/{name}"


def read_part(
    line: Line, url: str, what: str, headers: Mapping[str, str], offset_bytes: int, length_bytes: int
) -> bytes:
    """Part of what lies at ``url``, by as many requests as it takes; fewer bytes where that ends earlier."""
    parts: list[bytes] = []
    at, end = offset_bytes, offset_bytes + length_bytes
    while at < end:
        with line.ask("GET", url, what=what, headers={**headers, "Range": f"bytes={at}-{end - 1}"}) as response:
            if response.status_code == 416:  # Debian's registry tells a length of the body here that it does not have
                break
            check_status(response, what, 200, 206)
            if response.status_code == 200:  # no ranges here: all of it comes
                if parts:
                    raise StoreError(f"{what}: the server changed its mind about ranges", is_transient=True)
                parts.append(read(response, what, end - at, skip_bytes=at, is_cut=True))
                break
            told, total = _told_range(response.headers.get("Content-Range", ""), at, end, what)
            part = read(response, what, told)
            if len(part) != told:
                raise StoreError(f"{what}: {len(part)} bytes came of {told}", is_transient=True)
        parts.append(part)
        at += told
        if total is not None and at >= total:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _told_range(text: str, at: int, end: int, what: str) -> tuple[int, int | None]:
    """How many bytes a 206 says it brings, and how many there are in all (None: not told)."""
    found = _CONTENT_RANGE.fullmatch(text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (-1, -1)
    total = int(found[3]) if found and found[3] != "*" else None
    if first != at or not first <= last < end or (total is not None and last >= total):
        raise StoreError(
            f"{what}: the server sent another part than was asked for (bytes {at}-{end - 1})", is_transient=True
        )
    return last - first + 1, total


def _from_netrc(host: str) -> tuple[str, str]:
    """What ``~/.netrc`` or ``$NETRC`` says about a host, as curl reads it; nothing where there is none to be read."""
    import netrc

    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
        if found := netrc.netrc(path).authenticators(host):
            return found[0] or found[1] or "", found[2] or ""
    return "", ""
