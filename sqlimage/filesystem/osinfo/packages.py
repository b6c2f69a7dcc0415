"""How many packages a Linux system has, by the databases of its package managers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlimage.errors import InconsistentVolume, SqlimageError
from sqlimage.filesystem.contract import Content, EntryKind
from sqlimage.filesystem.osinfo.tree import Tree

_DATABASE_BYTES = 64 << 20
"""A longer database is not read: a part of it would give a wrong number."""
_BLOCK_BYTES = 1 << 20
_DPKG = "/var/lib/dpkg/status"
_DPKG_INSTALLED = re.compile(rb"^Status: \S+ \S+ installed$", re.MULTILINE)
_DPKG_ARCHITECTURE = re.compile(rb"^Architecture: ([a-z0-9-]{1,32})$", re.MULTILINE)
_ARCHITECTURES = 16
_APK = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
_PACMAN = "/var/lib/pacman/local"


@dataclass(frozen=True, slots=True)
class Packages:
    count: int | None = None
    architecture: str | None = None
    """The one most of them are made for."""


def installed_packages(tree: Tree) -> Packages:
    """The count of the first package manager that has any installed; nothing where none can be told."""
    for count in (_dpkg, _apk, _pacman):
        try:
            found = count(tree)
        except SqlimageError:
            continue
        if found.count:
            return found
    return Packages()


def _dpkg(tree: Tree) -> Packages:
    count, architectures = 0, Counter[bytes]()
    for lines in _blocks_of_lines(tree.open(_DPKG)):
        count += len(_DPKG_INSTALLED.findall(lines))
        architectures.update(_DPKG_ARCHITECTURE.findall(lines))
        architectures.pop(b"all", None)
        architectures = Counter(dict(architectures.most_common(_ARCHITECTURES)))
    most = architectures.most_common(1)
    return Packages(count, most[0][0].decode("ascii") if most else None)


def _apk(tree: Tree) -> Packages:
    content = tree.open(_APK[0]) or tree.open(_APK[1])
    return Packages(sum(lines.count(b"\nP:") for lines in _blocks_of_lines(content)))


def _pacman(tree: Tree) -> Packages:
    return Packages(len(tree.children(_PACMAN, EntryKind.DIRECTORY)))


def _blocks_of_lines(content: Content | None) -> Iterator[bytes]:
    """A text in blocks of whole lines, each with the end of the line before it in front.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where a line is as long as no text's.
    """
    if content is None or content.size_bytes > _DATABASE_BYTES:
        return
    rest = b"\n"
    for offset in range(0, content.size_bytes, _BLOCK_BYTES):
        block = rest + content.read(offset, _BLOCK_BYTES)
        cut = block.rfind(b"\n")
        yield block[: cut + 1]
        rest = block[cut:]
        if len(rest) > _BLOCK_BYTES:
            raise InconsistentVolume("package database", f"has a line of more than {_BLOCK_BYTES} bytes")
    yield rest
