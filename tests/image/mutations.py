"""What can be done to an image file: to its bytes, to the pages of the database, to rows, to what is packed in them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import apsw

from tests.image.strangers import Base, lax

PAGE = 4096
HARMFUL = "\x1b[2J\x9b31m\r\b\u202e"
_INTEGERS = (0, 1, 2, 7, (1 << 31) - 1, 1 << 32, 1 << 55, 1 << 62, (1 << 63) - 1, -1, -4096, -(1 << 63))
_TEXTS = (
    *("", "x", "/", "..", "/..", "../../escaped", "//escaped", "/a/../../../escaped", "a\0b", HARMFUL, "\u0663"),
    *("2026-13-45T99:00:00Z", "0001-01-01T00:00:00", "9999-12-31T23:59:59+23:59", "now", "latest", "n" * 300),
    *("directory", "file", "symlink", "special", "stream", "metadata", "open", "sealed", "files", "raw", "blocks"),
    "/x" * 1500,
)


@dataclass
class Case:
    """One image to be spoilt."""

    base: Base
    name: str
    """The file that is changed."""
    content: bytearray
    place: Path
    """A directory for what has to lie in a file meanwhile; the names of attacks lead above it."""
    chance: random.Random
    others: tuple[Base, ...]

    @property
    def page_count(self) -> int:
        return len(self.content) // PAGE

    def pages_of(self, *tables: str) -> list[int]:
        """Where the pages lie that belong to these tables."""
        known = self.base.pages[self.name]
        return [(number - 1) * PAGE for table in tables for number in known.get(table, [])]

    def page_of_rows(self) -> int:
        """Where a page lies that holds no content: of any table or index with equal chance."""
        known = sorted(self.base.pages[self.name].items())
        numbers = self.chance.choice([numbers for table, numbers in known if table != "data"])
        return (self.chance.choice(numbers) - 1) * PAGE


Mutation = Callable[[Case], None]


def flip_anywhere(case: Case) -> None:
    for _ in range(case.chance.choice([1, 1, 3, 20])):
        case.content[case.chance.randrange(len(case.content))] ^= 1 << case.chance.randrange(8)


def flip_header(case: Case) -> None:
    for _ in range(case.chance.randint(1, 3)):
        case.content[case.chance.randrange(100)] ^= 1 << case.chance.randrange(8)


def put_extremes_into_header(case: Case) -> None:
    """Page size, page count, the list of free pages, the root page's limits."""
    at = case.chance.choice([16, 18, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 92, 96])
    _put_number(case, at, case.chance.choice([2, 4]))


def flip_page_header(case: Case) -> None:
    at = case.page_of_rows()
    at += 100 if at == 0 else 0
    case.content[at + case.chance.randrange(12)] ^= 1 << case.chance.randrange(8)


def flip_cells(case: Case) -> None:
    at = case.page_of_rows()
    for _ in range(case.chance.randint(1, 8)):
        case.content[at + case.chance.randrange(8, PAGE)] ^= 1 << case.chance.randrange(8)


def put_extremes_into_cells(case: Case) -> None:
    at = case.page_of_rows()
    for _ in range(case.chance.randint(1, 3)):
        _put_number(case, at + case.chance.randrange(8, PAGE - 8), case.chance.choice([1, 2, 4, 8]))


def point_cells_elsewhere(case: Case) -> None:
    """Cell pointers that overlap, leave the page, or are all one."""
    at = case.page_of_rows()
    at += 100 if at == 0 else 0
    first = at + (12 if case.content[at] in (2, 5) else 8)
    for _ in range(case.chance.randint(1, 6)):
        value = case.chance.choice([0, 1, 8, 100, PAGE - 1, PAGE, 0xFFFF, case.chance.randrange(PAGE)])
        struct.pack_into(">H", case.content, first + 2 * case.chance.randrange(8), value)


