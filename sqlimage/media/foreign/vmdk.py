"""VMDK ("Virtual Disk Format" 5.0): a sparse file with its description inside, or a text file that names its extents.

Extents are opened by us, as plain files beside the description; QEMU is given a description that we write, in which
they have other names.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from sqlimage.errors import DeviceError, NotFoundError, RefusedError
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign import layout
from sqlimage.media.foreign.formats import Format
from sqlimage.media.foreign.found import Extent, Found, corrupt, head, needs_parent
from sqlimage.media.foreign.tables import check_reach, reach_of_vmdk
from sqlimage.units import SECTOR_BYTES

_MOST_DESCRIPTOR_BYTES = 1 << 20
_MOST_EXTENTS = 500
"""Each is an open file, of which a process may have 1,024."""
_CREATE_TYPES = ("monolithicFlat", "vmfs", "vmfsSparse", "seSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
"""Those whose extents are files."""
_FLAT = ("FLAT", "VMFS")
_SPARSE = ("SPARSE", "VMFSSPARSE")
_ACCESSES = ([b"RW"], [b"RDONLY"], [b"NOACCESS"])
_EXTENT = re.compile(
    rb'(RW|RDONLY|NOACCESS)[ \t]+(\d{1,18})[ \t]+([A-Za-z]+)(?:[ \t]+"([^"]*)"(?:[ \t]+(\d{1,18}))?)?[ \t]*'
)


def is_vmdk(_file: FileDevice, start: bytes) -> bool:
    return start.startswith((layout.VMDK_SPARSE_MAGIC, layout.VMDK_VMFS_SPARSE_MAGIC)) or _is_descriptor(start)


def _is_descriptor(start: bytes) -> bool:
    return start[:256].lstrip().lower().startswith(layout.VMDK_DESCRIPTOR_MAGIC)


def look_at_vmdk(file: FileDevice, kind: Format) -> Found:
    """Raises FormatError where the file contradicts itself, RefusedError where it needs a parent or an extent that is
    no plain file beside it. What is found has to be closed."""
    start = head(file, layout.HEAD_BYTES)
    if start.startswith(layout.VMDK_SPARSE_MAGIC):
        _check_capacity(file, kind, start)
        offset = int.from_bytes(start[layout.VMDK_DESCRIPTOR_OFFSET :][:8], "little") * SECTOR_BYTES
        length = int.from_bytes(start[layout.VMDK_DESCRIPTOR_SIZE :][:8], "little") * SECTOR_BYTES
        if offset:
            text = head(file, min(length, _MOST_DESCRIPTOR_BYTES), offset).partition(b"\0")[0]
            _check_parent(file, kind, _settings(text))
        check_reach(file, kind, reach_of_vmdk(file))
        return Found(kind, most_expansion=kind.most_expansion)
    if start.startswith(layout.VMDK_VMFS_SPARSE_MAGIC):
        _check_vmfs_parent(file, kind, start)
        return Found(kind, most_expansion=kind.most_expansion)
    if not _is_descriptor(start):
        corrupt(file, kind, "header", "is that of another format")
    return _look_at_descriptor(file, kind)


def _look_at_descriptor(file: FileDevice, kind: Format) -> Found:
    if file.size_bytes > _MOST_DESCRIPTOR_BYTES:
        corrupt(file, kind, "descriptor", f"{file.size_bytes} bytes are too many")
    text = file.read(0, file.size_bytes)
    settings = _settings(text)
    _check_parent(file, kind, settings)
    create_type = settings.get(b"createtype", b"").decode("ascii", "replace")
    if create_type not in _CREATE_TYPES:
        raise RefusedError(f"{file.path}: a VMDK of createType {create_type!r} does not consist of files")
    extents: list[Extent] = []
    try:
        extents.extend(_extents(file, kind, text))
        if not extents:
            corrupt(file, kind, "descriptor", "it names no extent")
    except BaseException:
        for extent in extents:
            extent.file.close()
        raise
    return Found(kind, extents=tuple(extents), create_type=create_type, most_expansion=kind.most_expansion)


def _settings(text: bytes) -> dict[bytes, bytes]:
    """``name = value`` lines, names in lower case; of several the first counts."""
    found: dict[bytes, bytes] = {}
    for line in text.splitlines():
        name, equals, value = line.partition(b"=")
        if equals:
            found.setdefault(name.strip().lower(), value.strip().strip(b'"'))
    return found


def _check_parent(file: FileDevice, kind: Format, settings: dict[bytes, bytes]) -> None:
    parent = settings.get(b"parentfilenamehint", b"")
    cid = settings.get(b"parentcid", layout.VMDK_NO_PARENT.encode())
    if parent or cid.lower() != layout.VMDK_NO_PARENT.encode():
        needs_parent(file, kind, parent)


def _check_capacity(file: FileDevice, kind: Format, start: bytes) -> None:
    """Without a capacity what counts is the description inside, which may name other files."""
    if not any(start[layout.VMDK_CAPACITY :][:8]):
        corrupt(file, kind, "SparseExtentHeader", "a capacity of 0 is not allowed")


def _check_vmfs_parent(file: FileDevice, kind: Format, start: bytes) -> None:
    name = start[layout.VMDK_VMFS_SPARSE_PARENT :][:1024].partition(b"\0")[0]
    if name:
        needs_parent(file, kind, name)


def _extents(file: FileDevice, kind: Format, text: bytes) -> Iterator[Extent]:
    place = os.path.dirname(os.path.realpath(file.path))
    try:
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise DeviceError(f"{place}: cannot be opened ({problem.strerror})") from None
    try:
        lines = [line.strip() for line in text.splitlines() if line.split(None, 1)[:1] in _ACCESSES]
        for count, line in enumerate(lines):
            if count == _MOST_EXTENTS:
                raise RefusedError(f"{file.path}: names more than {_MOST_EXTENTS} extents")
            match = _EXTENT.fullmatch(line)
            if match is None:
                corrupt(file, kind, "descriptor", f"extent {count} cannot be understood")
            access, sectors, type_, name, offset = match.groups()
            what = type_.decode("ascii")
            if access == b"NOACCESS" or what not in (*_FLAT, *_SPARSE, "SESPARSE") or name is None:
                raise RefusedError(f"{file.path}: extents {access.decode()} {what} are not read")
            if int(sectors) == 0 or (what == "FLAT") != (offset is not None):
                corrupt(file, kind, "descriptor", f"extent {count} has no sectors, or no place in its file")
            opened = _open(file, os.path.join(place, os.fsdecode(name)), directory, name)
            try:
                extent = Extent(int(sectors), what, None if offset is None else int(offset), opened)
                _check_extent(extent, kind)
            except BaseException:
                opened.close()
                raise
            yield extent
    finally:
        os.close(directory)


def _open(file: FileDevice, shown: str, directory: int, name: bytes) -> FileDevice:
    """An extent: a regular file in the directory of the description, and not by way of a link."""
    if name in (b"", b".", b"..") or any(one in name for one in (b"/", b"\\", b"\0")):
        raise RefusedError(f"{file.path}: names an extent {os.fsdecode(name)!r}, which is no file beside it")
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        raise NotFoundError(f"{shown}: no such file, but {file.path} names it as an extent") from None
    except OSError as problem:
        raise RefusedError(f"{shown}: is named as an extent, but cannot be opened ({problem.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RefusedError(f"{shown}: is named as an extent, but is no plain file")
        return FileDevice(f"/proc/self/fd/{fd}", name=shown)
    finally:
        os.close(fd)


def _check_extent(extent: Extent, kind: Format) -> None:
    if extent.kind in _FLAT:
        end = ((extent.offset_sectors or 0) + extent.sectors) * SECTOR_BYTES
        if end > extent.file.size_bytes:
            corrupt(extent.file, kind, "extent", f"has {extent.file.size_bytes} bytes, {end} are needed")
        return
    start = head(extent.file, layout.HEAD_BYTES)
    if extent.kind in _SPARSE and start.startswith(layout.VMDK_SPARSE_MAGIC):
        _check_capacity(extent.file, kind, start)
        check_reach(extent.file, kind, reach_of_vmdk(extent.file))
    elif extent.kind in _SPARSE and start.startswith(layout.VMDK_VMFS_SPARSE_MAGIC):
        _check_vmfs_parent(extent.file, kind, start)
    elif extent.kind != "SESPARSE" or not start.startswith(layout.VMDK_SESPARSE_MAGIC):
        corrupt(extent.file, kind, "extent", f"is none of kind {extent.kind}")


def describe(found: Found, names: list[str]) -> bytes:
    """A descriptor of the same disk, whose extents have these names and which tells nothing else."""
    lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", f"parentCID={layout.VMDK_NO_PARENT}"]
    lines.append(f'createType="{found.create_type}"')
    for extent, name in zip(found.extents, names, strict=True):
        place = "" if extent.offset_sectors is None else f" {extent.offset_sectors}"
        lines.append(f'RW {extent.sectors} {extent.kind} "{name}"{place}')
    return ("\n".join(lines) + "\n").encode("ascii")
