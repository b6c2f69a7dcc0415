"""A registry of the Distribution Specification 1.1 in few lines, for what Debian's cannot do: it keeps what came of a
piece that was cut, refuses pieces out of order, asks for tokens that end, sends readers on to another host."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import ssl
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PATH = re.compile(r"/v2/(.+)/(blobs|manifests|tags)/(.+)")


@dataclass
class SmallRegistry:
    """What it holds, how it behaves, and what was asked of it. Wants a token where ``password`` is not empty (of the
    user ``someone``, or the identity token of that value), which ends after ``uses_of_a_token`` requests."""

    host: str = ""
    blobs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    manifests: dict[str, dict[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    password: str = ""
    realm: str = ""
    uses_of_a_token: int = 1 << 30
    tokens: dict[str, tuple[set[str], int]] = field(default_factory=dict)
    least_piece_bytes: int = 0
    blobs_at: str = ""
    location_prefix: str = ""
    tags_to_a_page: int = 3
    damages: int = 0
    """How many uploads are found not to match their digest."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    one_by_one: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, part: str = "") -> int:
        return sum(1 for asked, path, _ in self.requests if asked == method and part in path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: SmallRegistry

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
        pass

    def answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        told = {"Content_Length": str(len(body)), **headers}
        for name, value in told.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        self.registry.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        self.scopes_asked = [value for key, value in urllib.parse.parse_qsl(query) if key == "scope"]
        if path == "/token":
            return self.token()
        found = _PATH.fullmatch(path)
        if not found:
            return self.answer(200 if path == "/v2/" else 404)
        self.repository, kind, rest = found.groups()
        if not self.is_allowed():
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return self.refuse()
        blobs = self.registry.blobs.setdefault(self.repository, {})
        manifests = self.registry.manifests.setdefault(self.repository, {})
        if kind == "tags":
            return self.tags(sorted(manifests))
        if kind == "manifests":
            return self.manifest(manifests, blobs, rest)
        if rest.startswith("uploads/"):
            # one request after the other to an upload: who asks where it stands waits for what is still coming in
            with self.registry.one_by_one:
                return self.upload(blobs, rest.removeprefix("uploads/"))
        return self.blob(blobs, rest)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def scopes_needed(self) -> list[str]:
        action = "pull" if self.command in ("GET", "HEAD") and "/uploads/" not in self.path else "pull,push"
        scopes = [f"repository:{self.repository}:{action}"]
        if "from" in self.query:
            scopes.append(f"repository:{self.query['from']}:pull")
        return scopes

    def is_allowed(self) -> bool:
        if not self.registry.password:
            return True
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with self.registry.lock:
            scopes, left = self.registry.tokens.get(token, (set(), 0))
            if left == 0 or not scopes >= set(self.scopes_needed()):
                return False
            self.registry.tokens[token] = (scopes, left - 1)
        return True

    def refuse(self) -> None:
        realm = self.registry.realm or f"http://{self.registry.host}/token"
        scopes = " ".join(self.scopes_needed())
        self.answer(401, WWW_Authenticate=f'Bearer realm="{realm}",service="tests, all",scope="{scopes}"')

    def token(self) -> None:
        proof = base64.b64encode(f"someone:{self.registry.password}".encode()).decode()
        is_known = self.headers.get("Authorization") == f"Basic {proof}"
        scopes = self.scopes_asked
        if self.command == "POST":
            form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            is_known = form["refresh_token"] == self.registry.password
            scopes = form["scope"].split()
        if not is_known:
            return self.answer(401)
        token = uuid.uuid4().hex
        self.registry.tokens[token] = (set(scopes), self.registry.uses_of_a_token)
        return self.answer(200, json.dumps({"token": token, "expires_in": 300}).encode())

    def tags(self, names: list[str]) -> None:
        later = [name for name in names if name > self.query.get("last", "")]
        page = later[: self.registry.tags_to_a_page]
        link = (
            {"Link": f'</v2/{self.repository}/tags/list?last={page[-1]}>; rel="next"'} if len(later) > len(page) else {}
        )
        self.answer(200, json.dumps({"name": self.repository, "tags": page or None}).encode(), **link)

    def manifest(self, manifests: dict[str, bytes], blobs: dict[str, bytes], tag: str) -> None:
        if self.command == "PUT":
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if any(layer["digest"] not in blobs for layer in json.loads(content)["layers"]):
                return self.answer(404, b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}')
            manifests[tag] = content
            return self.answer(201)
        return self.answer(200, manifests[tag]) if tag in manifests else self.answer(404)

    def blob(self, blobs: dict[str, bytes], digest: str) -> None:
        if digest not in blobs:
            return self.answer(404)
        if self.registry.blobs_at:
            return self.answer(307, Location=f"{self.registry.blobs_at}/{digest}")
        if told := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, end = int(told[1]), min(int(told[2]) + 1, len(blobs[digest]))
            part = f"bytes {first}-{end - 1}/{len(blobs[digest])}"
            return self.answer(206, blobs[digest][first:end], Content_Range=part)
        return self.answer(200, blobs[digest])

    def upload(self, blobs: dict[str, bytes], number: str) -> None:
        registry = self.registry
        if self.command == "POST":
            if (digest := self.query.get("mount")) in registry.blobs.get(self.query.get("from", ""), {}):
                blobs[str(digest)] = registry.blobs[self.query["from"]][str(digest)]
                return self.answer(201)
            number = uuid.uuid4().hex
            registry.uploads[number] = bytearray()
            least = {"OCI_Chunk_Min_Length": str(registry.least_piece_bytes)} if registry.least_piece_bytes else {}
            return self.answer(202, Location=self.place(number), Range="0-0", **least)
        came = registry.uploads.get(number)
        if came is None or (self.command == "PUT" and self.query.get("state") != str(len(came))):
            return self.answer(404)
        where = {"Location": self.place(number), "Range": f"0-{max(len(came) - 1, 0)}"}
        if self.command == "GET":
            return self.answer(204, **where)
        if self.command == "DELETE":
            del registry.uploads[number]
            return self.answer(204)
        told = self.headers.get("Content-Range")
        if told and int(told.partition("-")[0]) != len(came):
            self.rfile.read(int(self.headers["Content-Length"]))
            return self.answer(416, **where)
        self.take(came)
        if self.command == "PATCH":
            return self.answer(202, Location=self.place(number), Range=f"0-{len(came) - 1}")
        del registry.uploads[number]
        registry.damages -= 1
        if "sha256:" + hashlib.sha256(came).hexdigest() != self.query["digest"] or registry.damages >= 0:
            return self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        blobs[self.query["digest"]] = bytes(came)
        return self.answer(201)

    def take(self, came: bytearray) -> None:
        """What comes of a body, kept as it comes."""
        left = int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read1(min(left, 1 << 16))
            if not piece:
                raise ConnectionResetError
            came += piece
            left -= len(piece)

    def place(self, number: str) -> str:
        """Where an upload goes on; another place after each request, as registries have it that keep state in it."""
        state = len(self.registry.uploads[number])
        return f"{self.registry.location_prefix}/v2/{self.repository}/blobs/uploads/{number}?state={state}"


@contextlib.contextmanager
def small_registry(certificate: Path | None = None) -> Iterator[SmallRegistry]:
    """Such a registry, over TLS with a certificate (its key in the same file)."""
    registry = SmallRegistry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"registry": registry}))
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # who was cut off resets
    registry.host = f"{'localhost' if certificate else '127.0.0.1'}:{server.server_address[1]}"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
