"""A volume's file system on a directory, by whichever driver there is: the kernel, a FUSE driver, our own reader.

A driver trusts what it mounts, and a volume may be hostile. The kernel's drivers run with all its rights and are the
least forgiving, so that a volume of unknown origin is better mounted by our own reader (``way="reader"``) or in a
virtual machine. Whatever is mounted is mounted ``nosuid,nodev``, so that no program or device node in it gains rights.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from enum import StrEnum

from sqlimage.errors import DeviceError, RefusedError, SqlimageError, UsageError
from sqlimage.mount import loop
from sqlimage.mount.mountpoint import check_mount_point, is_stale, mounted_at, unmount
from sqlimage.mount.program import DriverProcess, last_line, run_program, which

_MOUNT_WAIT_S = 60.0
_END_WAIT_S = 60.0
"""How long a driver may take to write what it holds back after its mount is gone."""


class Way(StrEnum):
    """By what a volume is mounted."""

    KERNEL = "kernel"
    NTFS_3G = "ntfs-3g"
    FUSE2FS = "fuse2fs"
    EXFAT_FUSE = "exfat-fuse"
    READER = "reader"
    """sqlimage's own, read-only."""


@dataclass(frozen=True, slots=True)
class _Driver:
    program: str
    package: str
    foreground: tuple[str, ...] | None
    """How it is told to run on as our child; None where it cannot be told."""
    read_only: str
    """Options that neither write nor replay a journal."""
    writable: str
    needs_root: bool
    needs_block_device: bool = False


_DRIVERS = {
    Way.NTFS_3G: _Driver("ntfs-3g", "ntfs-3g", ("-o", "no_detach"), "ro,streams_interface=xattr",
                         "rw,streams_interface=xattr,big_writes", needs_root=True),
    Way.FUSE2FS: _Driver("fuse2fs", "fuse2fs", ("-f",), "norecovery,ro,fakeroot", "rw,fakeroot", needs_root=False),
    Way.EXFAT_FUSE: _Driver("mount.exfat-fuse", "exfat-fuse", None, "ro", "rw", needs_root=True,
                            needs_block_device=True),
}  # fmt: skip
_DRIVER_OF = {"ntfs": Way.NTFS_3G, "ext": Way.FUSE2FS, "exfat": Way.EXFAT_FUSE}
_READ = ("ntfs", "fat", "exfat", "iso9660", "ext")
# kind: (the kernel's name, options read-only, with no replay of a journal, options writable). nouuid: a disk and its
# image have the same UUID.
_KERNEL = {
    "ext": ("ext4", "ro,noload", "rw"),
    "xfs": ("xfs", "ro,norecovery,nouuid", "rw,nouuid"),
    "btrfs": ("btrfs", "ro,rescue=nologreplay", "rw"),
    "squashfs": ("squashfs", "ro", ""),
    "erofs": ("erofs", "ro", ""),
    "iso9660": ("iso9660", "ro", ""),
    "ntfs": ("ntfs3", "ro", "rw"),
    "exfat": ("exfat", "ro", "rw"),
    "fat": ("vfat", "ro,utf8,tz=UTC", "rw,utf8,tz=UTC"),
}


def choose(kind: str | None, *, writable: bool, wanted: str | None = None) -> Way:
    """By what to mount a file system of a kind that :func:`~sqlimage.mount.signature.file_system_kind` names: the
    kernel where it knows it and lets us, else a FUSE driver that is installed, else (read-only) our own reader.

    ``wanted`` names the one to take. Raises :class:`~sqlimage.errors.UsageError` for a name that is none, or none for
    this kind, and :class:`~sqlimage.errors.DeviceError`, saying what to install, where nothing here can mount it.
    """
    able = _able(kind, writable)
    if wanted is not None:
        if wanted not in list(Way):
            raise UsageError(f"{wanted!r} is no driver", hint=f"there are {', '.join(Way)}")
        if wanted not in able:
            raise UsageError(_cannot(kind, writable, f"by {wanted}"), hint=f"by {' or '.join(able)}" if able else "")
        return Way(wanted)
    for way in able:
        if _is_there(way, kind):
            return way
    needs = [
        _DRIVERS[way].package for way in able if way in _DRIVERS and (os.geteuid() == 0 or not _DRIVERS[way].needs_root)
    ]
    if needs:
        raise DeviceError(_cannot(kind, writable, "here"), hint=f"install the Debian package {needs[0]}")
    raise DeviceError(
        _cannot(kind, writable, "here"),
        hint="only root can" if able and os.geteuid() != 0 else "show the devices, and use a program that knows it",
    )


def _able(kind: str | None, writable: bool) -> list[Way]:
    found = []
    if kind in _KERNEL and (not writable or _KERNEL[kind][2]):
        found.append(Way.KERNEL)
    if kind in _DRIVER_OF:
        found.append(_DRIVER_OF[kind])
    if kind in _READ and not writable:
        found.append(Way.READER)
    return found


def _is_there(way: Way, kind: str | None) -> bool:
    if way is Way.READER:
        return True
    if way is Way.KERNEL:
        return os.geteuid() == 0 and _kernel_knows(_KERNEL[kind or ""][0])
    driver = _DRIVERS[way]
    return which(driver.program) is not None and (os.geteuid() == 0 or not driver.needs_root)


