"""A mount from its beginning to its end: devices, a file system over them, the wait, and all of it taken down again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import RefusedError, SqlimageError, UsageError
from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.window import Window
from sqlimage.mount import records
from sqlimage.mount.devices import DeviceFiles, serve_devices
from sqlimage.mount.fuse import FuseServer, Problem, to_stderr
from sqlimage.mount.mountpoint import MOUNTINFO, check_mount_point
from sqlimage.mount.signature import file_system_kind
from sqlimage.mount.stack import MountedVolume, Way, choose, mount_device_file
from sqlimage.mount.tree import VolumeTree, serve_tree

MEDIUM = "medium"
"""The name of the device that is the whole medium; all others are volumes on it."""
_WITHOUT_OWNERS = ("ntfs", "fat", "exfat", "iso9660")
_BUSY_WAIT_S = 10.0
_LOOK_MS = 1000


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What is to be mounted where."""

    directory: str
    """An empty directory."""
    image: str = ""
    """What is mounted, for people who list mounts."""
    volume: str | None = None
    """Which of the devices; None where there is one volume, or for all of them, as directories (read-only)."""
    show_devices: bool = False
    """Show the devices as files, instead of the files on them."""
    writable: bool = False
    way: str | None = None
    """One of :class:`~sqlimage.mount.stack.Way`, instead of the first that can."""

    def __post_init__(self) -> None:
        # whoever goes into the background leaves the working directory
        object.__setattr__(self, "directory", os.path.abspath(self.directory))


@dataclass(frozen=True, slots=True)
class MountEnd:
    """How a mount ended, for whoever has to do something with what was written."""

    reason: str
    """``unmounted``, the name of a signal, or what went wrong."""
    discard: bool
    """It was asked for that what was written is thrown away."""
    clean: bool
    """Everything that was written has reached the devices and was flushed. Else it is as after a power cut."""
    problems: tuple[str, ...]
    """What devices and drivers could not do, the first hundred."""


def ignore_end(_end: MountEnd) -> dict[str, Any]:
    """Nothing is to be done, as with a read-only mount."""
    return {}


def mount(
    devices: Mapping[str, BlockDevice],
    request: MountRequest,
    *,
    on_end: Callable[[MountEnd], dict[str, Any]] = ignore_end,
    on_ready: Callable[[dict[str, Any]], None] | None = None,
    on_problem: Problem = to_stderr,
) -> dict[str, Any]:
    """Mount, tell ``on_ready``, wait for the end, take everything down, flush, and call ``on_end``.

    It ends when the directory is unmounted (``umount``, ``fusermount3 -u``, :func:`~sqlimage.mount.unmount.unmount`)
    and on SIGTERM, SIGINT and SIGHUP (where this is the main thread); SIGUSR1 is the same and says to discard. Devices
    are closed by the caller. ``on_end`` is told how it ended and gives what shall be told of it. The outcome is given
    back, and left in the run directory for ``unmount``; what ``on_end`` raises too.

    Raises :class:`~sqlimage.errors.SqlimageError` subclasses where it cannot be mounted; then nothing is left, and
    ``on_end`` is not called.
    """
    problems: list[str] = []

    def note(text: str) -> None:
        if len(problems) < 100:
            problems.append(text)
        on_problem(text)

    with _signals() as caught:
        session = _Session(devices, request, note)
        try:
            session.start()
            if on_ready is not None:
                on_ready(session.info())
            reason = session.wait(caught)
        except BaseException:
            session.stop()
            session.forget()
            raise
        clean = session.stop()
        discard = "SIGUSR1" in caught.names or records.is_to_discard(session.directory)
        outcome: dict[str, Any] = {"directory": session.directory, "image": request.image, "reason": reason}
        try:
            outcome["result"] = on_end(MountEnd(reason, discard, clean, tuple(problems)))
        except SqlimageError as problem:
            outcome["error"] = error_as_json(problem)
            raise
        finally:
            outcome |= {"discard": discard, "clean": clean, "problems": problems}
            with contextlib.suppress(SqlimageError):
                records.put_outcome(session.directory, outcome)
            session.forget()
        return outcome


def error_as_json(problem: SqlimageError) -> dict[str, str | int]:
    """An error for another process."""
    return {
        "error": type(problem).__name__,
        "message": getattr(problem, "message", str(problem)),
        "hint": getattr(problem, "hint", ""),
        "exit_code": problem.exit_code,
    }


