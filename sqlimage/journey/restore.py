"""The journey back: from a version of an image to a file, a device or a partition, every digest verified on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from sqlimage.device import WritableDevice
from sqlimage.errors import NotFoundError, RefusedError
from sqlimage.image.image import Version
from sqlimage.image.lineage import resolve
from sqlimage.journey.destination import begins_at, is_block_device, refuse_mounted, refuse_taken
from sqlimage.journey.relaid import apply_fixups
from sqlimage.journey.resizable import Size, Target
from sqlimage.journey.resized import Plan, planned
from sqlimage.journey.unpack import Part, Unpacking
from sqlimage.media.file import WritableFileDevice
from sqlimage.media.foreign import formats
from sqlimage.media.foreign.create import create
from sqlimage.media.foreign.device import WritableForeignDevice
from sqlimage.media.foreign.formats import Format
from sqlimage.media.geometry import Geometry
from sqlimage.media.partition import partition_window
from sqlimage.nameless import NamelessFile
from sqlimage.units import MIB, Progress, format_size

_GPT_BACKUP = (
    "the device is larger than the disk, whose backup GPT so does not lie at its end; --size maximum brings it there"
)
_LOOKED_AT = MIB
"""How much of each end of a destination is looked at to see whether it is empty."""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore came to; sizes in bytes."""

    image: str
    version: int
    uuid: str
    destination: str
    medium_bytes: int
    """Of what was restored: the medium, or one volume of it."""
    written_bytes: int
    zeroed_bytes: int
    chunks_verified: int
    format: str = formats.RAW
    """Of the destination."""
    padding_bytes: int = 0
    """Zeros behind the medium, where the format holds whole sectors only."""
    captured_bytes: int = 0
    """Its size in the image, from which ``medium_bytes`` may differ."""
    fixups: int = 0
    """How many places of its control information were changed."""
    files_compared: int = 0
    """How many contents of volumes that were laid out anew were read again and had the digest that they had."""
    notes: tuple[str, ...] = ()


