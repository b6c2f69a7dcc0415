"""How a server proves who it is and whom it lets in, in the file names that qemu uses."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from sqlimage.errors import NotFoundError, UsageError

CA_CERT = "ca-cert.pem"
CA_CRL = "ca-crl.pem"
SERVER_CERT = "server-cert.pem"
SERVER_KEY = "server-key.pem"
_PSK_LINES_MAXIMUM = 65536


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS as a server wants it, version 1.2 at least."""

    context: ssl.SSLContext

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str], verify_peer: bool = True) -> TlsSettings:
        """Certificates in PEM form: ``server-cert.pem`` and ``server-key.pem``; with ``verify_peer`` clients must show
        a certificate signed by ``ca-cert.pem`` and, where there is a ``ca-crl.pem``, not revoked by it.

        Raises :class:`~sqlimage.errors.NotFoundError` where a file is missing and
        :class:`~sqlimage.errors.UsageError` where one cannot be used, or the key is not the certificate's.
        """
        names = (SERVER_CERT, SERVER_KEY, *((CA_CERT,) if verify_peer else ()))
        places = {name: os.path.join(path, name) for name in (*names, CA_CRL)}
        for name in names:
            _check_readable(places[name])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # an empty password, or OpenSSL would ask for one on the terminal
            context.load_cert_chain(places[SERVER_CERT], places[SERVER_KEY], password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as problem:
            reason = getattr(problem, "reason", None) or problem
            raise UsageError(
                f"{places[SERVER_CERT]} and {SERVER_KEY} cannot be used together ({reason})",
                hint="both must be PEM, the key without a password and the one the certificate was made for",
            ) from None
        if verify_peer:
            try:
                context.load_verify_locations(places[CA_CERT])
                if os.path.exists(places[CA_CRL]):
                    context.load_verify_locations(places[CA_CRL])
                    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            except (ssl.SSLError, OSError) as problem:
                raise UsageError(f"{places[CA_CERT]}: not a PEM certificate authority ({problem})") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return cls(context)

    @classmethod
    def from_psk_file(cls, path: str | os.PathLike[str]) -> TlsSettings:
        """Pre-shared keys, one ``name:hexadecimal key`` a line, as ``psktool`` writes them.

        Raises :class:`~sqlimage.errors.NotFoundError` and :class:`~sqlimage.errors.UsageError` as above, and the
        latter where Python is older than 3.13, whose ``ssl`` module knows no such keys.
        """
        _check_readable(path)
        keys = _read_keys(os.fspath(path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        accept = getattr(context, "set_psk_server_callback", None)
        if accept is None:
            raise UsageError("pre-shared keys need Python 3.13 or newer", hint="use certificates instead")
        context.set_ciphers("PSK")
        accept(lambda identity: keys.get(identity or "", b""))
        return cls(context)


def _check_readable(path: str | os.PathLike[str]) -> None:
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise NotFoundError(f"{os.fspath(path)}: no such file", hint="TLS needs it") from None
    except OSError as problem:
        raise UsageError(f"{os.fspath(path)}: cannot be read ({problem.strerror})") from None


def _read_keys(path: str) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            name, colon, key = line.strip().rpartition(":")
            if not line.strip() or line.startswith("#"):
                continue
            try:
                keys[name] = bytes.fromhex(key)
            except ValueError:
                colon = ""
            if not colon or not name or not keys[name] or number > _PSK_LINES_MAXIMUM:
                raise UsageError(f"{path}: line {number} is not a name, a colon and a key in hexadecimal")
    if not keys:
        raise UsageError(f"{path}: holds no keys")
    return keys
