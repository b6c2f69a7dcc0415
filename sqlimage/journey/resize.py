"""What is to become of a medium that is restored to another size, or to a place with other neighbours: a plan, made
before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from sqlimage.device import BlockDevice
from sqlimage.errors import RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.filesystem.probe import open_file_system
from sqlimage.journey.relaid import Layout, RelaidVolume
from sqlimage.journey.resizable import WITH_HIDDEN_SECTORS, Resizable, Size, Target, what_it_is
from sqlimage.units import SECTOR_BYTES, format_size, parse_size


def parse_target_size(text: str) -> Size:
    """``minimum``, ``maximum``, or a size as ``parse_size`` reads it. Raises :class:`UsageError`."""
    if text == "minimum":
        return "minimum"
    if text == "maximum":
        return "maximum"
    try:
        return parse_size(text)
    except UsageError as problem:
        raise UsageError(problem.message, hint="write minimum, maximum, or a number with a unit, as 20GiB") from None


def plan_volume(device: BlockDevice, kept: Runs, target: Target, number: int, open_files: ExitStack) -> Layout:
    """The layout of a volume alone. ``device`` is the volume as it was captured, ``kept`` what counts of it;
    ``open_files`` takes what has to be closed in the end.

    Raises :class:`~sqlimage.errors.RefusedError` where it cannot be done, with what is needed and what there is.
    """
    resizable = Resizable.of(device, open_file_system(device))
    if resizable is None:
        raise RefusedError(
            f"volume {number}: {what_it_is(device)} cannot be laid out anew",
            hint="restore it as it was captured, without --size, --hidden-sectors and --geometry",
        )
    name = resizable.file_system.facts.file_system
    if name not in WITH_HIDDEN_SECTORS and (target.hidden_sectors is not None or target.geometry is not None):
        raise RefusedError(
            f"volume {number}: {name} does not tell where on its disk it begins, nor of what geometry that is",
            hint="leave --hidden-sectors and --geometry out",
        )
    size = wanted_size(target, device.size_bytes, lambda: resizable.smallest_bytes)
    place = RelaidVolume(number, 0, device.size_bytes, 0, size, resizable.scan, kept)
    volume = resizable.on(place, target, open_files)
    return Layout(size, volume.moves, volume.allocated, volume.fixups, (volume,), volume.notes)


def wanted_size(
    target: Target, captured_bytes: int, smallest_bytes: Callable[[], int], unit: int = SECTOR_BYTES
) -> int:
    """How large it is to become, in whole units; ``smallest_bytes`` is asked only where it matters, for finding it can
    take long. Raises :class:`~sqlimage.errors.RefusedError` where that is too small, or the destination is."""
    room = target.room_bytes
    if target.size == "maximum":
        if room is None:
            raise UsageError("a new file has no size of its own to fill", hint="say how large: --size 20GiB")
        size = room
    elif target.size == "minimum":
        size = smallest_bytes()
    else:
        size = captured_bytes if target.size is None else target.size
    size = size if size == captured_bytes else size // unit * unit
    if size < captured_bytes and size < (smallest := smallest_bytes()):
        raise RefusedError(f"{_told(size)} do not suffice: what the image holds needs {_told(smallest)}")
    if room is not None and size > room:
        smallest = smallest_bytes()
        raise RefusedError(
            f"the destination has {_told(room)}, {_told(size)} are needed",
            hint=("--size maximum fits it in; it" if room >= smallest else "it") + f" needs {_told(smallest)} at least",
        )
    return size


def _told(size_bytes: int) -> str:
    return f"{format_size(size_bytes)} ({size_bytes} bytes)"
