"""The journey back: from a version of an image to a file, a device or a partition, every digest verified on the way."""

from __future__ import annotations

import glob
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from sqlimage.device import WritableDevice
from sqlimage.errors import DamagedError, NotFoundError, RefusedError
from sqlimage.extent import Runs
from sqlimage.image import effective
from sqlimage.image.chunks import connect, fetch
from sqlimage.image.image import Version
from sqlimage.image.lineage import resolve
from sqlimage.media.file import WritableFileDevice
from sqlimage.media.foreign import formats
from sqlimage.media.foreign.create import create
from sqlimage.media.foreign.device import WritableForeignDevice
from sqlimage.media.foreign.formats import Format
from sqlimage.media.partition import partition_window
from sqlimage.nameless import NamelessFile
from sqlimage.streams.cluster_map import MapTable
from sqlimage.units import MIB, Progress, format_size

_BATCH_BYTES = 4 * MIB
"""Content a worker takes at a time."""
_WRITEBACK_BYTES = 64 * MIB
"""How much is written before the kernel is asked to begin with it, so that the sync at the end is short."""
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What of a medium is restored: all of it, or one volume. ``clusters`` are whole ones; the last may be cut."""

    start_cluster: int
    clusters: int
    length_bytes: int

    @classmethod
    def of(cls, version: Version, volume: int | None) -> _Part:
        control = version.control
        if volume is None:
            return cls(0, control.total_clusters, control.medium_bytes)
        row = version.volume(volume)
        return cls(row.offset_clusters, row.length_clusters, row.length_bytes)

    def cut(self, table: MapTable, unit: int) -> MapTable:
        """The records of the part, their places counted from its first cluster."""
        low = np.maximum(table.start, self.start_cluster)
        high = np.minimum(table.end, self.start_cluster + self.clusters - 1)
        keep = high >= low
        offset = table.data_offset + np.where(table.data > 0, (low - table.start) * unit, 0)
        return MapTable(
            (low - self.start_cluster)[keep], (high - self.start_cluster)[keep], table.data[keep], offset[keep]
        )

    def of_runs(self, runs: Runs) -> Runs:
        """What of some clusters of the medium lies in the part, counted from its first one."""
        return runs.clip(self.start_cluster, self.start_cluster + self.clusters).shift(-self.start_cluster)


def restore(
    version: Version,
    destination: str | os.PathLike[str],
    *,
    volume: int | None = None,
    destination_format: str | None = None,
    partition: int | None = None,
    force: bool = False,
    wipe: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Write a version, or one ``volume`` of it, to a new file, an existing file or device, or one partition of either.

    A new file appears whole and synced under its name or not at all; so does one that replaces a file (``force``). It
    is a raw disk, or a container in the format (``vhdx``, ...) that ``destination_format`` names, else the end of its
    name.
    On a device or a partition the free clusters keep what they hold unless ``wipe`` zeroes them. Raises
    :class:`~sqlimage.errors.RefusedError` before a byte is written where the destination is too small, mounted, in
    use, or not empty (unless ``force``); :class:`~sqlimage.errors.DamagedError` where a chunk fails its digest.
    """
    path = os.path.realpath(destination)
    part = _Part.of(version, volume)
    if path == os.path.realpath(version.image.path):
        raise RefusedError(f"{path}: is the image itself")
    lineage = resolve(version.image.database, version.control, version.image.search)
    lineage.close()
    if any(os.path.realpath(file.path) == path for file in lineage.files):
        raise RefusedError(f"{path}: is a parent of the image, which is read from it")
    _refuse_mounted(path)
    if not os.path.lexists(path) and (path + "/").startswith("/dev/") and not path.startswith("/dev/shm/"):
        raise NotFoundError(f"{path}: no such device")
    is_device = _is_block_device(path)
    kind = formats.for_destination(path, destination_format) if destination_format or not is_device else None
    if kind is not None and (partition is not None or is_device):
        what = "a partition" if partition is not None else "a device"
        raise RefusedError(f"{path}: {what} holds no {kind.name} file", hint="restore to a new file, or as `raw`")
    if partition is None and not is_device:
        return _to_new_file(version, part, path, kind, force, threads, progress)
    device = WritableFileDevice(path)
    try:
        target_device: WritableDevice = device
        if partition is not None:
            window = partition_window(device, partition)
            assert isinstance(window, WritableDevice)
            target_device = window
        _check_room(part, path, target_device, force)
        report = _Restore(version, part, path, target_device, fresh=False, wipe=wipe).run(threads, progress)
        target_device.flush()
        return report
    finally:
        device.close()


def _to_new_file(
    version: Version,
    part: _Part,
    path: str,
    kind: Format | None,
    force: bool,
    threads: int | None,
    progress: Progress | None,
) -> RestoreReport:
    """A file that gets its name when everything in it was verified and synced: sparse, or a container."""
    is_empty_file = os.path.isfile(path) and os.path.getsize(path) == 0
    if os.path.lexists(path) and not (force or is_empty_file or os.path.isdir(path)):
        raise RefusedError(f"{path}: exists and is not empty", hint="use --force to replace it")
    with NamelessFile(path, replace=force or is_empty_file) as file:
        size = part.length_bytes
        target = WritableFileDevice(file.path, name=path) if kind is None else create(file, kind, size)
        try:
            if isinstance(target, WritableFileDevice):
                target.resize(size)
            job = _Restore(version, part, path, target, fresh=True, wipe=False, start_writeback=file.start_writeback)
            report = job.run(threads, progress)
            if isinstance(target, WritableForeignDevice):
                target.finish()
                padding = target.size_bytes - size
                report = replace(report, format=target.format.name, padding_bytes=padding)
        finally:
            target.close()
        file.publish()
    return report


