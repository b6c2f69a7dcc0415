"""An image in the file tree: mounted in the background, and what becomes of an edit when the mount ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlimage.errors import SqlimageError
from sqlimage.image.chunks import LARGE, Cache
from sqlimage.image.key_slots import unlock
from sqlimage.mount import session
from sqlimage.mount.background import Ready, start_in_background
from sqlimage.mount.session import MountEnd, MountRequest
from sqlimage.mount.unmount import unmount as _unmount
from sqlimage.session.work import Outcome, open_work
from sqlimage.transfer.opening import local_image
from sqlimage.transfer.stores.address import is_url


def mount(
    path: str,
    directory: str,
    version: str | None = None,
    *,
    volume: int | None = None,
    show_devices: bool = False,
    way: str | None = None,
    writable: bool = False,
    foreground: bool = False,
    log: str | None = None,
    into: str | None = None,
    label: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache: Cache = LARGE,
) -> dict[str, Any]:
    """Mount a version on an empty directory, or, ``writable``, an edit on top of it.

    ``show_devices`` shows the medium and its volumes as files; otherwise the file system of the volume is mounted, by
    ``way`` (``kernel``, ``ntfs-3g``, ``fuse2fs``, ``exfat-fuse``, ``reader``) or the first of them that can. It stays
    in the background until it is unmounted (:func:`unmount`, ``umount``), which commits the edit; a mount that ends in
    another way leaves the edit open. Gives what runs: ``directory``, ``pid``, ``ways``, ``version``.

    With ``foreground`` it stays here until the end and gives the outcome. Call it before any image is opened: it forks.
    """
    path, directory = path if is_url(path) else os.path.abspath(path), os.path.abspath(directory)
    places = [os.path.abspath(place) for place in search]
    child = None if into is None else os.path.abspath(into)

    (_unlock_elsewhere if is_url(path) else unlock)(path)  # while there is somebody to ask

    def work(ready: Ready) -> dict[str, Any]:
        opened = open_work(
            path,
            version,
            writable=writable,
            into=child,
            label=label,
            user=user,
            message=message,
            search=places,
            cache=cache,
        )
        number = opened.control.version
        request = MountRequest(
            directory,
            image=f"{opened.path}@{number}",
            volume=None if volume is None else f"volume-{volume}",
            show_devices=show_devices,
            writable=writable,
            way=way,
        )

        def on_end(end: MountEnd) -> dict[str, Any]:
            return asdict(opened.finish(_fate(end)))

        try:
            return session.mount(
                opened.devices(),
                request,
                on_end=on_end,
                on_ready=lambda info: ready({**info, "image": opened.path, "version": number}),
            )
        finally:
            opened.abandon()

    if foreground:
        return work(lambda info: None)
    return start_in_background(work, log=log)


def _unlock_elsewhere(url: str) -> None:
    """Have the key of an image at a URL at hand. Another process fetches what tells of it: no line, and no thread that
    waits for one, survives the fork that is to come."""

    def work(ready: Ready) -> None:
        ready({"path": local_image(url, with_rest=False)})

    path = str(start_in_background(work)["path"])
    try:
        unlock(path)
    except SqlimageError as problem:
        problem.message = problem.message.replace(path, url)
        raise


def _fate(end: MountEnd) -> str:
    """Unmounting commits; what ended otherwise, or lost a write, waits for somebody to look at it."""
    if end.discard:
        return "discard"
    return "commit" if end.clean and end.reason == "unmounted" else "keep"


def unmount(directory: str, *, discard: bool = False, timeout_s: float = 600.0) -> tuple[Outcome, list[str]]:
    """End a mount, wait until everything is written, and tell how it ended and what went wrong on the way.

    What a killed mount left is cleared; its edit is still open. Raises what
    :func:`sqlimage.mount.unmount.unmount` raises.
    """
    told = _unmount(directory, discard=discard, timeout_s=timeout_s)
    problems = [str(problem) for problem in told.get("problems", ())]
    result = told.get("result")
    if result:
        return Outcome.from_plain(result), problems
    path, _, number = str(told.get("image", "")).rpartition("@")
    if told.get("reason") == "killed" and not told.get("clean", True) and number.isdecimal():
        return Outcome(path, int(number), "open"), problems
    return Outcome(path, int(number) if number.isdecimal() else None, "read"), problems
