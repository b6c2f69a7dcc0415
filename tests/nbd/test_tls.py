"""TLS: settings from files, and clients with certificates, without, and with those of somebody else."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from sqlimage.errors import NotFoundError, UsageError
from sqlimage.media.memory import MemoryDevice
from sqlimage.nbd.server import Export, Server
from sqlimage.nbd.tls import TlsSettings
from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise
from tests.make.cost import PATIENCE
from tests.nbd.client import (
    DISC,
    FLUSH,
    FUA,
    READ,
    SECONDS,
    WRITE,
    Client,
    TroubledDevice,
    contexts,
    go,
    option,
    request,
    serving,
)

CONTENT = noise("tls", 8 * MIB)


def make_authority(place: Path) -> Path:
    """A directory with an authority and certificates of a server, a client and a client that was turned out."""
    place.mkdir()
    new = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch")
    run(
        *new, "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca-cert.pem", cwd=place
    )
    (place / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client", "outcast"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", cwd=place)
        run(
            "openssl", "x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem",
            "-CAcreateserial", "-extfile", "names", "-out", f"{name}-cert.pem", cwd=place,
        )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("tls") / "theirs")


def client_directory(place: Path, authority: Path, name: str = "client") -> Path:
    """What qemu and libnbd want to find in a directory."""
    place.mkdir()
    shutil.copy(authority / "ca-cert.pem", place)
    shutil.copy(authority / f"{name}-cert.pem", place / "client-cert.pem")
    shutil.copy(authority / f"{name}-key.pem", place / "client-key.pem")
    return place


def context(authority: Path, name: str | None = "client") -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority / "ca-cert.pem"))
    if name:
        made.load_cert_chain(authority / f"{name}-cert.pem", authority / f"{name}-key.pem")
    return made


def encrypt(path: Path, made: ssl.SSLContext) -> Client:
    """A client that has just encrypted."""
    client = Client.connect(path)
    client.greet()
    assert client.ask(option(5)) == [(1, b"")]
    client.socket = made.wrap_socket(client.socket, server_hostname="localhost")
    return client


def test_commands_over_tls(tmp_path: Path, authority: Path) -> None:
    device = TroubledDevice(CONTENT, not_ready_from=0)
    settings = TlsSettings.from_directory(authority, verify_peer=True)
    with serving(tmp_path, Export("disk", device, writable=True), tls=settings) as (server, path):
        assert server.uri.startswith("nbds+unix:///")
        client = encrypt(path, context(authority))
        assert client.ask(option(8)) == [(1, b"")]
        assert client.ask(go())[-1] == (1, b"")
        assert client.read(5, 3 * MIB) == CONTENT[5 : 5 + 3 * MIB]
        client.send(
            request(READ, 0, 9, cookie=1) + request(READ, 9, 9, cookie=2) + request(WRITE, 0, 2, flags=FUA) + b"ab"
            + request(FLUSH)
        )  # fmt: skip
        assert [client.reply().error for _ in range(4)] == [0] * 4
        assert device.diary[-2:] == ["write", "flush"]
        client.send(request(DISC))
        assert client.closed()


def test_nothing_before_tls(tmp_path: Path, authority: Path) -> None:
    with serving(tmp_path, Export("disk", MemoryDevice(CONTENT)), tls=TlsSettings.from_directory(authority)) as (
        _,
        path,
    ):
        client = Client.connect(path)
        client.greet()
        for said in (option(3), go(), option(8), contexts(10, b"disk", b"base:allocation")):
            assert client.ask(said)[-1][0] == 0x80000005
        client.send(option(1, b"disk"))
        assert client.closed()


def test_who_is_not_known_is_not_let_in(tmp_path: Path, authority: Path, stranger: Path) -> None:
    problems: list[str] = []
    settings = TlsSettings.from_directory(authority, verify_peer=True)
    export = Export("disk", MemoryDevice(CONTENT))
    foreign = context(stranger)
    foreign.load_verify_locations(authority / "ca-cert.pem")
    with serving(tmp_path, export, tls=settings, on_problem=problems.append) as (_, path):
        for made in (context(authority, None), foreign):
            with pytest.raises((OSError, EOFError)):
                encrypt(path, made).ask(go())
        client = Client.connect(path)
        client.greet()
        client.ask(option(5))
        client.send(b"this is no handshake" * 100)
        assert client.closed()
        assert encrypt(path, context(authority)).ask(go())[-1] == (1, b"")
    assert len(problems) == 3
    with serving(tmp_path, export, tls=TlsSettings.from_directory(authority, verify_peer=False)) as (_, path):
        assert encrypt(path, context(authority, None)).ask(go())[-1] == (1, b"")


def test_who_was_turned_out_is_not_let_in(tmp_path: Path, authority: Path) -> None:
    ours = Path(shutil.copytree(authority, tmp_path / "revoked"))
    (ours / "index.txt").touch()
    (ours / "crlnumber").write_text("01\n")
    (ours / "ca.cnf").write_text(
        "[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\ndefault_crl_days=2\n"
    )
    sign = ("openssl", "ca", "-config", "ca.cnf", "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem")
    run(*sign, "-revoke", "outcast-cert.pem", cwd=ours)
    run(*sign, "-gencrl", "-out", "ca-crl.pem", cwd=ours)
    settings = TlsSettings.from_directory(ours, verify_peer=True)
    with serving(tmp_path, Export("disk", MemoryDevice(CONTENT)), tls=settings) as (_, path):
        assert encrypt(path, context(ours)).ask(go())[-1] == (1, b"")
        with pytest.raises((OSError, EOFError)):
            encrypt(path, context(ours, "outcast")).ask(go())


def test_a_half_done_handshake_is_dropped(tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlimage.nbd.connection.NEGOTIATION_SECONDS", 0.3)
    with serving(tmp_path, Export("disk", MemoryDevice(CONTENT)), tls=TlsSettings.from_directory(authority)) as (
        _,
        path,
    ):
        client = Client.connect(path)
        client.greet()
        client.ask(option(5))
        begin = time.monotonic()
        client.send(bytes.fromhex("16 0301 0200"))  # the head of a record of 512 bytes
        with pytest.raises(ConnectionError):
            while time.monotonic() < begin + SECONDS:
                client.send(b"\1")
                time.sleep(0.05)
        assert time.monotonic() - begin < 2 * PATIENCE


def test_stop_ends_a_half_done_handshake(tmp_path: Path, authority: Path) -> None:
    settings = TlsSettings.from_directory(authority)
    with serving(tmp_path, Export("disk", MemoryDevice(CONTENT)), tls=settings) as (server, path):
        client = Client.connect(path)
        client.greet()
        client.ask(option(5))
        time.sleep(0.1)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 2 * PATIENCE
        assert client.closed()


def test_old_versions_of_tls_are_refused(tmp_path: Path, authority: Path) -> None:
    settings = TlsSettings.from_directory(authority)
    assert settings.context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_libnbd_and_qemu_over_tls(tmp_path: Path, authority: Path, stranger: Path) -> None:
    ours = client_directory(tmp_path / "ours", authority)
    theirs = client_directory(tmp_path / "theirs", stranger)
    settings = TlsSettings.from_directory(authority, verify_peer=True)
    with Server(
        [Export("disk", MemoryDevice(CONTENT), writable=True)], address="localhost", port=0, tls=settings
    ) as server:
        port = server.uri.rpartition(":")[2].partition("/")[0]
        uri = f"nbds://localhost:{port}/disk?tls-certificates="
        assert b"with TLS" in run("nbdinfo", f"{uri}{ours}").stdout
        run("nbdcopy", f"{uri}{ours}", tmp_path / "copy.raw")
        assert (tmp_path / "copy.raw").read_bytes() == CONTENT
        run("nbdcopy", tmp_path / "copy.raw", f"{uri}{ours}")
        image = f"driver=nbd,host=localhost,port={port},export=disk,tls-creds=t"

        def qemu(directory: Path, *command: str) -> tuple[str, ...]:
            return (*command, "--object", f"tls-creds-x509,id=t,dir={directory},endpoint=client", "--image-opts", image)

        assert b"8 MiB" in run(*qemu(ours, "qemu-img", "info")).stdout
        run(*qemu(ours, "qemu-io", "-c", "write -P 5 0 2M", "-c", "read -P 5 0 2M", "-c", "flush"))
        for refused in (
            ("nbdinfo", f"{uri}{theirs}"),
            ("nbdinfo", f"nbd://localhost:{port}/disk"),
            qemu(theirs, "qemu-img", "info"),
        ):
            assert subprocess.run(refused, capture_output=True, timeout=20).returncode != 0
        assert b"with TLS" in run("nbdinfo", f"{uri}{ours}").stdout


@pytest.mark.parametrize("missing", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
def test_a_missing_file_is_named(tmp_path: Path, authority: Path, missing: str) -> None:
    place = Path(shutil.copytree(authority, tmp_path / "place"))
    (place / missing).unlink()
    with pytest.raises(NotFoundError, match=missing):
        TlsSettings.from_directory(place, verify_peer=True)
    if missing == "ca-cert.pem":
        TlsSettings.from_directory(place, verify_peer=False)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, authority: Path, stranger: Path) -> None:
    place = Path(shutil.copytree(authority, tmp_path / "place"))
    for name, wrong in (
        ("server-key.pem", (stranger / "server-key.pem").read_bytes()),
        ("server-key.pem", b"no key"),
        ("server-cert.pem", b""),
        ("ca-cert.pem", b"nobody"),
    ):
        good = (place / name).read_bytes()
        (place / name).write_bytes(wrong)
        with pytest.raises(UsageError, match=name):
            TlsSettings.from_directory(place, verify_peer=True)
        (place / name).write_bytes(good)
    run("openssl", "ec", "-in", "server-key.pem", "-aes128", "-passout", "pass:secret", "-out", "locked.pem", cwd=place)
    (place / "locked.pem").rename(place / "server-key.pem")
    with pytest.raises(UsageError, match="password"):
        TlsSettings.from_directory(place, verify_peer=True)


def test_pre_shared_keys_need_a_python_that_knows_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    with pytest.raises(NotFoundError):
        TlsSettings.from_psk_file(keys)
    for bad in ("", "name\n", "name:xyz\n", ":00\n", "name:\n"):
        keys.write_text(bad)
        with pytest.raises(UsageError, match="keys"):
            TlsSettings.from_psk_file(keys)
    keys.write_text("# who\nalice:00ff\n\nbob:a1b2\n")
    if not hasattr(ssl.SSLContext, "set_psk_server_callback"):
        with pytest.raises(UsageError, match=r"3\.13"):
            TlsSettings.from_psk_file(keys)
        return
    settings = TlsSettings.from_psk_file(keys)
    with Server([Export("disk", MemoryDevice(CONTENT))], port=0, tls=settings) as server:
        place = server.uri.partition("//")[2]
        assert b"with TLS" in run("nbdinfo", f"nbds://alice@{place}?tls-psk-file={keys}").stdout


def test_with_tls_other_machines_may_be_served(authority: Path) -> None:
    with Server(
        [Export("disk", MemoryDevice(CONTENT))], address="0.0.0.0", port=0, tls=TlsSettings.from_directory(authority)
    ) as server:
        port = int(server.uri.rpartition(":")[2].partition("/")[0])
        Client(socket.create_connection(("127.0.0.1", port))).greet()
