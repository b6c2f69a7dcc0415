"""Streams that only the holders of the key read.

In an image that is encrypted as a whole, the tables that tell of what is on the medium are empty in the file. Their
rows lie encrypted in ``sealed_stream``; once the image is unlocked they are in temporary tables of the same names, in
memory, which every statement finds first. Whatever a transaction changes there is sealed again before it commits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
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
_ROWS_IN_PART = 20_000
_MOST_PART_BYTES = 64 << 20
_MOST_AUDIT_PARTS = 64
_LEVEL = 3
_UNKNOWN = -1

Value = Any


class SealedStreams:
    """The sealed streams of one connection. Raises :class:`~sqlimage.errors.DamagedError` where a part is not what was
    sealed, and :class:`~sqlimage.errors.FormatError` where parts do not belong together."""

    def __init__(
        self,
        path: str,
        connection: apsw.Connection,
        vault: Vault,
        identity: str,
        *,
        tables: bool = True,
        is_new: bool = False,
    ) -> None:
        """``tables``: whether they are made; without them only maps can be checked. ``is_new``:
        the file is being made, and sealed once at its end."""
        self._path = path
        self._connection = connection
        self._vault = vault
        self._identity = identity
        self._is_new = is_new
        self._generation = 0
        self._parts: dict[tuple[str, int], list[int]] = {}
        """The generation in which each part was sealed, by stream and version."""
        self._audit_sealed = 0
        """The last row of the audit trail that is sealed."""
        self._maps: dict[int, str] = {}
        """A digest of map and bitmap of each version that is sealed."""
        if tables:
            self._make_tables()

    def _make_tables(self) -> None:
        run = self._connection.execute
        for statement in schema.temporary_sql((*TABLES, "fixup")):
            run(statement)
        run("CREATE TEMP TABLE unsealed (stream TEXT, version INTEGER, PRIMARY KEY (stream, version)) WITHOUT ROWID")
        if self._is_new:
            return
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

    def refresh(self) -> None:
        """At the beginning of a transaction: fill the tables anew where somebody else has written since."""
        try:
            is_same = self._part(_MANIFEST, 0, 0, 0)["generation"] == self._generation
        except (TypeError, KeyError):
            is_same = False
        if not is_same:
            for table in TABLES:
                self._connection.execute(f"DELETE FROM temp.{table}")
            self._parts.clear()
            self.load()

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
            raise self._other_versions()

    def _check_shown(self, manifest: Any) -> None:
        """Likewise, where there are no tables, and for what the file holds now."""
        columns = self._columns("control")
        open_ = [number for number, column in enumerate(columns) if column not in HIDDEN]
        sealed = {
            tuple(row[number] for number in open_)
            for stream, version, generations in manifest["parts"]
            if stream == "control"
            for part, generation in enumerate(generations)
            for row in self._part(stream, version, part, generation)
        }
        if set(self._rows(f"SELECT {', '.join(columns[number] for number in open_)} FROM main.control")) != sealed:
            raise self._other_versions()

    def _other_versions(self) -> FormatError:
        return FormatError(f"{self._path}: its versions are not those that were sealed")

    def store(self) -> None:
        """Seal what changed, inside the transaction that changed it."""
        run = self._connection.execute
        changed: list[tuple[str, int]] = self._changed()
        last: int = self._rows("SELECT coalesce(max(id), 0) FROM temp.audit")[0][0]
        if not changed and last == self._audit_sealed and self._generation:
            return
        self._generation += 1
        for stream, version in changed:
            if stream != _MAP:
                self._seal(stream, version, f"version = {version}", 0)
        maps = {version for stream, version in changed if stream == _MAP}
        for version in {version for stream, version in changed if stream in (_MAP, "control")}:
            self._note_map(version, is_changed=version in maps)
        if last != self._audit_sealed:
            self._seal_audit(last)
        if any(stream == "control" for stream, _ in changed):
            self._mirror_control()
        told = {
            "generation": self._generation,
            "parts": [[*place, generations] for place, generations in sorted(self._parts.items())],
            "maps": sorted(self._maps.items()),
        }
        self._write(_MANIFEST, 0, 0, 0, _json(told))
        run("DELETE FROM temp.unsealed")

    def _changed(self) -> list[tuple[str, int]]:
        """Stream and version of all that changed."""
        if not self._is_new:
            return self._rows("SELECT stream, version FROM temp.unsealed")  # type: ignore[no-any-return]
        for stream in _BY_VERSION:
            self._rows(f"INSERT INTO temp.unsealed SELECT DISTINCT '{stream}', version FROM temp.{stream}")
        return self._rows("SELECT stream, version FROM temp.unsealed")  # type: ignore[no-any-return]

    def roll_back(self) -> None:
        """After a transaction was taken back: the next one fills the tables anew."""
        self._generation = _UNKNOWN

    def _note_map(self, version: int, *, is_changed: bool) -> None:
        """What the map of a version is, once it changes no more. Where it is as it was sealed, another label does not
        vouch for what is there now."""
        if self._rows(f"SELECT state FROM temp.control WHERE version = {version}") != [("sealed",)]:
            self._maps.pop(version, None)
        elif is_changed or version not in self._maps:
            self._maps[version] = map_digest(self._connection, version)

    def _seal(self, stream: str, version: int, where: str, first: int) -> None:
        """The rows of a stream of one version, in parts from number ``first`` on; those that were there go."""
        columns = ", ".join(self._columns(stream))
        self._connection.execute(
            "DELETE FROM main.sealed_stream WHERE stream = ? AND version = ? AND part >= ?", [stream, version, first]
        )
        rows = f"SELECT {columns} FROM temp.{stream} WHERE {where} ORDER BY {TABLES[stream]}"
        generations = self._parts.get((stream, version), [])[:first]
        for text in self._in_json(stream, rows):
            self._write(stream, version, len(generations), self._generation, text)
            generations.append(self._generation)
        if generations:
            self._parts[stream, version] = generations
        else:
            self._parts.pop((stream, version), None)

    def _in_json(self, stream: str, rows: str) -> Iterator[bytes]:
        """What a statement gives, in parts."""
        at = 0
        as_json = self._json_of(stream)
        while True:
            part = f"{rows} LIMIT {_ROWS_IN_PART} OFFSET {at}"
            if as_json:  # by SQLite itself, which is much faster
                count, text = self._rows(f"SELECT count(*), '[' || group_concat({as_json}) || ']' FROM ({part})")[0]
                encoded = text.encode() if count else b""
                texts = iter([encoded]) if len(encoded) <= _MOST_PART_BYTES else _encoded(self._rows(part))
            else:
                found = self._rows(part)
                count, texts = len(found), _encoded(found)
            if not count:
                return
            yield from texts
            at += count

    def _json_of(self, stream: str) -> str | None:
        """A row as JSON, in SQL; None where a column may hold what SQLite would round: a number that is not whole."""
        told = []
        for _, name, kind, *_ in self._rows(f"PRAGMA main.table_info({stream})"):
            if kind not in ("INTEGER", "TEXT", "BLOB"):
                return None
            blob = f"CASE WHEN {name} IS NULL THEN NULL ELSE json_object('hex', lower(hex({name}))) END"
            told.append(blob if kind == "BLOB" else name)
        return f"json_array({', '.join(told)})"

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
        """Raise :class:`~sqlimage.errors.DamagedError` where a version's map or bitmap is not what was sealed, and
        :class:`~sqlimage.errors.FormatError` where the versions are not those that were."""
        begins = not self._connection.in_transaction
        if begins:  # list and maps as they were at one time
            self._connection.execute("BEGIN")
        try:
            manifest = self._part(_MANIFEST, 0, 0, 0)
            self._check_shown(manifest)
            maps = self._maps_of(manifest)
            for version in versions:
                is_open = self._rows(f"SELECT state FROM main.control WHERE version = {int(version)}") == [("open",)]
                if version in maps or not is_open:
                    self._check_map(version, maps.get(version))
        except (TypeError, KeyError, ValueError, AttributeError, IndexError):
            raise FormatError(f"{self._path}: the list of its sealed streams is not of the form it should be") from None
        finally:
            if begins:
                self._connection.execute("COMMIT")

    def _check_map(self, version: int, expected: str | None) -> None:
        if map_digest(self._connection, version) != expected:
            raise DamagedError(f"{self._path}: the cluster map of version {version} is not the one that was sealed")

    def _maps_of(self, manifest: Any) -> dict[int, str]:
        return {int(version): str(digest) for version, digest in manifest["maps"]}

    def _write(self, stream: str, version: int, part: int, generation: int, text: bytes) -> None:
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


def _encoded(rows: list[Sequence[Value]]) -> Iterator[bytes]:
    """Rows as JSON, in parts that readers accept."""
    text = _json(rows)
    if len(text) > _MOST_PART_BYTES and len(rows) > 1:
        half = len(rows) // 2
        yield from _encoded(rows[:half])
        yield from _encoded(rows[half:])
    else:
        yield text


def _json(told: object) -> bytes:
    return json.dumps(told, default=_blob, separators=(",", ":"), ensure_ascii=False).encode()


def _blob(value: object) -> object:
    assert isinstance(value, bytes)
    return {"hex": value.hex()}


def _restored(row: Any) -> list[Value]:
    return [bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in row]
