"""Opening what a user names as a source: a raw file or device as it is, a container through QEMU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sqlimage.errors import FormatError
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign import formats
from sqlimage.media.foreign.device import ForeignDevice
from sqlimage.media.foreign.found import Found
from sqlimage.media.foreign.probe import AS_IT_IS, look, probe
from sqlimage.media.foreign.program import NbdProgram, inheritable, private_directory
from sqlimage.media.foreign.vmdk import describe


def open_source(path: str | os.PathLike[str], format_name: str | None = None) -> FileDevice | ForeignDevice:
    """The disk that a file holds. In which format is told by ``format_name``, else by the file itself; a block device
    is raw unless told otherwise.

    No file is opened but this one and the extents beside a VMDK description. Raises
    :class:`~sqlimage.errors.NotFoundError` and :class:`~sqlimage.errors.DeviceError` as
    :class:`~sqlimage.media.file.FileDevice` does, :class:`~sqlimage.errors.FormatError` for a container that cannot be
    read, :class:`~sqlimage.errors.RefusedError` for one that needs another file or a key, and
    :class:`~sqlimage.errors.UsageError` where QEMU's programs are missing or there is no such format.
    """
    told = formats.by_name(format_name) if format_name is not None else None
    file = FileDevice(path)
    try:
        kind = told
        if format_name is None and not file.is_block_device:
            kind = probe(file)
        if kind is None:
            return file
        try:
            device = _open_container(file, look(file, kind))
        except FormatError as problem:
            if told is None and not problem.hint:
                raise FormatError(problem.message, hint=AS_IT_IS) from None
            raise
    except BaseException:
        file.close()
        raise
    file.close()
    return device


def _open_container(file: FileDevice, found: Found) -> ForeignDevice:
    with contextlib.ExitStack() as stack:
        stack.callback(found.close)
        fds: list[int] = []
        driver = "host_device" if file.is_block_device else "file"
        node: dict[str, object] = {
            "driver": found.format.driver,
            "read-only": True,
            "file": {"driver": driver, "filename": _pass(file, fds, stack), "read-only": True},
        }
        if found.format.has_backing:
            node["backing"] = None
        if found.extents:
            node["file"] = {"driver": "file", "filename": stack.enter_context(_description(found, fds, stack))}
        server = NbdProgram(node, fds, writable=False)
        file_bytes = file.size_bytes + sum(extent.file.size_bytes for extent in found.extents)
        return ForeignDevice(file.path, found, server, file_bytes)


def _pass(file: FileDevice, fds: list[int], stack: contextlib.ExitStack) -> str:
    """A name by which a child finds the very file that was looked at."""
    fd = inheritable(file.fileno())
    stack.callback(os.close, fd)
    fds.append(fd)
    return f"/proc/self/fd/{fd}"


@contextlib.contextmanager
def _description(found: Found, fds: list[int], stack: contextlib.ExitStack) -> Iterator[str]:
    """A VMDK description of our own, in a directory of our own, whose extents are names for the files that are open."""
    with private_directory() as directory:
        names = [f"extent{number}" for number in range(len(found.extents))]
        for name, extent in zip(names, found.extents, strict=True):
            os.symlink(_pass(extent.file, fds, stack), os.path.join(directory, name))
        path = os.path.join(directory, "description")
        with open(path, "wb") as file:
            file.write(describe(found, names))
        yield path
