"""What is told of an operating system, in words fit to be stored and shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TEXT_CHARACTERS = 256
"""The most a text of ours has."""
_ARCHITECTURES = {
    "amd64": "x86_64",
    "i386": "x86",
    "i486": "x86",
    "i586": "x86",
    "i686": "x86",
    "arm64": "aarch64",
    "armel": "arm",
    "armhf": "arm",
    "ppc64el": "ppc64le",
    "powerpc": "ppc",
    "loong64": "loongarch64",
}
"""Names that Windows and Debian have for what most others call otherwise."""


@dataclass(frozen=True, slots=True)
class OperatingSystem:
    """One installed system. Every text has 1 to 256 printable characters; what is not known is None."""

    name: str
    """``Windows 10 Pro``, ``Windows NT 4.0``, ``Debian GNU/Linux``, ``Alpine Linux``."""
    version: str | None = None
    """Windows: of its kernel, as ``6.1`` or ``10.0``. Linux: the distribution's VERSION_ID, as ``12`` or ``22.04``."""
    build: str | None = None
    """Windows: the build number, as ``19045``. Linux: BUILD_ID of os-release, as ``rolling``."""
    update: str | None = None
    """Windows: service pack, feature update and UBR, those there are: ``Service Pack 1``, ``22H2, UBR 3803``.
    Linux: the point release where it is finer than the version, as ``12.5`` or ``22.04.4``."""
    edition: str | None = None
    """Windows: EditionID, as ``Professional`` or ``ServerStandard (Server Core)``. Linux: VARIANT of os-release."""
    architecture: str | None = None
    """``x86_64``, ``x86``, ``aarch64``, ``arm``, ``riscv64``, ...: the same word whichever system says it."""
    host_name: str | None = None
    kernels: tuple[str, ...] = ()
    """Linux: versions of the kernels installed, newest first."""
    packages: int | None = None
    """Linux: how many packages are installed, by dpkg, apk or pacman; rpm's databases are not read."""
    installed_ns: int | None = None
    """Windows: when it was installed, or last upgraded; Unix nanoseconds, UTC."""

    def properties(self) -> dict[str, str | int]:
        """What is known, by the names under which images are found. All are texts but ``os.packages``."""
        known: dict[str, str | int | None] = {
            "os.name": self.name,
            "os.version": self.version,
            "os.build": self.build,
            "os.update": self.update,
            "os.edition": self.edition,
            "os.architecture": self.architecture,
            "os.kernels": joined(self.kernels),
            "os.packages": self.packages,
            "host.name": self.host_name,
        }
        return {name: value for name, value in known.items() if value is not None}


def clean(text: str) -> str | None:
    """The text with everything unprintable and all runs of white space made one space, at most 256 characters."""
    text = text[: TEXT_CHARACTERS * 4]
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:TEXT_CHARACTERS].strip() or None


def joined(texts: Iterable[str]) -> str | None:
    """As many texts, from the first, as fit into one, with commas between."""
    whole = ""
    for text in texts:
        longer = f"{whole}, {text}" if whole else text
        if len(longer) > TEXT_CHARACTERS:
            break
        whole = longer
    return whole or None


def common_architecture(name: str | None) -> str | None:
    """The word we use for an architecture that a system calls ``name``."""
    return None if name is None else _ARCHITECTURES.get(name.lower(), name.lower())


def newest_first(versions: Iterable[str]) -> list[str]:
    """Version texts by their numbers; ``6.5.0-rc1`` comes before ``6.5.0`` was released."""
    return sorted(set(versions), key=_age, reverse=True)


def _age(version: str) -> list[tuple[int, Any]]:
    # an end sorts between a release candidate's mark and anything else that may follow
    parts = re.findall(r"\d+|[^\d.]+", version)
    key = [(3, int(p)) if p.isdecimal() else (0 if re.match(r"-?~|-rc", p) else 2, p) for p in parts]
    return [*key, (1, 0)]
