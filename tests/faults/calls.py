"""A place between this process and the kernel, for the calls through which SQLite and our own code change files.

SQLite's calls are met in its table of system calls (``fdatasync``, which is not in it, where the library imports it);
those of Python code in the module ``os``. What is written through ``open()`` passes unseen, and so do the reads of
Python code.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import functools
import os
import stat
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import apsw

from tests.faults import linkage


class Kind(enum.Enum):
    OPEN = "open"
    READ = "read"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    UNLINK = "unlink"
    LINK = "link"
    RENAME = "rename"


@dataclass(frozen=True, slots=True)
class Call:
    """One call, not made yet. ``path`` is absolute, or empty where the call names a descriptor; ``target`` is the new
    name of LINK and RENAME."""

    kind: Kind
    fd: int = -1
    path: str = ""
    target: str = ""
    flags: int = 0
    offset: int = 0
    length: int = 0
    data: bytes = b""


Really = Callable[[int], int]
"""Makes the call, moving at most so many bytes; its result, or OSError."""


class Watcher(Protocol):
    kinds: frozenset[Kind]
    """Calls of other kinds go their way unseen, which is faster."""

    def around(self, call: Call, really: Really) -> int:
        """Answers a call. MUST be safe in any thread. OSError is what the caller gets as the call's failure."""
        ...


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Show every call of the process to the watcher. May be nested; the inner one sees a call first.

    Other threads MUST NOT be in a call of SQLite when the block begins or ends.
    """
    with contextlib.ExitStack() as undo:
        _watch_sqlite(watcher, undo)
        _watch_python(watcher, undo)
        yield


# How SQLite calls: each takes a descriptor or a path first.
_INT, _POINTER, _SIZE, _OFFSET = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_TRANSFER = ctypes.CFUNCTYPE(ctypes.c_ssize_t, _INT, _POINTER, _SIZE, _OFFSET, use_errno=True)
_OPEN = ctypes.CFUNCTYPE(_INT, ctypes.c_char_p, _INT, _INT, use_errno=True)
_TRUNCATE = ctypes.CFUNCTYPE(_INT, _INT, _OFFSET, use_errno=True)
_UNLINK = ctypes.CFUNCTYPE(_INT, ctypes.c_char_p, use_errno=True)
_SYNC = ctypes.CFUNCTYPE(_INT, _INT, use_errno=True)

# (name, prototype, kind, what the arguments are). A build has one of each pair of pread and pread64.
_TABLE: tuple[tuple[str, Any, Kind, Callable[..., Call]], ...] = (
    ("open", _OPEN, Kind.OPEN, lambda p, flags, mode: Call(Kind.OPEN, path=_absolute(p), flags=flags)),
    ("pread", _TRANSFER, Kind.READ, lambda fd, at, n, offset: Call(Kind.READ, fd, offset=offset, length=n)),
    ("pread64", _TRANSFER, Kind.READ, lambda fd, at, n, offset: Call(Kind.READ, fd, offset=offset, length=n)),
    ("pwrite", _TRANSFER, Kind.WRITE, lambda fd, at, n, offset: _write(fd, ctypes.string_at(at, n), offset)),
    ("pwrite64", _TRANSFER, Kind.WRITE, lambda fd, at, n, offset: _write(fd, ctypes.string_at(at, n), offset)),
    ("ftruncate", _TRUNCATE, Kind.TRUNCATE, lambda fd, length: Call(Kind.TRUNCATE, fd, length=length)),
    ("unlink", _UNLINK, Kind.UNLINK, lambda p: Call(Kind.UNLINK, path=_absolute(p))),
)


class _UnixVfs(apsw.VFS):
    """The way to SQLite's table of system calls; it opens nothing itself."""

    def __init__(self) -> None:
        super().__init__("tests-faults-calls", "unix")


_redirected: set[int] = set()
"""Addresses of our own answers to the sync call, by which a nested watcher finds the outer one."""


