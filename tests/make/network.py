"""Two machines in one: network namespaces joined by a line that is slow, loses packets, and can be cut."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import run

_LOSS_PERCENT = 3
_RATE = "limit rate over 4 mbytes/second burst 512 kbytes drop"
_DEVICE = "line"
_SECONDS = 60


class Network:
    """Namespaces ``near`` and ``far`` with an address each."""

    def __init__(self) -> None:
        self.near, self.far = (f"sqlimage-{os.getpid()}-{end}" for end in ("near", "far"))
        self.near_address, self.far_address = "10.231.77.1", "10.231.77.2"

    def up(self) -> None:
        """Mend the line."""
        for space in (self.near, self.far):
            run("ip", "-n", space, "link", "set", _DEVICE, "up")

    def down(self) -> None:
        """Cut the line: nobody is told, nothing arrives."""
        run("ip", "-n", self.far, "link", "set", _DEVICE, "down")

    def inside(self, space: str, *words: object) -> list[str]:
        """A command line that runs in a namespace."""
        return ["ip", "netns", "exec", space, *map(str, words)]

    def arrived_bytes(self, space: str) -> int:
        """What has come over the line so far, and what was lost at its end."""
        return int(run(*self.inside(space, "cat", f"/sys/class/net/{_DEVICE}/statistics/rx_bytes")).stdout)

    def wait_for(self, space: str, more_bytes: int, since: int) -> None:
        """Wait until so much more has arrived since there were ``since`` bytes."""
        end = time.monotonic() + _SECONDS
        while self.arrived_bytes(space) < since + more_bytes:
            assert time.monotonic() < end, "nothing moves"
            time.sleep(0.01)

    def wait_until_open(self, port: int) -> None:
        """Wait until somebody listens in the far namespace."""
        end = time.monotonic() + _SECONDS
        probe = self.inside(self.near, "socat", "-u", "OPEN:/dev/null", f"TCP:{self.far_address}:{port}")
        while subprocess.run(probe, capture_output=True, check=False).returncode:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.05)


def cannot() -> str:
    """Why there can be no such network here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"sqlimage-{os.getpid()}-probe"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    run("ip", "netns", "delete", name)
    return ""


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Such a network. Packets are lost at both ends, by chance."""
    made = Network()
    with contextlib.ExitStack() as undo:
        for space in (made.near, made.far):
            run("ip", "netns", "add", space)
            undo.callback(run, "ip", "netns", "delete", space)
        peer = ("peer", "name", _DEVICE, "netns", made.far)
        run("ip", "-n", made.near, "link", "add", _DEVICE, "type", "veth", *peer)
        for space, address in ((made.near, made.near_address), (made.far, made.far_address)):
            run("ip", "-n", space, "address", "add", f"{address}/24", "dev", _DEVICE)
            run("ip", "-n", space, "link", "set", "lo", "up")
            for rule in (
                *("add table ip bad", "add chain ip bad line { type filter hook input priority 0; }"),
                f"add rule ip bad line iifname {_DEVICE} numgen random mod 100 < {_LOSS_PERCENT} drop",
                f"add rule ip bad line iifname {_DEVICE} {_RATE}",
            ):
                run(*made.inside(space, "nft", rule))
        made.up()
        yield made


@contextlib.contextmanager
def far_web_server(made: Network, directory: Path, logs: Path) -> Iterator[str]:
    """lighttpd over a directory in the far namespace; its URL."""
    port, config = 8080, logs / "lighttpd-far.conf"
    config.write_text(
        f'server.document-root = "{directory}"\nserver.port = {port}\nserver.bind = "{made.far_address}"\n'
        'server.range-requests = "enable"\nmimetype.assign = ("" => "application/octet-stream")\n'
    )
    with (logs / "lighttpd-far.log").open("ab") as log:
        process = subprocess.Popen(
            made.inside(made.far, "lighttpd", "-D", "-f", config), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        made.wait_until_open(port)
        yield f"http://{made.far_address}:{port}"
    finally:
        process.kill()
        process.wait()
