"""The headers of containers that are one file: which format it is, and whether it needs another file or a key.

The rest of a header is left to QEMU, which reads it again and says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlimage.errors import RefusedError
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign import layout
from sqlimage.media.foreign.formats import Format
from sqlimage.media.foreign.found import Found, corrupt, encrypted, head, needs_parent
from sqlimage.media.foreign.tables import (
    check_reach,
    reach_of_parallels,
    reach_of_qcow,
    reach_of_qcow2,
    reach_of_vdi,
)

Recognise = Callable[[FileDevice, bytes], bool]
"""Whether a file, of which the first ``HEAD_BYTES`` are given, is of a format."""
Look = Callable[[FileDevice, Format], Found]
"""What a file of this format tells. Raises FormatError and RefusedError."""


def _number(data: bytes, offset: int, length: int = 4) -> int:
    return int.from_bytes(data[offset : offset + length], "big")


def _number_le(data: bytes, offset: int, length: int = 4) -> int:
    return int.from_bytes(data[offset : offset + length], "little")


def is_qcow(_file: FileDevice, start: bytes) -> bool:
    return start.startswith(layout.QCOW_MAGIC) and _number(start, layout.QCOW_VERSION) == 1


def look_at_qcow(file: FileDevice, kind: Format) -> Found:
    start = head(file, layout.HEAD_BYTES)
    if not is_qcow(file, start):
        corrupt(file, kind, "header", "is that of another format")
    _check_backing_file(file, kind, start)
    if _number(start, layout.QCOW1_CRYPT_METHOD):
        encrypted(file, kind)
    check_reach(file, kind, reach_of_qcow(file))
    return Found(kind, most_expansion=kind.most_expansion)


def is_qcow2(_file: FileDevice, start: bytes) -> bool:
    """Every version but the first: that one is another format, and of those to come QEMU says that it cannot."""
    return start.startswith(layout.QCOW_MAGIC) and _number(start, layout.QCOW_VERSION) != 1


def look_at_qcow2(file: FileDevice, kind: Format) -> Found:
    start = head(file, layout.HEAD_BYTES)
    version = _number(start, layout.QCOW_VERSION)
    if not start.startswith(layout.QCOW_MAGIC) or version not in (2, 3):
        corrupt(file, kind, "header", f"version {version} is not known, 2 and 3 are")
    _check_backing_file(file, kind, start)
    if _number(start, layout.QCOW2_CRYPT_METHOD):
        encrypted(file, kind)
    features = _number(start, layout.QCOW2_INCOMPATIBLE_FEATURES, 8) if version == 3 else 0
    if features & layout.QCOW2_EXTERNAL_DATA:
        raise RefusedError(
            f"{file.path}: this qcow2 file keeps its data in another one, and none is opened because a file names it",
            hint="bring them together first with `qemu-img convert`",
        )
    check_reach(file, kind, reach_of_qcow2(file))
    return Found(kind, most_expansion=None if features & layout.QCOW2_COMPRESSION_TYPE_BIT else kind.most_expansion)


def _check_backing_file(file: FileDevice, kind: Format, start: bytes) -> None:
    offset = _number(start, layout.QCOW_BACKING_FILE_OFFSET, 8)
    if offset:
        length = min(_number(start, layout.QCOW_BACKING_FILE_OFFSET + 8), 1023)
        needs_parent(file, kind, head(file, length, offset).rstrip(b"\0"))


def is_qed(_file: FileDevice, start: bytes) -> bool:
    return start.startswith(layout.QED_MAGIC)


def look_at_qed(file: FileDevice, kind: Format) -> Found:
    start = head(file, layout.HEAD_BYTES)
    if not is_qed(file, start):
        corrupt(file, kind, "header", "is that of another format")
    if _number_le(start, layout.QED_FEATURES, 8) & layout.QED_F_BACKING_FILE:
        needs_parent(file, kind)
    return Found(kind, most_expansion=kind.most_expansion)


def is_vhd(file: FileDevice, start: bytes) -> bool:
    """One that grows has its footer at the start as well. That of a fixed one is at the end only, where the last sector
    of a disk may hold anything: its checksum and the size it tells must be right."""
    if start.startswith(layout.VHD_COOKIE):
        return True
    footer = _vhd_footer(file)
    return (
        _number(footer, layout.VHD_DISK_TYPE) == layout.VHD_FIXED
        and _number(footer, layout.VHD_CURRENT_SIZE, 8) == file.size_bytes - layout.VHD_FOOTER_BYTES
        and _number(footer, layout.VHD_CHECKSUM) == ~(sum(footer) - sum(footer[layout.VHD_CHECKSUM :][:4])) & 0xFFFFFFFF
    )


def _vhd_footer(file: FileDevice) -> bytes:
    """The footer of a file that ends in one, else zeros."""
    footer = head(file, layout.VHD_FOOTER_BYTES, max(0, file.size_bytes - layout.VHD_FOOTER_BYTES))
    return footer if footer.startswith(layout.VHD_COOKIE) else bytes(layout.VHD_FOOTER_BYTES)


def look_at_vhd(file: FileDevice, kind: Format) -> Found:
    start = head(file, layout.HEAD_BYTES)
    is_fixed = not start.startswith(layout.VHD_COOKIE)
    footer = _vhd_footer(file) if is_fixed else start
    disk_type = _number(footer, layout.VHD_DISK_TYPE)
    if disk_type == layout.VHD_DIFFERENCING:
        needs_parent(file, kind)
    if disk_type != (layout.VHD_FIXED if is_fixed else layout.VHD_DYNAMIC):
        corrupt(file, kind, "footer", f"a disk of type {disk_type} is not known" if any(footer) else "is missing")
    return Found(kind, most_expansion=kind.most_expansion)


def is_vdi(_file: FileDevice, start: bytes) -> bool:
    return start[layout.VDI_SIGNATURE_OFFSET :].startswith(layout.VDI_SIGNATURE)


def look_at_vdi(file: FileDevice, kind: Format) -> Found:
    start = head(file, layout.HEAD_BYTES)
    if not is_vdi(file, start):
        corrupt(file, kind, "header", "is that of another format")
    image_type = _number_le(start, layout.VDI_IMAGE_TYPE)
    if image_type in (layout.VDI_UNDO, layout.VDI_DIFFERENCING) or any(start[layout.VDI_UUID_LINK :][:16]):
        needs_parent(file, kind)
    check_reach(file, kind, reach_of_vdi(file))
    return Found(kind, most_expansion=kind.most_expansion)


def is_parallels(_file: FileDevice, start: bytes) -> bool:
    return start.startswith(layout.PARALLELS_MAGICS)


def look_at_parallels(file: FileDevice, kind: Format) -> Found:
    if not is_parallels(file, head(file, layout.HEAD_BYTES)):
        corrupt(file, kind, "header", "is that of another format")
    check_reach(file, kind, reach_of_parallels(file))
    return Found(kind, most_expansion=kind.most_expansion)


def is_bochs(_file: FileDevice, start: bytes) -> bool:
    return start.startswith(layout.BOCHS_MAGIC[: layout.BOCHS_SUBTYPE])


def look_at_bochs(file: FileDevice, kind: Format) -> Found:
    start = head(file, layout.HEAD_BYTES)
    if not is_bochs(file, start):
        corrupt(file, kind, "header", "is that of another format")
    if start[layout.BOCHS_SUBTYPE :].startswith(layout.BOCHS_NEEDS_PARENT):
        needs_parent(file, kind)
    return Found(kind)


def is_cloop(_file: FileDevice, start: bytes) -> bool:
    return start.startswith(layout.CLOOP_MAGIC)


def look_at_cloop(file: FileDevice, kind: Format) -> Found:
    if not is_cloop(file, head(file, layout.HEAD_BYTES)):
        corrupt(file, kind, "header", "is that of another format")
    return Found(kind)


def is_dmg(file: FileDevice, _start: bytes) -> bool:
    trailer = head(file, layout.UDIF_TRAILER_BYTES, max(0, file.size_bytes - layout.UDIF_TRAILER_BYTES))
    return (
        trailer.startswith(layout.UDIF_SIGNATURE)
        and _number(trailer, layout.UDIF_VERSION) == 4
        and _number(trailer, layout.UDIF_HEADER_SIZE) == layout.UDIF_TRAILER_BYTES
    )


def look_at_dmg(file: FileDevice, kind: Format) -> Found:
    if not is_dmg(file, b""):
        corrupt(file, kind, "koly trailer", "is missing")
    return Found(kind)
