"""The few files by which a Linux distribution is known, in memory."""

from __future__ import annotations

from collections.abc import Mapping

from sqlimage.filesystem.osinfo import OperatingSystem, find_system
from tests.make.memory_volume import File, Link, MemoryVolume

DEBIAN_12 = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
HOME_URL="https://www.debian.org/"
"""


def elf(machine: int, bits: int = 64, *, little: bool = True) -> bytes:
    head = b"\x7fELF" + bytes([bits // 32, 1 if little else 2, 1]) + bytes(9) + (b"\3\0" if little else b"\0\3")
    return head + machine.to_bytes(2, "little" if little else "big") + bytes(100)


def stanza(name: str, status: str = "install ok installed", architecture: str = "amd64") -> str:
    return (
        f"Package: {name}\nStatus: {status}\nMaintainer: N <n@example.org>\nArchitecture: {architecture}\n"
        f"Version: 1\nDescription: d\n Status: install ok installed\n\n"
    )


def found_in(files: Mapping[str, File]) -> OperatingSystem | None:
    volume = MemoryVolume(files)
    return find_system(volume, volume.scan())


def linux(files: Mapping[str, File], os_release: str = "NAME=Some\n") -> OperatingSystem:
    found = found_in({"/etc/os-release": os_release, **files})
    assert found
    return found


DEBIAN_TREE: dict[str, File] = {
    "/etc/os-release": Link("../usr/lib/os-release"),
    "/usr/lib/os-release": DEBIAN_12,
    "/etc/debian_version": "12.5\n",
    "/etc/hostname": "web-1\n",
    "/bin": Link("usr/bin"),
    "/lib": Link("/usr/lib"),
    "/usr/bin/sh": Link("dash"),
    "/usr/bin/dash": elf(62),
    "/usr/lib/modules/6.1.0-9-amd64/modules.dep": "",
    "/usr/lib/modules/6.1.0-18-amd64/modules.dep": "",
    "/boot/vmlinuz-6.1.0-18-amd64": b"MZ",
    "/var/lib/dpkg/status": stanza("dpkg") + stanza("old", "deinstall ok config-files") + stanza("tzdata"),
}
DEBIAN = OperatingSystem(
    name="Debian GNU/Linux",
    version="12",
    update="12.5",
    architecture="x86_64",
    host_name="web-1",
    kernels=("6.1.0-18-amd64", "6.1.0-9-amd64"),
    packages=2,
)