def restore(
    version: Version,
    destination: str | os.PathLike[str],
    *,
    volume: int | None = None,
    destination_format: str | None = None,
    partition: int | None = None,
    size: Size | None = None,
    hidden_sectors: int | None = None,
    geometry: Geometry | None = None,
    force: bool = False,
    wipe: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Write a version, or one ``volume`` of it, to a new file, an existing file or device, or one partition of either.

    A new file appears whole and synced under its name or not at all; so does one that replaces a file (``force``). It
    is a raw disk, or a container in the format (``vhdx``, ...) that ``destination_format`` names, else the end of its
    name. ``size`` (bytes, ``minimum``, or ``maximum``: all the room there is) lays out the volumes anew so that they
    fit, a disk's partition table too; ``hidden_sectors`` (before a volume) and ``geometry`` are what boot sectors and
    partition tables are to say. What was laid out anew is read again, and every file compared, before the file gets its
    name or the call returns.

    On a device or a partition the free clusters keep what they hold unless ``wipe`` zeroes them. Raises
    :class:`~sqlimage.errors.RefusedError` before a byte is written where the destination is too small, mounted, in
    use, or not empty (unless ``force``); :class:`~sqlimage.errors.DamagedError` where a chunk fails its digest.
    """
    path = os.path.realpath(destination)
    part = Part.of(version, volume)
    if path == os.path.realpath(version.image.path):
        raise RefusedError(f"{path}: is the image itself")
    lineage = resolve(version.image.database, version.control, version.image.search)
    lineage.close()
    if any(os.path.realpath(file.path) == path for file in lineage.files):
        raise RefusedError(f"{path}: is a parent of the image, which is read from it")
    refuse_mounted(path)
    if not os.path.lexists(path) and (path + "/").startswith("/dev/") and not path.startswith("/dev/shm/"):
        raise NotFoundError(f"{path}: no such device")
    is_device = is_block_device(path)
    kind = formats.for_destination(path, destination_format) if destination_format or not is_device else None
    if kind is not None and (partition is not None or is_device):
        what = "a partition" if partition is not None else "a device"
        raise RefusedError(f"{path}: {what} holds no {kind.name} file", hint="restore to a new file, or as `raw`")
    target = Target(size, hidden_sectors, geometry)
    job = _Job(version, volume, part, path, threads, progress)
    if partition is None and not is_device:
        return _to_new_file(job, target, kind, force)
    device = WritableFileDevice(path)
    try:
        if is_device and volume is None and partition is None:
            _check_sectors(version, device)
        there: WritableDevice = device
        if partition is not None:
            window = partition_window(device, partition)
            assert isinstance(window, WritableDevice)
            there = window
        target = replace(target, room_bytes=there.size_bytes, begins_at=begins_at(device, partition))
        with planned(version, volume, part, target) as plan:
            _check_room(plan.layout.size_bytes, path, there, force)
            report = job.run(plan, there, fresh=False, wipe=wipe)
        there.flush()
        is_gpt = volume is None and partition is None and version.control.partition_scheme == "gpt"
        if is_gpt and there.size_bytes > report.medium_bytes:
            report = replace(report, notes=(*report.notes, _GPT_BACKUP))
        return report
    finally:
        device.close()


def _to_new_file(job: _Job, target: Target, kind: Format | None, force: bool) -> RestoreReport:
    """A file that gets its name when everything in it was verified and synced: sparse, or a container."""
    path = job.path
    is_empty_file = os.path.isfile(path) and os.path.getsize(path) == 0
    refuse_taken(path, force=force)
    with (
        NamelessFile(path, replace=force or is_empty_file) as file,
        planned(job.version, job.volume, job.part, target) as plan,
    ):
        size = plan.layout.size_bytes
        there = WritableFileDevice(file.path, name=path) if kind is None else create(file, kind, size)
        try:
            if isinstance(there, WritableFileDevice):
                there.resize(size)
            report = job.run(plan, there, fresh=True, wipe=False, file=file)
            if isinstance(there, WritableForeignDevice):
                there.finish()
                report = replace(report, format=there.format.name, padding_bytes=there.size_bytes - size)
        finally:
            there.close()
        file.publish()
    return report


@dataclass(frozen=True, slots=True)
class _Job:
    """What is restored, and where."""

    version: Version
    volume: int | None
    part: Part
    path: str
    threads: int | None
    progress: Progress | None

    def run(
        self,
        plan: Plan,
        there: WritableDevice,
        *,
        fresh: bool,
        wipe: bool,
        file: NamelessFile | None = None,
    ) -> RestoreReport:
        """Write, change what has to be changed, and read again what was laid out anew."""
        start_writeback = file.start_writeback if file is not None else None
        unpacking = Unpacking(self.version, self.part, plan.layout, there, start_writeback)
        done = unpacking.run(fresh=fresh, wipe=wipe, threads=self.threads, progress=self.progress)
        for relaid in plan.layout.volumes:
            relaid.write_control(there, fresh=fresh)
        apply_fixups(there, plan.layout.fixups)
        plan.look_up_digests()
        if file is not None and plan.layout.volumes:
            file.sync_meanwhile()
        compared = plan.prove(there, self.threads)
        return RestoreReport(
            image=self.version.image.path,
            version=self.version.number,
            uuid=self.version.control.uuid,
            destination=self.path,
            medium_bytes=plan.layout.size_bytes,
            written_bytes=done.written_bytes,
            zeroed_bytes=done.zeroed_bytes,
            chunks_verified=done.chunks,
            captured_bytes=self.part.length_bytes,
            fixups=len(plan.layout.fixups),
            files_compared=compared,
            notes=plan.layout.notes,
        )


def _check_sectors(version: Version, device: WritableFileDevice) -> None:
    """A partition table counts sectors: on a disk of others nobody finds what it tells of."""
    told, there = version.control.bytes_per_sector, device.bytes_per_sector
    if version.control.partition_scheme is not None and told != there:
        raise RefusedError(
            f"{device.path}: has sectors of {there} bytes, the disk in the image has {told}: "
            "its partition table could not be read there",
            hint="make a partition table, and restore the volumes with --volume and --partition",
        )


def _check_room(needed: int, path: str, target: WritableDevice, force: bool) -> None:
    if target.size_bytes < needed:
        raise RefusedError(
            f"{path}: has {format_size(target.size_bytes)} ({target.size_bytes} bytes), the image needs "
            f"{format_size(needed)} ({needed} bytes)",
            hint="`--size maximum` makes it fit, where it can be made so small; `--size` with `--explain` tells",
        )
    if force:
        return
    ends = {0, max(0, target.size_bytes - _LOOKED_AT)}
    if any(any(target.read(at, min(_LOOKED_AT, target.size_bytes - at))) for at in ends):
        raise RefusedError(f"{path}: is not empty", hint="use --force to overwrite it")
