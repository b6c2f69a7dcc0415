"""An image as a network block device, for as long as somebody wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from sqlimage.device import WritableDevice
from sqlimage.errors import UsageError
from sqlimage.image.chunks import LARGE, Cache
from sqlimage.nbd.server import Export, Server
from sqlimage.nbd.tls import TlsSettings
from sqlimage.session.work import ENDS, MEDIUM, Outcome, Work, open_work


def serve(
    path: str,
    version: str | None = None,
    *,
    socket_path: str | None = None,
    address: str | None = None,
    port: int | None = None,
    export: str = MEDIUM,
    tls: TlsSettings | None = None,
    most_connections: int = 64,
    writable: bool = False,
    end: str = "keep",
    into: str | None = None,
    label: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache: Cache = LARGE,
    stop: threading.Event | None = None,
    on_ready: Callable[[Sequence[str]], None] | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> Outcome:
    """Serve a version, or an edit (``writable``), over NBD until ``stop`` is set or the process is interrupted.

    The medium is the export ``export`` and the default one, its volumes are ``volume-0`` and so on. On a Unix socket,
    or on TCP at ``address`` (loopback unless told otherwise; anything else needs ``tls``) and ``port`` (10809, 0 picks
    one). ``on_ready`` is told the URIs. When it ends everything is flushed, and an edit is kept open, committed or
    discarded as ``end`` says.
    """
    if end not in ENDS:
        raise UsageError(f"{end!r} is no way to end an edit", hint=f"there are {', '.join(ENDS)}")
    work = open_work(
        path,
        version,
        writable=writable,
        into=into,
        label=label,
        user=user,
        message=message,
        search=search,
        cache=cache,
    )
    try:
        server = Server(
            exports(work, export),
            socket_path=socket_path,
            address=address,
            port=port,
            tls=tls,
            most_connections=most_connections,
            on_problem=on_problem,
        )
        with server:
            if on_ready:
                on_ready(server.uris)
            with suppress(KeyboardInterrupt):  # the way to end it
                (stop or threading.Event()).wait()
    except BaseException:
        # An edit that never was offered, or whose server broke down, keeps what it has.
        work.abandon()
        raise
    return work.finish(end)


def exports(work: Work, name: str = MEDIUM) -> list[Export]:
    """The medium (first: it is the default export) and its volumes."""
    offered = []
    for device_name, device in work.devices().items():
        shown = name if device_name == MEDIUM else device_name
        row = next((v for v in work.volumes if f"volume-{v.number}" == device_name), None)
        what = "the whole medium" if row is None else f"{row.file_system or 'unknown'} {row.label or ''}".strip()
        offered.append(Export(shown, device, what, isinstance(device, WritableDevice)))
    return offered
