"""FUSE served by threads of this process: loading the library, starting, answering, ending.

The threads are libfuse's own and need the interpreter for every answer. So a process that serves a mount must not wait
for it while it holds the interpreter: it starts no program while it has a file open below its own mount, because the
new process closes that file before the interpreter goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sqlimage.errors import DeviceError, SqlimageError
from sqlimage.mount.mountpoint import check_mount_point, mounted_at, unmount, wait_until_mounted

_CLONE_FS = 0x200
"""linux/sched.h, for unshare(2)."""
_PASSED_ON = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_libc = ctypes.CDLL(None, use_errno=True)
_kept = threading.local()

Problem = Callable[[str], None]
"""Told, in one line, what went wrong where nobody can be answered."""
P = ParamSpec("P")
R = TypeVar("R")


class Operations(Protocol):
    """What FUSE is answered by: methods named as in libfuse's ``fuse_operations``, each an :func:`answering` one."""

    @property
    def use_ns(self) -> bool: ...

    @property
    def on_problem(self) -> Problem: ...


S = TypeVar("S", bound=Operations)


def to_stderr(text: str) -> None:
    """The plainest :data:`Problem`."""
    print(f"sqlimage: {text}", file=sys.stderr, flush=True)


def load_fuse() -> ModuleType:
    """The FUSE library. Raises :class:`~sqlimage.errors.DeviceError`, saying what to install."""
    if not os.path.exists("/dev/fuse"):
        raise DeviceError("/dev/fuse is missing", hint="load the kernel module (modprobe fuse)")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise DeviceError("fusermount3 is missing", hint="install the Debian package fuse3")
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # else libfuse2 is taken, which writes 4 KiB at a time
    try:
        import mfusepy
    except ImportError:
        raise DeviceError("mfusepy is missing", hint="pip install 'sqlimage[mount]'") from None
    except (OSError, AttributeError) as problem:
        raise DeviceError(f"libfuse3 cannot be loaded ({problem})", hint="install the Debian package fuse3") from None
    if mfusepy.fuse_version_major != 3:
        raise DeviceError("libfuse3 is missing", hint="install the Debian package fuse3")
    return mfusepy  # type: ignore[no-any-return]


def errno_of(problem: BaseException) -> int:
    """The error number that says most of what a device meant; EIO where nothing tells."""
    seen: BaseException | None = problem
    for _ in range(8):
        if seen is None:
            break
        if isinstance(seen, OSError) and seen.errno in _PASSED_ON:
            return seen.errno
        seen = seen.__cause__ or seen.__context__
    return errno.EIO


def answering(operation: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """An operation that fails with an error number only, whatever happens, and tells the rest to ``on_problem``."""

    @functools.wraps(operation)
    def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        _keep_thread()
        try:
            return operation(self, *args, **kwargs)
        except SqlimageError as problem:
            self.on_problem(str(problem))
            raise OSError(errno_of(problem), os.strerror(errno_of(problem))) from None
        except OSError as problem:
            raise OSError(problem.errno or errno.EIO, problem.strerror or "") from None
        except Exception as problem:
            self.on_problem(f"{operation.__name__}: {type(problem).__name__}: {problem}")
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from None

    return answer


def _keep_thread() -> None:
    """Let what Python keeps for a thread outlive the call.

    To Python, each call from a thread of libfuse is a new thread, so that whatever is kept for each thread (a database
    connection) would be made anew and thrown away for every read.
    """
    if not getattr(_kept, "yes", False):
        ctypes.pythonapi.PyGILState_Ensure()
        _kept.yes = True


class FuseServer:
    """Operations mounted on an empty directory, from construction until :meth:`unmount`.

    Raises :class:`~sqlimage.errors.DeviceError` where the system lets it not be mounted, and what
    :func:`~sqlimage.mount.mountpoint.check_mount_point` raises. Signals are the caller's: libfuse would end a mount on
    SIGTERM where nothing handles it.
    """

    def __init__(self, operations: Operations, directory: str, *, read_only: bool, **options: bool | str) -> None:
        self._fuse = load_fuse()
        self.directory = check_mount_point(directory)
        self.operations = operations
        # what a thread has is made once and kept, so threads that come and go would be a leak
        self._options = {"ro": read_only, "nosuid": True, "nodev": True, "max_idle_threads": "64", **options}
        self._failure = ""
        self._thread = threading.Thread(target=self._serve, name=f"fuse {self.directory}", daemon=True)
        self._thread.start()
        end = time.monotonic() + 20
        while wait_until_mounted(self.directory, 0.02) is None:
            if not self._thread.is_alive() or time.monotonic() > end:
                with contextlib.suppress(SqlimageError):
                    unmount(self.directory, lazy=True)
                raise DeviceError(f"{self.directory}: cannot be mounted ({self._failure or 'no answer in 20 s'})")

    @property
    def is_alive(self) -> bool:
        """Whether it is still mounted and served."""
        return self._thread.is_alive()

    def _serve(self) -> None:
        _libc.unshare(_CLONE_FS)  # libfuse makes "/" the working directory: let it be that of this thread only
        try:
            self._fuse.FUSE(
                self.operations,
                self.directory,
                raw_fi=True,
                foreground=True,
                fsname="sqlimage",
                subtype="sqlimage",
                **self._options,
            )
        except Exception as problem:
            self._failure = f"libfuse: {problem}"

    @property
    def is_mounted(self) -> bool:
        """Whether it is in the file tree."""
        return self._thread.is_alive() and mounted_at(self.directory) is not None

    def unmount(self, *, timeout_s: float = 10.0, lazy: bool = False) -> bool:
        """Unmount and end. Twice is allowed.

        Raises :class:`~sqlimage.errors.RefusedError` where files below it stay open for ``timeout_s``. With ``lazy`` it
        is then taken out of the tree nevertheless; False where somebody uses it still.
        """
        if self.is_mounted:
            try:
                unmount(self.directory, timeout_s=timeout_s)
            except SqlimageError:
                if not lazy:
                    raise
                unmount(self.directory, lazy=True)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()