class _Session:
    def __init__(self, devices: Mapping[str, BlockDevice], request: MountRequest, on_problem: Problem) -> None:
        records.clear_leftovers()
        self.directory = check_mount_point(request.directory)
        self._devices = _chosen(devices, request)
        if not request.writable:
            self._devices = {name: Window(device, 0, device.size_bytes) for name, device in self._devices.items()}
        self._request = request
        self._on_problem = on_problem
        self._stack: list[FuseServer | MountedVolume] = []
        self._record = records.MountRecord(self.directory, request.image, request.writable)
        self._ways: dict[str, str] = {}

    def start(self) -> None:
        if self._request.show_devices:
            self._add(serve_devices(self._devices, self.directory, on_problem=self._on_problem))
        elif len(self._devices) == 1:
            ((name, device),) = self._devices.items()
            kind = file_system_kind(device)
            way = choose(kind, writable=self._request.writable, wanted=self._request.way)
            self._ways[name] = way
            if way is Way.READER:
                self._add(serve_tree(_tree(device, 0), self.directory, on_problem=self._on_problem))
            else:
                self._serve_privately()
                self._mount(name, kind or "", way, self.directory)
        else:
            self._start_several()

    def _start_several(self) -> None:
        """Every volume as a directory: by our readers where nothing is lost by that, else mounted by a driver where one
        can."""
        if self._request.writable or self._request.way:
            names = ", ".join(self._devices)
            raise UsageError(
                "several volumes can only be mounted together for reading",
                hint=f"choose one with --volume: there are {names}",
            )
        trees: dict[str, VolumeTree | None] = {}
        others: list[tuple[str, str, str, Way]] = []
        for number, (name, device) in enumerate(self._devices.items()):
            shown = name.rpartition("-")[2]
            kind = file_system_kind(device)
            trees[shown] = None
            try:
                way = Way.READER if kind in _WITHOUT_OWNERS else choose(kind, writable=False)
                if way is Way.READER:
                    trees[shown] = _tree(device, number)
                    self._ways[name] = way
                else:
                    others.append((shown, name, kind or "", way))
            except SqlimageError as problem:
                self._on_problem(f"{name}: {problem}")
        self._add(serve_tree(trees, self.directory, on_problem=self._on_problem))
        if others:
            self._serve_privately()
        for shown, name, kind, way in others:
            try:
                self._mount(name, kind, way, os.path.join(self.directory, shown))
                self._ways[name] = way
            except SqlimageError as problem:
                self._on_problem(f"{name}: {problem}")

    def _serve_privately(self) -> None:
        self._record.private = records.make_private_directory()
        records.save(self._record)
        self._files = os.path.join(self._record.private, "devices")
        os.mkdir(self._files, 0o700)
        # beneath all others: what stands on it is taken down first
        server = serve_devices(self._devices, self._files, on_problem=self._on_problem)
        self._stack.insert(0, server)
        self._record.mounts.insert(0, server.directory)
        records.save(self._record)

    def _mount(self, name: str, kind: str, way: Way, directory: str) -> None:
        self._add(
            mount_device_file(
                os.path.join(self._files, name),
                directory,
                kind=kind,
                way=way,
                writable=self._request.writable,
                bytes_per_sector=self._devices[name].bytes_per_sector,
            )
        )

    def _add(self, mounted: FuseServer | MountedVolume) -> None:
        self._stack.append(mounted)
        self._record.mounts.append(mounted.directory)
        records.save(self._record)

    def info(self) -> dict[str, Any]:
        """What runs, for whoever started it."""
        self._record.way = ", ".join(dict.fromkeys(self._ways.values()))
        records.save(self._record)
        return {
            "directory": self.directory,
            "pid": self._record.pid,
            "writable": self._request.writable,
            "ways": self._ways,
            "devices": list(self._devices) if self._request.show_devices else [],
        }

    def wait(self, caught: _Caught) -> str:
        """Wait for the end: its reason."""
        top = next(mounted for mounted in self._stack if mounted.directory == self.directory)
        with open(MOUNTINFO, encoding="utf-8") as info:
            poll = select.poll()
            poll.register(info, select.POLLPRI | select.POLLERR)  # the kernel tells that something was (un)mounted
            poll.register(caught.fd, select.POLLIN)
            while not caught.names:
                if not top.is_mounted:
                    return "unmounted"
                if not top.is_alive:
                    self._on_problem(f"{self.directory}: its driver has ended")
                    return "its driver ended"
                poll.poll(_LOOK_MS)
        return caught.names[0]

    def stop(self) -> bool:
        """Take everything down, the last first, and flush. True where nothing can be lost. Never raises."""
        clean = True
        for mounted in reversed(self._stack):
            try:
                clean &= mounted.unmount(timeout_s=_BUSY_WAIT_S, lazy=True)
                if isinstance(mounted, FuseServer) and isinstance(mounted.operations, DeviceFiles):
                    clean &= not mounted.operations.has_lost
            except SqlimageError as problem:
                self._on_problem(str(problem))
                clean = False
        self._stack.clear()
        for name, device in self._devices.items():
            if isinstance(device, WritableDevice):
                try:
                    device.flush()
                except Exception as problem:
                    self._on_problem(f"{name}: {problem}")
                    clean = False
        return clean

    def forget(self) -> None:
        """Remove what tells others of this mount."""
        if self._record.private:
            records.remove_private_directory(self._record.private)
        records.remove(self._record)


def _chosen(devices: Mapping[str, BlockDevice], request: MountRequest) -> dict[str, BlockDevice]:
    if request.volume is not None:
        if request.volume not in devices:
            raise UsageError(f"there is no {request.volume!r} to mount", hint=f"there are {', '.join(devices)}")
        return {request.volume: devices[request.volume]}
    if request.show_devices:
        return dict(devices)
    volumes = {name: device for name, device in devices.items() if name != MEDIUM} or dict(devices)
    if not volumes:
        raise RefusedError("there is nothing to mount")
    return volumes


def _tree(device: BlockDevice, number: int) -> VolumeTree:
    file_system = open_file_system(device)
    if file_system is None:
        raise UsageError("the volume holds no file system that is known")
    return VolumeTree(file_system, number)


class _Caught:
    """The signals that came, by name, and a descriptor that can be read once one did."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def catch(self, number: int, _frame: object) -> None:
        self.names.append(signal.Signals(number).name)
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"!")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


@contextlib.contextmanager
def _signals() -> Iterator[_Caught]:
    caught = _Caught()
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                before[number] = signal.signal(number, caught.catch)
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        caught.close()
