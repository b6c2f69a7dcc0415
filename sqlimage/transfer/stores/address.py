"""Addresses of images that lie elsewhere: which store, and the name in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlimage.errors import UsageError
from sqlimage.transfer.stores.asking import check_image
from sqlimage.transfer.stores.contract import Store

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WEB, _CLOUD, _REGISTRY = ("http", "https"), ("s3", "gs", "az"), ("oci", "oci+https", "oci+http")
_DEFAULT_TAG = "latest"
_HINT = "write file:///dir/NAME, https://host/dir/NAME, s3://bucket/dir/NAME (gs:, az:) or oci://host/repository:NAME"


def is_url(text: str) -> bool:
    """Whether this is an address, of whatever scheme, and not a path."""
    return bool(_SCHEME.match(text))


def open_store(url: str, *, mount_from: Sequence[str] = ()) -> tuple[Store, str]:
    """The shelf that an address of an image leads to, and the name of the image on it. Nothing is asked for yet.

    ``mount_from`` names repositories of the same registry that segments may be taken over from. Raises
    :class:`~sqlimage.errors.UsageError` for what is no such address, and where what it takes is not installed.
    """
    found = _SCHEME.match(url)
    scheme = found[1].lower() if found else ""
    if found:
        url = scheme + url[found.end(1) :]
    told = without_userinfo(url)
    if "?" in url or "#" in url:
        raise UsageError(f"{told!r}: an address of an image has neither ? nor #", hint=_HINT)
    if scheme == "file":
        return _in_directory(url)
    # each store loads when it is wanted: a command on a local image asks only whether it was given an address
    if scheme in _REGISTRY:
        from sqlimage.transfer.stores.registry import RegistryStore

        shelf, name = _split_tag(url, told)
        return RegistryStore(shelf, mount_from), name
    if scheme in _WEB:
        from sqlimage.transfer.stores.http import HttpStore

        shelf, name = _split(url, told)
        return HttpStore(shelf), name
    if scheme in _CLOUD:
        from sqlimage.transfer.stores.cloud import CloudStore

        shelf, name = _split(url, told)
        return CloudStore(shelf), name
    raise UsageError(f"{told!r} is not an address that images can have", hint=_HINT)


def _in_directory(url: str) -> tuple[Store, str]:
    import urllib.parse

    from sqlimage.transfer.stores.directory import DirectoryStore

    shelf, name = _split(url, url)
    parts = urllib.parse.urlsplit(shelf)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{url!r} names another machine", hint="write file:///dir/NAME, with three slashes")
    path = urllib.parse.unquote(parts.path) or "/"
    if "\0" in path:
        raise UsageError(f"{url!r} is not an address that images can have", hint=_HINT)
    return DirectoryStore(path), name


def _split(url: str, told: str) -> tuple[str, str]:
    shelf, _, name = url.rpartition("/")
    if not name or shelf.endswith(":/"):
        raise UsageError(f"{told!r} names no image", hint=_HINT)
    check_image(name)
    return shelf, name


def _split_tag(url: str, told: str) -> tuple[str, str]:
    before, _, last = url.rpartition("/")
    repository, colon, tag = last.partition(":")
    if "@" in last:
        raise UsageError(f"{told!r}: an image is named by its tag, not by a digest", hint=_HINT)
    if before.endswith(":/"):
        raise UsageError(f"{told!r} names no repository", hint=_HINT)
    name = tag if colon else _DEFAULT_TAG
    check_image(name)
    return f"{before}/{repository}", name


def without_userinfo(url: str) -> str:
    """An address as messages tell it: without who asks, and the password."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if "@" not in host and ":" in host and "@" in path:  # a password with a slash in it
        return f"{scheme}{separator}{rest.rpartition('@')[2]}"
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
