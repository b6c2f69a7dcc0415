"""Values of an offline registry hive, read by their paths. Only the cells on the way are read.

A hive whose last writes are still in its transaction logs is read as it lies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from struct import iter_unpack, unpack_from

from sqlimage.errors import InconsistentVolume, SqlimageError
from sqlimage.filesystem.contract import Content
from sqlimage.filesystem.osinfo import hive_layout as layout
from sqlimage.filesystem.osinfo.system import clean

Value = str | int
_PAGE_BYTES = 4096
_PAGES = 4096
"""What is read of one hive at most, 16 MiB."""
_STEPS = 200_000
"""Cells and elements of lists looked at."""
_NAME_BYTES = 1024
_LIST_BYTES = 4 * 0xFFFF
_DATA_BYTES = 2 << 10
"""What is read of a name, a list of values and a value, whatever their lengths are."""


class _Damaged(Exception):
    """A cell is not what refers to it says."""


class _TooMuch(Exception):
    """A look-up asks for more work than in any real hive."""


class Hive:
    """A hive as a look-up of values. Constructing one reads the base block.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where there is none.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self._pages: dict[int, bytes] = {}
        self._steps_left = _STEPS
        self._end = content.size_bytes - layout.BASE_BLOCK_BYTES
        base = content.read(0, layout.BASE_BLOCK_BYTES)
        if len(base) < layout.BASE_BLOCK_BYTES or not base.startswith(layout.BASE_BLOCK_SIGNATURE):
            raise InconsistentVolume("HBASE_BLOCK", "it is not there")
        major, self._minor = unpack_from("<II", base, layout.MAJOR_AT)
        if major != layout.MAJOR:
            raise InconsistentVolume("HBASE_BLOCK, Major", f"is {major}, must be {layout.MAJOR}")
        (self._root,) = unpack_from("<I", base, layout.ROOT_CELL_AT)

    def values(self, path: str, names: Collection[str]) -> dict[str, Value]:
        """Those of the named values that a key has: texts, cleaned, and numbers; other types are left out.

        ``path`` leads to the key from the root, names joined by ``\\``; case does not count anywhere. Damaged keys
        and values are passed over, and so is what is not found with the work that any real hive asks for.
        """
        found: dict[str, Value] = {}
        with suppress(_Damaged, _TooMuch):
            key: int | None = self._root
            for name in path.split("\\"):
                key = None if key is None else self._subkey(key, name)
            wanted = {name.lower(): name for name in names}
            for place in () if key is None else self._value_places(key):
                with suppress(_Damaged):
                    name, cell = self._named(place, layout.VALUE)
                    if name.lower() in wanted:
                        asked = wanted.pop(name.lower())
                        if (value := self._value(cell)) is not None:
                            found[asked] = value
        return found

    def _subkey(self, key: int, name: str) -> int | None:
        """The hints in lists only say where to look first: a wrong one costs time, not the answer."""
        places: tuple[list[int], list[int]] = ([], [])
        for place, likely in self._subkeys(key, name):
            places[not likely].append(place)
        for place in places[0] + places[1]:
            with suppress(_Damaged):
                if self._named(place, layout.KEY)[0].lower() == name.lower():
                    return place
        return None

    def _subkeys(self, key: int, name: str) -> Iterator[tuple[int, bool]]:
        """Places of key nodes, and whether a hint speaks for each to be the one of this name."""
        count, _, place = unpack_from("<III", self._named(key, layout.KEY)[1], layout.SUBKEY_COUNT_AT)
        if count == 0:
            return
        kind, elements = self._index(place)
        leaves = [(kind, elements)]
        if kind == layout.INDEX_ROOT:
            leaves = []
            for (leaf,) in iter_unpack("<I", elements):
                with suppress(_Damaged):
                    leaves.append(self._index(leaf))
        fast, hashed = name[:4].lower().encode("latin-1", "replace").ljust(4, b"\0"), _name_hash(name)
        for kind, elements in leaves:
            if kind == layout.INDEX_LEAF:
                yield from ((place, False) for (place,) in iter_unpack("<I", elements))
            elif kind == layout.FAST_LEAF:
                yield from ((place, hint.lower() == fast) for place, hint in iter_unpack("<I4s", elements))
            elif kind == layout.HASH_LEAF:
                yield from ((place, hint == hashed) for place, hint in iter_unpack("<II", elements))

    def _index(self, place: int) -> tuple[bytes, bytes]:
        """Signature and elements of a list of subkeys."""
        kind, count = unpack_from("<2sH", self._cell(place, layout.ELEMENTS_AT, layout.ELEMENTS_AT))
        end = layout.ELEMENTS_AT + count * layout.ELEMENT_BYTES.get(kind, 0)
        self._spend(count)
        return kind, self._cell(place, end, end)[layout.ELEMENTS_AT :]

    def _value_places(self, key: int) -> list[int]:
        count, place = unpack_from("<II", self._named(key, layout.KEY)[1], layout.VALUE_COUNT_AT)
        if count == 0:
            return []
        cell = self._cell(place, 4, min(4 * count, _LIST_BYTES))
        return [place for (place,) in iter_unpack("<I", cell[: len(cell) & ~3])]

    def _value(self, cell: bytes) -> Value | None:
        length, _, kind = unpack_from("<III", cell, layout.DATA_LENGTH_AT)
        if kind in (layout.REG_SZ, layout.REG_EXPAND_SZ):
            data = self._data(cell, length)
            return clean(data[: len(data) & ~1].decode("utf-16-le", "replace").partition("\0")[0])
        size = layout.NUMBER_BYTES.get(kind)
        if size is None:
            return None
        data = self._data(cell, length)
        if len(data) != size:
            raise _Damaged
        return int.from_bytes(data, "little")

    def _data(self, cell: bytes, length: int) -> bytes:
        """The beginning of a value's data."""
        if length & layout.DATA_RESIDENT:
            length -= layout.DATA_RESIDENT
            if length > layout.RESIDENT_BYTES:
                raise _Damaged
            return cell[layout.DATA_AT : layout.DATA_AT + length]
        if length == 0:
            return b""
        (place,) = unpack_from("<I", cell, layout.DATA_AT)
        if length > layout.SEGMENT_BYTES and self._minor >= layout.BIG_DATA_MINOR:
            head = self._cell(place, layout.BIG_DATA_BYTES, layout.BIG_DATA_BYTES)
            signature, _, places = unpack_from("<2sHI", head)
            if signature != layout.BIG_DATA_SIGNATURE:
                raise _Damaged
            (place,) = unpack_from("<I", self._cell(places, 4, 4))
        length = min(length, _DATA_BYTES)
        return self._cell(place, length, length)

    def _named(self, place: int, kind: layout.Named) -> tuple[str, bytes]:
        """Name and cell of a key node or a value."""
        cell = self._cell(place, kind.name_at, kind.name_at + _NAME_BYTES)
        (flags,) = unpack_from("<H", cell, kind.flags_at)
        (length,) = unpack_from("<H", cell, kind.name_length_at)
        name = cell[kind.name_at : kind.name_at + length]
        if not cell.startswith(kind.signature) or len(name) < length:
            raise _Damaged
        if flags & kind.comp_name:
            return name.decode("latin-1"), cell
        return name.decode("utf-16-le", "replace"), cell

    def _cell(self, place: int, least_bytes: int, most_bytes: int) -> bytes:
        """The data of an allocated cell, at least and at most so many bytes of them."""
        self._spend(1)
        if place % layout.CELL_ALIGNMENT or not layout.BIN_HEADER_BYTES <= place < self._end:
            raise _Damaged
        size = -int.from_bytes(self._read(place, layout.CELL_HEADER_BYTES), "little", signed=True)
        room = min(size, self._end - place) - layout.CELL_HEADER_BYTES
        if room < least_bytes:
            raise _Damaged
        return self._read(place + layout.CELL_HEADER_BYTES, min(room, most_bytes))

    def _read(self, place: int, length: int) -> bytes:
        first, last = place // _PAGE_BYTES, (place + length - 1) // _PAGE_BYTES
        data = b"".join(self._page(number) for number in range(first, last + 1))
        inside = place - first * _PAGE_BYTES
        return data[inside : inside + length]

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            if len(self._pages) >= _PAGES:
                raise _TooMuch
            at = layout.BASE_BLOCK_BYTES + number * _PAGE_BYTES
            try:
                page = self._content.read(at, _PAGE_BYTES)
            except SqlimageError:
                page = b""
            self._pages[number] = page + bytes(_PAGE_BYTES - len(page))
        return self._pages[number]

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise _TooMuch


def _name_hash(name: str) -> int:
    value = 0
    for character in name.upper():
        value = (value * 37 + ord(character)) & 0xFFFFFFFF
    return value
