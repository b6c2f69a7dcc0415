"""What is to become of a medium that is restored to another size, or to a place with other neighbours: a plan, made
before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlimage.device import BlockDevice
from sqlimage.errors import RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Scan
from sqlimage.filesystem.probe import open_file_system
from sqlimage.filesystem.relocation import Relocatable, Wish
from sqlimage.image.relayout import moves_of
from sqlimage.journey.relaid import Layout, RelaidVolume
from sqlimage.media.geometry import Geometry
from sqlimage.units import SECTOR_BYTES, format_size, parse_size

Size = int | Literal["minimum", "maximum"]


@dataclass(frozen=True, slots=True)
class Target:
    """What the destination asks for. None: as it was captured."""

    size: Size | None = None
    hidden_sectors: int | None = None
    geometry: Geometry | None = None
    room_bytes: int | None = None
    """What the destination has; None for a file, which becomes as large as it has to."""

    @property
    def is_as_captured(self) -> bool:
        return self.size is None and self.hidden_sectors is None and self.geometry is None


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


def plan_volume(device: BlockDevice, allocated: Runs, target: Target, number: int) -> Layout:
    """The layout of a volume alone. ``device`` is the volume as it was captured, ``allocated`` what counts of it.

    Raises :class:`~sqlimage.errors.RefusedError` where it cannot be done, with what is needed and what there is.
    """
    file_system = open_file_system(device)
    if not isinstance(file_system, Relocatable):
        what = file_system.facts.file_system if file_system is not None else "no file system that is known"
        raise RefusedError(
            f"volume {number}: {what} cannot be laid out anew", hint="restore it as it was captured, without --size"
        )
    scan = file_system.scan()
    smallest = file_system.smallest_bytes(scan)
    size = wanted_size(target, device.size_bytes, smallest)
    return _laid_out(file_system, scan, device, size, target, number)


def wanted_size(target: Target, captured_bytes: int, smallest_bytes: int) -> int:
    """How large it is to become. Raises :class:`~sqlimage.errors.RefusedError` where that is too small, or the
    destination is."""
    room = target.room_bytes
    if target.size == "maximum":
        if room is None:
            raise UsageError("a new file has no size of its own to fill", hint="say how large: --size 20GiB")
        size = room
    elif target.size == "minimum":
        size = smallest_bytes
    else:
        size = captured_bytes if target.size is None else target.size
    size = size // SECTOR_BYTES * SECTOR_BYTES if size != captured_bytes else size
    if size < smallest_bytes:
        raise RefusedError(f"{_told(size)} do not suffice: what the image holds needs {_told(smallest_bytes)}")
    if room is not None and size > room:
        raise RefusedError(
            f"the destination has {_told(room)}, {_told(size)} are needed",
            hint=f"--size maximum fits it in; it needs {_told(smallest_bytes)} at least"
            if room >= smallest_bytes
            else f"it needs {_told(smallest_bytes)} at least",
        )
    return size


def _told(size_bytes: int) -> str:
    return f"{format_size(size_bytes)} ({size_bytes} bytes)"


def _laid_out(
    file_system: Relocatable, scan: Scan, device: BlockDevice, size: int, target: Target, number: int
) -> Layout:
    geometry = target.geometry
    relocation = file_system.relocate(
        scan,
        Wish(
            size_bytes=size if size != device.size_bytes else None,
            hidden_sectors=target.hidden_sectors,
            sectors_per_track=geometry.sectors_per_track if geometry else None,
            tracks_per_cylinder=geometry.tracks_per_cylinder if geometry else None,
        ),
    )
    volume = RelaidVolume(number, 0, device.size_bytes, 0, size, relocation, scan)
    return Layout(size, moves_of(relocation), relocation.allocated, relocation.fixups, (volume,))
