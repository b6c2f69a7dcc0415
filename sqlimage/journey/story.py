"""What a capture tells about itself: the control rows, files, bitmap, properties and audit of the new version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from sqlimage.errors import UsageError
from sqlimage.image.changes import count_actions
from sqlimage.image.delta import Delta
from sqlimage.image.describe import FileColumns, extent_rows, file_rows, volume_row
from sqlimage.image.medium import Medium
from sqlimage.image.relayout import moves_of
from sqlimage.image.systems import properties_since
from sqlimage.journey.encryption import Encryption
from sqlimage.journey.plan import Plan
from sqlimage.journey.presets import Preset
from sqlimage.journey.write import Totals, Writer
from sqlimage.media.geometry import Geometry
from sqlimage.streams import audit, bitmap, files, properties
from sqlimage.streams.control import Control, insert_control, insert_volume, new_uuid
from sqlimage.streams.database import Database
from sqlimage.streams.properties import Value
from sqlimage.tool import TOOL
from sqlimage.units import now


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """How one volume was taken."""

    number: int
    file_system: str | None
    label: str | None
    length_bytes: int
    captured_as: str
    raw_reason: str | None
    names: int
    left_out: tuple[str, ...]
    left_out_bytes: int
    moved_bytes: int | None
    """How much of it lies elsewhere than on the source, where it was laid out anew."""
    fixups: int


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What a capture came to; sizes in bytes."""

    image: str
    version: int
    uuid: str
    parent_uuid: str | None
    files: Mapping[str, int] | None
    """How many were created, changed, deleted and renamed since the parent; None where there is none."""
    medium_bytes: int
    bytes_per_cluster: int
    allocated_bytes: int
    zero_bytes: int
    repeated_bytes: int
    chunks: int
    stored_bytes: int
    image_bytes: int
    volumes: tuple[VolumeReport, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parent:
    """What a child's story is told against."""

    control: Control
    name: str | None
    """Of its file, where it lies in another one."""
    properties: Mapping[str, Value]
    had_system: bool
    """Whether an operating system was found on its volumes."""
    delta: Delta


class Story:
    """Writes all streams but data and cluster map, and sums up."""

    def __init__(
        self,
        database: Database,
        medium: Medium,
        plan: Plan,
        writer: Writer,
        hidden_sectors: int | None,
        notes: Sequence[str],
        *,
        encryption: Encryption | None = None,
        parent: Parent | None = None,
    ) -> None:
        self._database = database
        self._version = writer.version
        self._parent = parent
        self._encryption = encryption or Encryption()
        self._medium = medium
        self._plan = plan
        self._writer = writer
        self._hidden_sectors = hidden_sectors
        self._notes = notes
        self._uuid = new_uuid()
        self._volumes: list[VolumeReport] = []

    def write_places(self) -> None:
        """Where every file lies, and what is allocated: known before a byte is read."""
        for volume in self._medium.volumes:
            self._database.run_many(files.INSERT_EXTENT, extent_rows(self._medium, volume, self._version))
        bitmap.insert(self._database, self._version, self._plan.allocated)

    def write(
        self,
        preset: Preset,
        label: str | None,
        source: str,
        geometry: Geometry | None,
        property_values: Mapping[str, Value],
    ) -> None:
        """All the rest about the version, when the data is written; inside the caller's transaction."""
        database, medium, totals = self._database, self._medium, self._writer.totals
        insert_control(database, self._control(preset, label, source, geometry, totals))
        for volume in medium.volumes:
            insert_volume(database, volume_row(medium, volume, self._version, self._hidden_sectors))
            if self._parent is None:
                digests = {
                    row: digest for (number, row), digest in self._writer.digests.items() if number == volume.number
                }
                database.run_many(files.INSERT_FILE, _by_path(file_rows(volume, self._version, digests)))
            names = len(volume.scan.entries) if volume.scan else 0
            facts = volume.facts
            self._volumes.append(
                VolumeReport(
                    volume.number,
                    facts.file_system if facts else None,
                    facts.label if facts else None,
                    volume.length_bytes,
                    volume.captured_as,
                    volume.raw_reason,
                    names,
                    volume.left_out_names,
                    volume.left_out.total,
                    moves_of(volume.relocation).moved_bytes if volume.relocation else None,
                    len(volume.relocation.fixups) if volume.relocation else 0,
                )
            )
        if self._parent is not None:
            self._parent.delta.write(database, self._plan.allocated)
        self._properties(property_values)
        detail: dict[str, object] = {
            "source": source,
            "notes": list(self._notes),
            "uuid": self._uuid,
            "label": label,
            "left_out": [path for volume in medium.volumes for path in volume.left_out_names],
            "taken_raw": {str(v.number): v.raw_reason for v in medium.volumes if v.raw_reason},
            "properties": {name: value for name, value in property_values.items() if not isinstance(value, bytes)},
        }
        laid_out = [volume for volume in self._volumes if volume.moved_bytes is not None]
        if laid_out:
            detail["defragmented"] = {
                str(volume.number): {"moved_bytes": volume.moved_bytes, "fixups": volume.fixups} for volume in laid_out
            }
        if self._encryption.keys is not None:
            detail["encrypt"] = list(self._encryption.globs) or "all"
        if self._parent is not None:
            detail["parent"] = self._parent.control.uuid
            detail["files"] = count_actions(self._parent.delta.changes)
        audit.append(
            database,
            "capture",
            tool=TOOL,
            version=self._version,
            clusters=self._plan.wanted.total,
            length_bytes=self._plan.wanted.total * medium.bytes_per_cluster,
            detail=detail,
        )

    def _control(
        self, preset: Preset, label: str | None, source: str, geometry: Geometry | None, totals: Totals
    ) -> Control:
        medium = self._medium
        first = medium.volumes[0].facts if medium.volumes else None
        tracks = first.tracks_per_cylinder if first else None
        sectors = first.sectors_per_track if first else None
        if geometry is None:
            geometry = _geometry(medium, tracks, sectors)
        return Control(
            version=self._version,
            uuid=self._uuid,
            parent_uuid=self._parent.control.uuid if self._parent else None,
            parent_name=self._parent.name if self._parent else None,
            label=label,
            state="sealed",
            created_at=now(),
            medium_bytes=medium.size_bytes,
            bytes_per_cluster=medium.bytes_per_cluster,
            bytes_per_sector=medium.device.bytes_per_sector,
            cylinders=geometry.cylinders,
            tracks_per_cylinder=geometry.tracks_per_cylinder,
            sectors_per_track=geometry.sectors_per_track,
            partition_scheme=medium.table.scheme if medium.table else None,
            disk_id=medium.table.disk_id if medium.table else None,
            chunk_bytes=self._parent.control.chunk_bytes if self._parent else preset.chunk_bytes,
            compression="zstd",
            encryption=self._encryption.cipher,
            stored_bytes=totals.stored_bytes,
            source=source,
        )

    def _properties(self, values: Mapping[str, Value]) -> None:
        """What the tool knows by itself, then what the caller says, which wins."""
        known: dict[str, Value] = {
            "capture.tool": TOOL,
            "capture.raw_volumes": sum(volume.raw_reason is not None for volume in self._medium.volumes),
            **self._encryption.properties,
        }
        for volume in self._medium.volumes:
            if volume.raw_reason:
                known[f"capture.raw_reason.{volume.number}"] = volume.raw_reason
        inherited = self._parent.properties if self._parent else {}
        for name in inherited:
            if properties.is_reserved(name):
                known.setdefault(name, None)  # the parent's own story is not the child's
        known |= properties_since(
            self._medium, inherited, had_system=self._parent.had_system if self._parent else False
        )
        for name, value in {**known, **values}.items():
            if name not in inherited or value != inherited[name] or type(value) is not type(inherited[name]):
                properties.put(self._database, self._version, name, value)

    def report(self, image: str, image_bytes: int) -> CaptureReport:
        medium, totals = self._medium, self._writer.totals
        warnings = list(self._notes)
        if medium.table_problem:
            warnings.append(f"the partition table was not used: {medium.table_problem}")
        if medium.table:
            warnings.extend(medium.table.problems)
        for volume in medium.volumes:
            if volume.raw_reason:
                how = "raw" if volume.captured_as == "raw" else "by blocks"
                warnings.append(f"volume {volume.number} is taken {how}: {volume.raw_reason}")
            warnings.extend(f"volume {volume.number}: {note}" for note in (volume.facts.notes if volume.facts else ()))
            if volume.facts and volume.facts.hibernated:
                warnings.append(f"volume {volume.number} is hibernated: its system has not been shut down")
        return CaptureReport(
            image=image,
            version=self._version,
            uuid=self._uuid,
            parent_uuid=self._parent.control.uuid if self._parent else None,
            files=count_actions(self._parent.delta.changes) if self._parent else None,
            medium_bytes=medium.size_bytes,
            bytes_per_cluster=medium.bytes_per_cluster,
            allocated_bytes=min(self._plan.allocated.total * medium.bytes_per_cluster, medium.size_bytes),
            zero_bytes=totals.zero_bytes,
            repeated_bytes=totals.repeated_bytes,
            chunks=totals.chunks,
            stored_bytes=totals.stored_bytes,
            image_bytes=image_bytes,
            volumes=tuple(self._volumes),
            warnings=tuple(warnings),
        )


def _by_path(rows: list[FileColumns]) -> list[FileColumns]:
    """In the order of their key: denser, and faster."""
    return sorted(rows, key=itemgetter(2))


def _geometry(medium: Medium, tracks: int | None, sectors: int | None) -> Geometry:
    """The geometry the first volume's boot sector gives, or the usual one where it gives none that is possible."""
    try:
        if tracks and sectors:
            return Geometry.for_size(medium.size_bytes, sectors, tracks, medium.device.bytes_per_sector)
    except UsageError:
        pass
    return Geometry.for_size(medium.size_bytes, bytes_per_sector=medium.device.bytes_per_sector)
