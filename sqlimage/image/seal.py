"""Sealing an edit: the volumes are read again as they are now, and all streams but data and map are brought in step."""

from __future__ import annotations

import dataclasses

from sqlimage.device import BlockDevice
from sqlimage.extent import Runs
from sqlimage.image.changes import Change
from sqlimage.image.delta import Delta, Observed
from sqlimage.image.describe import volume_row
from sqlimage.image.medium import in_units_of, inspect
from sqlimage.image.secrecy import PROPERTY, globs_of, secret_files
from sqlimage.image.systems import properties_since
from sqlimage.streams import cluster_map, control, properties
from sqlimage.streams.control import Control, Volume
from sqlimage.streams.database import Database


class Sealing:
    """One version about to be sealed. Construction reads the medium; :meth:`write` belongs in a transaction."""

    def __init__(self, database: Database, version: Control, device: BlockDevice) -> None:
        self._database = database
        self._version = version
        written = cluster_runs_in_bytes(database, version)
        inherited = properties.read_all(database, version.version)
        medium = in_units_of(version.bytes_per_cluster, inspect(device, keep_page_files=True))
        # All that an edit writes is encrypted where anything is; of these files no digest is kept either.
        self._medium, _ = secret_files(medium, globs_of(inherited.get(PROPERTY)))
        self._delta = Delta(database, version.version, version.version, version.total_clusters)
        self._observed = Observed(self._delta, self._medium, keep_page_files=None)
        self.written_clusters = written.total // version.bytes_per_cluster
        known = {volume.number: volume for volume in control.volumes(database, version)}
        self._observed.compare_with(written, known)
        self.changes: list[Change] = self._delta.changes
        had_system = any(volume.os_name is not None for volume in known.values())
        found = properties_since(self._medium, inherited, had_system=had_system)
        self._properties = {name: value for name, value in found.items() if value != inherited.get(name)}
        self.volumes = [
            _as_it_was(volume_row(self._medium, volume, version.version, None), known)
            for volume in self._medium.volumes
        ]

    def write(self) -> None:
        """The streams of the version as they are now."""
        database, number = self._database, self._version.version
        for table in ("volume", "file", "extent", "bitmap"):
            database.run(f"DELETE FROM {table} WHERE version = ?", [number])
        for volume in self.volumes:
            control.insert_volume(database, volume)
        self._delta.write(database, self._observed.allocated())
        for name, value in self._properties.items():
            properties.put(database, number, name, value)
        table_ = self._medium.table
        control.seal(database, number, table_.scheme if table_ else None, table_.disk_id if table_ else None)


def cluster_runs_in_bytes(database: Database, version: Control) -> Runs:
    """What a version itself says something about, in bytes of the medium."""
    runs, unit = cluster_map.own_clusters(database, version.version), version.bytes_per_cluster
    return Runs(runs.start * unit, runs.length * unit)


def _as_it_was(new: Volume, known: dict[int, Volume]) -> Volume:
    """What a medium does not tell of itself is as it was: where a bare volume lay, and which partition it was."""
    old = known.get(new.number)
    if old is None or new.partition_number is not None or old.offset_clusters != new.offset_clusters:
        return new
    return dataclasses.replace(
        new,
        hidden_sectors=old.hidden_sectors,
        partition_number=old.partition_number,
        partition_type=old.partition_type,
        partition_name=old.partition_name,
        partition_uuid=old.partition_uuid,
    )