def _cannot(kind: str | None, writable: bool, where: str) -> str:
    what = "a volume without a file system that is known" if kind is None else f"a volume with {kind}"
    return f"{what} cannot be mounted {'writable ' if writable else ''}{where}"


def _kernel_knows(name: str) -> bool:
    with open("/proc/filesystems", encoding="ascii") as file:
        if name in file.read().split():
            return True
    # a module that mount(2) would load
    return which("modprobe") is not None and (
        run_program(["modprobe", "--dry-run", "--quiet", f"fs-{name}"], package="kmod").returncode == 0
    )


class MountedVolume:
    """A file system on a directory, until :meth:`unmount`. ``way`` tells which driver serves it, ``loop_device`` the
    loop device it takes, or None."""

    def __init__(self, path: str, directory: str, way: Way, *, writable: bool) -> None:
        self.path = path
        self.directory = directory
        self.way = way
        self.writable = writable
        self.loop_device: str | None = None
        self._process: DriverProcess | None = None

    @property
    def is_mounted(self) -> bool:
        """Whether it is in the file tree."""
        return mounted_at(self.directory) is not None

    @property
    def is_alive(self) -> bool:
        """Whether its driver runs, where that is a program."""
        return self._process is None or self._process.is_alive

    def _mount_by_kernel(self, kind: str, bytes_per_sector: int) -> None:
        name, read_only, writable = _KERNEL[kind]
        self.loop_device = loop.attach(self.path, writable=self.writable, bytes_per_sector=bytes_per_sector)
        options = f"nosuid,nodev,{writable if self.writable else read_only}"
        argv = ["mount", "-i", "-t", name, "-o", options, "--", self.loop_device, self.directory]
        done = run_program(argv, package="mount")
        if done.returncode != 0:
            raise DeviceError(f"{self.directory}: the kernel does not mount the volume ({last_line(done.stderr)})")
        found = mounted_at(self.directory)
        if found is None or found.source != self.loop_device:
            # btrfs takes volumes by their UUID, and may give us another one that is mounted already
            raise RefusedError(f"{self.directory}: the kernel took another device for this volume")

    def _mount_by_program(self, driver: _Driver, bytes_per_sector: int) -> None:
        path = self.path
        if driver.needs_block_device:
            path = self.loop_device = loop.attach(path, writable=self.writable, bytes_per_sector=bytes_per_sector)
        options = f"nosuid,nodev,{driver.writable if self.writable else driver.read_only}"
        arguments = [*(driver.foreground or ()), "-o", options, path, self.directory]
        stays = driver.foreground is not None
        self._process = process = DriverProcess(driver.program, driver.package, arguments, path=path, stays=stays)
        end = time.monotonic() + _MOUNT_WAIT_S
        while mounted_at(self.directory) is None or is_stale(self.directory):
            if process.has_failed or time.monotonic() > end:
                raise DeviceError(f"{self.directory}: {driver.program} does not mount the volume ({process.said})")
            time.sleep(0.01)
        process.look()
        found = mounted_at(self.directory)
        if self.writable and (found is None or not found.writable):
            raise RefusedError(
                f"{self.directory}: {driver.program} mounts the volume only for reading ({process.said})",
                hint="it was not shut down; start and shut down the system that uses it, or check the volume",
            )

    def unmount(self, *, timeout_s: float = 10.0, lazy: bool = False) -> bool:
        """Unmount, and wait until all that was written has reached the device file. Twice is allowed.

        Raises :class:`~sqlimage.errors.RefusedError` where it stays in use for ``timeout_s``. With ``lazy`` it is then
        taken out of the tree nevertheless; False where what was written may not have reached the device file.
        """
        clean = True
        try:
            unmount(self.directory, timeout_s=timeout_s)
        except SqlimageError:
            if not lazy:
                raise
            _sync(self.directory)
            unmount(self.directory, lazy=True)
            clean = False
        if self._process is not None:
            clean &= self._process.wait(_END_WAIT_S if clean else timeout_s)
            self._process.close()
            self._process = None
        if self.loop_device is not None:
            clean &= loop.detach(self.loop_device, self.path)
            self.loop_device = None
        return clean


def mount_device_file(
    path: str, directory: str, *, kind: str, way: Way, writable: bool, bytes_per_sector: int = 512
) -> MountedVolume:
    """Mount the file system on a device file, or any file, by a way that :func:`choose` gave (not ``READER``).

    A read-only mount writes nothing, and replays no journal. Raises :class:`~sqlimage.errors.DeviceError` where the
    driver refuses the volume and :class:`~sqlimage.errors.RefusedError` where it takes it only for reading; then
    nothing is mounted.
    """
    mounted = MountedVolume(path, check_mount_point(directory), way, writable=writable)
    try:
        if way is Way.KERNEL:
            mounted._mount_by_kernel(kind, bytes_per_sector)
        else:
            mounted._mount_by_program(_DRIVERS[way], bytes_per_sector)
    except BaseException:
        if mounted._process is not None and mounted_at(mounted.directory) is None:
            mounted._process.kill()
        mounted.unmount(lazy=True)
        raise
    return mounted


def _sync(directory: str) -> None:
    """Have written what the file system of a directory holds back, as well as it goes."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        ctypes.CDLL(None).syncfs(fd)
    finally:
        os.close(fd)
