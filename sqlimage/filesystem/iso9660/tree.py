"""Which tree of a volume counts, and all of its names in one pass: level by level."""

from __future__ import annotations

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import first_overlap
from sqlimage.filesystem.contract import ContentFlag, EntryKind, Scan
from sqlimage.filesystem.iso9660.columns import Columns
from sqlimage.filesystem.iso9660.descriptor import Descriptors, Geometry
from sqlimage.filesystem.iso9660.eltorito import Boot
from sqlimage.filesystem.iso9660.item import Item, Items, Tree, enhanced_name, joliet_name, primary_name
from sqlimage.filesystem.iso9660.record import Record, read_records
from sqlimage.filesystem.iso9660.rockridge import find_skip
from sqlimage.units import MIB

DIRECTORY_BYTES_MAX = 512 * MIB
"""All directories of a volume together: three times what the longest records take that are read."""
ASSOCIATED = "associated"
"""The stream that an associated file is (a Macintosh resource fork), beside the file of the same name."""
BOOT_DIRECTORY = "/[BOOT]"
"""Where what El Torito names is listed, as 7-Zip does."""
_FILE, _DIRECTORY = EntryKind.FILE, EntryKind.DIRECTORY
_SYMLINK, _STREAM = EntryKind.SYMLINK, EntryKind.STREAM
_SAFE = str.maketrans({"/": "\u2215", "\0": "\u2400"})
_COMPRESSED, _INDEX = int(ContentFlag.COMPRESSED), int(ContentFlag.INDEX)
_DOTS = {"": "_", ".": "\u2024", "..": "\u2024\u2024"}
"""Names that would not be a component of a path."""


def choose_tree(device: BlockDevice, descriptors: Descriptors) -> Tree:
    """The primary tree where it has Rock Ridge, else Joliet's, else the enhanced one of ISO 9660:1999, else the plain
    primary one: as Linux does, which does not know the third.

    Raises :class:`InconsistentVolume` where the root directory lies outside the volume.
    """
    primary, joliet, enhanced = descriptors.primary, descriptors.joliet, descriptors.enhanced
    plain = Tree(primary.root, False, 0, primary_name)
    try:
        skip = find_skip(device, descriptors.geometry, _dot_of_root(device, descriptors.geometry, plain))
    except InconsistentVolume:
        if joliet is None and enhanced is None:
            raise
        skip = None
    if skip is not None:
        return Tree(primary.root, True, skip, primary_name)
    if joliet is not None:
        return Tree(joliet.root, False, 0, joliet_name)
    if enhanced is not None:
        return Tree(enhanced.root, False, 0, enhanced_name)
    return plain


def root_item(device: BlockDevice, geometry: Geometry, tree: Tree) -> Item:
    """The root directory, known by its record in the descriptor."""
    items = Items(device, geometry, tree)
    item = items.directory(_dot_of_root(device, geometry, tree)) if tree.has_rock_ridge else None
    told = items.directory(tree.root)
    return told if item is None else told._replace(stamp=item.stamp, mode=item.mode)


def scan(device: BlockDevice, geometry: Geometry, tree: Tree, boot: Boot) -> Scan:
    """Every name and every content of a tree, and what El Torito names. Raises :class:`InconsistentVolume`."""
    return _Scanner(device, geometry, tree).scan(boot)


