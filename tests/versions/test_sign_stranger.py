"""Signatures verified by somebody who has FORMAT.md, an SQLite library, SHA-256 and OpenSSL, and no code of ours."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest

import sqlimage
from tests.conftest import run
from tests.images import sample_volume
from tests.make.signing import KEY

_CONTROL = (
    "uuid, state, created_at, medium_bytes, bytes_per_cluster, bytes_per_sector, cylinders, tracks_per_cylinder, "
    "sectors_per_track, partition_scheme, disk_id, chunk_bytes, source"
)
_STORY = "SELECT at, user, host, tool, action, path, clusters, bytes, detail FROM audit WHERE version = ? ORDER BY id"
_WITHOUT_VERSION = {
    "volume": "number",
    "bitmap": "start_cluster",
    "file": "volume, path",
    "extent": "volume, record, stream, file_offset",
    "property": "name",
}
"""Tables of which all columns but the first are covered, and the rest of their keys."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version and one on top of it, signed together."""
    place = tmp_path_factory.mktemp("stranger")
    image = place / "i.sqlimage"
    values: dict[str, str | int | float | bytes | None] = {"a": 1, "b": "text", "c": 1.5, "d": b"bytes", "e": None}
    sqlimage.capture(sample_volume(place / "v"), image, preset="fast", label="golden", property_values=values)
    with sqlimage.open(str(image), writable=True) as opened, opened.edit() as edit:
        edit.driver.write(7 << 20, b"the second's own" * 1000)
        edit.driver.zero(6 << 20, 65536)
    sqlimage.sign(image, KEY, every=True)
    return image


def value(one: object) -> bytes:
    match one:
        case None:
            return b"N"
        case int():
            return b"I" + struct.pack(">q", one)
        case float():
            return b"R" + struct.pack(">d", one)
        case str():
            return b"T" + struct.pack(">q", len(one.encode())) + one.encode()
        case bytes():
            return b"B" + struct.pack(">q", len(one)) + one
    raise AssertionError(one)


def digest(name: str, rows: Iterable[Iterable[object]]) -> bytes:
    return hashlib.sha256(value(name) + b"".join(value(one) for row in rows for one in row)).digest()


def parts_of(image: sqlite3.Connection, number: int) -> dict[str, bytes]:
    contents = {row[0]: row[1:] for row in image.execute("SELECT id, digest, length FROM data")}
    contents[None] = (None, None)
    records = image.execute("SELECT * FROM cluster_map WHERE version = ? ORDER BY start_cluster", [number])
    rows = {
        "control": list(image.execute(f"SELECT {_CONTROL} FROM control WHERE version = ?", [number])),
        "cluster_map": [(*row[1:3], *contents[row[3]], *row[4:]) for row in records],
    }
    for table, key in _WITHOUT_VERSION.items():
        found = image.execute(f"SELECT * FROM {table} WHERE version = ? ORDER BY {key}", [number])
        rows[table] = [row[1:] for row in found]
    order = ("control", "volume", "cluster_map", "bitmap", "file", "extent", "property")
    return {table: digest(table, rows[table]) for table in order}


def test_the_specification_is_enough_to_make_what_is_signed(image: Path) -> None:
    connection = sqlite3.connect(f"file:{image}?mode=ro", uri=True)
    above: tuple[str | None, bytes | None] = (None, None)
    above_in_words: dict[str, str] | None = None
    for number, uuid in connection.execute("SELECT version, uuid FROM control ORDER BY version").fetchall():
        (text,) = connection.execute("SELECT statement FROM signature WHERE version_uuid = ?", [uuid]).fetchone()
        told, parts = json.loads(text), parts_of(connection, number)
        whole = digest("version", [*parts.items(), above])
        assert told["parts"] == {name: one.hex() for name, one in parts.items()}
        assert told["digest"] == whole.hex()
        assert told["parent"] == above_in_words
        (label,) = connection.execute("SELECT label FROM control WHERE version = ?", [number]).fetchone()
        assert told["label"] == digest("label", [(label,)]).hex()
        head = told["audit"]
        (last,) = connection.execute("SELECT hash FROM audit WHERE id = ?", [head["id"]]).fetchone()
        assert head["hash"] == last.hex()
        story = connection.execute(_STORY, [number]).fetchall()
        assert head["story"] == digest("audit", story[: head["rows"]]).hex()
        above, above_in_words = (uuid, whole), {"uuid": uuid, "digest": whole.hex()}
    connection.close()


def test_openssl_verifies_what_is_signed(image: Path, tmp_path: Path) -> None:
    sql = "SELECT writefile('s', statement) + writefile('g', signature) + writefile('k', public_key) FROM signature"
    run("sqlite3", "-readonly", image, f"{sql} LIMIT 1", cwd=tmp_path)
    frame = bytes.fromhex("302a300506032b6570032100")  # ASN.1: a public key, and that it is Ed25519
    (tmp_path / "k.der").write_bytes(frame + (tmp_path / "k").read_bytes())
    key = ("-pubin", "-keyform", "DER", "-inkey", tmp_path / "k.der")
    done = run("openssl", "pkeyutl", "-verify", *key, "-rawin", "-in", tmp_path / "s", "-sigfile", tmp_path / "g")
    assert b"Verified Successfully" in done.stdout
