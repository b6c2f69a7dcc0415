"""What speaks against laying a volume out anew: whoever had it mounted may still have changes for the old places."""

from __future__ import annotations

from struct import unpack_from

from sqlimage.errors import RefusedError
from sqlimage.filesystem.contract import Content, VolumeFacts
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.reader import RecordReader
from sqlimage.filesystem.ntfs.record import fixed_up

_VERSIONS = ("3.0", "3.1")
_PAGE_BYTES = (512, 64 << 10)
_HEAD_BYTES = 1 << 20
_CHKDSK = "start Windows and shut it down fully, or run chkdsk"


def refuse_unsafe(reader: RecordReader, facts: VolumeFacts) -> None:
    """Raise :class:`~sqlimage.errors.RefusedError` where clusters of the volume must not be moved."""
    if facts.format_version not in _VERSIONS:
        raise RefusedError(f"NTFS: version {facts.format_version} cannot be laid out anew, only 3.0 and 3.1 can")
    if facts.bytes_per_sector < layout.BOOT_SECTOR_BYTES:
        raise RefusedError(f"NTFS: a volume with sectors of {facts.bytes_per_sector} bytes cannot be laid out anew")
    if facts.hibernated:
        raise RefusedError(
            "NTFS: a system sleeps on the volume (hiberfil.sys), it cannot be laid out anew", hint=_CHKDSK
        )
    if facts.dirty:
        raise RefusedError("NTFS: the volume is marked dirty, it cannot be laid out anew", hint=_CHKDSK)
    log = reader.content(reader.system_stream(layout.LOG_FILE_RECORD, ""))
    problem = log_problem(log)
    if problem:
        raise RefusedError(f"NTFS: $LogFile {problem}, the volume cannot be laid out anew", hint=_CHKDSK)


def log_problem(log: Content) -> str | None:
    """Why a $LogFile is not clean, or None.

    The newer of its two restart pages counts. A log without any must be unused, as far as its first MiB and the pages
    at powers of two tell.
    """
    first = log.read(0, _PAGE_BYTES[1])
    pages = [_restart_page(first)]
    (second_at,) = unpack_from("<I", first.ljust(_PAGE_BYTES[1]), layout.SYSTEM_PAGE_SIZE_AT)
    if not _is_restart_page(first) or not _PAGE_BYTES[0] <= second_at <= _PAGE_BYTES[1]:
        second_at = 4096
    pages.append(_restart_page(log.read(second_at, _PAGE_BYTES[1])))
    found = [page for page in pages if page is not None]
    if not found:
        return None if _is_unused(log) else "has no valid restart page"
    _lsn, version, client, flags = max(found)
    if version >= layout.LOG_VERSION_OF_CACHED_METADATA:
        return f"has version {version}: Windows holds parts of the volume in its memory or in its hibernation file"
    if client != layout.LFS_NO_CLIENT and not flags & layout.LFS_CLEAN_SHUTDOWN:
        return "has changes that are not on the volume yet"
    return None


def _is_restart_page(page: bytes) -> bool:
    return page[:4] in (layout.SIGNATURE_RSTR, layout.SIGNATURE_CHKD)


def _restart_page(page: bytes) -> tuple[int, int, int, int] | None:
    """CurrentLsn, MajorVersion, the list of clients in use and the flags; None where it is not a valid page."""
    if not _is_restart_page(page) or len(page) < layout.LOG_MAJOR_VERSION_AT + 2:
        return None
    (size,) = unpack_from("<I", page, layout.SYSTEM_PAGE_SIZE_AT)
    if not _PAGE_BYTES[0] <= size <= len(page) or size % layout.SEQUENCE_NUMBER_STRIDE:
        return None
    fixed = fixed_up(page[:size], page[:4])
    (area,) = unpack_from("<H", page, layout.RESTART_OFFSET_AT)
    if fixed is None or area + layout.RESTART_AREA_AT_LEAST > size:
        return None
    (version,) = unpack_from("<h", fixed, layout.LOG_MAJOR_VERSION_AT)
    (lsn,) = unpack_from("<Q", fixed, area + layout.RESTART_CURRENT_LSN_AT)
    (client,) = unpack_from("<H", fixed, area + layout.RESTART_CLIENT_IN_USE_LIST_AT)
    (flags,) = unpack_from("<H", fixed, area + layout.RESTART_FLAGS_AT)
    return lsn, version, client, flags


def _is_unused(log: Content) -> bool:
    head = log.read(0, _HEAD_BYTES)
    if not head or head.strip(layout.LOG_UNUSED):
        return False
    at = _HEAD_BYTES
    while at < log.size_bytes:
        if log.read(at, 4).strip(layout.LOG_UNUSED):
            return False
        at *= 2
    return True
