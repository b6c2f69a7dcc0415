"""The command line without its start: a server that has imported it forks for every command.

A command starts in 0.4 s, nearly all of it imports, and tests run thousands. What is forked is a process of its own,
with the arguments, environment, directory and files that it would have been given by exec.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import NoReturn

_LENGTH = struct.Struct("<I")
_AT_START = ("LANG", "LC_", "PYTHON", "OPENBLAS")
"""Beginnings of variables that only a real start looks at."""


class Server:
    """The client's side. One for a test process, started when it is first needed."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, start_new_session=False
        )
        theirs.close()
        self._environment = _read_at_start(os.environ)
        self._lock = threading.Lock()
        atexit.register(self.close)

    def can_run(self) -> bool:
        """Whether a command that is forked is the same as one that is started."""
        return _read_at_start(os.environ) == self._environment and self._process.poll() is None

    def run(
        self, program: str, arguments: list[str], seconds: float, stdin: str = os.devnull
    ) -> subprocess.CompletedProcess[str]:
        """As ``subprocess.run`` with its output captured as text; ``stdin`` is a path. What takes longer is killed, and
        is gone when :class:`subprocess.TimeoutExpired` is raised."""
        argv = [program, *arguments]
        request = json.dumps([argv, dict(os.environ), os.getcwd()]).encode()
        reply, theirs = socket.socketpair()
        with (
            open(stdin, "rb") as given,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
            reply,
        ):
            with self._lock, theirs:
                fds = [theirs.fileno(), given.fileno(), stdout.fileno(), stderr.fileno()]
                socket.send_fds(self._ours, [_LENGTH.pack(len(request))], fds)
                self._ours.sendall(request)
            (pid,) = _LENGTH.unpack(reply.recv(_LENGTH.size))
            reply.settimeout(seconds)
            try:
                (status,) = _LENGTH.unpack(reply.recv(_LENGTH.size))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                reply.settimeout(None)
                reply.recv(_LENGTH.size)
                raise subprocess.TimeoutExpired(argv, seconds) from None
            said, complained = (_text(file) for file in (stdout, stderr))
        return subprocess.CompletedProcess(argv, os.waitstatus_to_exitcode(status), said, complained)

    def close(self) -> None:
        """End it."""
        self._ours.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)


def _text(file: object) -> str:
    assert hasattr(file, "fileno")
    with open(os.dup(file.fileno()), "rb") as again:
        again.seek(0)
        return again.read().decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_AT_START)}


def serve(connection: socket.socket) -> None:
    """Fork for every request, until the other side is gone."""
    import sqlimage.cli.main  # type: ignore[import-not-found]

    import sqlimage.filesystem.probe
    import sqlimage.image.image
    import sqlimage.journey.capture
    import sqlimage.journey.restore  # noqa: F401

    while True:
        head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 4)
        if not head:
            return
        (length,) = _LENGTH.unpack(head)
        request = b""
        while len(request) < length:
            request += connection.recv(length - len(request))
        watcher = os.fork()
        if watcher == 0:
            connection.close()
            _watch(json.loads(request), fds)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(request: tuple[list[str], dict[str, str], str], fds: list[int]) -> NoReturn:
    """Fork once more, for the command, and tell how it ended."""
    reply, *streams = fds
    pid = os.fork()
    if pid == 0:
        os.close(reply)
        _become(request, streams)
    for fd in streams:
        os.close(fd)
    with contextlib.suppress(OSError):
        os.write(reply, _LENGTH.pack(pid))
        os.write(reply, _LENGTH.pack(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(request: tuple[list[str], dict[str, str], str], streams: list[int]) -> NoReturn:
    """Be the command, from what it is given to what the interpreter does at its end."""
    from sqlimage.cli.entry import run  # type: ignore[import-not-found]

    argv, environment, directory = request
    code = 1
    try:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        os.chdir(directory)
        sys.argv = argv
        run()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
