"""Linux distributions, by the files in which they say what they are."""

from __future__ import annotations

import re
from struct import unpack_from

from sqlimage.filesystem.contract import EntryKind
from sqlimage.filesystem.osinfo.packages import installed_packages
from sqlimage.filesystem.osinfo.system import OperatingSystem, clean, common_architecture, newest_first
from sqlimage.filesystem.osinfo.tree import Tree

_TEXT_BYTES = 64 << 10
_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
_RELEASE_LINES = (
    "/etc/fedora-release",
    "/etc/redhat-release",
    "/etc/SuSE-release",
    "/etc/slackware-version",
    "/etc/gentoo-release",
)
"""Their first line is a name and a version, often with the word "release" between."""
_POINT_RELEASES = ("/etc/debian_version", "/etc/redhat-release")
_ASSIGNMENT = re.compile(r"""[ \t]*([A-Za-z_][A-Za-z0-9_]*)=(?:"((?:[^"\\]|\\.)*)|'([^']*)|((?:[^\s"'\\]|\\.)*))""")
_NAME_AND_VERSION = re.compile(r"(.+?) (?:release )?(\d[\d.]*)")
_NUMBER = re.compile(r"\d[\d.]*")
_KERNEL = re.compile(r"\d+\.[0-9A-Za-z.+~_-]{1,200}")
_KERNELS = 64
_MODULES = ("/lib/modules", "/usr/lib/modules")
_KERNEL_FILE = "vmlinuz-"
_HOST_NAMES = ("/etc/hostname", "/etc/HOSTNAME")
_PROGRAMS = ("/bin/sh", "/bin/bash", "/bin/busybox", "/usr/bin/env", "/sbin/init")
_ELF_HEADER_BYTES = 20
_MACHINES = {
    (2, 1): "sparc",
    (3, 1): "x86",
    (8, 1): "mips",
    (8, 2): "mips64",
    (20, 1): "ppc",
    (21, 2): "ppc64",
    (22, 1): "s390",
    (22, 2): "s390x",
    (40, 1): "arm",
    (43, 2): "sparc64",
    (50, 2): "ia64",
    (62, 1): "x32",
    (62, 2): "x86_64",
    (183, 2): "aarch64",
    (243, 1): "riscv32",
    (243, 2): "riscv64",
    (258, 2): "loongarch64",
    (0x9026, 2): "alpha",
}
"""By e_machine and EI_CLASS of the ELF header."""
_LITTLE = {"mips": "mipsel", "mips64": "mips64el", "ppc64": "ppc64le"}


def find_linux(tree: Tree) -> OperatingSystem | None:
    """The distribution whose root directory the volume's is; None where nothing names one."""
    told = _from_os_release(tree) or _from_lsb_release(tree) or _from_release_line(tree) or _from_version_file(tree)
    name = clean(told.get("NAME", ""))
    if name is None:
        return None
    packages = installed_packages(tree)
    version = clean(told.get("VERSION_ID", ""))
    return OperatingSystem(
        name=name,
        version=version,
        build=clean(told.get("BUILD_ID", "")),
        update=_point_release(tree, version, told),
        edition=clean(told.get("VARIANT", "")),
        architecture=_architecture(tree) or common_architecture(packages.architecture),
        host_name=_host_name(tree),
        kernels=tuple(_kernels(tree)),
        packages=packages.count,
    )


def assignments(text: str) -> dict[str, str]:
    """Variables as os-release(5) has them: a shell's assignments, a line each, the last of a name counts."""
    found = {}
    for line in text.split("\n"):
        if match := _ASSIGNMENT.match(line):
            name, double, single, plain = match.groups()
            if double is not None:
                found[name] = re.sub(r'\\([$`"\\])', r"\1", double)
            else:
                found[name] = single if single is not None else re.sub(r"\\(.)", r"\1", plain)
    return found


def _text(tree: Tree, path: str) -> str:
    return (tree.read(path, _TEXT_BYTES) or b"").decode("utf-8", "replace")


def _line(tree: Tree, path: str) -> str:
    """The first line that is neither empty nor a comment."""
    lines = (clean(line) for line in _text(tree, path).split("\n"))
    return next((line for line in lines if line and not line.startswith("#")), "")


def _from_os_release(tree: Tree) -> dict[str, str]:
    for path in _OS_RELEASE:
        told = assignments(_text(tree, path))
        name = told.get("NAME") or told.get("ID")
        if name or told.get("PRETTY_NAME"):
            return {**told, "NAME": name or "Linux"}
    return {}


def _from_lsb_release(tree: Tree) -> dict[str, str]:
    told = assignments(_text(tree, "/etc/lsb-release"))
    if "DISTRIB_ID" not in told:
        return {}
    return {
        "NAME": told["DISTRIB_ID"],
        "VERSION_ID": told.get("DISTRIB_RELEASE", ""),
        "VERSION": told.get("DISTRIB_DESCRIPTION", ""),
    }


def _from_release_line(tree: Tree) -> dict[str, str]:
    for path in _RELEASE_LINES:
        if match := _NAME_AND_VERSION.match(_line(tree, path)):
            return {"NAME": match[1], "VERSION_ID": match[2]}
    return {}


def _from_version_file(tree: Tree) -> dict[str, str]:
    if version := _line(tree, "/etc/alpine-release"):
        return {"NAME": "Alpine Linux", "VERSION_ID": version}
    if version := _line(tree, "/etc/debian_version"):
        major = version.partition(".")[0]
        return {"NAME": "Debian GNU/Linux", "ID": "debian", "VERSION_ID": major if major.isdecimal() else ""}
    return {}


def _point_release(tree: Tree, version: str | None, told: dict[str, str]) -> str | None:
    """A number that begins with the version and goes on; of a Debian without a version, what it calls itself."""
    if version is None:
        return _line(tree, "/etc/debian_version") or None if told.get("ID") == "debian" else None
    for text in (clean(told.get("VERSION", "")) or "", *(_line(tree, path) for path in _POINT_RELEASES)):
        for number in _NUMBER.findall(text):
            if number.startswith(version + "."):
                return str(number).rstrip(".")
    return None


def _kernels(tree: Tree) -> list[str]:
    """By their modules and by their images."""
    names = [
        name
        for directory in {tree.resolve(path) for path in _MODULES} - {None}
        for name in tree.children(str(directory), EntryKind.DIRECTORY)
    ]
    files = tree.children("/boot", EntryKind.FILE)
    names += [name.removeprefix(_KERNEL_FILE) for name in files if name.startswith(_KERNEL_FILE)]
    return newest_first(name for name in names if _KERNEL.fullmatch(name))[:_KERNELS]


def _host_name(tree: Tree) -> str | None:
    for path in _HOST_NAMES:
        if name := _line(tree, path):
            return name
    return clean(assignments(_text(tree, "/etc/sysconfig/network")).get("HOSTNAME", ""))


def _architecture(tree: Tree) -> str | None:
    """What the first program found is made for: a kernel may be another one's than the system on it."""
    for path in _PROGRAMS:
        header = tree.read(path, _ELF_HEADER_BYTES) or b""
        if len(header) == _ELF_HEADER_BYTES and header.startswith(b"\x7fELF"):
            little = header[5] == 1
            (machine,) = unpack_from("<H" if little else ">H", header, 18)
            name = _MACHINES.get((machine, header[4]))
            return _LITTLE.get(name, name) if name and little else name
    return None
