"""Streams that only the holders of the key read.

In an image that is encrypted as a whole, the tables that tell of what is on the medium are empty in the file. Their
rows lie encrypted in ``sealed_stream``; once the image is unlocked they are in temporary tables of the same names, in
memory, which every statement finds first. Whatever a transaction changes there is sealed again before it commits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apsw
import zstandard

from sqlimage.codec.vault import NotAuthentic, Vault
from sqlimage.errors import DamagedError, FormatError
from sqlimage.streams import schema

TABLES = {
    "control": "version",
    "volume": "version, number",
    "file": "version, volume, path",
    "extent": "version, volume, record, stream, file_offset",
    "property": "version, name",
    "audit": "id",
}
"""What is sealed, and by what its rows are ordered. ``fixup`` is in memory too, but never outlives a transaction."""
HIDDEN = ("label", "partition_scheme", "disk_id", "source")
"""Columns of ``control`` that are NULL in the file; the others say how the map is to be read, and stay."""
_BY_VERSION = tuple(table for table in TABLES if table != "audit")
IN_MEMORY = "PRAGMA temp_store = MEMORY"
"""What is told of a volume is nothing to leave in other files; to be run before anything temporary is made."""
_AUDIT, _MANIFEST, _MAP = "audit", "manifest", "map"
_EVERY_RECORD = (
    "SELECT start_cluster, end_cluster, data.digest, data_offset FROM main.cluster_map "
    "LEFT JOIN main.data ON data.id = cluster_map.data WHERE version = ? ORDER BY start_cluster"
)
_EVERY_RUN = "SELECT start_cluster, end_cluster FROM main.bitmap WHERE version = ? ORDER BY start_cluster"
_PART_BYTES = 4 << 20
"""About how much text becomes a part."""
_MOST_PART_BYTES = 64 << 20
_MOST_AUDIT_PARTS = 64
_LEVEL = 3

Value = Any


class SealedStreams:
    """The sealed streams of one connection. Raises :class:`~sqlimage.errors.DamagedError` where a part is not what was
    sealed, and :class:`~sqlimage.errors.FormatError` where parts do not belong together."""

    def __init__(
        self, path: str, connection: apsw.Connection, vault: Vault, identity: str, *, tables: bool = True
    ) -> None:
        """``tables``: whether they are made; without them only maps can be checked."""
        self._path = path
        self._connection = connection
        self._vault = vault
        self._identity = identity
        self._generation = 0
        self._parts: dict[tuple[str, int], list[int]] = {}
        """The generation in which each part was sealed, by stream and version."""
        self._audit_sealed = 0
        """The last row of the audit trail that is sealed."""
        self._maps: dict[int, str] = {}
        """A digest of map and bitmap of each version that is sealed."""
        self._before: tuple[int, dict[tuple[str, int], list[int]], int, dict[int, str]] | None = None
        """What these were before the latest transaction."""
        if tables:
            self._make_tables()

    def _make_tables(self) -> None:
        run = self._connection.execute
        for statement in schema.temporary_sql((*TABLES, "fixup")):
            run(statement)
        run("CREATE TEMP TABLE unsealed (stream TEXT, version INTEGER, PRIMARY KEY (stream, version)) WITHOUT ROWID")
        watched = [(f"temp.{table}", table) for table in _BY_VERSION]
        watched += [(f"main.{table}", _MAP) for table in ("cluster_map", "bitmap")]
        for table, stream in watched:
            for action, rows in (("INSERT", ["NEW"]), ("UPDATE", ["OLD", "NEW"]), ("DELETE", ["OLD"])):
                # Not OR IGNORE: in a trigger, what the statement that fires it says of conflicts is what counts.
                told = "; ".join(
                    f"INSERT INTO unsealed SELECT '{stream}', {row}.version WHERE NOT EXISTS (SELECT 1 FROM unsealed "
                    f"WHERE stream = '{stream}' AND version = {row}.version)"
                    for row in rows
                )
                name = f"{table.partition('.')[2]}_{action.lower()}"
                run(f"CREATE TEMP TRIGGER {name} AFTER {action} ON {table} BEGIN {told}; END")

    def load(self) -> None:
        """Fill the tables with what the file holds."""
        try:
            self._load(self._part(_MANIFEST, 0, 0, 0))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise FormatError(f"{self._path}: a sealed stream is not of the form that the format gives it") from None
        self._connection.execute("DELETE FROM temp.unsealed")
        self._audit_sealed = self._rows("SELECT coalesce(max(id), 0) FROM temp.audit")[0][0]
        self._check_control()

    def _load(self, manifest: Any) -> None:
        self._generation = int(manifest["generation"])
        self._maps = self._maps_of(manifest)
        for stream, version, generations in manifest["parts"]:
            if stream not in TABLES:
                raise ValueError
            self._parts[stream, int(version)] = [int(generation) for generation in generations]
            columns = self._columns(stream)
            insert = f"INSERT INTO temp.{stream} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            for number, generation in enumerate(generations):
                rows = self._part(stream, version, number, generation)
                self._connection.executemany(insert, [_restored(row) for row in rows])

    def _check_control(self) -> None:
        """What the file says openly of its versions is what was sealed."""
        columns = ", ".join(column for column in self._columns("control") if column not in HIDDEN)
        differ = self._connection.execute(
            f"SELECT (SELECT count(*) FROM main.control) <> (SELECT count(*) FROM temp.control) OR EXISTS "
            f"(SELECT {columns} FROM temp.control EXCEPT SELECT {columns} FROM main.control)"
        ).fetchone()
        if differ != (0,):
            raise FormatError(f"{self._path}: its versions are not those that were sealed")

    def store(self) -> None:
        """Seal what changed, inside the transaction that changed it."""
        run = self._connection.execute
        changed: list[tuple[str, int]] = self._rows("SELECT stream, version FROM temp.unsealed")
        last: int = self._rows("SELECT coalesce(max(id), 0) FROM temp.audit")[0][0]
        if not changed and last == self._audit_sealed and self._generation:
            return
        self._before = (
            self._generation,
            {place: list(parts) for place, parts in self._parts.items()},
            self._audit_sealed,
            dict(self._maps),
        )
        self._generation += 1
        for stream, version in changed:
            if stream != _MAP:
                self._seal(stream, version, f"version = {version}", 0)
        for version in {version for stream, version in changed if stream in (_MAP, "control")}:
            self._note_map(version)
        if last != self._audit_sealed:
            self._seal_audit(last)
        if any(stream == "control" for stream, _ in changed):
            self._mirror_control()
        told = {
            "generation": self._generation,
            "parts": [[*place, generations] for place, generations in sorted(self._parts.items())],
            "maps": sorted(self._maps.items()),
        }
        self._write(_MANIFEST, 0, 0, 0, told)
        run("DELETE FROM temp.unsealed")

    def roll_back(self) -> None:
        """After the transaction in which :meth:`store` was called was taken back."""
        if self._before:
            self._generation, self._parts, self._audit_sealed, self._maps = self._before
            self._before = None

    def _note_map(self, version: int) -> None:
        """What the map of a version is, once it changes no more."""
        if self._rows(f"SELECT state FROM temp.control WHERE version = {version}") == [("sealed",)]:
            self._maps[version] = map_digest(self._connection, version)
        else:
            self._maps.pop(version, None)

    def _seal(self, stream: str, version: int, where: str, first: int) -> None:
        """The rows of a stream of one version, in parts from number ``first`` on; those that were there go."""
        columns = ", ".join(self._columns(stream))
        self._connection.execute(
            "DELETE FROM main.sealed_stream WHERE stream = ? AND version = ? AND part >= ?", [stream, version, first]
        )
        rows = self._connection.execute(f"SELECT {columns} FROM temp.{stream} WHERE {where} ORDER BY {TABLES[stream]}")
        generations = self._parts.get((stream, version), [])[:first]
        for part in _batches(rows):
            self._write(stream, version, len(generations), self._generation, part)
            generations.append(self._generation)
        if generations:
            self._parts[stream, version] = generations
        else:
            self._parts.pop((stream, version), None)

    def _seal_audit(self, last: int) -> None:
        """What was appended to the trail becomes parts behind the others; all of it anew where there are very many."""
        count = len(self._parts.get((_AUDIT, 0), []))
        if count < _MOST_AUDIT_PARTS:
            self._seal(_AUDIT, 0, f"id > {self._audit_sealed}", count)
        else:
            self._seal(_AUDIT, 0, "TRUE", 0)
        self._audit_sealed = last

    def _mirror_control(self) -> None:
        """What is said openly of the versions, in step with what is sealed."""
        columns = self._columns("control")
        shown = ", ".join("NULL" if column in HIDDEN else column for column in columns)
        self._connection.execute("DELETE FROM main.control WHERE version NOT IN (SELECT version FROM temp.control)")
        self._connection.execute(
            f"INSERT OR REPLACE INTO main.control ({', '.join(columns)}) SELECT {shown} FROM temp.control "
            "WHERE version IN (SELECT version FROM temp.unsealed WHERE stream = 'control')"
        )

    def check_maps(self, versions: Sequence[int]) -> None:
        """Raise :class:`~sqlimage.errors.DamagedError` where a version's map or bitmap is not what was sealed."""
        begins = not self._connection.in_transaction
        if begins:  # list and maps as they were at one time
            self._connection.execute("BEGIN")
        try:
            maps = self._maps_of(self._part(_MANIFEST, 0, 0, 0))
            for version in versions:
                is_open = self._rows(f"SELECT state FROM main.control WHERE version = {int(version)}") == [("open",)]
                if version in maps or not is_open:
                    self._check_map(version, maps.get(version))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise FormatError(f"{self._path}: the list of its sealed streams is not of the form it should be") from None
        finally:
            if begins:
                self._connection.execute("COMMIT")

    def _check_map(self, version: int, expected: str | None) -> None:
        if map_digest(self._connection, version) != expected:
            raise DamagedError(f"{self._path}: the cluster map of version {version} is not the one that was sealed")

    def _maps_of(self, manifest: Any) -> dict[int, str]:
        return {int(version): str(digest) for version, digest in manifest["maps"]}

    def _write(self, stream: str, version: int, part: int, generation: int, told: object) -> None:
        text = json.dumps(told, default=_blob, separators=(",", ":"), ensure_ascii=False).encode()
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(text)
        sealed = self._vault.encrypt_stream(packed, self._place(stream, version, part, generation))
        self._connection.execute(
            "INSERT OR REPLACE INTO main.sealed_stream (stream, version, part, bytes) VALUES (?, ?, ?, ?)",
            [stream, version, part, sealed],
        )

    def _part(self, stream: str, version: int, part: int, generation: int) -> Any:
        where = f"{self._path}: part {part} of the sealed stream {stream!r} of version {version}"
        row = self._connection.execute(
            "SELECT bytes FROM main.sealed_stream WHERE stream = ? AND version = ? AND part = ?",
            [stream, version, part],
        ).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise DamagedError(f"{where} is missing")
        try:
            packed = self._vault.decrypt_stream(row[0], self._place(stream, version, part, generation))
            if zstandard.get_frame_parameters(packed).content_size > _MOST_PART_BYTES:
                raise FormatError(f"{where} is larger than {_MOST_PART_BYTES} bytes")
            return json.loads(zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MOST_PART_BYTES))
        except NotAuthentic:
            raise DamagedError(f"{where} is not what was sealed") from None
        except (zstandard.ZstdError, ValueError, RecursionError):
            raise FormatError(f"{where} cannot be read") from None

    def _place(self, stream: str, version: int, part: int, generation: int) -> bytes:
        return "\0".join((self._identity, stream, str(version), str(part), str(generation))).encode()

    def _rows(self, sql: str) -> Any:
        return self._connection.execute(sql).fetchall()

    def _columns(self, table: str) -> list[str]:
        return [row[1] for row in self._connection.execute(f"PRAGMA main.table_info({table})")]


def map_digest(connection: apsw.Connection, version: int) -> str:
    """SHA-256 of which content backs which clusters of a version, and which are allocated: a line for each row."""
    hashed = hashlib.sha256()
    for first, after, name, offset in connection.execute(_EVERY_RECORD, [version]):
        told = name.hex() if isinstance(name, bytes) else "-"
        hashed.update(f"{first} {after} {told} {offset}\n".encode())
    for first, after in connection.execute(_EVERY_RUN, [version]):
        hashed.update(f"{first} {after}\n".encode())
    return hashed.hexdigest()


def _batches(rows: Iterable[Sequence[Value]]) -> Iterator[list[Sequence[Value]]]:
    part: list[Sequence[Value]] = []
    held = 0
    for row in rows:
        part.append(row)
        held += 60 + sum(len(value) for value in row if isinstance(value, str | bytes))
        if held >= _PART_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def _blob(value: object) -> object:
    assert isinstance(value, bytes)
    return {"hex": value.hex()}


def _restored(row: Any) -> list[Value]:
    return [bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in row]