def _watch_sqlite(watcher: Watcher, undo: contextlib.ExitStack) -> None:
    vfs = _UnixVfs()
    undo.callback(vfs.unregister)
    inside = vfs.xGetSystemCall("openDirectory")  # SQLite's own function, so it lies in SQLite's library
    assert inside, "SQLite was built without its table of system calls"
    for name, prototype, kind, told in _TABLE:
        original = vfs.xGetSystemCall(name)
        if original and kind in watcher.kinds:
            hook = _hook(watcher, prototype, original, told)
            vfs.xSetSystemCall(name, _address(hook))
            undo.callback(_restore, vfs.xSetSystemCall, name, original, hook)
    if Kind.SYNC in watcher.kinds:
        imports = [(slot, name) for name in ("fsync", "fdatasync") for slot in linkage.slots(inside, name)]
        assert imports, "SQLite's library imports neither fsync nor fdatasync"
        for slot, name in imports:
            before = linkage.read(slot)
            # Not called yet, a slot leads to the dynamic linker, which would overwrite it: go to the C library itself.
            original = before if before in _redirected else _address(getattr(ctypes.CDLL(None), name))
            hook = _hook(watcher, _SYNC, original, lambda fd: Call(Kind.SYNC, fd))
            _redirected.add(_address(hook))
            linkage.redirect(slot, _address(hook))
            undo.callback(_restore, linkage.redirect, slot, before, hook)


def _restore(put: Callable[[Any, int], object], place: object, before: int, hook: object) -> None:
    """Undo one hook, which had to live until now."""
    put(place, before)
    _redirected.discard(_address(hook))


def _hook(watcher: Watcher, prototype: Any, original: int, told: Callable[..., Call]) -> Any:
    function = prototype(original)

    def answer(*arguments: Any) -> int:
        def really(most: int) -> int:
            changed = (*arguments[:2], min(arguments[2], most), arguments[3]) if prototype is _TRANSFER else arguments
            result = int(function(*changed))
            if result < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return result

        try:
            return watcher.around(told(*arguments), really)
        except OSError as problem:
            ctypes.set_errno(problem.errno or errno.EIO)
        except Exception:
            traceback.print_exc()  # a C caller has no use for it, and must not take it for success
            ctypes.set_errno(errno.EIO)
        return -1

    return prototype(answer)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _absolute(path: bytes | str | os.PathLike[str], dir_fd: int | None = None) -> str:
    if dir_fd is not None:
        return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path))
    return os.path.abspath(os.fsdecode(path))


def _write(fd: int, data: bytes, offset: int) -> Call:
    return Call(Kind.WRITE, fd, offset=offset, length=len(data), data=data)


def _moved(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None, kind: Kind) -> Call:
    return Call(kind, path=_absolute(old, src_dir_fd), target=_absolute(new, dst_dir_fd))


def _pwrite(fd: int, data: Any, offset: int) -> Call:
    return _write(fd, bytes(data), offset)


def _sequential_write(fd: int, data: Any) -> Call:
    is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
    return _write(fd, bytes(data), os.lseek(fd, 0, os.SEEK_CUR) if is_regular else 0)


def _opened(path: Any, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> Call:
    return Call(Kind.OPEN, path=_absolute(path, dir_fd), flags=flags)


# (name in the module os, kind, the call that its arguments make)
_OS: tuple[tuple[str, Kind, Callable[..., Call]], ...] = (
    ("open", Kind.OPEN, _opened),
    ("write", Kind.WRITE, _sequential_write),
    ("pwrite", Kind.WRITE, _pwrite),
    ("ftruncate", Kind.TRUNCATE, lambda fd, length: Call(Kind.TRUNCATE, fd, length=length)),
    ("fsync", Kind.SYNC, lambda fd: Call(Kind.SYNC, fd)),
    ("fdatasync", Kind.SYNC, lambda fd: Call(Kind.SYNC, fd)),
    ("unlink", Kind.UNLINK, lambda p, *, dir_fd=None: Call(Kind.UNLINK, path=_absolute(p, dir_fd))),
    ("remove", Kind.UNLINK, lambda p, *, dir_fd=None: Call(Kind.UNLINK, path=_absolute(p, dir_fd))),
    ("link", Kind.LINK, functools.partial(_moved, kind=Kind.LINK)),
    ("rename", Kind.RENAME, functools.partial(_moved, kind=Kind.RENAME)),
    ("replace", Kind.RENAME, functools.partial(_moved, kind=Kind.RENAME)),
)


def _watch_python(watcher: Watcher, undo: contextlib.ExitStack) -> None:
    for name, kind, told in _OS:
        if kind in watcher.kinds:
            original = getattr(os, name)
            setattr(os, name, _wrapper(watcher, original, told))
            undo.callback(setattr, os, name, original)


def _wrapper(watcher: Watcher, original: Callable[..., int | None], told: Callable[..., Call]) -> Callable[..., Any]:
    def answer(*arguments: Any, **named: Any) -> int:
        def really(most: int) -> int:
            changed = arguments
            if told in (_sequential_write, _pwrite):
                changed = (arguments[0], bytes(arguments[1])[:most], *arguments[2:])
            return original(*changed, **named) or 0

        return watcher.around(told(*arguments, **named), really)

    return answer
