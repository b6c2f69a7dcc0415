"""A fingerprint covers every column of every row that a version is made of, and nothing of how it is stored."""

from __future__ import annotations

import hashlib
import hmac
import struct
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sqlimage
from sqlimage.image.fingerprint import PARTS, Fingerprint, Fingerprints, digest, encode
from sqlimage.streams import control, schema
from sqlimage.streams.database import Database
from tests.images import sample_volume
from tests.make.signing import by_hand, copied

VALUE = (
    st.none()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
NOT_COVERED = {("control", name) for name in ("parent_name", "label", "compression", "encryption", "stored_bytes")}
"""A label is signed beside the fingerprint; the others tell how and where something is stored."""
REFUSED = {("control", "parent_uuid"), ("control", "encryption")}
"""What no reader gets as far as to a fingerprint of, after a change."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fingerprint")
    values: dict[str, str | int | float | bytes | None] = {"a": 1, "b": "text", "c": 1.5}
    sqlimage.capture(sample_volume(place / "v"), place / "i.sqlimage", preset="fast", property_values=values)
    return place / "i.sqlimage"


@pytest.fixture(scope="module")
def before(image: Path) -> Fingerprint:
    return fingerprint(image)


def fingerprint(image: Path) -> Fingerprint:
    with Database.open(image) as database:
        return Fingerprints().of(database, control.versions(database)[-1])


def columns() -> list[tuple[str, str, str]]:
    """Table, column and type of everything that is said of a version."""
    found = []
    connection = apsw.Connection(":memory:")
    connection.execute(schema.schema_sql()[0])
    for table in PARTS:
        for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})"):
            if name != "version" and (table, name) not in REFUSED:
                found.append((table, str(name), str(kind)))
    connection.close()
    return found


def other(value: object, kind: str) -> str:
    """Another value of a column, as SQL."""
    if isinstance(value, int):
        return str(value * 2 or 1)
    if isinstance(value, float):
        return str(value + 1)
    if isinstance(value, str):
        return f"'{value}x'"
    if isinstance(value, bytes):
        return f"x'{value[::-1].hex()}'"
    return {"INTEGER": "1", "TEXT": "'x'", "BLOB": "x'00'", "ANY": "1"}[kind]


@pytest.mark.parametrize(("table", "column", "kind"), columns())
def test_another_value_in_any_column_of_a_row_is_another_fingerprint(
    image: Path, before: Fingerprint, tmp_path: Path, table: str, column: str, kind: str
) -> None:
    with Database.open(image) as database:
        keys = keys_of(database, table)
        order = ", ".join(f"{key} DESC" for key in keys)
        row = database.row(f"SELECT {column}, {', '.join(keys)} FROM {table} ORDER BY {order} LIMIT 1")
        assert row is not None
    where = " AND ".join(f"{key} = {value!r}" for key, value in zip(keys, row[1:], strict=True))
    new = other(row[0], kind)
    if column == "data":
        new = f"(SELECT id FROM data WHERE id != {row[0]})"
    elif column == "compression":
        new = "'none'"
    after = fingerprint(copied(image, tmp_path, f"UPDATE {table} SET {column} = {new} WHERE {where}"))
    differing = {name for name in PARTS if before.parts[name] != after.parts[name]}
    assert differing == (set() if (table, column) in NOT_COVERED else {table})
    assert (before.digest == after.digest) == ((table, column) in NOT_COVERED)


def keys_of(database: Database, table: str) -> list[str]:
    return [str(row[1]) for row in database.rows(f"PRAGMA table_info({table})") if row[5]]


@pytest.mark.parametrize("table", PARTS[1:])
def test_a_row_that_is_gone_is_another_fingerprint(
    image: Path, before: Fingerprint, tmp_path: Path, table: str
) -> None:
    with Database.open(image) as database:
        keys = keys_of(database, table)
    first = f"SELECT {', '.join(keys)} FROM {table} LIMIT 1"
    after = fingerprint(copied(image, tmp_path, f"DELETE FROM {table} WHERE ({', '.join(keys)}) IN ({first})"))
    assert [name for name in PARTS if before.parts[name] != after.parts[name]] == [table]


def test_how_a_content_is_numbered_and_compressed_is_not_part_of_it(
    image: Path, before: Fingerprint, tmp_path: Path
) -> None:
    copy = copied(
        image,
        tmp_path,
        "UPDATE data SET id = id + 1000",
        "UPDATE cluster_map SET data = data + 1000",
        "UPDATE data SET flags = 0, stored_bytes = 1, bytes = NULL WHERE id = 1001",
    )
    for table in PARTS:
        by_hand(copy, f"UPDATE {table} SET version = 7")
    assert fingerprint(copy).digest == before.digest


def test_contents_that_change_places_and_digests_that_change_are_told(
    image: Path, before: Fingerprint, tmp_path: Path
) -> None:
    first, last = "(SELECT min(data) FROM cluster_map)", "(SELECT max(data) FROM cluster_map)"
    for harm in (
        f"UPDATE cluster_map SET data = CASE data WHEN {first} THEN {last} WHEN {last} THEN {first} ELSE data END",
        f"UPDATE data SET digest = x'{'ab' * 32}' WHERE id = {first}",
        f"UPDATE data SET length = length - 1 WHERE id = {first}",
    ):
        assert fingerprint(copied(image, tmp_path, harm)).parts["cluster_map"] != before.parts["cluster_map"]


def test_a_map_that_names_a_content_that_is_missing_has_no_fingerprint(image: Path, tmp_path: Path) -> None:
    copy = copied(image, tmp_path, "DELETE FROM data WHERE id = (SELECT max(data) FROM cluster_map)")
    with pytest.raises(sqlimage.DamagedError, match="which is missing"):
        fingerprint(copy)


def test_a_key_makes_it_a_code_that_tells_nothing_without_the_key() -> None:
    rows = [(1, "x")]
    assert digest("t", rows, b"a key") == hmac.digest(b"a key", encode(("t", 1, "x")), "sha256")
    assert len({digest("t", rows), digest("t", rows, b"a key"), digest("t", rows, b"another")}) == 3


@given(st.lists(VALUE), st.lists(VALUE))
def test_different_values_have_different_bytes(a: list[object], b: list[object]) -> None:
    def typed(values: list[object]) -> list[tuple[type, str]]:
        return [(type(value), repr(value)) for value in values]

    assert (encode(a) == encode(b)) == (typed(a) == typed(b))


@given(st.lists(VALUE))
def test_values_can_be_read_back_so_no_two_lists_share_their_bytes(values: list[object]) -> None:
    content, at, found = encode(values), 0, list[object]()
    while at < len(content):
        kind, at = content[at : at + 1], at + 1
        if kind == b"N":
            found.append(None)
            continue
        (number,) = struct.unpack_from(">d" if kind == b"R" else ">q", content, at)
        at += 8
        if kind in b"IR":
            found.append(number)
        else:
            raw, at = content[at : at + number], at + number
            found.append(raw.decode() if kind == b"T" else raw)
    assert [(type(one), repr(one)) for one in found] == [(type(one), repr(one)) for one in values]


def test_long_tables_and_long_values_are_digested_as_one() -> None:
    rows = [(n, "x" * 1000) for n in range(5000)]
    whole = encode(("t",)) + b"".join(encode(row) for row in rows)
    assert digest("t", rows) == hashlib.sha256(whole).digest()
