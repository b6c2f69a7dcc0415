"""Registry hives: bare ones built cell by cell, and such that hivex fills as it fills Windows' own."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Union

from tests.conftest import run

Data = tuple[int, bytes]
"""Type and data of a value."""
Tree = Mapping[str, Union["Tree", Data, str, int]]
"""Keys and values of a key, by name: text is REG_SZ, a number REG_DWORD."""
NOTHING = 0xFFFFFFFF
SEGMENT = 16344
BASE = 4096
NAME_AT = 0x4C
_DESCRIPTOR = struct.pack("<BBHIIII", 1, 0, 0x8000, 0, 0, 0, 0)


class BareHive:
    """A hive in memory, of one bin. ``index`` is the kind of its lists of subkeys, ``per_leaf`` how many subkeys a
    list has before there is an index root above several; nothing stops a test from changing ``content``."""

    def __init__(self, tree: Tree, *, index: bytes = b"lh", per_leaf: int = 500, minor: int = 5) -> None:
        self.index, self.per_leaf, self.minor = index, per_leaf, minor
        self.place: dict[str, int] = {}
        """Of key nodes and values by their paths, with ``\\`` between names; the root's is empty. A key's list of
        subkeys is ``PATH\\*subkeys``, that of values ``PATH\\*values``."""
        self.cells = bytearray(32)
        root = self._key("", "ROOT", tree, NOTHING)
        free = -len(self.cells) % 4096
        if free:
            self.cells += struct.pack("<i", free) + bytes(free - 4)
        struct.pack_into("<4sII", self.cells, 0, b"hbin", 0, len(self.cells))
        base = bytearray(BASE)
        struct.pack_into("<4sIIQIIIIIII", base, 0, b"regf", 1, 1, 0, 1, minor, 0, 1, root, len(self.cells), 1)
        checksum = 0
        for (word,) in struct.iter_unpack("<I", base[:508]):
            checksum ^= word
        struct.pack_into("<I", base, 508, checksum)
        self.content = base + self.cells

    def put(self, path: str, at: int, data: bytes) -> None:
        """Change bytes of a cell's data."""
        start = BASE + self.place[path] + 4 + at
        self.content[start : start + len(data)] = data

    def cell(self, data: bytes) -> int:
        """The place of a new cell."""
        place = len(self.cells)
        size = -(-(len(data) + 4) // 8) * 8
        self.cells += struct.pack("<i", -size) + data + bytes(size - 4 - len(data))
        return place

    def _key(self, path: str, name: str, tree: Tree, parent: int) -> int:
        inside = f"{path}\\" if path else ""
        encoded, compressed = _encode(name)
        place = self.place[path] = self.cell(bytes(NAME_AT) + encoded)
        if not path:
            self._security = self.cell(struct.pack("<2sHIIII", b"sk", 0, 0, 0, 1, len(_DESCRIPTOR)) + _DESCRIPTOR)
            struct.pack_into("<II", self.cells, self._security + 8, self._security, self._security)
        keys = sorted((n for n in tree if isinstance(tree[n], Mapping)), key=str.upper)
        places = []
        for key in keys:
            below = tree[key]
            assert isinstance(below, Mapping)
            places.append(self._key(inside + key, key, below, place))
        values = []
        for value, data in tree.items():
            if not isinstance(data, Mapping):
                values.append(self._value(value, data))
                self.place[inside + value] = values[-1]
        subkeys = self._list(keys, places) if keys else NOTHING
        value_list = self.cell(struct.pack(f"<{len(values)}I", *values)) if values else NOTHING
        self.place[inside + "*subkeys"], self.place[inside + "*values"] = subkeys, value_list
        flags = (0x20 if compressed else 0) | (0x0C if not path else 0)
        node = struct.pack(
            "<2sHQIIIIIIII", b"nk", flags, 0, 0, parent, len(keys), 0, subkeys, NOTHING, len(values), value_list
        )
        node += struct.pack("<IIIIIIIHH", self._security, NOTHING, 0, 0, 0, 0, 0, len(encoded), 0)
        self.cells[place + 4 : place + 4 + NAME_AT] = node
        return place

    def _list(self, names: list[str], places: list[int]) -> int:
        leaves = []
        for first in range(0, len(names), self.per_leaf):
            some = range(first, min(first + self.per_leaf, len(names)))
            elements = b"".join(struct.pack("<I", places[i]) + _hint(self.index, names[i]) for i in some)
            leaves.append(self.cell(struct.pack("<2sH", self.index, len(some)) + elements))
        if len(leaves) == 1:
            return leaves[0]
        return self.cell(struct.pack("<2sH", b"ri", len(leaves)) + struct.pack(f"<{len(leaves)}I", *leaves))

    def _value(self, name: str, value: Data | str | int | Mapping[str, object]) -> int:
        assert not isinstance(value, Mapping)
        if isinstance(value, str):
            value = (1, _text(value))
        elif isinstance(value, int):
            value = (4, struct.pack("<I", value))
        kind, data = value
        if len(data) <= 4:
            length, place = len(data) | 1 << 31, int.from_bytes(data.ljust(4, b"\0"), "little")
        else:
            length, place = len(data), self._data(data)
        encoded, compressed = _encode(name)
        return self.cell(struct.pack("<2sHIIIHH", b"vk", len(encoded), length, place, kind, compressed, 0) + encoded)

    def _data(self, data: bytes) -> int:
        if len(data) <= SEGMENT or self.minor < 4:
            return self.cell(data)
        segments = [self.cell(data[at : at + SEGMENT]) for at in range(0, len(data), SEGMENT)]
        listed = self.cell(struct.pack(f"<{len(segments)}I", *segments))
        return self.cell(struct.pack("<2sHI", b"db", len(segments), listed))


def fill(hive: Path, keys: Mapping[str, Mapping[str, str | int]]) -> Path:
    """Have hivex add keys and their values to a hive, which is made where there is none."""
    if not hive.exists():
        hive.write_bytes(BareHive({}).content)
    lines = ["Windows Registry Editor Version 5.00"]
    above: dict[str, Mapping[str, str | int]] = {
        path.rsplit("\\", depth)[0]: {} for path in keys for depth in range(path.count("\\"), 0, -1)
    }
    for path, values in {**above, **keys}.items():
        lines += ["", f"[\\{path}]"]
        for name, value in values.items():
            data = f"dword:{value:08x}" if isinstance(value, int) else f"hex(1):{_text(value).hex(',')}"
            lines.append(f'"{name}"={data}')
    text = hive.with_name(hive.name + ".reg")
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run("hivexregedit", "--merge", hive, text)
    text.unlink()
    return hive


def _text(text: str) -> bytes:
    return (text + "\0").encode("utf-16-le", "surrogatepass")


def _encode(name: str) -> tuple[bytes, bool]:
    try:
        return name.encode("latin-1"), True
    except UnicodeEncodeError:
        return name.encode("utf-16-le", "surrogatepass"), False


def _hint(index: bytes, name: str) -> bytes:
    if index == b"lf":
        return name[:4].encode("latin-1", "replace").ljust(4, b"\0")
    value = 0
    for character in name.upper():
        value = (value * 37 + ord(character)) & 0xFFFFFFFF
    return struct.pack("<I", value) if index == b"lh" else b""
