"""Booting a medium in a virtual machine: QEMU reads and writes it over NBD, on a socket nobody else can open.

A bare volume is shown as a disk first (:mod:`sqlimage.media.compose`): firmware starts disks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Literal, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import InconsistentVolume, NotFoundError, UsageError
from sqlimage.media.compose import ComposedDisk, compose_disk
from sqlimage.media.geometry import Geometry
from sqlimage.media.partition import read_partition_table
from sqlimage.nbd.server import Export, Server
from sqlimage.units import GIB, MIB

PROGRAM = "qemu-system-x86_64"
_KVM = "/dev/kvm"
_DRIVE = "disk0"
_BIOS_CYLINDERS = 1024
"""More than these INT 13h cannot count."""
_URI_HINT = "write a path, nbd://host[:port]/export or nbd+unix:///export?socket=path"
_BARE_FILE_SYSTEMS = frozenset(("fat12", "fat16", "fat32", "ntfs", "exfat", "ext2", "ext3", "ext4"))
_NBD_PORT = 10809


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer that is put around the disk: a PC with BIOS and without a network."""

    memory_bytes: int = GIB
    """Whole MiB, at least one."""
    interface: Literal["ide", "virtio"] = "ide"
    """``ide`` is what every system can boot from; ``virtio`` is faster and needs a driver in the guest."""
    accelerator: Literal["tcg", "kvm"] = "tcg"
    """``kvm`` falls back to ``tcg`` where it cannot be used, see :func:`usable_accelerator`."""
    processors: int = 1
    display: str | None = None
    """As QEMU's ``-display`` takes it; None for the serial console on this terminal."""
    extra: tuple[str, ...] = ()
    """Arguments that are passed to QEMU as they are, after all others."""


DEFAULT = Machine()


