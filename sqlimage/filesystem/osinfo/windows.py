"""Windows NT and its successors, by the registry hives SOFTWARE and SYSTEM."""

from __future__ import annotations

import re
from contextlib import suppress

from sqlimage.errors import SqlimageError
from sqlimage.filesystem.osinfo.hive import Hive, Value
from sqlimage.filesystem.osinfo.system import OperatingSystem, clean, common_architecture
from sqlimage.filesystem.osinfo.tree import Tree

_DIRECTORIES = ("/Windows", "/WINNT")
_CURRENT_VERSION = "Microsoft\\Windows NT\\CurrentVersion"
_VALUES = (
    "ProductName",
    "CurrentMajorVersionNumber",
    "CurrentMinorVersionNumber",
    "CurrentVersion",
    "CurrentBuildNumber",
    "CurrentBuild",
    "UBR",
    "EditionID",
    "InstallationType",
    "DisplayVersion",
    "ReleaseId",
    "CSDVersion",
    "InstallDate",
)
_FIRST_BUILD_OF_11 = 22000
_MARKS = re.compile(r"\s*(\((R|TM)\)|[®™])", re.IGNORECASE)
_ORDINARY = ("Client", "Server")
_PRODUCT_TYPES = {"WINNT": "Workstation", "SERVERNT": "Server", "LANMANNT": "Server"}


def find_windows(tree: Tree) -> OperatingSystem | None:
    """The Windows in ``/Windows`` or ``/WINNT``; None where neither has a hive that says something."""
    for directory in _DIRECTORIES:
        software = _hive(tree, f"{directory}/System32/config/SOFTWARE")
        system = _hive(tree, f"{directory}/System32/config/SYSTEM")
        version = _values(software, _CURRENT_VERSION, *_VALUES)
        host = _control(system)
        if version or host:
            return _described(version, host)
    return None


def _hive(tree: Tree, path: str) -> Hive | None:
    found = tree.ignoring_case(path)
    content = None if found is None else tree.open(found)
    if content is not None:
        with suppress(SqlimageError):
            return Hive(content)
    return None


def _values(hive: Hive | None, path: str, *names: str) -> dict[str, Value]:
    return {} if hive is None else hive.values(path, names)


def _control(system: Hive | None) -> dict[str, Value]:
    """What the control set that was used last says of the machine."""
    current = _values(system, "Select", "Current").get("Current", 1)
    control = f"ControlSet{current:03}\\Control" if isinstance(current, int) else "ControlSet001\\Control"
    return (
        _values(system, f"{control}\\ComputerName\\ComputerName", "ComputerName")
        | _values(system, f"{control}\\Session Manager\\Environment", "PROCESSOR_ARCHITECTURE")
        | _values(system, f"{control}\\ProductOptions", "ProductType")
    )


def _described(version: dict[str, Value], host: dict[str, Value]) -> OperatingSystem:
    build = _text(version.get("CurrentBuildNumber")) or _text(version.get("CurrentBuild"))
    number = _kernel_version(version)
    installed = version.get("InstallDate")
    return OperatingSystem(
        name=_name(_text(version.get("ProductName")), number, build),
        version=number,
        build=build,
        update=_update(version),
        edition=_edition(version, host),
        architecture=common_architecture(_text(host.get("PROCESSOR_ARCHITECTURE"))),
        host_name=_text(host.get("ComputerName")),
        installed_ns=installed * 10**9 if isinstance(installed, int) and 0 < installed < 1 << 32 else None,
    )


def _text(value: Value | None) -> str | None:
    return value if isinstance(value, str) else None


def _kernel_version(version: dict[str, Value]) -> str | None:
    """From Windows 10 on CurrentVersion says 6.3 for ever, and two numbers tell the truth."""
    major, minor = version.get("CurrentMajorVersionNumber"), version.get("CurrentMinorVersionNumber")
    if isinstance(major, int) and isinstance(minor, int):
        return f"{major}.{minor}"
    return _text(version.get("CurrentVersion"))


def _name(product: str | None, number: str | None, build: str | None) -> str:
    """The product's name without the maker's and without trade marks. NT 4.0 and before have none; Windows 11 calls
    itself Windows 10 there."""
    if product is None:
        return f"Windows NT {number}" if number and re.match(r"[34]\.", number) else "Windows"
    name = _MARKS.sub("", product).removeprefix("Microsoft ")
    if build and build.isdecimal() and int(build) >= _FIRST_BUILD_OF_11:
        name = re.sub(r"^Windows 10\b", "Windows 11", name)
    return clean(name) or "Windows"


def _update(version: dict[str, Value]) -> str | None:
    """Service pack, feature update and update build revision, those there are, with commas between."""
    parts = [_text(version.get("CSDVersion")), _text(version.get("DisplayVersion")) or _text(version.get("ReleaseId"))]
    revision = version.get("UBR")
    if isinstance(revision, int) and revision:
        parts.append(f"UBR {revision}")
    return clean(", ".join(part for part in parts if part))


def _edition(version: dict[str, Value], host: dict[str, Value]) -> str | None:
    """EditionID, and the kind of installation where it is no ordinary one; before Vista only the kind of product."""
    edition, kind = _text(version.get("EditionID")), _text(version.get("InstallationType"))
    if edition is None:
        return _PRODUCT_TYPES.get((_text(host.get("ProductType")) or "").upper())
    return clean(f"{edition} ({kind})") if kind and kind not in (*_ORDINARY, edition) else edition
