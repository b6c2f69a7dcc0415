"""The run directory: one small file for each mount that runs, so that another process can end it, learn what came of
it, and clear what is left of one that was killed.

    <key>.json          who serves it and what it took, while it runs; left behind by a process that was killed
    <key>.discard       asked for: what was written shall be thrown away
    <key>.outcome.json  what came of it, until ``unmount`` reads it

The key is made from the directory that is mounted on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlimage.errors import DeviceError, SqlimageError
from sqlimage.mount import loop
from sqlimage.mount.mountpoint import mounted_at, unmount

_MOST_RECORD_BYTES = 1 << 20


@dataclass(slots=True)
class MountRecord:
    """A mount that runs, or that was killed."""

    directory: str
    image: str
    writable: bool
    pid: int = field(default_factory=os.getpid)
    process_started: int = -1
    """Clock ticks after boot (proc(5), ``starttime``): with the pid, it names one process for ever."""
    way: str = ""
    private: str = ""
    """The directory under which the device files are mounted; empty where there are none."""
    mounts: list[str] = field(default_factory=list)
    """Every directory that is mounted on, in the order it was done."""

    def __post_init__(self) -> None:
        if self.process_started < 0:
            self.process_started = _started(self.pid)

    @property
    def is_running(self) -> bool:
        """Whether the process that serves it lives."""
        return self.process_started >= 0 and _started(self.pid) == self.process_started


def run_directory() -> str:
    """Where the files of this user lie, made where it does not exist: ``sqlimage`` in ``$XDG_RUNTIME_DIR``, or in
    ``/run`` for root, or in the directory of temporary files. Raises :class:`~sqlimage.errors.DeviceError`."""
    for place in _places():
        with contextlib.suppress(OSError):
            os.mkdir(place, 0o700)
        if _is_ours(place):
            return place
    raise DeviceError(f"none of {', '.join(_places())} can be made, or belongs to somebody else")


def make_private_directory() -> str:
    """A new directory that only this user may enter."""
    return tempfile.mkdtemp(prefix="mount-", dir=run_directory())


def save(record: MountRecord) -> None:
    """Write or replace a record; forgets what came of an earlier mount on its directory."""
    place = run_directory()
    _write(os.path.join(place, _key(record.directory) + ".json"), asdict(record))
    for path in _paths(record.directory, ".outcome.json"):
        _remove(path)


def remove(record: MountRecord) -> None:
    for ending in (".json", ".discard"):
        for path in _paths(record.directory, ending):
            _remove(path)


def find(directory: str) -> MountRecord | None:
    """The record of a directory that is, or was, mounted on."""
    wanted = os.path.realpath(directory)
    found = (_read(path) for path in _paths(wanted, ".json"))
    return next((record for record in found if record is not None and record.directory == wanted), None)


def running() -> list[MountRecord]:
    """Every mount that runs and can be seen, by directory."""
    found = (record for record in _every() if record.is_running and record.directory != record.private)
    return sorted(found, key=lambda record: record.directory)


def put_outcome(directory: str, outcome: dict[str, Any]) -> None:
    """Leave what came of a mount for whoever asks."""
    _write(os.path.join(run_directory(), _key(directory) + ".outcome.json"), outcome)


def take_outcome(directory: str) -> dict[str, Any] | None:
    """What came of a mount, once; None where nothing is told."""
    for path in _paths(os.path.realpath(directory), ".outcome.json"):
        found = _load(path)
        _remove(path)
        if found is not None:
            return found
    return None


def ask_to_discard(directory: str, *, wanted: bool = True) -> None:
    """Tell the process that serves a directory to throw away what was written, or take that back."""
    wanted_at = os.path.realpath(directory)
    if wanted:
        _write(os.path.join(run_directory(), _key(wanted_at) + ".discard"), {})
    else:
        for path in _paths(wanted_at, ".discard"):
            _remove(path)


def is_to_discard(directory: str) -> bool:
    """Whether :func:`ask_to_discard` was called."""
    return any(os.path.exists(path) for path in _paths(directory, ".discard"))


def clear_leftovers() -> list[MountRecord]:
    """Take away what killed mounts left: mounts, loop devices, private directories, records. The records of those.

    What is in use yet is left for the next time.
    """
    cleared = []
    for record in _every():
        if not record.is_running:
            with contextlib.suppress(SqlimageError):
                _clear(record)
                cleared.append(record)
    return cleared


def remove_private_directory(private: str) -> None:
    """Remove a private directory and the empty mount points in it. Never what is mounted there."""
    with contextlib.suppress(OSError):
        for name in os.listdir(private):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(private, name))
        os.rmdir(private)


def _clear(record: MountRecord) -> None:
    for directory in reversed(record.mounts):
        for name, path in loop.over_files_in(directory):
            loop.detach(name, path)
        if mounted_at(directory) is not None:
            unmount(directory, lazy=True)
    if record.private and os.path.dirname(record.private) in _places():
        remove_private_directory(record.private)
    remove(record)


def _places() -> list[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    places = [os.path.join(runtime, "sqlimage")] if os.path.isabs(runtime) else []
    if os.geteuid() == 0:
        places.append("/run/sqlimage")
    return [*places, os.path.join(tempfile.gettempdir(), f"sqlimage-{os.geteuid()}")]


def _is_ours(place: str) -> bool:
    """Whether nobody else could have put files there: what they say is done."""
    try:
        found = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _key(directory: str) -> str:
    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:24]


def _paths(directory: str, ending: str) -> list[str]:
    found = [os.path.join(place, _key(directory) + ending) for place in _places() if _is_ours(place)]
    return [path for path in found if os.path.exists(path)]


def _every() -> list[MountRecord]:
    found = []
    for place in filter(_is_ours, _places()):
        for name in os.listdir(place):
            if name.endswith(".json") and not name.endswith(".outcome.json"):
                record = _read(os.path.join(place, name))
                if record is not None:
                    found.append(record)
    return found


def _read(path: str) -> MountRecord | None:
    found = _load(path)
    names = {known.name for known in fields(MountRecord)}
    if found is None or not names >= set(found):
        return None
    try:
        return MountRecord(**found)
    except (KeyError, TypeError, ValueError):
        return None


def _load(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(_MOST_RECORD_BYTES))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: str, content: dict[str, Any]) -> None:
    try:
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(path + ".new", path)
    except OSError as problem:
        raise DeviceError(f"{path}: cannot be written ({problem.strerror})") from None


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _started(pid: int) -> int:
    """When a process started; -1 where it is not there or is dead and only not yet waited for."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            parts = file.read().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if parts[0] in "ZX" else int(parts[19])
