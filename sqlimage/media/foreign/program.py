"""QEMU's programs: where they are, what they say, and ``qemu-nbd`` as a child that cannot outlive us."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from sqlimage.errors import DeviceError, UsageError
from sqlimage.units import GIB, MIB

CONNECTIONS = 4
"""As many requests as are under way at once."""
_MOST_MEMORY_BYTES = GIB
"""RLIMIT_DATA of the child: no table of a container that fits is larger by far."""
_MOST_SAID_BYTES = MIB
_EXIT_S = 120.0
"""How long a server that has been sent away may take to write what it still holds."""

# stdin is a pipe whose other end only we hold. Its end, however it comes, is the end of the server; after a word the
# server is waited for, which ends by itself when its last client has gone. The server gets its listening socket as
# systemd would hand it over.
_KEEPER = r"""
ulimit -c 0
ulimit -d "$1" 2>/dev/null
ulimit -f "$2" 2>/dev/null
shift 2
LISTEN_FDS=1 /bin/sh -c 'LISTEN_PID=$$; export LISTEN_PID; exec "$@"' sh "$@" 3<&1 </dev/null >/dev/null &
exec >/dev/null 2>&1
read -r word
[ "$word" ] || kill -KILL $!
wait $!
"""


def find_program(name: str) -> str:
    """Its path. Raises :class:`~sqlimage.errors.UsageError`, naming the Debian package, where it is missing."""
    found = shutil.which(name, path=_environment()["PATH"])
    if found is None:
        raise UsageError(f"{name} is missing, which reads and writes other formats", hint="install qemu-utils")
    return found


def run_program(name: str, arguments: Sequence[str], *, pass_fds: Sequence[int] = ()) -> str | None:
    """Run a program that ends soon. None where it went well, else the last line of what it said."""
    done = subprocess.run(
        [find_program(name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=_environment(),
        pass_fds=pass_fds,
    )
    return None if done.returncode == 0 else last_line(done.stdout + b"\n" + done.stderr) or f"code {done.returncode}"


def last_line(said: bytes) -> str:
    """The last line that was said, for a message: without the program's name and the nodes it was told to open,
    printable and short; empty where nothing was said."""
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1].strip()
    for name in ("qemu-nbd: ", "qemu-img: "):
        line = line.removeprefix(name)
    start, end = line.find("'json:"), line.rfind("}'")
    if 0 <= start < end:
        line = line[end + 2 :].lstrip(": ")
    return "".join(c if c.isprintable() else "?" for c in line)[:300]


def inheritable(fd: int) -> int:
    """A copy of a descriptor with a number that no shell uses for itself; the caller closes it."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """A directory that nobody else can enter, gone afterwards."""
    try:
        directory = tempfile.mkdtemp(prefix="sqlimage-")
    except OSError as problem:
        raise DeviceError(f"{tempfile.gettempdir()}: cannot be written ({problem.strerror})") from None
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class NbdProgram:
    """``qemu-nbd`` serving one block node to :attr:`sockets`, which nobody else can connect to.

    The connections are made before the program is started, on a socket whose name is gone by then: there is nothing to
    wait for, nothing to find, and when this process dies, however it dies, so does the child. ``node`` is the node as
    ``blockdev-add`` takes it, and ``fds`` the descriptors that it names as ``/proc/self/fd/N``.

    Raises :class:`~sqlimage.errors.UsageError` where the program is missing and
    :class:`~sqlimage.errors.DeviceError` where it cannot be started.
    """

    def __init__(self, node: Mapping[str, object], fds: Sequence[int], *, writable: bool) -> None:
        program = find_program("qemu-nbd")
        arguments = [program, "--shared", str(CONNECTIONS), *([] if writable else ["--read-only"])]
        arguments.append("json:" + json.dumps(node))
        # what only reads has no reason to write a file
        largest_file = "unlimited" if writable else str(_MOST_SAID_BYTES // 512)
        self._said = os.memfd_create("qemu-nbd", os.MFD_CLOEXEC)
        self.sockets: list[socket.socket] = []
        self._leash = -1
        try:
            with _listening(self.sockets) as listener:
                reading, self._leash = os.pipe()
                try:
                    self._keeper = subprocess.Popen(
                        ["/bin/sh", "-c", _KEEPER, "sh", str(_MOST_MEMORY_BYTES // 1024), largest_file, *arguments],
                        stdin=reading,
                        stdout=listener.fileno(),
                        stderr=self._said,
                        pass_fds=fds,
                        env=_environment(),
                        cwd="/",
                        start_new_session=True,  # a Ctrl-C meant for us would end it in the middle of a write
                    )
                finally:
                    os.close(reading)
        except OSError as problem:
            self._let_go()
            raise DeviceError(f"qemu-nbd cannot be started ({problem.strerror})") from None

    @property
    def said(self) -> str:
        """The last line of what it printed."""
        return last_line(os.pread(self._said, _MOST_SAID_BYTES, 0))

    def finish(self) -> bool:
        """Wait for its end, its clients having gone: whether it ended well."""
        with contextlib.suppress(OSError):
            os.write(self._leash, b"finish\n")
        try:
            return self._keeper.wait(_EXIT_S) == 0
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._keeper.pid, signal.SIGKILL)
            return False

    def kill(self) -> None:
        """End it at once, and let it say why it had ended before."""
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1
            self._keeper.wait()

    def close(self) -> None:
        """End it if it has not ended, and release what is held. Closing twice is allowed."""
        self.kill()
        self._let_go()

    def _let_go(self) -> None:
        for sock in self.sockets:
            sock.close()
        for fd in (self._said, self._leash):
            if fd >= 0:
                os.close(fd)
        self._said = self._leash = -1


@contextlib.contextmanager
def _listening(connected: list[socket.socket]) -> Iterator[socket.socket]:
    """A listening socket with ``CONNECTIONS`` clients waiting to be accepted, and no name any more."""
    with private_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            name = f"/proc/self/fd/{place}/nbd"  # a name of a socket is short, one of a temporary directory may not be
            listener.bind(name)
            listener.listen(CONNECTIONS)
            for _ in range(CONNECTIONS):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connected.append(sock)
                sock.connect(name)
        finally:
            os.close(place)
        yield listener


def _environment() -> dict[str, str]:
    """Messages in English; programs of the administrator among those that are found."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"}
