"""Control stream: the tables ``control`` and ``volume``."""

from __future__ import annotations

import uuid
from dataclasses import astuple, dataclass, fields
from functools import cache
from typing import get_type_hints

from sqlimage.errors import FormatError, NotFoundError, UsageError
from sqlimage.streams.database import Database
from sqlimage.streams.translation import Row, typed

_CLUSTER_SIZES = frozenset(1 << n for n in range(9, 22))
_SECTOR_SIZES = frozenset(1 << n for n in range(9, 17))
_LARGEST_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Control:
    """One version: the columns of ``control``, in their order."""

    version: int
    uuid: str
    parent_uuid: str | None
    parent_name: str | None
    label: str | None
    state: str
    created_at: str
    medium_bytes: int
    bytes_per_cluster: int
    bytes_per_sector: int
    cylinders: int | None
    tracks_per_cylinder: int | None
    sectors_per_track: int | None
    partition_scheme: str | None
    disk_id: str | None
    chunk_bytes: int
    compression: str
    encryption: str
    stored_bytes: int
    source: str | None

    @property
    def total_clusters(self) -> int:
        """Clusters of the medium; the last one may be cut by its end."""
        return -(-self.medium_bytes // self.bytes_per_cluster)


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of one version: the columns of ``volume``, in their order."""

    version: int
    number: int
    offset_clusters: int
    length_clusters: int
    length_bytes: int
    hidden_sectors: int | None
    partition_number: int | None
    partition_type: str | None
    partition_name: str | None
    partition_uuid: str | None
    file_system: str | None
    format_version: str | None
    label: str | None
    serial: str | None
    bytes_per_sector: int | None
    bytes_per_cluster: int | None
    total_clusters: int | None
    clusters_per_record: int | None
    os_name: str | None
    os_version: str | None
    os_update: str | None
    dirty: int | None
    hibernated: int | None
    captured_as: str
    raw_reason: str | None


def _columns(kind: type[Control] | type[Volume]) -> str:
    return ", ".join(field.name for field in fields(kind))


def _marks(kind: type[Control] | type[Volume]) -> str:
    return ", ".join("?" * len(fields(kind)))


_SELECT_CONTROL = f"SELECT {_columns(Control)} FROM control"
_SELECT_VOLUME = f"SELECT {_columns(Volume)} FROM volume"
INSERT_CONTROL = f"INSERT INTO control ({_columns(Control)}) VALUES ({_marks(Control)})"
INSERT_VOLUME = f"INSERT INTO volume ({_columns(Volume)}) VALUES ({_marks(Volume)})"


def new_uuid() -> str:
    return str(uuid.uuid4())


def check_label(label: str | None) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` unless the label can be told from a version number or ``latest``."""
    if label is None:
        return
    if not label or len(label) > 200 or not label.isprintable() or label.isdecimal() or label == "latest":
        raise UsageError(
            f"{label!r} is not a label",
            hint="use up to 200 printable characters, not only digits and not `latest`",
        )


def check_new_label(database: Database, label: str | None) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` where a version of the file has that label."""
    if label is not None and any(known.label == label for known in versions(database)):
        raise UsageError(f"{database.path}: there is a version with the label {label!r}", hint="choose another")


def insert_control(database: Database, control: Control) -> None:
    database.run(INSERT_CONTROL, astuple(control))


def insert_volume(database: Database, volume: Volume) -> None:
    database.run(INSERT_VOLUME, astuple(volume))


def add_stored_bytes(database: Database, version: int, stored_bytes: int) -> None:
    database.run("UPDATE control SET stored_bytes = stored_bytes + ? WHERE version = ?", [stored_bytes, version])


def adopt(
    database: Database, version: int, parent_uuid: str | None, parent_name: str | None, stored_bytes: int
) -> None:
    """Give a version another parent, under which it reads as before; ``parent_name`` is the base name of its file."""
    database.run(
        "UPDATE control SET parent_uuid = ?, parent_name = ?, stored_bytes = ? WHERE version = ?",
        [parent_uuid, parent_name, stored_bytes, version],
    )


def next_version(database: Database) -> int:
    """A number no version of this file has, nor had as far as the audit trail remembers."""
    row = database.row(
        "SELECT max(coalesce((SELECT max(version) FROM control), 0), coalesce((SELECT max(version) FROM audit), 0)) + 1"
    )
    assert row is not None
    return int(row[0])


def seal(database: Database, version: int, partition_scheme: str | None, disk_id: str | None) -> None:
    """Make an open version one that never changes again."""
    database.run(
        "UPDATE control SET state = 'sealed', partition_scheme = ?, disk_id = ? WHERE version = ?",
        [partition_scheme, disk_id, version],
    )


def versions(database: Database) -> list[Control]:
    """Every version of the file, oldest number first; checked."""
    return [_checked(database, row) for row in database.rows(f"{_SELECT_CONTROL} ORDER BY version")]


def volumes(database: Database, control: Control) -> list[Volume]:
    """The volumes of a version, by number; each lies within the medium."""
    found = [
        Volume(*typed(database.path, "volume", _types(Volume), row))
        for row in database.rows(f"{_SELECT_VOLUME} WHERE version = ? ORDER BY number", [control.version])
    ]
    for volume in found:
        end = volume.offset_clusters * control.bytes_per_cluster + volume.length_bytes
        if volume.offset_clusters < 0 or volume.length_bytes < 0 or end > control.medium_bytes:
            raise FormatError(
                f"{database.path}: volume {volume.number} ends at byte {end}, the medium has {control.medium_bytes}"
            )
        if volume.length_clusters != -(-volume.length_bytes // control.bytes_per_cluster):
            raise FormatError(
                f"{database.path}: volume {volume.number} has {volume.length_bytes} bytes, but "
                f"{volume.length_clusters} clusters"
            )
    return found


def uuids(database: Database) -> list[str]:
    """The UUIDs of all versions of the file."""
    return [str(row[0]) for row in database.query("SELECT uuid FROM control")]


def by_uuid(database: Database, uuid: str) -> Control | None:
    """The version with that UUID, if this file holds it; checked."""
    row = database.row(f"{_SELECT_CONTROL} WHERE uuid = ?", [uuid])
    return None if row is None else _checked(database, row)


def find_version(database: Database, wanted: str | None) -> Control:
    """The version that a number, a label, a UUID or the beginning of one, or ``latest`` (the newest that is sealed)
    means.

    Raises :class:`~sqlimage.errors.NotFoundError`, naming what there is.
    """
    known = versions(database)
    if not known:
        raise FormatError(f"{database.path}: holds no version")
    if wanted in (None, "", "latest"):
        return next((version for version in reversed(known) if version.state == "sealed"), known[-1])
    assert wanted is not None
    chosen = [v for v in known if wanted in (str(v.version), v.label, v.uuid)]
    if not chosen and len(wanted) >= 4:
        chosen = [v for v in known if v.uuid.startswith(wanted.lower())]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(f"{v.version}" + (f" ({v.label})" if v.label else "") for v in known[:20])
    if chosen:
        raise NotFoundError(f"{database.path}: {wanted!r} means {len(chosen)} versions", hint=f"there are {names}")
    raise NotFoundError(f"{database.path}: no version {wanted!r}", hint=f"there are {names}")


@cache
def _types(kind: type[Control] | type[Volume]) -> tuple[object, ...]:
    """What each column may hold, from the annotations of the dataclass."""
    return tuple(get_type_hints(kind)[field.name] for field in fields(kind))


def _checked(database: Database, row: Row) -> Control:
    control = Control(*typed(database.path, "control", _types(Control), row))
    if not 0 <= control.medium_bytes < 1 << 62:
        raise FormatError(f"{database.path}: version {control.version} has a medium of {control.medium_bytes} bytes")
    if control.bytes_per_cluster not in _CLUSTER_SIZES:
        raise FormatError(
            f"{database.path}: version {control.version} has clusters of {control.bytes_per_cluster} bytes; "
            "allowed are powers of two from 512 to 2097152"
        )
    if control.bytes_per_sector not in _SECTOR_SIZES:
        raise FormatError(f"{database.path}: version {control.version} has sectors of {control.bytes_per_sector} bytes")
    if not control.bytes_per_cluster <= control.chunk_bytes <= _LARGEST_CHUNK:
        raise FormatError(
            f"{database.path}: version {control.version} has chunks of {control.chunk_bytes} bytes; allowed are one "
            f"cluster to {_LARGEST_CHUNK}"
        )
    if control.encryption not in ("none", "aes-256-gcm") or control.compression not in ("none", "zstd"):
        raise FormatError(
            f"{database.path}: version {control.version} is coded as {control.compression}/{control.encryption}, "
            "which this reader does not know"
        )
    return control