class VolumeFacts(Protocol):
    """What must be known of a volume of a medium; the rows of an image's ``volume`` table have it."""

    @property
    def offset_clusters(self) -> int: ...
    @property
    def file_system(self) -> str | None: ...
    @property
    def hidden_sectors(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Bootable:
    """A device that firmware can start, and how it came to be one."""

    device: BlockDevice
    note: str
    """For the user to read, as "a FAT16 volume, shown as partition 1 of a disk, from sector 2048 on"."""


def is_bare_volume(device: BlockDevice, volumes: Sequence[VolumeFacts]) -> bool:
    """Whether a medium needs a disk around it: no partition table, and its first volume, a file system that computers
    boot from, begins with the medium. A table that contradicts itself is none: what lies there is boot code.

    Raises :class:`~sqlimage.errors.DeviceError` where the device cannot be read.
    """
    if not volumes or volumes[0].offset_clusters != 0 or volumes[0].file_system not in _BARE_FILE_SYSTEMS:
        return False
    try:
        return read_partition_table(device) is None
    except InconsistentVolume:
        return True


def bootable(device: BlockDevice, volumes: Sequence[VolumeFacts], *, geometry: Geometry | None = None) -> Bootable:
    """The medium as it is, or, where :func:`is_bare_volume`, composed into a disk. ``geometry`` is that of the volume
    or of the disk it came from, if it is known; it gets as many cylinders as are needed.

    Raises what :func:`~sqlimage.media.compose.compose_disk` raises.
    """
    if not is_bare_volume(device, volumes):
        return Bootable(device, "a whole disk, booted as it is")
    kind = volumes[0].file_system or ""
    if geometry is not None:
        # An image of a bare volume counts the volume's cylinders; the disk around it begins up to 1 MiB before.
        around = Geometry.for_size(
            MIB + device.size_bytes, geometry.sectors_per_track, geometry.tracks_per_cylinder, geometry.bytes_per_sector
        )
        geometry = max(geometry, around, key=lambda shape: shape.cylinders)
    disk = compose_disk(device, file_system=kind, hidden_sectors=volumes[0].hidden_sectors, geometry=geometry)
    start = disk.partition_offset_bytes // disk.bytes_per_sector
    return Bootable(
        disk,
        f"a {kind.upper()} volume, shown as partition 1 (type {disk.os_type:#04x}) of a disk, from sector {start} on",
    )


def boot(device: BlockDevice, machine: Machine = DEFAULT, *, on_problem: Callable[[str], None] | None = None) -> int:
    """Serve the device to a virtual machine and wait until that is off; QEMU's exit code. What the guest writes goes to
    the device, which is flushed at the end; where it cannot be written that goes to a temporary file of QEMU's and is
    thrown away. ``on_problem`` is told what the guest is not, such as a damaged chunk; from any thread.

    Raises as :func:`qemu_command` and :func:`run` do, and :class:`~sqlimage.errors.SqlimageError` where the device
    cannot be served or flushed.
    """
    is_writable = isinstance(device, WritableDevice)
    export = Export(name="disk", device=device, description="the disk of a virtual machine", writable=is_writable)
    with (
        tempfile.TemporaryDirectory(prefix="sqlimage-boot-") as private,
        Server([export], socket_path=os.path.join(private, "nbd.sock"), on_problem=on_problem) as server,
    ):
        geometry = device.geometry if isinstance(device, ComposedDisk) else None
        return run(qemu_command(server.uri, machine, geometry=geometry, discard_writes=not is_writable))


def qemu_command(
    place: str, machine: Machine = DEFAULT, *, geometry: Geometry | None = None, discard_writes: bool = False
) -> list[str]:
    """The command line that boots from ``place``: a path of a raw file or block device, or an NBD URI
    (``nbd://host[:port]/export``, ``nbd+unix:///export?socket=path``).

    ``geometry`` is what an IDE disk answers to systems that read by CHS. With ``discard_writes`` the place is only
    read. Raises :class:`~sqlimage.errors.UsageError` for a URI or a machine that cannot be.
    """
    if machine.memory_bytes < MIB or machine.memory_bytes % MIB:
        raise UsageError(f"a memory of {machine.memory_bytes} bytes is not possible, allowed are whole MiB")
    if machine.processors < 1:
        raise UsageError(f"{machine.processors} processors are not possible, at least 1 is needed")
    drive = {
        "if": "none",
        "id": _DRIVE,
        "format": "raw",
        "cache": "writeback",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "snapshot": "on" if discard_writes else "off",
        **{f"file.{name}": value for name, value in _protocol(place).items()},
    }
    disk = {"ide": "ide-hd", "virtio": "virtio-blk-pci"}[machine.interface] + f",drive={_DRIVE},bootindex=0"
    if geometry is not None and machine.interface == "ide":
        cylinders = min(geometry.cylinders, _BIOS_CYLINDERS)
        disk += f",lcyls={cylinders},lheads={geometry.tracks_per_cylinder},lsecs={geometry.sectors_per_track}"
    return [
        PROGRAM,
        *("-nodefaults", "-no-user-config", "-name", "sqlimage"),
        *("-accel", usable_accelerator(machine.accelerator)),
        *("-m", f"{machine.memory_bytes // MIB}M", "-smp", str(machine.processors)),
        # a comma ends a value, two stand for one
        *("-drive", ",".join(f"{name}={value.replace(',', ',,')}" for name, value in drive.items())),
        *("-device", disk),
        *(("-nographic",) if machine.display is None else ("-vga", "std", "-display", machine.display)),
        *(("-serial", "mon:stdio") if machine.display is None else ("-serial", "null")),
        *machine.extra,
    ]


def usable_accelerator(wanted: str) -> str:
    """``kvm`` where it is wanted and this user may use it here, else ``tcg``."""
    return "kvm" if wanted == "kvm" and os.access(_KVM, os.R_OK | os.W_OK) else "tcg"


def run(command: Sequence[str]) -> int:
    """Run a virtual machine on this terminal until it ends; its exit code, 128 and the signal's number where one ended
    it. SIGINT and SIGTERM are passed on to it where this is the main thread.

    Raises :class:`~sqlimage.errors.NotFoundError` where QEMU is not installed.
    """
    if shutil.which(command[0]) is None:
        raise NotFoundError(f"{command[0]} is not installed", hint="install Debian's package qemu-system-x86")
    with subprocess.Popen(command) as guest, _forwarding(guest):
        try:
            code = guest.wait()
        except BaseException:
            guest.kill()
            raise
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _forwarding(guest: subprocess.Popen[bytes]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        guest.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _protocol(place: str) -> dict[str, str]:
    """The block driver of QEMU that reaches a place, and its options."""
    if "://" not in place:
        return {"driver": _file_driver(place), "filename": place}
    try:
        parts = urlsplit(place)
        export, sockets, port = unquote(parts.path[1:]), parse_qs(parts.query).get("socket", []), parts.port
    except ValueError as problem:
        raise UsageError(f"{place!r} is not a URI ({problem})", hint=_URI_HINT) from None
    if parts.scheme == "nbd+unix" and len(sockets) == 1:
        server = {"server.type": "unix", "server.path": sockets[0]}
    elif parts.scheme == "nbd" and parts.hostname:
        server = {"server.type": "inet", "server.host": parts.hostname, "server.port": str(port or _NBD_PORT)}
    else:
        raise UsageError(f"{place!r} cannot be booted", hint=_URI_HINT)
    return {"driver": "nbd", **server, "export": export}


def _file_driver(path: str) -> str:
    try:
        return "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    except OSError as problem:
        raise NotFoundError(f"{path}: {problem.strerror}") from None