class _Scanner:
    """Collects every name of a volume; used once."""

    def __init__(self, device: BlockDevice, geometry: Geometry, tree: Tree) -> None:
        self._device = device
        self._geometry = geometry
        self._tree = tree
        self._items = Items(device, geometry, tree)
        self._columns = Columns()
        self._entered: dict[int, int] = {}
        """Directories: where each lies, and its length."""
        self._directory_bytes = 0

    def scan(self, boot: Boot) -> Scan:
        root = root_item(self._device, self._geometry, self._tree)
        self._enter("/", root)
        self._add("/", root)
        level = [("/", root)]
        while level:
            following: list[tuple[str, Item]] = []
            for before, item in level:
                following += self._directory(before, item)
            level = following
        self._check_directories(boot)
        self._add_boot(boot)
        return self._columns.finish()

    def _enter(self, path: str, directory: Item) -> None:
        """Take note of a directory that is to be listed: each only once, so that the tree has an end."""
        for place, length in directory.runs:
            if place in self._entered:
                raise InconsistentVolume(f"directory {path!r}", "is reached a second time", offset_bytes=place)
            self._entered[place] = length
            self._directory_bytes += length
            if self._directory_bytes > DIRECTORY_BYTES_MAX:
                raise InconsistentVolume("directories", f"take more than the {DIRECTORY_BYTES_MAX} bytes that are read")

    def _directory(self, before: str, directory: Item) -> list[tuple[str, Item]]:
        """List a directory; gives back those in it."""
        found, names = [], []
        for place, _ in directory.runs:
            for item in self._items.of(read_records(self._device, place, directory.size_bytes)):
                name = _safe(item.name)
                if item.kind is _DIRECTORY:
                    self._enter(before + name, item)
                elif item.kind is _STREAM:
                    name += f":{ASSOCIATED}"
                names.append(name)
                found.append(item)
        if len(set(names)) != len(names):
            names = _unique(names)
        below = []
        for name, item in zip(names, found, strict=True):
            path = before + name
            self._add(path, item)
            if item.kind is _DIRECTORY:
                below.append((path + "/", item))
        return below

    def _add(self, path: str, item: Item) -> None:
        record, kind, _, size, _, runs, stamp, mode, extra = item
        columns = self._columns
        if kind is _FILE:
            compressed = extra is not None and extra.zisofs is not None
            content = columns.file_content(record, size, runs, _COMPRESSED if compressed else 0)
        elif kind is _DIRECTORY:
            content = columns.add_content(record, size, runs, _INDEX)
        elif kind is _SYMLINK:
            content = columns.link_content(record, (extra.target if extra else None) or b"")
        elif kind is _STREAM:
            content = columns.add_content(record, size, runs, stream=ASSOCIATED)
        else:
            content = -1
        columns.add_entry(path, kind, content, record, stamp, mode)

    def _check_directories(self, boot: Boot) -> None:
        """Directories do not overlap, nor do they with the boot catalog: a record names one thing."""
        catalog = [] if boot.catalog is None else [(boot.catalog.place, boot.catalog.held_bytes)]
        places = np.array([*self._entered.items(), *catalog], dtype=np.int64).reshape(-1, 2)
        if (place := first_overlap(places[:, 0], places[:, 1])) is not None:
            raise InconsistentVolume("directories", "two of them lie in the same place", offset_bytes=place)

    def _add_boot(self, boot: Boot) -> None:
        """The boot catalog and the boot images; one that is a file too shares its content."""
        columns, directory = self._columns, BOOT_DIRECTORY
        number = 1
        while boot.files and columns.holds(directory):
            number += 1
            directory = f"{BOOT_DIRECTORY}~{number}"
        for file in boot.files:
            content = columns.file_at(file.place)
            if content is None:
                content = columns.add_content(file.record, file.size_bytes, file.runs)
            columns.add_entry(f"{directory}/{file.name}", EntryKind.METADATA, content, file.record, bytes(7), 0)


def _dot_of_root(device: BlockDevice, geometry: Geometry, tree: Tree) -> Record:
    item = Items(device, geometry, Tree(tree.root, False, 0, tree.name_of)).directory(tree.root)
    if not item.runs:
        raise InconsistentVolume("Directory", "the root directory has no length", offset_bytes=tree.root.offset)
    place = item.runs[0][0]
    return Items(device, geometry, tree).dot(place, place + item.size_bytes)


def _safe(name: str) -> str:
    """The name as one component of a path."""
    if "/" in name or "\0" in name:
        return name.translate(_SAFE)
    return _DOTS.get(name, name)


def _unique(names: list[str]) -> list[str]:
    """The same names, those that were there already with ``~`` and a number."""
    taken, numbers = set(names), dict.fromkeys(names, 1)
    seen: set[str] = set()
    result = []
    for name in names:
        shown = name
        while shown in seen or (shown != name and shown in taken):
            numbers[name] += 1
            shown = f"{name}~{numbers[name]}"
        seen.add(shown)
        result.append(shown)
    return result
