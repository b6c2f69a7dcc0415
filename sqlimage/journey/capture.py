"""The journey from a medium to an image: inspect, plan, encode on threads, write, publish whole or not at all."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from sqlimage.device import BlockDevice, Prefetching
from sqlimage.extent import Runs
from sqlimage.image.medium import Medium, inspect
from sqlimage.journey import presets
from sqlimage.journey.encode import Encoded, Encoder
from sqlimage.journey.plan import Plan, make_plan
from sqlimage.journey.presets import Preset
from sqlimage.journey.story import CaptureReport, Story
from sqlimage.journey.write import Writer
from sqlimage.media.file import FileDevice
from sqlimage.media.geometry import Geometry
from sqlimage.media.partition import find_partition, partition_window
from sqlimage.streams import properties
from sqlimage.streams.control import check_label
from sqlimage.streams.database import Database
from sqlimage.streams.newfile import NewImage
from sqlimage.streams.properties import Value
from sqlimage.units import Progress


def capture(
    source: str | os.PathLike[str] | BlockDevice,
    image: str | os.PathLike[str],
    *,
    label: str | None = None,
    partition: int | None = None,
    property_values: Mapping[str, Value] | None = None,
    store: Sequence[str] = (),
    keep_page_files: bool = False,
    preset: str = presets.DEFAULT,
    level: int | None = None,
    hidden_sectors: int | None = None,
    geometry: Geometry | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CaptureReport:
    """Capture a volume or a disk into a new image file.

    ``source`` is a raw file, a block device, or any device; ``partition`` takes one partition of it, by the number
    Linux gives it. ``store`` are globs of files that stay uncompressed. ``hidden_sectors`` (sectors before the volume)
    and ``geometry`` override what the boot sector says. The image appears under its name whole and synced, or not at
    all. Raises :class:`~sqlimage.errors.SqlimageError` subclasses only.
    """
    chosen = presets.choose(preset, level)
    wanted = dict(property_values or {})
    for name, value in wanted.items():
        properties.check(name, value)
        properties.check_not_reserved(name)
    check_label(label)
    opened = FileDevice(source) if isinstance(source, str | os.PathLike) else None
    whole: BlockDevice = opened or source  # type: ignore[assignment]
    try:
        device, part = whole, None
        origin = os.path.abspath(opened.path) if opened else type(whole).__name__
        origin = os.fsencode(origin).decode("utf-8", "replace")
        if partition is not None:
            device, part = partition_window(whole, partition), find_partition(whole, partition)
            origin += f" partition {partition}"
        with NewImage(image) as new:
            database = Database(new.target, new.connection, writable=True)
            medium = inspect(device, partition=part, keep_page_files=keep_page_files)
            plan = make_plan(medium, chosen, store)
            database.run("BEGIN")
            writer = Writer(database)
            story = Story(database, medium, plan, writer, hidden_sectors, _notes(opened))
            _fill(new, writer, medium, plan, chosen, threads or os.cpu_count() or 1, progress, story.write_places)
            story.write(chosen, label, origin, geometry, wanted)
            new.make_indexes()
            writer.repoint()
            database.run("COMMIT")
            new.publish()
            return story.report(new.target, new.size_bytes)
    finally:
        if opened:
            opened.close()


def _notes(source: FileDevice | None) -> list[str]:
    """What the reader of the report should know of the source: a mounted device changes while it is read."""
    if source is None or not source.is_block_device:
        return []
    path = os.path.realpath(source.path)
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            mounted = any(os.path.realpath(line.split(" ", 1)[0]) == path for line in mounts if line.startswith("/"))
    except OSError:
        return []
    return [f"{path} is mounted: what changes while it is read may not fit together"] if mounted else []


_IN_FLIGHT_BYTES = 64 << 20
"""How much of the source may be under way between reading and writing."""
_WRITEBACK_BYTES = 32 << 20
"""How much is stored before the kernel is asked to begin writing it."""


def _fill(
    new: NewImage,
    writer: Writer,
    medium: Medium,
    plan: Plan,
    preset: Preset,
    threads: int,
    progress: Progress | None,
    meanwhile: Callable[[], None] | None,
) -> None:
    """Run the jobs on threads and write what they come to in the order of the plan; memory is bounded by the window.

    ``meanwhile`` is called once, while the first jobs are under way.
    """
    encoder = Encoder(medium.device, plan.bytes_per_cluster, preset.chunk_bytes, preset.level)
    total = plan.wanted.total * plan.bytes_per_cluster
    pool = ThreadPoolExecutor(threads, thread_name_prefix="capture")
    window: deque[tuple[int, Future[Encoded]]] = deque()
    in_flight = synced = 0

    def prefetch(places: Runs) -> None:
        if isinstance(medium.device, Prefetching):
            for start, length in places:
                medium.device.prefetch(start * plan.bytes_per_cluster, length * plan.bytes_per_cluster)

    def write_oldest() -> None:
        nonlocal in_flight, synced
        length, future = window.popleft()
        writer.add(future.result())
        in_flight -= length
        if writer.totals.stored_bytes - synced > _WRITEBACK_BYTES:
            synced = writer.totals.stored_bytes
            new.start_writeback()
        if progress:
            progress(min(writer.totals.read_bytes, total), total)

    try:
        for job in plan.jobs(prefetch):
            length = job.clusters * plan.bytes_per_cluster
            if meanwhile and in_flight + length > _IN_FLIGHT_BYTES:
                meanwhile()
                meanwhile = None
            while window and (in_flight + length > _IN_FLIGHT_BYTES or window[0][1].done()):
                write_oldest()
            window.append((length, pool.submit(encoder.begin(job))))
            in_flight += length
        if meanwhile:
            meanwhile()
        while window:
            write_oldest()
        writer.finish()
    finally:
        pool.shutdown(cancel_futures=True)
