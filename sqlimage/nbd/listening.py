"""Sockets that wait for clients: a Unix socket that only its owner can open, a TCP port that only this machine can."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.units import MIB

SOCKET_BUFFER_BYTES = 4 * MIB
"""Asked of the kernel, which may grant less."""
_BACKLOG = 1024
"""Clients who may wait to be accepted; a burst of them must not shut others out."""
_LOOPBACK = "127.0.0.1"


def listen_unix(path: str) -> socket.socket:
    """A listening Unix socket with mode 0600. One that an earlier server left behind is replaced.

    Raises :class:`~sqlimage.errors.RefusedError` where something else lies there or a server listens on it,
    :class:`~sqlimage.errors.NotFoundError` where the directory is missing, and
    :class:`~sqlimage.errors.UsageError` where a socket cannot have this path.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        os.fchmod(sock.fileno(), 0o600)  # before it has a name: nobody can open it in between
        sock.bind(path)
        _prepare(sock)
        return sock
    except BaseException as problem:
        sock.close()
        if isinstance(problem, FileNotFoundError) and not isinstance(problem, NotFoundError):
            raise NotFoundError(f"{path}: its directory does not exist") from None
        if isinstance(problem, OSError):
            raise UsageError(f"{path}: a socket cannot be made here ({problem.strerror or problem})") from None
        raise


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise RefusedError(f"{path}: exists and is not a socket", hint="choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass  # a full queue, or not ours to open: somebody is there
    raise RefusedError(f"{path}: a server listens on this socket", hint="choose another path, or stop that one")


def listen_tcp(address: str | None, port: int, *, anywhere: bool) -> socket.socket:
    """A listening TCP socket; port 0 picks a free one. ``anywhere`` allows addresses other machines can reach.

    Raises :class:`~sqlimage.errors.UsageError` for an address that is none of this machine, or not allowed, and
    :class:`~sqlimage.errors.RefusedError` where the port is taken.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is out of range, allowed are 0 to 65535")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address or _LOOPBACK, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UsageError(f"{address!r} is not an address of this machine") from None
    if not anywhere and not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback:
        raise UsageError(
            f"{address} can be reached from other machines, and nothing would be encrypted",
            hint="serve on the loopback address or a Unix socket, or with TLS",
        )
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        _prepare(sock)
    except OSError as problem:
        sock.close()
        if problem.errno in (errno.EADDRINUSE, errno.EACCES):
            raise RefusedError(f"port {port} cannot be had ({problem.strerror})", hint="choose another port") from None
        raise UsageError(f"{address!r} is not an address of this machine ({problem.strerror})") from None
    return sock


def _prepare(listener: socket.socket) -> None:
    # on the listener, for a TCP window can only be made large before a client connects; clients inherit it
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    listener.setblocking(False)
    listener.listen(_BACKLOG)


def prepare_client(sock: socket.socket) -> None:
    """Set what an accepted socket needs: replies leave at once, a client whose machine died is noticed."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
