"""A machine started from an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlimage import boot
from sqlimage.errors import UsageError
from sqlimage.image.chunks import LARGE, Cache
from sqlimage.media.geometry import Geometry
from sqlimage.session.work import ENDS, Outcome, open_work


def boot_image(
    path: str,
    version: str | None = None,
    *,
    machine: boot.Machine = boot.DEFAULT,
    writable: bool = True,
    end: str = "keep",
    into: str | None = None,
    label: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache: Cache = LARGE,
    on_note: Callable[[str], None] | None = None,
) -> tuple[int, Outcome]:
    """Start QEMU on a version and wait for it: its exit code, and how the edit ended.

    The guest writes into an edit, which is kept, committed or discarded as ``end`` says; not ``writable``, what it
    writes vanishes. A bare volume is shown as a disk with a partition table and boot code.
    """
    if end not in ENDS:
        raise UsageError(f"{end!r} is no way to end an edit", hint=f"there are {', '.join(ENDS)}")
    work = open_work(
        path,
        version,
        writable=writable,
        into=into,
        label=label,
        user=user,
        message=message,
        search=search,
        cache=cache,
    )
    try:
        control = work.control
        geometry = None
        if control.cylinders and control.tracks_per_cylinder and control.sectors_per_track:
            geometry = Geometry(control.cylinders, control.tracks_per_cylinder, control.sectors_per_track)
        ready = boot.bootable(work.medium, work.volumes, geometry=geometry)
        if ready.note and on_note:
            on_note(ready.note)
        code = boot.boot(ready.device, machine, on_problem=on_note)
    except BaseException:
        work.abandon()
        raise
    return code, work.finish(end)
