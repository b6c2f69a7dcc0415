"""Real servers on free ports, as ordinary processes of the test: S3, a registry, a web server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_START_S = 60
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ACCESS_KEY, SECRET_KEY = "a-test-key", "a-test-secret"
BUCKET = "images"


def free_ports(count: int) -> list[int]:
    """Ports of this machine itself that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextlib.contextmanager
def running(command: list[str], log: Path, probe: str, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """A server that answers at ``probe``, whatever it answers; killed in the end. What it said is in ``log``, and in
    the error where it does not come up."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
        )
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(probe):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not come up: {log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        _OPENER.open(url, timeout=5).close()
    except urllib.error.HTTPError as answer:
        return answer.code < 500
    except OSError:
        return False
    return True


def program(name: str) -> str:
    """Beside this Python, on the path, or where Debian has what it starts as a service."""
    found = shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    )
    assert found, f"{name} is missing: see tests/install-debian-packages.sh"
    return found


@contextlib.contextmanager
def s3_server(directory: Path, ports: Sequence[int] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """SeaweedFS with the bucket :data:`BUCKET`; its endpoint, and the environment in which a client finds and may use
    it. Requests that are not signed with the key are refused. ``ports`` (eight) are for one that comes back on the
    same directory after it was killed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "s3.json").write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "tests",
                        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
        )
    )
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = ports or free_ports(len(names) + 2)
    endpoint = f"http://127.0.0.1:{ports[-1]}"
    command = [
        *(program("weed"), "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=False)),
        *("-s3", f"-s3.port={ports[-1]}", f"-s3.port.grpc={ports[-2]}", f"-s3.config={directory}/s3.json"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=64", "-master.volumeSizeLimitMB=256"),
        # one that comes back asks for so long whether there is another master
        *("-volume.preStopSeconds=0", "-filer", "-master.electionTimeout=1s"),
    ]
    environment = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    with running(command, directory / "weed.log", endpoint):
        _warm(f"http://127.0.0.1:{ports[names.index('filer.port')]}/buckets/{BUCKET}/first")
        yield endpoint, environment


def _warm(url: str) -> None:
    """Have the bucket and its first volumes made, which takes seconds, before anybody's first object waits for it."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            for method in ("PUT", "DELETE"):
                _OPENER.open(urllib.request.Request(url, b"x" if method == "PUT" else None, method=method), timeout=30)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def registry_server(directory: Path, *, port: int = 0, htpasswd: str = "") -> Iterator[str]:
    """Debian's registry; ``host:port``. With ``htpasswd`` (a line of bcrypt) it wants a password. ``port`` is for one
    that comes back on the same directory after it was killed."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_ports(1)[0]
    lines = [
        "version: 0.1",
        "log: {level: warn}",
        f"storage: {{filesystem: {{rootdirectory: {directory}/blobs}}, delete: {{enabled: true}}}}",
        f"http: {{addr: '127.0.0.1:{port}', secret: of-the-tests}}",
    ]
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd + "\n")
        lines.append(f"auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}")
    (directory / "config.yml").write_text("\n".join(lines) + "\n")
    command = [program("docker-registry"), "serve", str(directory / "config.yml")]
    with running(command, directory / "registry.log", f"http://127.0.0.1:{port}/v2/", {"OTEL_TRACES_EXPORTER": "none"}):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def web_server(directory: Path, *, logs: Path | None = None) -> Iterator[str]:
    """lighttpd over a directory; its URL."""
    logs = logs or directory.parent
    (port,) = free_ports(1)
    config = logs / f"lighttpd-{port}.conf"
    config.write_text(
        f'server.document-root = "{directory}"\nserver.port = {port}\nserver.bind = "127.0.0.1"\n'
        'server.range-requests = "enable"\nmimetype.assign = ("" => "application/octet-stream")\n'
    )
    command = [program("lighttpd"), "-D", "-f", str(config)]
    with running(command, logs / f"lighttpd-{port}.log", f"http://127.0.0.1:{port}/"):
        yield f"http://127.0.0.1:{port}"
