"""Some thousand consecutive file records at once, on arrays: fix-ups, attributes, names, runs and digests.

The rules are those of :mod:`.record`; an in-use record that breaks one makes the volume inconsistent.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import EntryKind
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.boot import Geometry
from sqlimage.filesystem.ntfs.record import damaged
from sqlimage.filesystem.ntfs.runlist import READ_AHEAD_BYTES, MappingPairsError, decode_many
from sqlimage.filesystem.ntfs.sequences import UpdateSequences
from sqlimage.filesystem.ntfs.tables import (
    DIRECTORY_INDEX,
    UNNAMED,
    Attributes,
    Bools,
    Names,
    NameTable,
    Records,
    Streams,
    special_kind,
)
from sqlimage.units import NO_TIME

PADDING_BYTES = max(READ_AHEAD_BYTES, 64)
"""What a slab's buffer has behind its last record, so that reading a field never leaves it."""
_EMPTY_DIGEST = sha256(b"").digest()
_INTERIX = {
    layout.INTERIX_SYMLINK: EntryKind.SYMLINK,
    layout.INTERIX_CHARACTER_DEVICE: EntryKind.SPECIAL,
    layout.INTERIX_BLOCK_DEVICE: EntryKind.SPECIAL,
}


class Slab:
    """Records ``first`` to ``first + count`` as they lie on the medium, fixed up in place.

    ``buffer`` holds them and ``PADDING_BYTES`` more. Raises :class:`~sqlimage.errors.InconsistentVolume` for any
    damage to a record in use; ``in_bitmap`` says which records the MFT's bitmap calls so.
    """

    def __init__(
        self,
        buffer: NDArray[np.uint8],
        first: int,
        count: int,
        in_bitmap: Bools,
        records: Records,
        names: NameTable,
        geometry: Geometry,
    ) -> None:
        self._size = geometry.bytes_per_record
        self._geometry = geometry
        self._first = first
        self._names = names
        self._records = records
        self._u1 = buffer
        self._u2 = buffer.view("<u2")
        self._u4 = buffer.view("<u4")
        self._s8 = buffer.view("<i8")
        self._take_headers(count, in_bitmap)
        self._walk()

    def _number(self, at: Int64s) -> Int64s:
        """The record numbers of places in the buffer."""
        return self._first + at // self._size

    def _refuse(self, wrong: Bools, at: Int64s, problem: str) -> None:
        if wrong.any():
            raise damaged(int(self._number(at[np.argmax(wrong)])), problem)

    def _u2_at(self, at: Int64s) -> Int64s:
        """Two-byte fields at even places."""
        field: Int64s = self._u2[at >> 1].astype(np.int64)
        return field

    def _u4_at(self, at: Int64s) -> Int64s:
        field: Int64s = self._u4[at >> 2].astype(np.int64)
        return field

    def _unaligned(self, at: Int64s) -> Int64s:
        """Eight-byte fields anywhere."""
        return np.ascontiguousarray(self._u1[at[:, None] + np.arange(8)]).view("<i8")[:, 0]

    def _take_headers(self, count: int, in_bitmap: Bools) -> None:
        start = np.arange(count, dtype=np.int64) * self._size
        signed = self._u4[start >> 2] == int.from_bytes(layout.SIGNATURE_FILE, "little")
        self._refuse(in_bitmap & ~signed, start, "it is in use by $MFT's $BITMAP, but not a FILE record")
        flags = self._u2[(start + layout.FLAGS_AT) >> 1]
        start = start[signed & (flags & layout.FILE_RECORD_SEGMENT_IN_USE != 0)]
        self._fix_up(start)
        self._start = start
        number, at = self._number(start), start >> 1
        records = self._records
        records.in_use[number] = True
        records.sequence[number] = self._u2[at + (layout.SEQUENCE_NUMBER_AT >> 1)]
        records.base[number] = self._s8[(start + layout.BASE_FILE_RECORD_SEGMENT_AT) >> 3].view(np.uint64)
        directory = self._u2[at + (layout.FLAGS_AT >> 1)] & layout.FILE_FILE_NAME_INDEX_PRESENT != 0
        records.is_directory[number] = directory

    def _fix_up(self, start: Int64s) -> None:
        sequences = UpdateSequences(self._u2, start, self._size)
        self._refuse(sequences.ill(), start, "its update sequence array does not fit its sectors")
        number = sequences.numbers()
        for end, kept in sequences.sectors():
            self._refuse(self._u2[end] != number, start, "its sectors are of different writes")
            self._u2[end] = self._u2[kept]

    def _walk(self) -> None:
        """Find the k-th attribute of every record, for k = 0, 1, ... until all have met their end."""
        offset = self._u2_at(self._start + layout.FIRST_ATTRIBUTE_OFFSET_AT)
        free = self._u4_at(self._start + layout.FIRST_FREE_BYTE_AT)
        array = self._u2_at(self._start + layout.UPDATE_SEQUENCE_ARRAY_OFFSET_AT)
        array += 2 * self._u2_at(self._start + layout.UPDATE_SEQUENCE_ARRAY_SIZE_AT)
        self._refuse((offset % 8 != 0) | (offset < array), self._start, "FirstAttributeOffset is wrong")
        self._refuse(free > self._size, self._start, "FirstFreeByte is beyond the record")
        available = np.minimum(self._u4_at(self._start + layout.BYTES_AVAILABLE_AT), self._size)
        self._records.room[self._number(self._start)] = np.maximum(available - free, 0)
        at, limit = self._start + offset, self._start + free
        start = self._start
        found = []
        while len(at):
            self._refuse(at + 4 > limit, start, "its attributes do not end within FirstFreeByte")
            going_on = self._u4[at >> 2] != layout.END_OF_ATTRIBUTES
            at, limit, start = at[going_on], limit[going_on], start[going_on]
            length = self._u4_at(at + layout.RECORD_LENGTH_AT)
            wrong = (length < layout.RESIDENT_HEADER_BYTES) | (length % 8 != 0) | (length > limit - at)
            self._refuse(wrong | (self._u4[at >> 2] == 0), start, "an attribute's length is wrong")
            found.append(at)
            at = at + length
        self._at = np.sort(np.concatenate(found)) if found else self._start
        self._check_headers()

    def _check_headers(self) -> None:
        at = self._at
        self._type = self._u4[at >> 2]
        self._length = self._u4_at(at + layout.RECORD_LENGTH_AT)
        form = self._u1[at + layout.FORM_CODE_AT]
        self._resident = form == layout.RESIDENT_FORM
        header = np.where(self._resident, layout.RESIDENT_HEADER_BYTES, layout.NONRESIDENT_HEADER_BYTES)
        units = self._u1[at + layout.NAME_LENGTH_AT].astype(np.int64)
        name_at = self._u2_at(at + layout.NAME_OFFSET_AT)
        wrong = (units > 0) & ((name_at < header) | (name_at + 2 * units > self._length))
        self._refuse(wrong | (form > 1) | (header > self._length), at, "an attribute is longer than its length says")
        self._name_at, self._name_units = at + name_at, units
        value_at = self._u2_at(at + layout.VALUE_OFFSET_AT)
        self._value_bytes = self._u4_at(at + layout.VALUE_LENGTH_AT)
        wrong = (value_at < header) | (value_at + self._value_bytes > self._length)
        self._refuse(wrong & self._resident, at, "an attribute's value lies outside it")
        self._value_at = at + value_at
        self._holder = self._number(at)
        base = self._records.base[self._holder]
        segment = (base & np.uint64(layout.SEGMENT_NUMBER_MASK)).astype(np.int64)
        self._is_base = base == 0
        self._owner = np.where(self._is_base, self._holder, segment)

    def _values(self, type_code: int, at_least: int) -> Int64s:
        """Which attributes are resident ones of a type; they must have so many bytes at least."""
        which = np.flatnonzero(self._type == type_code)
        wrong = ~self._resident[which] | (self._value_bytes[which] < at_least)
        self._refuse(wrong, self._at[which], f"its {layout.TYPE_NAMES[type_code]} is too short")
        return which

    def take_standard_information(self) -> None:
        """Times and DOS attributes into the records' table."""
        which = self._values(layout.STANDARD_INFORMATION, layout.STANDARD_INFORMATION_AT_LEAST)
        number, value = self._holder[which], self._value_at[which]
        filetime = self._unaligned(value + layout.LAST_MODIFICATION_TIME_AT)
        since_epoch = filetime - layout.FILETIME_OF_UNIX_EPOCH
        limit = ((1 << 63) - 1) // layout.NANOSECONDS_PER_FILETIME
        told = (filetime > 0) & (np.abs(since_epoch) <= limit)
        self._records.modified_ns[number] = np.where(told, since_epoch * layout.NANOSECONDS_PER_FILETIME, NO_TIME)
        flags = self._unaligned(value + layout.FILE_ATTRIBUTES_AT).astype(np.uint32)
        self._records.attributes[number] = flags

    def take_special_files(self) -> None:
        """Reparse points and Interix files; standard information must have been taken before."""
        points = np.flatnonzero((self._type == layout.REPARSE_POINT) & self._resident & (self._value_bytes >= 8))
        tag = self._unaligned(self._value_at[points]) & 0xFFFFFFFF
        number = self._owner[points]
        inside = number < len(self._records.special)
        self._records.special[number[inside]] = [special_kind(value) for value in tag[inside].tolist()]
        data = (self._type == layout.DATA) & self._resident & (self._name_units == 0) & (self._value_bytes >= 8)
        data &= self._records.attributes[self._holder] & layout.FILE_ATTRIBUTE_SYSTEM != 0
        start = self._unaligned(self._value_at[data])
        for magic, kind in _INTERIX.items():
            self._records.special[self._holder[data][start == int.from_bytes(magic, "little")]] = kind

    def names(self) -> Names:
        """All names but the 8.3 aliases; see :class:`Names`."""
        which = self._values(layout.FILE_NAME, layout.FILE_NAME_AT)
        which = which[self._u1[self._value_at[which] + layout.FILE_NAME_FLAGS_AT] != layout.FILE_NAME_DOS]
        value = self._value_at[which]
        units = self._u1[value + layout.FILE_NAME_LENGTH_AT].astype(np.int64)
        wrong = (units == 0) | (layout.FILE_NAME_AT + 2 * units > self._value_bytes[which])
        self._refuse(wrong, self._at[which], "its $FILE_NAME's length is wrong")
        parent = self._unaligned(value + layout.PARENT_DIRECTORY_AT)
        return Names(
            self._holder[which],
            self._owner[which],
            self._instance(which),
            parent & layout.SEGMENT_NUMBER_MASK,
            parent >> layout.SEGMENT_NUMBER_BITS & 0xFFFF,
            self._texts(value + layout.FILE_NAME_AT, units),
        )

    def _texts(self, at: Int64s, units: Int64s) -> list[str]:
        """Many names decoded in one go: a NUL behind each, then split there."""
        if len(at) == 0:
            return []
        slots = units + 1
        end = np.cumsum(slots)
        place = np.repeat(at - 2 * (end - slots), slots) + 2 * np.arange(end[-1])
        text = self._u1[place].astype("<u2") | self._u1[place + 1].astype("<u2") << 8
        text[text == 0] = 0x2400  # as decode_name() has it
        text[text == ord("/")] = 0x2215
        text[end - 1] = 0
        names: list[str] = text.tobytes().decode("utf-16-le", "surrogatepass")[:-1].split("\0")
        for i in np.flatnonzero(units <= 2).tolist():
            if names[i] in (".", ".."):
                names[i] = names[i].replace(".", "\u2024")
        return names

    def _instance(self, which: Int64s) -> NDArray[np.uint16]:
        instance: NDArray[np.uint16] = self._u2[(self._at[which] + layout.INSTANCE_AT) >> 1]
        return instance

    def attribute_lists(self) -> dict[int, bytes]:
        """The resident $ATTRIBUTE_LIST values, by record."""
        which = np.flatnonzero((self._type == layout.ATTRIBUTE_LIST) & self._resident & self._is_base)
        lists: dict[int, bytes] = {}
        for i in which.tolist():
            record, at = int(self._holder[i]), int(self._value_at[i])
            if record in lists:
                raise damaged(record, "it has two attribute lists")
            lists[record] = self._u1[at : at + int(self._value_bytes[i])].tobytes()
        return lists

    def listable(self) -> Attributes:
        """The attributes of extension records and of records with an $ATTRIBUTE_LIST."""
        with_list = self._holder[self._type == layout.ATTRIBUTE_LIST]
        which = np.flatnonzero(~self._is_base | np.isin(self._holder, with_list))
        lowest = np.where(self._resident[which], 0, self._s8[(self._at[which] + layout.LOWEST_VCN_AT) >> 3])
        return Attributes(self._holder[which], self._instance(which), self._type[which], lowest)

    def streams(self) -> Streams:
        """Everything nonresident, and resident $DATA; see :class:`Streams`."""
        which = np.flatnonzero(~self._resident | (self._type == layout.DATA))
        at, resident = self._at[which], self._resident[which]
        long = at >> 3
        # a resident attribute has no such fields, and may end before the place where they would lie
        far = np.where(resident, 0, long)
        lowest = np.where(resident, 0, self._s8[far + (layout.LOWEST_VCN_AT >> 3)])
        following = np.where(resident, 0, self._s8[far + (layout.HIGHEST_VCN_AT >> 3)] + 1)
        wrong = (lowest < 0) | (following < lowest) | (following > self._geometry.clusters_limit)
        self._refuse(wrong, at, "a stream's VCNs are out of range")
        length = self._value_bytes[which]
        size = np.where(resident, length, self._s8[far + (layout.FILE_SIZE_AT >> 3)])
        valid = np.where(resident, length, self._s8[far + (layout.VALID_DATA_LENGTH_AT >> 3)])
        unit = np.where(resident, 0, self._u1[at + layout.COMPRESSION_UNIT_AT])
        pairs_at = np.where(resident, 0, self._u2_at(at + layout.MAPPING_PAIRS_OFFSET_AT))
        count, lcn, clusters = self._runs(which[~resident], following[~resident] - lowest[~resident])
        run_count = np.zeros(len(which), dtype=np.int64)
        run_count[~resident] = count
        return Streams(
            self._holder[which],
            self._owner[which],
            self._type[which],
            self._attribute_names(which),
            self._instance(which),
            self._u2[(at + layout.ATTRIBUTE_FLAGS_AT) >> 1],
            resident,
            lowest,
            following,
            size,
            valid,
            unit.astype(np.uint8),
            self._first * self._size + at,
            self._length[which],
            pairs_at,
            run_count,
            lcn,
            clusters,
            self._digests(which[resident]),
        )

    def _runs(self, which: Int64s, clusters: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        at = self._at[which]
        pairs = self._u2_at(at + layout.MAPPING_PAIRS_OFFSET_AT)
        self._refuse(pairs < layout.NONRESIDENT_HEADER_BYTES, at, "MappingPairsOffset is wrong")
        end = at + self._length[which]
        try:
            return decode_many(self._u1, at + pairs, end, clusters, self._geometry.total_clusters)
        except MappingPairsError as error:
            raise damaged(int(self._number(at[error.index])), f"mapping pairs: {error.problem}") from None

    def _attribute_names(self, which: Int64s) -> Int64s:
        numbers = np.full(len(which), UNNAMED, dtype=np.int64)
        units, at = self._name_units[which], self._name_at[which]
        i30 = int.from_bytes(layout.DIRECTORY_INDEX.encode("utf-16-le"), "little")
        is_index = units == 4
        is_index[is_index] = self._unaligned(at[is_index]) == i30
        numbers[is_index] = DIRECTORY_INDEX
        for i in np.flatnonzero((units > 0) & ~is_index).tolist():
            start = int(at[i])
            numbers[i] = self._names.number(self._u1[start : start + 2 * int(units[i])].tobytes())
        return numbers

    def _digests(self, which: Int64s) -> list[bytes]:
        view = self._u1.data
        places = zip(self._value_at[which].tolist(), self._value_bytes[which].tolist(), strict=True)
        return [sha256(view[at : at + size]).digest() if size else _EMPTY_DIGEST for at, size in places]
