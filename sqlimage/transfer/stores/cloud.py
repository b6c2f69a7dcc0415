"""A bucket at S3, or what speaks like it, at Google Cloud Storage or at Azure, by obstore."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlimage.errors import NotFoundError, UsageError
from sqlimage.transfer.stores.asking import (
    CREDENTIALS_HINT,
    check_part,
    check_published,
    is_name,
    missing,
    reference,
    referred,
    too_long,
)
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, Bytes, StoreError, check_name
from sqlimage.transfer.stores.extra import load
from sqlimage.transfer.stores.sigpipe import without_sigpipe
from sqlimage.units import MIB

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PART_BYTES = 8 * MIB
"""What an object is put in, several at a time; the least that S3 takes is 5 MiB."""
_PARTS_AT_A_TIME = 4
_WRITING_IS_SILENT = 5
"""How many times longer a server may say nothing while parts go up to it, or while it copies."""
_URL = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{0,254})((?:/[^/?#@\s]+)*)/?")
_STATUS = re.compile(r"status code: (\d{3})([ A-Za-z-]*)(?:.*?<Code>(\w{1,60})</Code>)?", re.DOTALL)
_WORTH_ASKING_AGAIN = {408, 409, 425, 429}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ADDRESSES = {"s3": _ENDPOINTS, "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")}
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_REGION, _PLAIN = re.compile(r"[A-Za-z0-9-]*"), re.compile(r"[!-~]*")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class CloudStore:
    """``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    Credentials, region and endpoint come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
    ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``, ...) or from the machine that this runs on, as
    obstore finds them. An endpoint that begins with ``http:`` is talked to in the clear.

    ``silence_s`` is how long the server may say nothing when it is read; five times that while it is written to, when
    it has nothing to say: each thread that puts needs 110 KiB/s to move its parts in 300 s.
    """

    def __init__(self, url: str, *, silence_s: float = 60.0) -> None:
        found = _URL.fullmatch(url)
        if not found or ".." in found[3].split("/"):
            raise UsageError(f"{url.rpartition('@')[2]!r} names no bucket", hint="write s3://bucket/directory")
        self._where = f"{found[1]}://{found[2]}{found[3]}"
        store = load("obstore.store")
        self._obstore: Any = load("obstore")
        self._refusals: Any = load("obstore.exceptions")
        options: dict[str, Any] = {}
        _check_environment(found[1])
        if found[1] == "s3":
            endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
            if endpoint:
                options["endpoint"] = endpoint.rstrip("/")
            if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
                options["region"] = "us-east-1"
        else:
            endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT", "") if found[1] == "az" else ""

        def connect(silence: timedelta) -> ObjectStore:
            made: ObjectStore = store.from_url(
                self._where,
                client_options={
                    "allow_http": endpoint.startswith("http://"),
                    "connect_timeout": timedelta(seconds=10),
                    "read_timeout": silence,
                    "timeout": timedelta(hours=6),
                },
                # who wraps this asks again; one more here saves the parts that went up already
                retry_config={"max_retries": 1, "backoff": {"init_backoff": timedelta(milliseconds=100)}},
                **options,
            )
            return made

        silence = timedelta(seconds=silence_s)
        try:
            self._reading, self._writing = connect(silence), connect(silence * _WRITING_IS_SILENT)
        except (self._refusals.BaseError, ValueError) as problem:
            raise UsageError(f"{self._where}: {_line_of(problem)}", hint="check its environment variables") from None

    @property
    def where(self) -> str:
        return self._where

    def put(self, name: str, content: Bytes) -> bool:
        check_name(name)
        with self._telling(name):
            self._obstore.put(self._writing, name, content, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_A_TIME)
        return True

    def get(self, name: str, most_bytes: int) -> memoryview:
        check_name(name)
        with self._telling(name):
            found = self._obstore.get(self._reading, name)
            if found.meta["size"] > most_bytes:
                raise too_long(self.where, name, most_bytes)
            return memoryview(found.bytes())

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        check_name(name)
        check_part(offset_bytes, length_bytes)
        if not length_bytes:
            if self.head(name) is None:
                raise missing(self.where, name)
            return b""
        try:
            with self._telling(name):
                part = self._obstore.get_range(self._reading, name, start=offset_bytes, length=length_bytes)
                return bytes(part)
        except _BeyondTheEnd:
            return b""

    def head(self, name: str) -> int | None:
        check_name(name)
        try:
            with self._telling(name):
                return int(self._obstore.head(self._reading, name)["size"])
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = next((folder for folder in (SEGMENTS, VERSIONS) if prefix.startswith(folder)), "")
        is_flat = not folder and bool(prefix) and not SEGMENTS.startswith(prefix) and not VERSIONS.startswith(prefix)
        with self._telling(folder):
            if is_flat:  # there may be very many segments, none of which is asked for
                pages = iter([self._obstore.list_with_delimiter(self._reading)["objects"]])
            else:
                pages = self._obstore.list(self._reading, folder.rstrip("/") or None, chunk_size=1000)
            for page in pages:
                for found in page:
                    name = found["path"]
                    if name.startswith(prefix) and is_name(name):
                        yield name

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        check_published(name, segment, keep)
        if self.head(segment) is None:
            raise missing(self.where, segment)
        self.put(name, reference(segment))

    def first(self, name: str) -> str:
        return referred(self, name)

    def close(self) -> None:
        pass

    @contextlib.contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Have what goes wrong below told as the contract says: what, where, and whether to ask again."""
        try:
            with without_sigpipe():
                yield
        except StoreError:
            raise
        except FileNotFoundError as problem:
            raise self._missing(name, problem) from None
        except self._refusals.BaseError as problem:
            raise self._told(name, problem) from None
        except BaseException as problem:
            if type(problem).__name__ != "PanicException":
                raise
            raise StoreError(f"{self.where}/{name}: {problem}"[:300], hint="check its environment variables") from None

    def _missing(self, name: str, problem: Exception) -> NotFoundError:
        if "<Code>NoSuchBucket<" in str(problem):
            return NotFoundError(f"{self.where}: there is no such bucket", hint="make it first, or check its name")
        return missing(self.where, name)

    def _told(self, name: str, problem: Exception) -> StoreError | NotFoundError:
        message = f"{self.where}/{name}: {_line_of(problem)}".replace("/: ", ": ", 1)
        found = _STATUS.search(str(problem))
        status = int(found[1]) if found else 0
        is_refused = isinstance(problem, self._refusals.PermissionDeniedError | self._refusals.UnauthenticatedError)
        if is_refused or status in (401, 403):
            return StoreError(message, hint=CREDENTIALS_HINT)
        if not found:
            return StoreError(message, is_transient=isinstance(problem, self._refusals.GenericError))
        if status == 404:
            return self._missing(name, problem)
        if status == 416:
            return _BeyondTheEnd(message)
        return StoreError(message, is_transient=status >= 500 or status in _WORTH_ASKING_AGAIN)


