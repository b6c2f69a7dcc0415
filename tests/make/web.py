"""A web server that counts what it is asked for, and can be told to lie and to be slow."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Web:
    """A web server over a directory that counts what it is asked for; it can lie."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[tuple[str, int]] = []
        """Path, and bytes that were given."""
        self.spoil = False
        """Whether a bit is wrong in every range that does not begin an object."""
        self.held: set[str] = set()
        """Names of objects for which there is no answer before :attr:`free` is set."""
        self.free = threading.Event()
        self.waiting = 0
        """How many such answers have been asked for."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # the name that the library asks for
                web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = self.directory / handler.path.lstrip("/")
        if not path.is_file():
            self.asked.append((handler.path, 0))
            handler.send_error(404)
            return
        if path.name in self.held:
            self.waiting += 1
            self.free.wait()
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        told = handler.headers.get("Range", "")
        if told:
            first, last = (int(part) for part in told.removeprefix("bytes=").split("-"))
            last = min(last, len(content) - 1)
        part = content[first : last + 1]
        if self.spoil and first:
            part = bytes([part[0] ^ 1]) + part[1:]
        handler.send_response(206 if told else 200)
        if told:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        with contextlib.suppress(OSError):  # whoever asked may be gone
            handler.wfile.write(part)
        self.asked.append((handler.path, len(part)))

    @property
    def bytes_given(self) -> int:
        return sum(length for _, length in self.asked)

    def close(self) -> None:
        self.free.set()
        self._server.shutdown()
        self._server.server_close()
