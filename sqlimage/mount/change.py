"""Single changes to the files of one volume: put, remove, make a directory, move; no mount that a user would see.

The volume is given as a writable device. For the time of the change it is mounted in a private directory by the driver
that :mod:`~sqlimage.mount.stack` chooses (FAT without one in the kernel: by the mtools), then unmounted and flushed.
A change that fails may be half there: whoever calls keeps or throws away what the device was told.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from sqlimage.device import WritableDevice
from sqlimage.errors import DeviceError, NotFoundError, RefusedError, SqlimageError, UsageError
from sqlimage.mount import records
from sqlimage.mount.devices import serve_devices
from sqlimage.mount.fuse import Problem, to_stderr
from sqlimage.mount.inside import ChangeReport, Inside, parts_of
from sqlimage.mount.mtools import FatByMtools
from sqlimage.mount.signature import file_system_kind
from sqlimage.mount.stack import Way, choose, mount_device_file

STDIN = "-"


class Editor(Protocol):
    """A volume that can be changed; paths are absolute in it. Any method raises
    :class:`~sqlimage.errors.SqlimageError` subclasses that name the path."""

    def kind(self, path: str) -> str | None: ...

    def write_file(self, source_fd: int, path: str, report: ChangeReport) -> None: ...

    def write_link(self, target: str, path: str, report: ChangeReport) -> None: ...

    def make_directory(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> int: ...

    def set_time(self, path: str, modified_ns: int) -> None: ...

    def remove(self, path: str, *, recursive: bool = False) -> None: ...

    def move(self, old: str, new: str) -> None: ...


def put(
    device: WritableDevice, source: str | os.PathLike[str], path: str, *, on_problem: Problem = to_stderr
) -> ChangeReport:
    """Copy a file or a directory with all below it into the volume; ``-`` is standard input.

    ``path`` is the copy's own; where it is a directory of the volume, the copy goes into it under its own name, and
    where it ends in ``/`` that directory must be there. A file that exists is replaced; of a directory that exists,
    the files that come are. Modification times are kept. Links are copied as links where the volume has links, what is
    neither file, directory nor link is left out; both are told.

    Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.UsageError`,
    :class:`~sqlimage.errors.RefusedError`, :class:`~sqlimage.errors.DeviceError`.
    """
    parts_of(path)
    name = os.fspath(source)
    report = ChangeReport()
    with _source(name, device.size_bytes) as fd, edit_volume(device, on_problem=on_problem) as editor:
        kind = editor.kind(path)
        if kind == "directory":
            own = os.path.basename(os.path.abspath(name))
            if name == STDIN or not own:
                raise UsageError(f"{path}: is a directory", hint="name the file in it")
            path = f"{path.rstrip('/')}/{own}"
        elif path.endswith("/"):
            raise NotFoundError(f"{path}: there is no such directory in the volume")
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            _put_tree(editor, os.path.abspath(name), path, report)
        else:
            editor.write_file(fd, path, report)
    return report


def remove(
    device: WritableDevice, path: str, *, recursive: bool = False, on_problem: Problem = to_stderr
) -> ChangeReport:
    """Remove a file, a link or an empty directory; with ``recursive`` a directory with all below it.

    Raises as :func:`put` does.
    """
    parts_of(path)
    with edit_volume(device, on_problem=on_problem) as editor:
        if editor.kind(path) is None:
            raise NotFoundError(f"{path}: there is no such file or directory in the volume")
        editor.remove(path, recursive=recursive)
    return ChangeReport()


def make_directory(
    device: WritableDevice, path: str, *, parents: bool = False, on_problem: Problem = to_stderr
) -> ChangeReport:
    """Make a directory; with ``parents`` those above it too, and it may be there already.

    Raises as :func:`put` does.
    """
    if not parts_of(path):
        raise RefusedError("/: exists already")
    with edit_volume(device, on_problem=on_problem) as editor:
        return ChangeReport(directories=editor.make_directory(path, parents=parents, exist_ok=parents))


def move(device: WritableDevice, old: str, new: str, *, on_problem: Problem = to_stderr) -> ChangeReport:
    """Give a file or directory another path; where that is a directory, it goes into it under its own name.

    Nothing is replaced. Raises as :func:`put` does.
    """
    parts, _ = parts_of(old), parts_of(new)
    if not parts:
        raise RefusedError("/ cannot be moved")
    with edit_volume(device, on_problem=on_problem) as editor:
        if editor.kind(old) is None:
            raise NotFoundError(f"{old}: there is no such file or directory in the volume")
        if editor.kind(new) == "directory":
            new = f"{new.rstrip('/')}/{parts[-1]}"
        if parts_of(new)[: len(parts)] == parts:
            raise UsageError(f"{old}: cannot be moved to {new}", hint="that is the same, or below it")
        editor.move(old, new)
    return ChangeReport()


@contextlib.contextmanager
def edit_volume(device: WritableDevice, *, on_problem: Problem = to_stderr) -> Iterator[Editor]:
    """A volume open for several changes. At the end all of them are in the device, and it is flushed.

    Raises :class:`~sqlimage.errors.DeviceError` where nothing here can write its file system, naming what to install,
    and where the device did not take all of it.
    """
    kind = file_system_kind(device)
    way = None if kind == "fat" and not _kernel_can(kind) else choose(kind, writable=True)
    problems: list[str] = []

    def note(text: str) -> None:
        problems.append(text)
        on_problem(text)

    record = records.MountRecord(directory="", image="", writable=True)
    with _signals_raise():
        records.clear_leftovers()
        record.private = record.directory = records.make_private_directory()
        files, root = os.path.join(record.private, "devices"), os.path.join(record.private, "volume")
        record.mounts = [files, root]
        records.save(record)
        try:
            os.mkdir(files)
            os.mkdir(root)
            server = serve_devices({"volume": device}, files, on_problem=note)
            try:
                if way is None:
                    yield FatByMtools(os.path.join(files, "volume"), device)
                else:
                    with _mounted(os.path.join(files, "volume"), root, kind or "", way, device) as root_fd:
                        yield Inside(root_fd)
            finally:
                server.unmount(lazy=True)
            device.flush()
        finally:
            records.remove_private_directory(record.private)
            records.remove(record)
    if problems:
        raise DeviceError(f"the change is not whole: {problems[0]}")


@contextlib.contextmanager
def _mounted(path: str, root: str, kind: str, way: Way, device: WritableDevice) -> Iterator[int]:
    mounted = mount_device_file(path, root, kind=kind, way=way, writable=True, bytes_per_sector=device.bytes_per_sector)
    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root_fd
        finally:
            os.close(root_fd)
    except BaseException:
        mounted.unmount(lazy=True)
        raise
    if not mounted.unmount(lazy=True):
        raise DeviceError(f"the driver {way} did not write all of the change")


def _put_tree(editor: Editor, source: str, path: str, report: ChangeReport) -> None:
    """A directory of this machine, breadth first; no link of it is followed."""
    waiting = [(source, path)]
    times: list[tuple[str, int]] = []
    while waiting:
        here, there = waiting.pop()
        report.directories += editor.make_directory(there, exist_ok=True)
        try:
            times.append((there, os.stat(here).st_mtime_ns))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as problem:
            raise DeviceError(f"{here}: cannot be read ({problem.strerror})") from None
        for entry in entries:
            target = f"{there.rstrip('/')}/{entry.name}"
            if entry.is_symlink():
                editor.write_link(os.readlink(entry.path), target, report)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, target))
            elif entry.is_file(follow_symlinks=False):
                fd = _open_source(entry.path, os.O_NOFOLLOW)
                try:
                    editor.write_file(fd, target, report)
                finally:
                    os.close(fd)
            else:
                report.skipped.append((entry.path, "neither a file, a directory nor a link"))
    for there, modified_ns in reversed(times):
        editor.set_time(there, modified_ns)


@contextlib.contextmanager
def _source(name: str, most_bytes: int) -> Iterator[int]:
    """The source, opened. What is no file or directory is read first: its end must come before a mount is held."""
    fd = os.dup(sys.stdin.fileno()) if name == STDIN else _open_source(name, 0)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            yield fd
            return
        with tempfile.TemporaryFile() as spooled:
            while block := os.read(fd, 1 << 20):
                spooled.write(block)
                if spooled.tell() > most_bytes:
                    raise RefusedError(f"{name}: has more bytes than the volume", hint="name a smaller one")
            spooled.flush()
            os.fchmod(spooled.fileno(), 0o644)
            spooled.seek(0)
            yield spooled.fileno()
    finally:
        os.close(fd)


def _open_source(name: str, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags)
    except FileNotFoundError:
        raise NotFoundError(f"{name}: no such file or directory") from None
    except OSError as problem:
        raise DeviceError(f"{name}: cannot be read ({problem.strerror})") from None


def _kernel_can(kind: str) -> bool:
    try:
        return choose(kind, writable=True) is Way.KERNEL
    except SqlimageError:
        return False


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does: with everything unmounted."""
    before: dict[signal.Signals, Any] = {}

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    before[number] = signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
