"""System Use entries of Directory Records: SUSP 1.12, and of what stands on it Rock Ridge (RRIP 1.12) and zisofs."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, LockedError
from sqlimage.filesystem.iso9660 import layout
from sqlimage.filesystem.iso9660.descriptor import Geometry
from sqlimage.filesystem.iso9660.record import Record
from sqlimage.units import KIB

AREAS_MAX = 32
"""Continuation Areas of one record, as many as Linux follows."""
AREA_BYTES_MAX = 16 * KIB
"""The specification wants an area within a sector; writers have crossed that."""
TARGET_BYTES_MAX = 4095
"""Of a symbolic link: what POSIX systems take as a path."""
EFFORT_BASE, EFFORT_MEAN = 1 << 18, 16
"""System Use entries read in one scan: so many, and so many more for each record. A writer needs eight or so; but one
Continuation Area full of the smallest ones could be named by every record of a volume."""
_EFFORT_PER_AREA = 16
_PIECE_BYTES = 16 * KIB
_PIECES_HELD = 64


class Zisofs(NamedTuple):
    """ZF: the file's bytes are compressed, and how."""

    header_bytes: int
    block_logarithm: int
    size_bytes: int
    """Uncompressed."""


class RockRidge:
    """What the System Use entries tell of one file."""

    name: bytes | None = None
    mode: int | None = None
    stamp: bytes | None = None
    """Of the last change, in 7 or 17 bytes."""
    target: bytes | None = None
    """Where a symbolic link leads."""
    child_block: int | None = None
    """CL: the file stands for a directory that was moved to this block."""
    is_relocated = False
    """RE: the directory was moved here and is to be seen elsewhere."""
    zisofs: Zisofs | None = None
    is_told = False
    """Whether any entry is of Rock Ridge: PX, RR, or ER with its identifier."""


class SystemUse:
    """Reads System Use entries and the Continuation Areas they go on in. ``skip`` are the bytes before them, LEN_SKP.

    Raises :class:`InconsistentVolume` where an area lies outside the volume, where areas do not end, and where a
    volume has far more entries than files.
    """

    def __init__(self, device: BlockDevice, geometry: Geometry, skip: int) -> None:
        self._device = device
        self._geometry = geometry
        self._skip = skip
        self._effort = EFFORT_BASE
        self._pieces: OrderedDict[int, bytes] = OrderedDict()

    def read(self, record: Record) -> RockRidge:
        """What the entries of a record tell. Entries that are not known are passed over; from one on that does not fit
        its area, the rest of the area is, as Linux does."""
        found = RockRidge()
        name, target = b"", None
        name_is_open, name_flags = True, 0
        area, areas = record.system_use[self._skip :], 0
        self._effort += EFFORT_MEAN
        while True:
            following: tuple[int, int] | None = None
            at, end, count = 0, len(area), 0
            while at + layout.SUSP_HEAD_BYTES <= end:
                length = area[at + 2]
                if length < layout.SUSP_HEAD_BYTES or at + length > end:
                    break
                signature = area[at : at + 2]
                if signature == b"PX":
                    found.is_told = True
                    if length >= layout.PX_BYTES_MIN:
                        found.mode = area[at + 4] | area[at + 5] << 8
                elif signature == b"NM":
                    if name_is_open and length > layout.NM_HEAD_BYTES:
                        name_flags |= area[at + 4]
                        name += area[at + layout.NM_HEAD_BYTES : at + length]
                        name_is_open = area[at + 4] & layout.NM_CONTINUE != 0
                elif signature == b"TF":
                    found.stamp = _modified(area[at + 4 : at + length]) or found.stamp
                elif signature == b"RR":
                    found.is_told = True
                elif signature == b"CE":
                    following = self._place(area[at + 4 : at + length], record.offset)
                elif signature == b"SL":
                    target = target or _Target(record.offset)
                    target.add(area[at + 4 : at + length])
                elif signature == b"ST":
                    break
                else:
                    _apply_rare(found, signature, area[at + 4 : at + length])
                at += length
                count += 1
            self._spend(count, record.offset)
            if following is None:
                break
            areas += 1
            if areas > AREAS_MAX:
                raise InconsistentVolume("CE", f"over {AREAS_MAX} areas follow each other", offset_bytes=record.offset)
            self._spend(_EFFORT_PER_AREA, record.offset)
            area = self._area(*following)
        if name and not name_flags & (layout.NM_CURRENT | layout.NM_PARENT):
            found.name = name
        if target is not None:
            found.target = target.path
        return found

    def _place(self, body: bytes, offset: int) -> tuple[int, int]:
        if len(body) < layout.CE.size:
            raise InconsistentVolume("CE", f"has {len(body) + 4} bytes", offset_bytes=offset)
        block, within, length = layout.CE.unpack_from(body)
        place = block * self._geometry.bytes_per_block + within
        if place + length > self._geometry.size_bytes:
            raise InconsistentVolume("CE", f"leads to byte {place}, out of the volume", offset_bytes=offset)
        if length > AREA_BYTES_MAX:
            raise InconsistentVolume("CE", f"tells of {length} bytes", offset_bytes=offset)
        return place, length

    def _area(self, place: int, length: int) -> bytes:
        """Bytes of a Continuation Area; those of neighbours are mostly wanted next."""
        number, within = divmod(place, _PIECE_BYTES)
        if within + length > _PIECE_BYTES:
            return self._device.read(place, length)
        piece = self._pieces.get(number)
        if piece is None:
            at = number * _PIECE_BYTES
            try:
                piece = self._device.read(at, min(_PIECE_BYTES, self._geometry.size_bytes - at))
            except LockedError:  # a neighbour is encrypted
                return self._device.read(place, length)
            self._pieces[number] = piece
            if len(self._pieces) > _PIECES_HELD:
                self._pieces.popitem(last=False)
        return piece[within : within + length]

    def _spend(self, count: int, offset: int) -> None:
        self._effort -= count
        if self._effort < 0:
            raise InconsistentVolume("System Use entries", "are far more than files", offset_bytes=offset)


