"""Blobs on their way into a registry: in pieces, resumed where the server says that it stands.

What arrived of a piece whose request failed only the server knows, and registries take a piece that does not follow on
without a word: so the offset is asked for before anything is sent again. In the end the server compares the digest.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from sqlimage.errors import NotFoundError
from sqlimage.transfer.stores.contract import Bytes, StoreError
from sqlimage.transfer.stores.registry_auth import PUSH, RegistryLine, check_answer
from sqlimage.transfer.stores.web import Body, drain
from sqlimage.units import MIB

if TYPE_CHECKING:
    import httpx

_PIECE_BYTES = 8 * MIB
_MOST_PIECE_BYTES = 1 << 30
_WRITE_BYTES = 128 << 10
"""What goes to the socket at a time: below, each write costs; above, what is left of it is copied after each."""
_SESSIONS = 3
_FAILURES = 4
"""In a row, without a byte of progress between."""
_FAILURES_IN_ALL = 100
_FIRST_DELAY_S = 0.1
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")


class _Lost(Exception):
    """What the server has of an upload is not known, or not what was sent: another one must begin."""


class Upload:
    """One blob of a repository at ``base`` (``https://host/v2/repository``); ``what`` is its name in messages."""

    def __init__(
        self, line: RegistryLine, base: str, what: str, digest: str, content: Bytes, sleep: Callable[[float], object]
    ) -> None:
        self._line = line
        self._base = base
        self._what = what
        self._digest = digest
        self._content = memoryview(content).cast("B")
        self._sleep = sleep
        self._location: httpx.URL
        self._piece_bytes = _PIECE_BYTES
        self._was_cut = False

    def run(self, mount_from: Sequence[str] = ()) -> bool:
        """Have the blob in the repository: taken over from another repository of this registry, or sent. Whether it was
        sent."""
        for repository in mount_from:
            if self._mount(repository):
                return False
        for session in range(_SESSIONS):
            if session:
                self._sleep(_FIRST_DELAY_S * 2**session)
            try:
                self._begin()
                if len(self._content) > self._piece_bytes:
                    self._send_pieces()
                    self._finish(b"")
                else:
                    self._finish(self._body(self._content))
                return True
            except _Lost:
                continue
        raise StoreError(f"{self._what}: the registry did not keep what was sent", is_transient=True)

    def _mount(self, repository: str) -> bool:
        """Whether the registry took the blob over from another of its repositories, which then has it as well."""
        url = f"{self._base}/blobs/uploads/?mount={self._digest}&from={repository}"
        try:
            # a token for this names both repositories: a kind of its own
            with self._line.ask(
                "POST", url, what=self._what, headers=_EMPTY, kind=f"{PUSH} from {repository}"
            ) as answer:
                if answer.status_code == 201:
                    drain(answer)
                    return True
                if answer.status_code == 202:  # an upload has begun instead: let it go, another repository may have it
                    location = self._located(answer)
                    drain(answer)
                    with self._line.ask("DELETE", location, what=self._what, kind=PUSH) as gone:
                        drain(gone)
        except (StoreError, NotFoundError):
            pass  # it can still be sent
        return False

    def _begin(self) -> None:
        url = f"{self._base}/blobs/uploads/"
        with self._line.ask("POST", url, what=self._what, headers=_EMPTY, kind=PUSH) as answer:
            check_answer(answer, self._what, 202)
            self._location = self._located(answer)
            self._was_cut = False
            least = answer.headers.get("OCI-Chunk-Min-Length", "")
            if least.isascii() and least.isdigit():
                self._piece_bytes = max(_PIECE_BYTES, min(int(least[:12]), _MOST_PIECE_BYTES))
            drain(answer)

    def _send_pieces(self) -> None:
        at = failures = in_all = 0
        is_sure = True
        while at < len(self._content):
            try:
                now = self._send(at, self._content[at : at + self._piece_bytes]) if is_sure else self._ask_offset()
            except StoreError as problem:
                if failures == _FAILURES or in_all == _FAILURES_IN_ALL or not problem.is_transient:
                    raise
                self._sleep(_FIRST_DELAY_S * 2**failures)
                failures, in_all = failures + 1, in_all + 1
                is_sure, self._was_cut = False, True
                continue
            if now < at:
                raise _Lost
            failures = 0 if now > at else failures
            at, is_sure = now, True

    def _send(self, at: int, piece: memoryview) -> int:
        """How far the upload has come with this piece."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(piece)),
            "Content-Range": f"{at}-{at + len(piece) - 1}",
        }
        body = self._body(piece)
        with self._line.ask("PATCH", self._location, what=self._what, headers=headers, body=body, kind=PUSH) as answer:
            if answer.status_code == 416:
                raise StoreError(f"{self._what}: the registry expects another piece", is_transient=True)
            check_answer(answer, self._what, 202, 201, 204)
            self._location = self._located(answer)
            told = _RANGE.fullmatch(answer.headers.get("Range", ""))
            drain(answer)
        if not told:
            return at + len(piece)
        now = int(told[1]) + 1
        if now > at + len(piece):
            raise _Lost
        return now

    def _ask_offset(self) -> int:
        """How far the upload has come, after it was interrupted."""
        try:
            with self._line.ask("GET", self._location, what=self._what, kind=PUSH) as answer:
                check_answer(answer, self._what, 204, 202, 200)
                self._location = self._located(answer)
                told = _RANGE.fullmatch(answer.headers.get("Range", ""))
                drain(answer)
        except NotFoundError:
            raise _Lost from None
        except StoreError as problem:
            if problem.is_transient:
                raise
            raise _Lost from None
        # some say 0-0 where nothing has come as well as where one byte has
        if not told or int(told[1]) == 0 or int(told[1]) >= len(self._content):
            raise _Lost
        return int(told[1]) + 1

    def _finish(self, body: Body) -> None:
        url = str(self._location)
        url += f"{'&' if '?' in url else '?'}digest={self._digest}"
        length = 0 if isinstance(body, bytes) else len(self._content)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        try:
            with self._line.ask("PUT", url, what=self._what, headers=headers, body=body, kind=PUSH) as answer:
                if self._was_cut and answer.status_code in (
                    400,
                    404,
                    416,
                ):  # of what was cut, too much came or too little
                    raise _Lost
                check_answer(answer, self._what, 201, 204)
                drain(answer)
        except StoreError as problem:
            if not problem.is_transient:
                raise
            if self._is_there():
                return
            raise _Lost from None

    def _is_there(self) -> bool:
        with self._line.ask("HEAD", f"{self._base}/blobs/{self._digest}", what=self._what) as answer:
            return answer.status_code == 200

    def _located(self, answer: httpx.Response) -> httpx.URL:
        """Where to go on: always what the last answer says, since registries keep their state in it."""
        told = answer.headers.get("Location", "")
        return self._line.url(told, str(answer.url)) if told else answer.url

    def _body(self, piece: memoryview) -> Callable[[], Iterable[memoryview]]:
        return lambda: (piece[at : at + _WRITE_BYTES] for at in range(0, len(piece), _WRITE_BYTES))


_EMPTY = {"Content-Length": "0"}


def upload(
    line: RegistryLine,
    base: str,
    what: str,
    digest: str,
    content: Bytes,
    mount_from: Sequence[str] = (),
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Have a blob in a repository, whose digest (``sha256:...``) the registry compares before it keeps it. Whether it
    was sent."""
    return Upload(line, base, what, digest, content, sleep).run(mount_from)