def _check_environment(scheme: str) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` for a variable with what cannot be in it: obstore would panic. Its
    value may be a secret and is told to nobody."""
    for variable in _ADDRESSES.get(scheme, ()):
        value = os.environ.get(variable, "")
        if value and not _is_address(value):
            hint = "write http://HOST:PORT or https://HOST"
            raise UsageError(f"{variable}: is not the address of a server", hint=hint)
    for variable in _REGIONS + _KEYS if scheme == "s3" else ():
        allowed = _REGION if variable in _REGIONS else _PLAIN
        if not allowed.fullmatch(os.environ.get(variable, "")):
            raise UsageError(
                f"{variable}: holds a character that cannot be in it", hint="look for spaces and line ends"
            )


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname and _PLAIN.fullmatch(value)) and parts.port != 0
        )
    except ValueError:
        return False


class _BeyondTheEnd(StoreError):
    """A part was asked for that begins where the object ends, or later."""


def _line_of(problem: Exception) -> str:
    """What obstore says over a page, in a few words; nothing of it that a server chose but an error's code."""
    text = str(problem)
    if found := _STATUS.search(text):
        return f"the server answered {found[1]}{found[2].rstrip()}{f' ({found[3]})' if found[3] else ''}"
    line = text.partition("\n")[0]
    reason = line.rpartition(" - ")[2] if "Error performing" in line else line.rpartition("source: ")[2]
    return f"{reason[:200]}"
