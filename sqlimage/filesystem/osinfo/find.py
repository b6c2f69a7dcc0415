"""Asks each family of systems whether it lives on a volume."""

from __future__ import annotations

from sqlimage.filesystem.contract import FileSystem, Scan
from sqlimage.filesystem.osinfo.linux import find_linux
from sqlimage.filesystem.osinfo.system import OperatingSystem
from sqlimage.filesystem.osinfo.tree import Tree
from sqlimage.filesystem.osinfo.windows import find_windows


def find_system(file_system: FileSystem, scan: Scan) -> OperatingSystem | None:
    """The operating system installed on a volume: Windows NT and its successors, or a Linux distribution.

    Reads a few files, at most 64 MiB of each. What is damaged is passed over: the answer may be partial, or None,
    but nothing that a volume holds makes this raise.
    """
    tree = Tree(file_system, scan)
    return find_windows(tree) or find_linux(tree)
