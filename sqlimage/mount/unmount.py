"""The end of a mount that another process serves: asked for, waited for, and what came of it."""

from __future__ import annotations

import os
import time
from typing import Any

from sqlimage.errors import NotFoundError, RefusedError, SqlimageError
from sqlimage.mount import records
from sqlimage.mount.background import error_from_json
from sqlimage.mount.mountpoint import clear_stale, unmount_as_listed


def unmount(directory: str | os.PathLike[str], *, discard: bool = False, timeout_s: float = 120.0) -> dict[str, Any]:
    """End the mount on a directory, wait until everything is written, and give its outcome: ``directory``, ``image``,
    ``reason``, ``clean``, ``discard``, ``problems`` and, in ``result``, what its ``on_end`` told. With ``discard`` its
    ``on_end`` is asked to throw away what was written.

    What a killed mount left is cleared; the outcome's ``reason`` is then ``killed``. Raises
    :class:`~sqlimage.errors.NotFoundError` where sqlimage has mounted nothing there,
    :class:`~sqlimage.errors.RefusedError` where files below it are open, or its end takes longer than ``timeout_s``
    (then it goes on), and what its ``on_end`` raised.
    """
    shown = os.path.abspath(directory)
    record = records.find(shown)
    if record is None or not record.is_running:
        return _outcome_of_ended(shown, record)
    if discard:
        records.ask_to_discard(shown)
    try:
        unmount_as_listed(record.mounts, record.directory)
    except SqlimageError:
        records.ask_to_discard(shown, wanted=False)
        raise
    end = time.monotonic() + timeout_s
    while record.is_running and records.find(shown) is not None:
        if time.monotonic() > end:
            raise RefusedError(f"{shown}: process {record.pid} is still writing", hint="ask again later")
        time.sleep(0.02)
    return _outcome_of_ended(shown, records.find(shown))


def _outcome_of_ended(directory: str, record: records.MountRecord | None) -> dict[str, Any]:
    if record is not None:
        records.clear_leftovers()
        clear_stale(directory)
        said = f"process {record.pid}, which served it, was killed; what it left is cleared"
        return _killed(directory, record.image, not record.writable, said)
    outcome = records.take_outcome(directory)
    if outcome is not None:
        if "error" in outcome:
            raise error_from_json(outcome["error"])
        return outcome
    if clear_stale(directory):
        return _killed(directory, "", True, "the process that served it was killed; its mount is cleared")
    running = ", ".join(found.directory for found in records.running())
    raise NotFoundError(
        f"{directory}: sqlimage has mounted nothing there", hint=f"mounted are {running}" if running else ""
    )


def _killed(directory: str, image: str, clean: bool, problem: str) -> dict[str, Any]:
    outcome = {"directory": directory, "image": image, "reason": "killed", "discard": False}
    return {**outcome, "clean": clean, "problems": [problem]}
