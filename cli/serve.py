"""``sqlimage serve``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

import sqlimage

from .arguments import (
    CacheOption,
    CommitOption,
    DiscardOption,
    IntoOption,
    JsonOption,
    LabelOption,
    MessageOption,
    PlaceArgument,
    UserOption,
    cache_of,
    how_it_ends,
    split_place,
)
from .output import message as say
from .output import print_json, print_outcome

EXAMPLE = "sqlimage serve laptop.sqlimage --socket /tmp/laptop.sock --writable"


def command(
    image: PlaceArgument,
    socket: Annotated[str | None, typer.Option(metavar="PATH", help="Listen on this Unix socket.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Listen on this TCP port; 0 picks a free one.", min=0, max=65535)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="TCP address instead of the loopback; needs --tls-certificates or --tls-psk.")
    ] = None,
    writable: Annotated[bool, typer.Option("--writable", "-w", help="Writes go to an edit on top.")] = False,
    export: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the medium's export; it is the default export, too.")
    ] = "medium",
    commit: CommitOption = False,
    discard: DiscardOption = False,
    into: IntoOption = None,
    label: LabelOption = None,
    message: MessageOption = None,
    user: UserOption = None,
    tls_certificates: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Demand TLS: server-cert.pem, server-key.pem and ca-cert.pem are in DIR."),
    ] = None,
    tls_verify_peer: Annotated[
        bool, typer.Option("--tls-verify-peer", help="Accept only clients whose certificate ca-cert.pem signed.")
    ] = False,
    tls_psk: Annotated[
        str | None, typer.Option(metavar="FILE", help="Demand TLS with pre-shared keys (Python 3.13 and later).")
    ] = None,
    connections: Annotated[int, typer.Option(help="Clients at a time.", min=1, max=1024)] = 64,
    cache: CacheOption = "4GiB",
    json: JsonOption = False,
) -> None:
    """Serve an image over NBD, on the Unix socket IMAGE.sock unless told otherwise, until interrupted.

    The medium is the default export, its volumes are the exports volume-0, volume-1 and so on. With --writable, what
    clients write goes to a new version; it is left open at the end unless --commit or --discard says otherwise.
    With --json the URIs are told on stderr, and the outcome on stdout.
    """
    path, version = split_place(image)
    tls = None
    if tls_certificates:
        tls = sqlimage.TlsSettings.from_directory(tls_certificates, verify_peer=tls_verify_peer)
    elif tls_psk:
        tls = sqlimage.TlsSettings.from_psk_file(tls_psk)
    if port is None and address is None and socket is None:
        socket = f"{path.rpartition('/')[2] if sqlimage.is_url(path) else path}.sock"

    def ready(uris: Sequence[str]) -> None:
        for uri in uris:
            say(uri) if json else print(uri, flush=True)

    outcome = sqlimage.serve(
        path,
        version,
        socket_path=socket,
        address=address,
        port=port,
        export=export,
        tls=tls,
        most_connections=connections,
        writable=writable,
        end=how_it_ends(commit, discard),
        into=into,
        label=label,
        user=user,
        message=message,
        cache=cache_of(cache),
        on_ready=ready,
        on_problem=say,
    )
    if json:
        print_json(outcome)
        return
    print_outcome(outcome)