def point_at_other_pages(case: Case) -> None:
    """Children of an inner page: cycles, pages of others, pages that are not there."""
    inner = [at for at in range(0, len(case.content), PAGE) if case.content[at] in (2, 5)]
    at = case.chance.choice(inner or [PAGE])
    value = case.chance.choice(
        [0, 1, 2, at // PAGE + 1, case.chance.randrange(case.page_count), 1 << 31, (1 << 32) - 1]
    )
    target = at + case.chance.choice([8, PAGE - 4, PAGE - 10, PAGE - 16])
    struct.pack_into(">I", case.content, target, value)


def blank_page(case: Case) -> None:
    at = case.chance.randrange(case.page_count) * PAGE
    filler = case.chance.choice([bytes(PAGE), b"\xff" * PAGE, case.chance.randbytes(PAGE)])
    case.content[at : at + PAGE] = filler


def swap_pages(case: Case) -> None:
    a, b = (case.chance.randrange(case.page_count) * PAGE for _ in range(2))
    one, other = case.content[a : a + PAGE], case.content[b : b + PAGE]
    case.content[a : a + PAGE], case.content[b : b + PAGE] = other, one


def copy_page(case: Case) -> None:
    a, b = (case.chance.randrange(case.page_count) * PAGE for _ in range(2))
    case.content[a : a + PAGE] = case.content[b : b + PAGE]


def truncate(case: Case) -> None:
    near = case.chance.randrange(1, case.page_count) * PAGE
    del case.content[max(0, near + case.chance.choice([0, 0, -1, 1, -PAGE // 2, 99 - near])) :]


def extend(case: Case) -> None:
    more = case.chance.choice([1, PAGE - 1, PAGE, 10 * PAGE])
    case.content += case.chance.choice([bytes(more), case.chance.randbytes(more), bytes(case.content[:more])])


def claim_other_page_count(case: Case) -> None:
    count = case.chance.choice(
        [0, 1, 2, case.page_count - 1, case.page_count + 1, 1 << 24, (1 << 31) - 1, (1 << 32) - 2]
    )
    struct.pack_into(">I", case.content, 28, count)


def splice(case: Case) -> None:
    """The beginning of one image and the end of another."""
    other = case.chance.choice(case.others)
    content = other.files[case.chance.choice(sorted(other.files))]
    cut = case.chance.randrange(1, case.page_count) * PAGE
    case.content[cut:] = content[cut:]


def swap_page_with_other_image(case: Case) -> None:
    other = case.chance.choice(case.others)
    content = other.files[other.opened]
    a, b = case.chance.randrange(case.page_count) * PAGE, case.chance.randrange(len(content) // PAGE) * PAGE
    case.content[a : a + PAGE] = content[b : b + PAGE]


def flip_contents(case: Case) -> None:
    """Only what the data stream holds."""
    pages = case.pages_of("data")
    for _ in range(case.chance.choice([1, 1, 5, 30])):
        case.content[case.chance.choice(pages) + case.chance.randrange(PAGE)] ^= 1 << case.chance.randrange(8)


def damage_frame(case: Case) -> None:
    """Stored bytes of one content, by way of SQL: their lengths may be right."""
    connection = apsw.Connection(str(_written(case)))
    rows = connection.execute("SELECT id, bytes, length FROM data WHERE bytes IS NOT NULL ORDER BY id").fetchall()
    connection.close()
    if not rows:
        return
    number, stored, length = case.chance.choice(rows)
    assert isinstance(stored, bytes) and isinstance(length, int)
    spoilt = bytearray(stored)
    how = case.chance.randrange(6)
    if how == 0:
        for _ in range(case.chance.randint(1, 4)):
            spoilt[case.chance.randrange(min(len(spoilt), 40))] ^= 1 << case.chance.randrange(8)
    elif how == 1:
        del spoilt[case.chance.randrange(len(spoilt)) :]
    elif how == 2:
        spoilt *= 2
    elif how == 3:
        spoilt[:] = bytes(case.chance.choice(rows)[1])  # type: ignore[arg-type]
    elif how == 4:  # a frame of one block that is repeated, whatever it claims
        claim = case.chance.choice([length, 1 << 40, (1 << 63) - 1])
        spoilt[:] = bytes.fromhex("28b52ffde0") + struct.pack("<Q", claim) + b"\xfb\xff\xff\x00" * 250
    else:
        spoilt[:] = bytes.fromhex("502a4d18ffffffff") + spoilt
    _by_sql(case, "UPDATE data SET bytes = ?, stored_bytes = max(length(?1), 1) WHERE id = ?2", bytes(spoilt), number)


def put_values_into_rows(case: Case) -> None:
    """Any column of some rows of any table holds what it never would."""
    table, columns = case.chance.choice(_TABLES)
    column = case.chance.choice(columns)
    value = _value(case)
    where = case.chance.choice(["1", "rowid % 2 = 0", "rowid = (SELECT max(rowid) FROM {0})"])
    if table not in ("control", "data", "audit"):
        where = case.chance.choice(["1", "dice() % 2 = 0"])
    _by_sql(case, f"UPDATE OR IGNORE {table} SET {column} = {value[0]} WHERE {where.format(table)}", *value[1])


def put_value_into_one_row(case: Case) -> None:
    table, columns = case.chance.choice(_TABLES)
    value = _value(case)
    key = _KEYS.get(table, "rowid")
    skip = case.chance.randrange(40)
    rows = f"(SELECT count(*) + (count(*) = 0) FROM {table})"
    some = f"(SELECT {key} FROM {table} ORDER BY 1 LIMIT 1 OFFSET {skip} % {rows})"
    column = case.chance.choice(columns)
    _by_sql(case, f"UPDATE OR IGNORE {table} SET {column} = {value[0]} WHERE {key} = {some}", *value[1])


def shift_numbers(case: Case) -> None:
    """Numbers that are only a little wrong: ranges that touch, overlap, or lead one too far."""
    table, columns = case.chance.choice(
        [
            ("cluster_map", ("start_cluster", "end_cluster", "data", "data_offset", "version")),
            ("bitmap", ("start_cluster", "end_cluster", "version")),
            ("extent", ("start_cluster", "clusters", "file_offset", "record")),
            ("file", ("bytes", "record", "attributes", "volume")),
            ("volume", ("offset_clusters", "length_clusters", "length_bytes", "number", "bytes_per_cluster")),
            ("control", ("medium_bytes", "bytes_per_cluster", "bytes_per_sector", "version", "chunk_bytes")),
            ("data", ("length", "stored_bytes", "flags", "id")),
        ]
    )
    column = case.chance.choice(columns)
    change = case.chance.choice(["+ 1", "- 1", "* 2", "/ 2", "+ 4096", "* -1", "+ 1000000", "<< 20"])
    share = case.chance.choice([1, 2, 7])
    _by_sql(case, f"UPDATE OR IGNORE {table} SET {column} = {column} {change} WHERE dice() % {share} = 0")


def move_paths(case: Case) -> None:
    """Names and links that lead out of where they are extracted to."""
    tricks = ("/..", "/../escaped", "//escaped", "{0}/escaped", "/a/" + "b/" * 300 + "c", "/x\0", "/.",
              "/" + "n" * 5000, "/docs", "/a", "/DOCS", "/\u2215", "/CON", "/docs/text/x", "x", HARMFUL)  # fmt: skip
    trick = case.chance.choice(tricks).format(case.place.parent)
    kind = case.chance.choice(
        ["", ", kind = 'directory'", ", kind = 'symlink'", ", kind = 'file'", ", kind = 'special'"]
    )
    how = case.chance.choice(["?", "? || path", "? || path", "path || ?"])
    _by_sql(case, f"UPDATE OR IGNORE file SET path = {how}{kind} WHERE dice() % 3 = 0", trick)


def mislead_lineage(case: Case) -> None:
    """Parents that are the version itself, its child, nowhere, or at a path."""
    _by_sql(
        case,
        case.chance.choice(
            [
                "UPDATE control SET parent_uuid = uuid",
                "UPDATE control SET parent_uuid = (SELECT max(uuid) FROM control)",
                "UPDATE control SET parent_uuid = '00000000-0000-4000-8000-000000000000', parent_name = '/etc/passwd'",
                "UPDATE control SET parent_name = '../../escaped', parent_uuid = 'x'",
                "UPDATE control SET parent_uuid = NULL",
                "UPDATE control SET state = 'open'",
                "INSERT INTO control SELECT version + 1000000, uuid || 'x', uuid, NULL, NULL, state, created_at, "
                "medium_bytes, bytes_per_cluster, bytes_per_sector, cylinders, tracks_per_cylinder, sectors_per_track, "
                "partition_scheme, disk_id, chunk_bytes, compression, encryption, stored_bytes, source FROM control",
                "DELETE FROM control WHERE version = 1",
                "UPDATE control SET version = version + 5",
            ]
        ),
    )


def drop_rows(case: Case) -> None:
    table, _ = case.chance.choice(_TABLES)
    _by_sql(case, f"DELETE FROM {table} WHERE dice() % {case.chance.choice([1, 2, 5])} = 0")


def add_rows(case: Case) -> None:
    """Ranges that overlap, huge ones, and very many."""
    top = case.chance.choice([1, 2, 1000, 1 << 40, (1 << 63) - 1])
    _by_sql(
        case,
        case.chance.choice(
            [
                f"INSERT OR IGNORE INTO cluster_map VALUES (1, {case.chance.randrange(60)}, {top}, 1, 0, 0)",
                f"INSERT OR IGNORE INTO cluster_map VALUES (1, {case.chance.randrange(60)}, {top}, NULL, 0, 0)",
                f"INSERT OR IGNORE INTO bitmap VALUES (1, {case.chance.randrange(60)}, {top})",
                f"INSERT OR IGNORE INTO extent SELECT version, volume, record, stream, {top}, 0, {top} FROM extent",
                "INSERT OR IGNORE INTO file SELECT version, volume, path || '/' || path, kind, bytes, modified_at, "
                "record, stream, attributes, digest, deleted FROM file",
                f"WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n WHERE x < 20000) "
                f"INSERT OR IGNORE INTO cluster_map SELECT 1, x, x + {top}, 1, 0, 0 FROM n",
                "WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n WHERE x < 5000) "
                "INSERT INTO file SELECT 1, 0, '/' || x, 'directory', NULL, NULL, x, '', x, NULL, 0 FROM n",
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3000) INSERT INTO file "
                "SELECT 1, 0, printf('%.*c', 2 * x, '/'), 'directory', 0, NULL, x, '', x, NULL, 0 FROM n",
                f"INSERT INTO property SELECT 1, '{HARMFUL}' || id, zeroblob(100000) FROM data",
            ]
        ),
    )


DAMAGE: tuple[Mutation, ...] = (
    *(flip_anywhere, flip_header, put_extremes_into_header, flip_page_header, flip_cells, put_extremes_into_cells),
    *(point_cells_elsewhere, point_at_other_pages, blank_page, swap_pages, copy_page, truncate, extend),
    *(claim_other_page_count, splice, swap_page_with_other_image, flip_contents, damage_frame),
)
"""Bytes are not what they were."""
FORGERY: tuple[Mutation, ...] = (
    *(put_values_into_rows, put_value_into_one_row, shift_numbers, move_paths, mislead_lineage, drop_rows, add_rows),
)
"""Rows say something else. An image that is consistent can be forged; it must do no harm."""
PROVEN: tuple[Mutation, ...] = (truncate, extend, claim_other_page_count, flip_contents, damage_frame)
"""Of the damage, what digests and the database's own checks must always find."""

_TABLES = (
    ("control", ("version", "uuid", "parent_uuid", "parent_name", "label", "state", "created_at", "medium_bytes",
                 "bytes_per_cluster", "bytes_per_sector", "cylinders", "tracks_per_cylinder", "sectors_per_track",
                 "partition_scheme", "disk_id", "chunk_bytes", "compression", "encryption", "stored_bytes", "source")),
    ("volume", ("version", "number", "offset_clusters", "length_clusters", "length_bytes", "hidden_sectors",
                "partition_type", "file_system", "format_version", "label", "serial", "bytes_per_sector",
                "bytes_per_cluster", "total_clusters", "clusters_per_record", "os_name", "dirty", "hibernated",
                "captured_as", "raw_reason")),
    ("data", ("id", "digest", "length", "stored_bytes", "flags", "bytes")),
    ("cluster_map", ("version", "start_cluster", "end_cluster", "data", "data_offset", "flags")),
    ("bitmap", ("version", "start_cluster", "end_cluster")),
    ("file", ("version", "volume", "path", "kind", "bytes", "modified_at", "record", "stream", "attributes", "digest",
              "deleted")),
    ("extent", ("version", "volume", "record", "stream", "file_offset", "start_cluster", "clusters")),
    ("audit", ("id", "version", "at", "user", "host", "tool", "action", "path", "clusters", "bytes", "detail",
               "previous_hash", "hash")),
    ("property", ("version", "name", "value")),
    ("format", ("name", "value")),
    ("feature", ("name", "required")),
    ("key_slot", ("id", "kind", "parameters", "wrapped_key")),
    ("sealed_stream", ("stream", "version", "part", "bytes")),
)  # fmt: skip
_KEYS = {
    "volume": "number",
    "cluster_map": "start_cluster",
    "bitmap": "start_cluster",
    "file": "path",
    "extent": "record",
    "property": "name",
    "format": "name",
    "feature": "name",
}


def _value(case: Case) -> tuple[str, tuple[object, ...]]:
    """An expression, and what stands for its marks."""
    how = case.chance.randrange(10)
    if how < 4:
        return "?", (case.chance.choice(_INTEGERS),)
    if how < 7:
        return "?", (case.chance.choice(_TEXTS),)
    odd = ("NULL", "1.5", "9e999", "x''", "x'ff00'", "CAST(x'ff' AS TEXT)", "CAST(x'2f1bc32f' AS TEXT)", "zeroblob(32)",
           "zeroblob(3000000)", "printf('%.*c', 1000000, 'A')", "CAST(dice() AS BLOB)")  # fmt: skip
    return case.chance.choice(odd), ()


def _put_number(case: Case, at: int, size: int) -> None:
    most = 1 << 8 * size
    value = case.chance.choice([0, 1, most // 2 - 1, most // 2, most - 1, case.chance.randrange(most)])
    case.content[at : at + size] = value.to_bytes(size, "big")


def _written(case: Case) -> Path:
    path = case.place / "before"
    path.write_bytes(case.content)
    return path


def _by_sql(case: Case, statement: str, *values: object) -> None:
    with suppress(apsw.Error):  # where the rows are not such that it can be done, nothing is
        case.content[:] = lax(
            _written(case), case.place / "after", statement, values=values, dice=lambda: case.chance.getrandbits(31)
        ).read_bytes()
    for path in case.place.iterdir():
        path.unlink()
