"""Where people keep what a registry wants to know of them: the environment, and the files of docker and podman."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_MOST_BYTES = 1 << 20
_HELPER_TIMEOUT_S = 120
_DOCKER_HUB_HOST, _DOCKER_HUB = "registry-1.docker.io", "https://index.docker.io/v1/"
"""What docker talks to, and what it keeps its credentials under."""
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Credentials:
    """``identity_token`` is what is traded for tokens in place of a user and a password, where it is not empty."""

    user: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


def find_credentials(host: str, repository: str) -> Credentials | None:
    """``SQLIMAGE_REGISTRY_USER`` and ``SQLIMAGE_REGISTRY_PASSWORD``; else what ``podman login`` or ``docker login``
    left in ``$REGISTRY_AUTH_FILE``, ``$XDG_RUNTIME_DIR/containers/auth.json`` or ``$DOCKER_CONFIG/config.json``.

    Files that cannot be read, or say nothing about this registry, are passed over.
    """
    user, password = (os.environ.get(f"SQLIMAGE_REGISTRY_{what}", "") for what in ("USER", "PASSWORD"))
    if user and password:
        return Credentials(user, password)
    for path in _files():
        config = _read(path)
        if config and (found := _in_config(config, host, repository)):
            return found
    return None


def _files() -> Iterator[str]:
    if path := os.environ.get("REGISTRY_AUTH_FILE"):
        yield path
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        yield f"{directory}/containers/auth.json"
    yield f"{os.environ.get('DOCKER_CONFIG') or os.path.expanduser('~/.docker')}/config.json"


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            config = json.loads(stream.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _in_config(config: dict[str, Any], host: str, repository: str) -> Credentials | None:
    helpers = config.get("credHelpers")
    helper: object = config.get("credsStore")
    if isinstance(helpers, dict):
        helper = helpers.get(host) or helper
    if isinstance(helper, str) and _HELPER.fullmatch(helper) and (found := _ask_helper(helper, host)):
        return found
    auths = config.get("auths")
    if not isinstance(auths, dict):
        return None
    for key in _keys(host, repository):
        if isinstance(entry := auths.get(key), dict) and (found := _in_entry(entry)):
            return found
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """What a registry may stand under, the most special first: podman tells repositories apart, docker writes URLs."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join([host, *parts[:count]])
    yield host
    for scheme in ("https", "http"):
        for ending in ("", "/", "/v1/", "/v2/"):
            yield f"{scheme}://{host}{ending}"
    if host == _DOCKER_HUB_HOST:
        yield from ("docker.io", _DOCKER_HUB)


def _in_entry(entry: dict[str, Any]) -> Credentials | None:
    identity, auth = entry.get("identitytoken"), entry.get("auth")
    user = password = ""
    if isinstance(auth, str):
        try:
            user, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
    if isinstance(identity, str) and identity:
        return Credentials(user, "", identity)
    return Credentials(user, password.rstrip("\0")) if user else None


def _ask_helper(helper: str, host: str) -> Credentials | None:
    """What ``docker-credential-HELPER get`` says, which has them from a keyring of the desktop, of a cloud, ..."""
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=(_DOCKER_HUB if host == _DOCKER_HUB_HOST else host).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_HELPER_TIMEOUT_S,
            check=True,
        )
        told = json.loads(done.stdout[:_MOST_BYTES])
        user, secret = told["Username"], told["Secret"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(user, str) or not isinstance(secret, str):
        return None
    return Credentials("", "", secret) if user == "<token>" else Credentials(user, secret)
