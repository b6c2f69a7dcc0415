"""The journey from a medium to an image: inspect, plan, encode on threads, write, publish whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlimage.codec.ways import Way
from sqlimage.device import BlockDevice, Prefetching
from sqlimage.errors import RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.image.image import Image, Version
from sqlimage.image.medium import Medium, in_units_of, inspect
from sqlimage.image.relayout import defragmented
from sqlimage.image.writing import give_back_space, writing
from sqlimage.journey import presets
from sqlimage.journey.child import ChildCapture, Target
from sqlimage.journey.defragment import Relayout
from sqlimage.journey.encode import Encoder
from sqlimage.journey.encryption import Encryption, Wanted, for_child, for_first
from sqlimage.journey.plan import Plan, make_plan
from sqlimage.journey.pour import pour
from sqlimage.journey.presets import Preset
from sqlimage.journey.story import CaptureReport, Parent, Story
from sqlimage.journey.write import VERSION, Writer
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign.device import ForeignDevice
from sqlimage.media.foreign.source import open_source
from sqlimage.media.geometry import Geometry
from sqlimage.media.partition import Partition, find_partition, partition_window
from sqlimage.streams import control, data, properties
from sqlimage.streams.control import check_label
from sqlimage.streams.database import Database
from sqlimage.streams.newfile import NewImage
from sqlimage.streams.properties import Value
from sqlimage.units import Progress


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the caller asked for."""

    label: str | None
    property_values: Mapping[str, Value]
    store: Sequence[str]
    keep_page_files: bool
    defragment: bool
    preset: Preset
    hidden_sectors: int | None
    geometry: Geometry | None
    threads: int | None
    progress: Progress | None
    encryption: Wanted


@dataclass(frozen=True, slots=True)
class _Source:
    """What is captured."""

    device: BlockDevice
    partition: Partition | None
    origin: str
    notes: tuple[str, ...]


