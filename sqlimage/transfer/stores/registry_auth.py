"""Requests to a registry, with the proof of who asks that it wants: none, a password, or a token for the password."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlimage.transfer.stores.asking import CREDENTIALS_HINT
from sqlimage.transfer.stores.contract import StoreError
from sqlimage.transfer.stores.registry_credentials import Credentials, find_credentials
from sqlimage.transfer.stores.web import Body, Line, basic, check_status, read

if TYPE_CHECKING:
    import httpx

PULL, PUSH = "pull", "push"
_MOST_TOKEN_BYTES = 1 << 20
_MOST_ERROR_BYTES = 64 << 10
_MOST_ERRORS = 4
_MOST_CHALLENGE = 8 << 10
_DEFAULT_EXPIRY_S = 60
_MARGIN_S = 5
_CHALLENGE = re.compile(r'(?:^|,)\s*(Bearer|Basic)\s+((?:[\w-]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,"]+)\s*,?\s*)*)', re.I)
_PARAMETER = re.compile(r'([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
LOGIN_HINT = (
    f"{CREDENTIALS_HINT} (SQLIMAGE_REGISTRY_USER and SQLIMAGE_REGISTRY_PASSWORD, `podman login`, `docker login`)"
)


@dataclass(frozen=True)
class _Proof:
    header: str
    expires_at: float


class RegistryLine(Line):
    """A line to one repository of a registry. Who asks for what is told by ``kind``: what is proved for reading is not
    shown for writing, since tokens are for the one or the other."""

    def __init__(self, origin: str, repository: str, where: str, *, silence_s: float = 60.0) -> None:
        super().__init__(where, silence_s=silence_s)
        self._is_plain = origin.startswith("http://")
        self._home = _place_of(self.url(origin))
        self._host = origin.partition("://")[2]
        self._repository = repository
        self._lock = threading.Lock()
        self._proofs: dict[str, _Proof] = {}
        self._credentials: Credentials | None = None
        self._has_looked = False

    @contextlib.contextmanager
    def ask(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        kind: str = PULL,
    ) -> Iterator[httpx.Response]:
        is_home = _place_of(self.url(str(url))) == self._home
        shown = self._proof(kind) if is_home else None
        for attempt in range(2):
            with super().ask(method, url, what=what, headers=_with(headers, shown), body=body) as response:
                # a 401 after a redirection is not this registry's, and gets nothing
                if response.status_code == 401 and is_home and _place_of(response.url) == self._home:
                    if attempt == 0:
                        challenge = ", ".join(response.headers.get_list("WWW-Authenticate"))[:_MOST_CHALLENGE]
                        shown = self._renew(kind, shown, challenge, what)
                        continue
                    raise StoreError(f"{what}: the registry refuses who asks", hint=LOGIN_HINT)
                if response.status_code == 403:
                    raise StoreError(f"{what}: the registry does not allow this", hint=LOGIN_HINT)
                yield response
                return

    def _proof(self, kind: str) -> str | None:
        found = self._proofs.get(kind)
        return found.header if found and time.monotonic() < found.expires_at else None

    def _renew(self, kind: str, shown: str | None, challenge: str, what: str) -> str:
        """What to show next. One thread asks for a token, the others that were refused with the same wait for it."""
        with self._lock:
            current = self._proof(kind)
            if current is not None and current != shown:
                return current
            proof = self._prove(challenge, what, is_refused=shown is not None)
            self._proofs[kind] = proof
            return proof.header

    def _prove(self, challenge: str, what: str, *, is_refused: bool) -> _Proof:
        if not self._has_looked:
            self._credentials = find_credentials(self._host, self._repository)
            self._has_looked = True
        found = self._credentials
        asked = {match[1].lower(): _parameters(match[2]) for match in _CHALLENGE.finditer(challenge)}
        if "bearer" in asked:
            return self._fetch_token(asked["bearer"], what)
        if "basic" in asked and found and found.user and not found.identity_token and not is_refused:
            return _Proof(basic(found.user, found.password), float("inf"))
        raise StoreError(f"{what}: the registry refuses who asks", hint=LOGIN_HINT)

    def _fetch_token(self, asked: dict[str, str], what: str) -> _Proof:
        """Trade credentials, or nothing, for a token (the token protocol of the distribution registry)."""
        realm = asked.get("realm", "")
        scheme = urllib.parse.urlsplit(realm).scheme
        if scheme != "https" and not (scheme == "http" and self._is_plain):
            raise StoreError(f"{what}: the registry wants credentials to be shown to {scheme or 'no'}://, not https://")
        service, scopes = asked.get("service", ""), asked.get("scope", "").split()
        told = f"{self._host}: its token server"
        found = self._credentials
        if found and found.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": found.identity_token, "client_id": "sqlimage"}
            content = urllib.parse.urlencode({**form, "service": service, "scope": " ".join(scopes)}).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            asking = super().ask("POST", realm, what=told, headers=headers, body=content)
        else:
            query = urllib.parse.urlencode([("service", service), *(("scope", scope) for scope in scopes)])
            headers = {"Authorization": basic(found.user, found.password)} if found else {}
            url = f"{realm}{'&' if '?' in realm else '?'}{query}"
            asking = super().ask("GET", url, what=told, headers=headers)
        with asking as response:
            if response.status_code in (400, 401, 403):
                raise StoreError(f"{what}: the registry refuses who asks", hint=LOGIN_HINT)
            check_status(response, told, 200)
            return _proof_in(read(response, told, _MOST_TOKEN_BYTES), told)


def _place_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """What must be the same for a proof to be shown: no port and the usual one are."""
    return url.scheme, url.host, url.port


def check_answer(response: httpx.Response, what: str, *expected: int) -> None:
    """Raise for a status that is not expected, with the registry's own word for it."""
    if response.status_code not in expected:
        words = error_words(response, what)
        check_status(response, what, detail=f"({', '.join(words)})" if words else "")


def error_words(response: httpx.Response, what: str) -> list[str]:
    """What a registry says is wrong, in the words of the specification (``MANIFEST_BLOB_UNKNOWN``, ...)."""
    try:
        content: Any = json.loads(read(response, what, _MOST_ERROR_BYTES))
        told = [error.get("code") for error in content["errors"][:_MOST_ERRORS]]
    except (StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return [word for word in told if isinstance(word, str) and re.fullmatch("[A-Z_]{1,40}", word)]


def _with(headers: Mapping[str, str] | None, shown: str | None) -> dict[str, str]:
    return {**(headers or {}), **({"Authorization": shown} if shown else {})}


def _parameters(text: str) -> dict[str, str]:
    return {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(text)
    }


def _proof_in(answer: bytes, told: str) -> _Proof:
    try:
        content: Any = json.loads(answer)
        token = content.get("token") or content.get("access_token")
        expiry = content.get("expires_in", _DEFAULT_EXPIRY_S)
    except (ValueError, AttributeError, RecursionError):
        token, expiry = None, None
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise StoreError(f"{told} answered without a token")
    if not isinstance(expiry, int | float) or not 0 < expiry < 1e9:
        expiry = _DEFAULT_EXPIRY_S
    return _Proof(f"Bearer {token}", time.monotonic() + max(expiry - _MARGIN_S, expiry / 2))
