"""Making a container: an empty one by ``qemu-img`` in a file that has no name yet, filled through ``qemu-nbd``."""

from __future__ import annotations

import contextlib
import os
import re

from sqlimage.errors import DeviceError, RefusedError
from sqlimage.media.foreign.device import WritableForeignDevice
from sqlimage.media.foreign.formats import Format
from sqlimage.media.foreign.found import Found
from sqlimage.media.foreign.program import NbdProgram, inheritable, private_directory, run_program
from sqlimage.nameless import NamelessFile

_HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")


def create(file: NamelessFile, kind: Format, size_bytes: int) -> WritableForeignDevice:
    """An empty disk of ``size_bytes``, rounded up to whole sectors, in a container that ``file`` becomes.

    To make it durable, call the device's ``finish`` and then publish the file. Raises
    :class:`~sqlimage.errors.RefusedError` where the format holds no disk of this size,
    :class:`~sqlimage.errors.UsageError` where QEMU's programs are missing, and
    :class:`~sqlimage.errors.DeviceError` where the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        fd = inheritable(file.fd)
        stack.callback(os.close, fd)
        path = f"/proc/self/fd/{fd}"
        _format(file, kind, size_bytes, path, fd)
        node: dict[str, object] = {
            "driver": kind.driver,
            # nobody sees the file before it is whole and synced, so no table in it has to be
            "cache": {"direct": False, "no-flush": True},
            "discard": "unmap",
            "file": {"driver": "file", "filename": path},
        }
        if kind.has_backing:
            node["backing"] = None
        device = WritableForeignDevice(file.target, Found(kind), NbdProgram(node, [fd], writable=True), file.fd)
    if not size_bytes <= device.size_bytes < size_bytes + device.bytes_per_sector:
        device.close()
        raise DeviceError(f"{file.target}: a disk of {device.size_bytes} bytes was made instead of {size_bytes}")
    return device


def _format(file: NamelessFile, kind: Format, size_bytes: int, path: str, fd: int) -> None:
    """Have the empty container written. It is called by the name that it will have: a VMDK holds that."""
    name = os.path.basename(file.target)
    with private_directory() as directory:
        alias = os.path.join(directory, name if _HARMLESS.fullmatch(name) else f"disk{kind.suffixes[0]}")
        os.symlink(path, alias)
        options = ["-o", kind.create_options] if kind.create_options else []
        problem = run_program(
            "qemu-img", ["create", "-q", "-f", kind.driver, *options, alias, str(size_bytes)], pass_fds=[fd]
        )
    if problem is not None:
        what = problem.removeprefix(f"{alias}: ")
        raise RefusedError(f"{file.target}: cannot be made as {kind.name}, with a disk of {size_bytes} bytes: {what}")