class _Restore:
    """One restore in progress."""

    def __init__(
        self,
        version: Version,
        part: _Part,
        path: str,
        target: WritableDevice,
        *,
        fresh: bool,
        wipe: bool,
        start_writeback: Callable[[], None] | None = None,
    ) -> None:
        self._version = version
        self._part = part
        self._path = path
        self._target = target
        self._fresh = fresh
        self._wipe = wipe
        self._start_writeback = start_writeback
        self._unit = version.control.bytes_per_cluster
        self._lineage = resolve(version.image.database, version.control, version.image.search)
        self._connections = connect(self._lineage)
        self._written = self._chunks = 0

    def run(self, threads: int | None, progress: Progress | None) -> RestoreReport:
        control = self._version.control
        zeroed = 0
        pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="restore")
        window: deque[Future[tuple[int, int]]] = deque()
        total = min(self._part.of_runs(self._version.allocated()).total * self._unit, self._part.length_bytes)

        def take_oldest() -> None:
            written, chunks = window.popleft().result()
            if (
                self._start_writeback
                and self._written // _WRITEBACK_BYTES != (self._written + written) // _WRITEBACK_BYTES
            ):
                self._start_writeback()
            self._written += written
            self._chunks += chunks
            if progress:
                progress(min(self._written, total), total)

        try:
            mapped = Runs.empty()
            for page in effective.pages(self._lineage, self._connections):
                table = self._part.cut(page, self._unit)
                backed = table.data > 0
                mapped = mapped.union(Runs.from_arrays(table.start[backed], (table.end - table.start + 1)[backed]))
                for batch in _batches(table, backed, self._unit):
                    window.append(pool.submit(self._write, batch))
                    if len(window) > 8:
                        take_oldest()
            while window:
                take_oldest()
            if not self._fresh:
                zeroed = self._zero(mapped)
        finally:
            pool.shutdown(cancel_futures=True)
            for connections in self._connections:
                connections.close()
            self._lineage.close()
        return RestoreReport(
            self._version.image.path,
            control.version,
            control.uuid,
            self._path,
            self._part.length_bytes,
            self._written,
            zeroed,
            self._chunks,
        )

    def _write(self, batch: MapTable) -> tuple[int, int]:
        """Decode the chunks of a batch and write each to its places; bytes written and chunks verified."""
        size, unit = self._part.length_bytes, self._unit
        written = chunks = 0
        number, content = 0, memoryview(b"")
        rows = zip(
            batch.start.tolist(), batch.end.tolist(), batch.data.tolist(), batch.data_offset.tolist(), strict=True
        )
        for start, end, wanted, offset in rows:
            if wanted != number:
                number, content = wanted, memoryview(fetch(self._connections, effective.key_of(wanted)))
                chunks += 1
            length = (end - start + 1) * unit
            if offset + length > len(content):
                raise DamagedError(
                    f"{self._version.image.path}: a map record reaches beyond data {wanted}", data=wanted
                )
            length = min(length, size - start * unit)
            self._target.write(start * unit, content[offset : offset + length].toreadonly())
            written += length
        return written, chunks

    def _zero(self, mapped: Runs) -> int:
        """Zero what reads as zeros but may hold something else: allocated clusters, or with ``wipe`` all of them."""
        part = self._part
        whole = Runs.of([(0, part.clusters)])
        zeroed = 0
        for start, length in (
            (whole if self._wipe else part.of_runs(self._version.allocated())).subtract(mapped).clip(0, part.clusters)
        ):
            length_bytes = min(length * self._unit, part.length_bytes - start * self._unit)
            self._target.zero(start * self._unit, length_bytes)
            zeroed += length_bytes
        return zeroed


def _batches(table: MapTable, backed: np.ndarray[tuple[int], np.dtype[np.bool_]], unit: int) -> Iterator[MapTable]:
    """A page of the map in the order of the data, in pieces of about ``_BATCH_BYTES`` that part no chunk's records."""
    order = np.flatnonzero(backed)
    order = order[np.argsort(table.data[order], kind="stable")]
    if not len(order):
        return
    number = table.data[order]
    weight = np.cumsum((table.end - table.start + 1)[order]) * unit // _BATCH_BYTES
    is_first = np.concatenate(([True], number[1:] != number[:-1]))
    chunk_weight = weight[np.flatnonzero(is_first)][np.cumsum(is_first) - 1]
    cuts = np.flatnonzero(np.diff(chunk_weight)) + 1
    for part in np.split(order, cuts):
        yield MapTable(table.start[part], table.end[part], table.data[part], table.data_offset[part])


def _check_room(part: _Part, path: str, target: WritableDevice, force: bool) -> None:
    needed = part.length_bytes
    if target.size_bytes < needed:
        raise RefusedError(
            f"{path}: has {format_size(target.size_bytes)} ({target.size_bytes} bytes), the image needs "
            f"{format_size(needed)} ({needed} bytes)"
        )
    if force:
        return
    ends = {0, max(0, target.size_bytes - _LOOKED_AT)}
    if any(any(target.read(at, min(_LOOKED_AT, target.size_bytes - at))) for at in ends):
        raise RefusedError(f"{path}: is not empty", hint="use --force to overwrite it")


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _refuse_mounted(path: str) -> None:
    """A file behind a loop device is in use, and writing under a mounted file system destroys it."""
    for backing in glob.glob("/sys/block/loop*/loop/backing_file"):
        with suppress(OSError), open(backing, encoding="utf-8", errors="surrogateescape") as file:
            if file.read().rstrip("\n") == path:
                device = backing.split("/")[3]
                raise RefusedError(f"{path}: is in use as /dev/{device}", hint=f"run `losetup -d /dev/{device}` first")