def capture(
    source: str | os.PathLike[str] | BlockDevice,
    image: str | os.PathLike[str],
    *,
    parent: str | os.PathLike[str] | None = None,
    append: bool = False,
    parent_version: str | None = None,
    label: str | None = None,
    source_format: str | None = None,
    partition: int | None = None,
    property_values: Mapping[str, Value] | None = None,
    store: Sequence[str] = (),
    encrypt: Sequence[str] = (),
    encrypt_all: bool = False,
    ways: Sequence[Way] | Callable[[], Sequence[Way]] = (),
    keep_page_files: bool = False,
    defragment: bool = False,
    preset: str = presets.DEFAULT,
    level: int | None = None,
    hidden_sectors: int | None = None,
    geometry: Geometry | None = None,
    search: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> CaptureReport:
    """Capture a volume or a disk into a new image file.

    ``source`` is a raw file, a block device, a disk in another format (qcow2, VHDX, ...), or any device.
    ``source_format`` names its format where the file's own bytes are not to decide, as ``raw``. ``partition`` takes one
    partition of it, by the number Linux gives it. ``parent`` is an image: then the new one is a child of it and holds
    only what differs from its version ``parent_version`` (the latest, unless told); with ``append`` the child is a new
    version in ``image`` itself. ``search`` are directories in which the parent's own parents are looked for. ``store``
    are globs of files that stay uncompressed, ``encrypt`` those of files that are encrypted; with ``encrypt_all``
    everything is, and nothing in the file tells what is on the medium. ``ways`` lead to the key of an image that has
    none yet, or tell them when one is made; a child has its parent's. With ``defragment`` every file of an NTFS or FAT
    volume lies in one piece in the image; a volume with which that is not safe is taken as it is, and the report says
    why. ``hidden_sectors`` (sectors before the volume) and ``geometry`` override what the boot sector says. The image,
    or the new version, is there whole and synced, or not at all. Raises :class:`~sqlimage.errors.SqlimageError`
    subclasses only.
    """
    wishes = _Wishes(
        label,
        dict(property_values or {}),
        store,
        keep_page_files,
        defragment,
        presets.choose(preset, level),
        hidden_sectors,
        geometry,
        threads,
        progress,
        Wanted(tuple(encrypt), encrypt_all, ways),
    )
    for name, value in wishes.property_values.items():
        properties.check(name, value)
        properties.check_not_reserved(name)
    check_label(label)
    if append and parent is not None:
        raise UsageError("a version is added to a file, or made in a child file, not both")
    if parent_version is not None and not append and parent is None:
        raise UsageError("a version of which parent is meant is not told")
    if source_format is not None and not isinstance(source, str | os.PathLike):
        raise UsageError("a device has no format")
    with opened_source(source, source_format, partition) as found:
        if append:
            return _append(found, os.fspath(image), parent_version, search, wishes)
        if parent is not None:
            return _capture_child(found, image, os.fspath(parent), parent_version, search, wishes)
        return _capture_first(found, image, wishes)


@contextmanager
def opened_source(
    source: str | os.PathLike[str] | BlockDevice, source_format: str | None, partition: int | None
) -> Iterator[_Source]:
    opened = open_source(source, source_format) if isinstance(source, str | os.PathLike) else None
    whole: BlockDevice = opened or source  # type: ignore[assignment]
    try:
        device, part = whole, None
        origin = os.path.abspath(opened.path) if opened else type(whole).__name__
        if isinstance(opened, ForeignDevice):
            origin += f" ({opened.format.name})"
        origin = os.fsencode(origin).decode("utf-8", "replace")
        if partition is not None:
            device, part = partition_window(whole, partition), find_partition(whole, partition)
            origin += f" partition {partition}"
        yield _Source(device, part, origin, tuple(_notes(opened)))
    finally:
        if opened:
            opened.close()


def _capture_first(source: _Source, image: str | os.PathLike[str], wishes: _Wishes) -> CaptureReport:
    """A version without a parent."""
    encryption = for_first(wishes.encryption)
    with NewImage(image) as new:
        relayout = Relayout(_inspected(source, wishes))
        encryption, medium = encryption.conceal(relayout.medium)
        plan = make_plan(medium, wishes.preset, wishes.store)
        database = new.begin(encryption.keys)
        relayout.begin(database)
        writer = Writer(database)
        notes = (*source.notes, *encryption.notes)
        story = Story(database, medium, plan, writer, wishes.hidden_sectors, notes, encryption=encryption)
        total = plan.wanted.total * plan.bytes_per_cluster
        progress = wishes.progress
        pour(
            plan.jobs(lambda places: _prefetch(medium, places)),
            Encoder(
                medium.device,
                plan.bytes_per_cluster,
                wishes.preset.chunk_bytes,
                wishes.preset.level,
                vault=encryption.vault,
                secret=plan.secret,
            ),
            writer,
            bytes_per_cluster=plan.bytes_per_cluster,
            threads=wishes.threads,
            progress=(lambda done: progress(min(done, total), total)) if progress else None,
            start_writeback=new.start_writeback,
            meanwhile=story.write_places,
        )
        writer.finish()
        relayout.finish(database)
        story.write(wishes.preset, wishes.label, source.origin, wishes.geometry, wishes.property_values)
        new.make_indexes()
        writer.repoint()
        if relayout.device is not None:
            new.sync_meanwhile()
        relayout.prove(database, writer.version, writer.digests, wishes.threads)
        new.publish()
        return story.report(new.target, new.size_bytes)


def _inspected(source: _Source, wishes: _Wishes) -> Medium:
    return inspect(
        source.device,
        partition=source.partition,
        keep_page_files=wishes.keep_page_files,
        arrange=defragmented if wishes.defragment else None,
    )


def _capture_child(
    source: _Source,
    image: str | os.PathLike[str],
    parent_path: str,
    parent_version: str | None,
    search: Sequence[str],
    wishes: _Wishes,
) -> CaptureReport:
    """A new file whose only version has its parent in another one."""
    if os.path.realpath(image) == os.path.realpath(parent_path):
        raise UsageError(f"{os.fspath(image)}: is the parent itself", hint="--append adds a version to it")
    with Image.open(parent_path, search=search) as parent_image, NewImage(image) as new:
        parent = _sealed(parent_image.version(parent_version))
        with _Child(source, parent, Target(VERSION, 1, is_parents_file=False), wishes) as child:
            database = new.begin(child.encryption.keys)
            story, writer = child.write(database, os.path.basename(parent_image.path), new.start_writeback)
            new.make_indexes()
            writer.repoint()
            child.prove(database, writer)
            child.check_parent()
            new.publish()
            try:
                child.check_parent()  # from here on whoever removes versions sees the child
            except BaseException:
                os.unlink(new.target)
                raise
            return story.report(new.target, new.size_bytes)


def _append(
    source: _Source, path: str, parent_version: str | None, search: Sequence[str], wishes: _Wishes
) -> CaptureReport:
    """A new version in the file of its parent."""
    with writing(path, "capturing into it") as database, Image.open(path, search=search) as parent_image:
        control.check_new_label(database, wishes.label)
        parent = _sealed(parent_image.version(parent_version))
        target = Target(control.next_version(database), data.next_id(database), is_parents_file=True)
        with _Child(source, parent, target, wishes) as child, _with_keys(database, child.encryption):
            story, writer = child.write(database, None, None)
            writer.repoint()
            child.prove(database, writer)
        parent_image.close()  # who reads through a log keeps it in place
        if wishes.defragment:
            give_back_space(database)  # where the fix-ups were
    return story.report(database.path, os.path.getsize(database.path))


@contextmanager
def _with_keys(database: Database, encryption: Encryption) -> Iterator[None]:
    """The transaction that adds a version to a file, which gets a key where it had none."""
    if encryption.keys and not encryption.keys.is_whole:
        database.keep_fixups_in_memory()
    with database.transaction():
        if encryption.keys and database.key_id is None:
            database.encrypt_with(encryption.keys)
        yield


class _Child:
    """A child's capture under way: looked at when it is entered."""

    def __init__(self, source: _Source, parent: Version, target: Target, wishes: _Wishes) -> None:
        self._source = source
        self._parent = parent
        self._target = target
        self._wishes = wishes
        self.encryption = for_child(wishes.encryption, parent)
        self._relayout: Relayout | None = None
        if wishes.defragment:
            self._relayout = Relayout(in_units_of(parent.control.bytes_per_cluster, _inspected(source, wishes)))
        device = self._relayout.medium.device if self._relayout is not None else source.device
        self._capture = ChildCapture(parent, device, target, threads=wishes.threads, progress=wishes.progress)
        self._medium: Medium
        self._plan: Plan

    def __enter__(self) -> _Child:
        try:
            source, wishes, unit = self._source, self._wishes, self._parent.control.bytes_per_cluster
            self._medium = (
                in_units_of(unit, _inspected(source, wishes)) if self._relayout is None else self._relayout.medium
            )
            self.encryption, self._medium = self.encryption.conceal(self._medium)
            self._plan = make_plan(self._medium, wishes.preset, wishes.store)
            self._capture.look(self._medium, self._plan, wishes.keep_page_files)
        except BaseException:
            self._capture.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.close()

    def check_parent(self) -> None:
        """Raise where the parent is not what it was any more."""
        self._capture.check_parent()

    def prove(self, database: Database, writer: Writer) -> None:
        """Read what was laid out anew, before it is committed."""
        if self._relayout is not None:
            version, digests, threads = writer.version, self._capture.digests, self._wishes.threads
            self._relayout.prove(database, version, digests, threads, self._capture.ancestors)

    def write(
        self, database: Database, parent_name: str | None, start_writeback: Callable[[], None] | None
    ) -> tuple[Story, Writer]:
        """All rows of the version."""
        wishes, writer = self._wishes, Writer(database, self._target.version)
        had_system = any(volume.os_name is not None for volume in self._parent.volumes())
        properties_before = self._parent.properties()
        parent = Parent(self._parent.control, parent_name, properties_before, had_system, self._capture.delta)
        story = Story(
            database,
            self._medium,
            self._plan,
            writer,
            wishes.hidden_sectors,
            (*self._source.notes, *self.encryption.notes),
            encryption=self.encryption,
            parent=parent,
        )
        if self._relayout is not None:
            self._relayout.begin(database)
        self._capture.store(writer, wishes.preset, start_writeback, self.encryption.vault)
        if self._relayout is not None:
            self._relayout.finish(database)
        story.write(wishes.preset, wishes.label, self._source.origin, wishes.geometry, wishes.property_values)
        return story, writer


def _sealed(version: Version) -> Version:
    if version.control.state != "sealed":
        raise RefusedError(
            f"{version.image.path}: version {version.number} is an edit that is not finished",
            hint="commit it or discard it first",
        )
    return version


def _prefetch(medium: Medium, places: Runs) -> None:
    if isinstance(medium.device, Prefetching):
        for start, length in places:
            medium.device.prefetch(start * medium.bytes_per_cluster, length * medium.bytes_per_cluster)


def _notes(source: FileDevice | ForeignDevice | None) -> list[str]:
    """What the reader of the report should know of the source: that its format was found by a look at it, and that a
    mounted device changes while it is read."""
    if isinstance(source, ForeignDevice):
        return [f"{source.path} is read as {source.format.name}"]
    if source is None or not source.is_block_device:
        return []
    path = os.path.realpath(source.path)
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            mounted = any(os.path.realpath(line.split(" ", 1)[0]) == path for line in mounts if line.startswith("/"))
    except OSError:
        return []
    return [f"{path} is mounted: what changes while it is read may not fit together"] if mounted else []