def find_skip(device: BlockDevice, geometry: Geometry, root: Record) -> int | None:
    """LEN_SKP of a volume with Rock Ridge, by the ``.`` record of its root directory; None where it has none."""
    area, skip = root.system_use, 0
    if area[layout.XA_SIGNATURE_OFFSET :][:2] == layout.XA_SIGNATURE:
        skip = layout.XA_BYTES
    sp = area[skip : skip + layout.SP_BYTES]
    if len(sp) < layout.SP_BYTES or sp[:2] != b"SP" or sp[4:6] != layout.SP_CHECK:
        return None
    return sp[6] if SystemUse(device, geometry, skip).read(root).is_told else None


def _apply_rare(found: RockRidge, signature: bytes, body: bytes) -> None:
    """The entries that few files have."""
    if signature == b"CL" and len(body) >= 4:
        found.child_block = int.from_bytes(body[:4], "little")
    elif signature == b"RE":
        found.is_relocated = True
    elif signature == b"ZF" and len(body) >= layout.ZF.size:
        found.zisofs = _zisofs(body)
    elif signature == b"ER" and body[layout.ER_HEAD_BYTES :].startswith(layout.RRIP_IDENTIFIERS):
        found.is_told = True


def _modified(body: bytes) -> bytes | None:
    """TF: flags, and in the order of the flags' bits the stamps that are there."""
    if not body or not body[0] & layout.TF_MODIFY:
        return None
    size = layout.LONG_TIME_BYTES if body[0] & layout.TF_LONG_FORM else layout.SHORT_TIME_BYTES
    at = 1 + (size if body[0] & layout.TF_CREATION else 0)
    stamp = body[at : at + size]
    return stamp if len(stamp) == size else None


def _zisofs(body: bytes) -> Zisofs | None:
    """None for what other programs added: other algorithms, whose files are listed as they lie."""
    algorithm, quarters, logarithm, size = layout.ZF.unpack_from(body)
    return Zisofs(quarters * 4, logarithm, size) if algorithm == layout.ZF_DEFLATE else None


class _Target:
    """The target of a symbolic link, put together from the components of one or more SL entries."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._is_joined = True
        """Whether what comes next goes on without a slash: at the start, behind ``/``, in a component's middle."""
        self._is_whole = False
        self.path = b""

    def add(self, body: bytes) -> None:
        if not body or self._is_whole:
            return
        self._is_whole = not body[0] & layout.SL_CONTINUE
        at = 1
        while at + 2 <= len(body):
            flags, length = body[at], body[at + 1]
            text = body[at + 2 : at + 2 + length]
            at += 2 + length
            if flags & layout.COMPONENT_ROOT:  # not only at the start: writers tell two slashes in a row like this
                self.path += b"/" if self._is_joined else b"//"
                self._is_joined = True
                continue
            if flags & layout.COMPONENT_CURRENT:
                text = b"."
            elif flags & layout.COMPONENT_PARENT:
                text = b".."
            self.path += text if self._is_joined else b"/" + text
            self._is_joined = bool(flags & layout.COMPONENT_CONTINUE)
        if len(self.path) > TARGET_BYTES_MAX:
            raise InconsistentVolume(
                "SL", f"the target is longer than {TARGET_BYTES_MAX} bytes", offset_bytes=self._offset
            )
