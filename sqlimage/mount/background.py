"""Work that goes on in the background once it is ready, while its beginning succeeds or fails in the foreground."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from sqlimage import errors
from sqlimage.errors import DeviceError, FormatError, SqlimageError
from sqlimage.mount.session import error_as_json

Ready = Callable[[dict[str, Any]], None]
Work = Callable[[Ready], object]
_PLAIN = ("UsageError", "NotFoundError", "RefusedError", "LockedError", "FormatError", "DamagedError", "DeviceError")


def start_in_background(work: Work, *, log: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Run ``work`` in a process of its own, which outlives this one, and come back once it calls what it is given.

    That process begins with a fork: call this before any thread is started and any database opened, and let ``work``
    open its own; it runs in ``/``, so its paths are absolute. What it prints goes to ``log``, or nowhere. Gives what
    ``work`` told when it was ready, and raises what it raised before that.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    log_path = None if log is None else os.path.abspath(log)
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        _first_child(work, write_fd, log_path)
    os.close(write_fd)
    os.waitpid(child, 0)
    with os.fdopen(read_fd, "rb") as pipe:
        told = pipe.readline()
    if not told.endswith(b"\n"):
        raise DeviceError(
            "the background process ended before it was ready", hint="" if log_path is None else f"see {log_path}"
        )
    answer: dict[str, Any] = json.loads(told)
    if "error" in answer:
        raise error_from_json(answer["error"])
    ready: dict[str, Any] = answer["ready"]
    return ready


def error_from_json(told: dict[str, Any]) -> SqlimageError:
    """The error that :func:`~sqlimage.mount.session.error_as_json` told of in another process."""
    message, hint = str(told.get("message", "")), str(told.get("hint", ""))
    if told.get("error") in _PLAIN:
        kind: type[SqlimageError] = getattr(errors, str(told["error"]))
        return kind(message, hint=hint)
    kind = FormatError if told.get("exit_code") == FormatError.exit_code else SqlimageError
    return kind(message, hint=hint)


def _first_child(work: Work, write_fd: int, log: str | None) -> NoReturn:
    """Start the process that stays, and leave it to the system: nobody has to wait for it."""
    code = 1
    try:
        os.setsid()
        code = _stay(work, write_fd, log) if os.fork() == 0 else 0
    finally:
        os._exit(code)


def _stay(work: Work, write_fd: int, log: str | None) -> int:
    told = False

    def tell(answer: dict[str, Any]) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(write_fd, json.dumps(answer).encode() + b"\n")
            os.close(write_fd)

    try:
        _redirect(log)
        work(lambda ready: tell({"ready": ready}))
        tell({"ready": {}})
        return 0
    except SqlimageError as problem:
        print(f"sqlimage: {problem}", file=sys.stderr)
        tell({"error": error_as_json(problem)})
        return problem.exit_code
    except BaseException as problem:
        traceback.print_exc()  # to the log
        tell({"error": {"message": f"an error inside sqlimage: {type(problem).__name__}: {problem}", "exit_code": 70}})
        return 70
    finally:
        sys.stderr.flush()


def _redirect(log: str | None) -> None:
    try:
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as problem:
        raise DeviceError(f"{log}: cannot be opened ({problem.strerror})") from None
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.closerange(out, out + 1)
    os.close(null)
    os.chdir("/")
