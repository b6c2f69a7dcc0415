"""What a version is, in one digest: every row it is made of, by content and not by how it happens to be stored, and its
ancestors through their digests. FORMAT.md, "Signatures", has the exact bytes."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlimage.codec.vault import derived
from sqlimage.errors import DamagedError, FormatError
from sqlimage.image.lineage import Link, resolve
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.translation import Row

_HASHED_AT_A_TIME = 1 << 20

_CONTROL = (
    "uuid, state, created_at, medium_bytes, bytes_per_cluster, bytes_per_sector, cylinders, tracks_per_cylinder, "
    "sectors_per_track, partition_scheme, disk_id, chunk_bytes, source"
)
_VOLUME = (
    "number, offset_clusters, length_clusters, length_bytes, hidden_sectors, partition_number, partition_type, "
    "partition_name, partition_uuid, file_system, format_version, label, serial, bytes_per_sector, bytes_per_cluster, "
    "total_clusters, clusters_per_record, os_name, os_version, os_update, dirty, hibernated, captured_as, raw_reason"
)
# The rows of each part, in the order of its key. A content is told by its digest and length: its number, how it is
# compressed and which file has its bytes may change under a signature.
_PARTS = {
    "control": f"SELECT {_CONTROL} FROM control WHERE version = ?",
    "volume": f"SELECT {_VOLUME} FROM volume WHERE version = ? ORDER BY number",
    "cluster_map": (
        "SELECT start_cluster, end_cluster, data.digest, data.length, data_offset, cluster_map.flags "
        "FROM cluster_map LEFT JOIN data ON data.id = cluster_map.data WHERE version = ? ORDER BY start_cluster"
    ),
    "bitmap": "SELECT start_cluster, end_cluster FROM bitmap WHERE version = ? ORDER BY start_cluster",
    "file": (
        "SELECT volume, path, kind, bytes, modified_at, record, stream, attributes, digest, deleted "
        "FROM file WHERE version = ? ORDER BY volume, path"
    ),
    "extent": (
        "SELECT volume, record, stream, file_offset, start_cluster, clusters "
        "FROM extent WHERE version = ? ORDER BY volume, record, stream, file_offset"
    ),
    "property": "SELECT name, value FROM property WHERE version = ? ORDER BY name",
}
PARTS = tuple(_PARTS)
"""What a version is made of, by table, in the order in which the parts are taken together."""
_STORY = (
    "SELECT at, user, host, tool, action, path, clusters, bytes, detail FROM audit "
    "WHERE version = ? ORDER BY id LIMIT ?"
)
_DANGLING = (
    "SELECT data FROM cluster_map WHERE version = ? AND data IS NOT NULL AND data NOT IN (SELECT id FROM data) LIMIT 1"
)

_NUMBER = struct.Struct(">cq").pack
_REAL = struct.Struct(">cd").pack


def _text(value: str) -> bytes:
    content = value.encode("utf-8")
    return _NUMBER(b"T", len(content)) + content


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    int: lambda value: _NUMBER(b"I", value),
    float: lambda value: _REAL(b"R", value),
    str: _text,
    bytes: lambda value: _NUMBER(b"B", len(value)) + value,
}


def encode(values: Iterable[object]) -> bytes:
    """Values one after the other, each with its type and, where that varies, its length: no two sequences of values
    have the same bytes, and none is the beginning of another but where its values are."""
    return b"".join([_ENCODERS[type(value)](value) for value in values])


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a version is, as it lies in one file."""

    path: str
    control: Control
    parent: Fingerprint | None
    parts: dict[str, bytes]
    """The digest of each of :data:`PARTS`."""
    digest: bytes
    """Of all of them, and of the parent's."""


class Fingerprints:
    """The fingerprints of versions, each made once. Files MUST not change meanwhile.

    Of an image that is encrypted as a whole every digest is HMAC-SHA256, under a key that only its holders have: what a
    signature tells openly says nothing of what is on the medium.
    """

    def __init__(self, search: Sequence[str] = ()) -> None:
        self._search = search
        self._known: dict[tuple[str, str], Fingerprint] = {}

    def of(self, database: Database, version: Control) -> Fingerprint:
        """Raises what :func:`~sqlimage.image.lineage.resolve` raises, :class:`~sqlimage.errors.FormatError` where rows
        are not of the format, and :class:`~sqlimage.errors.LockedError` where an ancestor is encrypted as a whole and
        there is no key."""
        known = self._known.get((database.path, version.uuid))
        if known is not None:
            return known
        lineage = resolve(database, version, self._search)
        try:
            found: Fingerprint | None = None
            for link in reversed(lineage.links):
                found = self._of_link(lineage.files[link.file], link, found)
            assert found is not None
            return found
        finally:
            lineage.close()

    def _of_link(self, database: Database, link: Link, parent: Fingerprint | None) -> Fingerprint:
        where = (database.path, link.control.uuid)
        if where not in self._known:
            if database.is_sealed and database.sealed is None:
                database.unseal()
            number, key = link.control.version, key_of(database)
            lost = database.row(_DANGLING, [number])
            if lost is not None:
                raise DamagedError(f"{database.path}: the map refers to data {lost[0]}, which is missing", data=lost[0])
            parts = {name: digest(name, database.query(sql, [number]), key) for name, sql in _PARTS.items()}
            above = (link.control.parent_uuid, parent.digest if parent else None)
            whole = digest("version", [*parts.items(), above], key)
            self._known[where] = Fingerprint(database.path, link.control, parent, parts, whole)
        return self._known[where]


def key_of(database: Database) -> bytes:
    """What digests that lie openly in a file are made under; empty where the rows lie there openly, too.

    Raises :class:`~sqlimage.errors.LockedError` without the key of the image.
    """
    return derived(database.vault().data_key, "signatures") if database.is_sealed else b""


def label_digest(database: Database, label: str | None) -> bytes:
    """The digest of a label, which is no part of a version: a merge may have to add a number to it."""
    return digest("label", [(label,)], key_of(database))


def story_digest(database: Database, version: int, rows: int) -> bytes:
    """The digest of the first rows of the audit trail about a version, but for what a merge gives them anew: id,
    version and hashes."""
    return digest("audit", database.query(_STORY, [version, rows]), key_of(database))


def head_digest(database: Database, hash_: bytes) -> bytes:
    """The hash of a row of the audit trail as it is told openly."""
    key = key_of(database)
    return hmac.digest(key, hash_, "sha256") if key else hash_


def digest(name: str, rows: Iterable[Row], key: bytes = b"") -> bytes:
    """The digest of rows, under the name of what they are: SHA-256, or HMAC-SHA256 where there is a key."""
    hashed = hmac.new(key, digestmod="sha256") if key else hashlib.sha256()
    waiting, held = [encode((name,))], 0
    for row in rows:
        try:
            waiting.append(encode(row))
        except (OverflowError, UnicodeEncodeError, struct.error) as problem:
            raise FormatError(f"{name} holds a value that the format does not allow ({problem})") from None
        held += len(waiting[-1])
        if held >= _HASHED_AT_A_TIME:
            hashed.update(b"".join(waiting))
            waiting, held = [], 0
    hashed.update(b"".join(waiting))
    return hashed.digest()
