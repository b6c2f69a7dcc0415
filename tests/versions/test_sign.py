"""What is signed is proved, and whatever of it a hand changes is found and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

import sqlimage
from sqlimage.codec.ed25519 import is_signed
from sqlimage.streams import audit, schema, signature
from sqlimage.streams.database import Database
from sqlimage.versions.statement import Statement
from tests.images import noise, run_tool, sample_volume, tool
from tests.make.signing import KEY, OTHER, by_hand, checked, copied, problems

CONTENT = noise("content", 4096)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """golden (1) <- second (2), each signed when it was made; the trail goes on after that."""
    place = tmp_path_factory.mktemp("sign")
    image = place / "i.sqlimage"
    sqlimage.capture(sample_volume(place / "v"), image, preset="fast", label="golden", property_values={"site": "here"})
    with sqlimage.open(str(image), writable=True) as opened:
        opened.version().set_property("owner", "joe")
        sqlimage.sign(image, KEY)
        with opened.edit(label="second") as edit:
            edit.driver.write(7 << 20, b"the second's own" * 1000)
        sqlimage.sign(image, KEY, user="ann", message="looked at")
    return image


def test_a_version_that_is_as_it_was_signed_is_said_to_be(image: Path) -> None:
    report = checked(image)
    assert (report.problems, report.notes) == ((), ())
    assert [(one.version, one.public_key) for one in report.signatures] == [(1, KEY.public), (2, KEY.public)]
    with sqlimage.open(str(image)) as opened:
        assert sqlimage.verify(opened).is_whole
        told = [row for row in opened.audit() if row.action == "sign"]
    assert [row.version for row in told] == [1, 2]
    assert told[1].user == "ann"
    assert json.loads(told[1].detail) == {
        "public_key": KEY.public.hex(),
        "digest": report.signatures[1].digest.hex(),
        "message": "looked at",
    }


def test_signing_writes_a_signature_and_an_audit_row_and_nothing_else(tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    sqlimage.capture(sample_volume(tmp_path / "v"), image, preset="fast")
    size, before = image.stat().st_size, dump(image)
    sqlimage.sign(image, KEY)
    after = dump(image)
    assert {table for table in after if before.get(table) != after[table]} == {"signature", "audit"}
    assert after["audit"][: len(before["audit"])] == before["audit"]
    assert (len(after["audit"]), len(after["signature"])) == (len(before["audit"]) + 1, 1)
    assert image.stat().st_size - size <= 8 * schema.PAGE_BYTES


def dump(image: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = apsw.Connection(str(image))
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    found = {str(table): connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    connection.close()
    return found


def test_an_image_without_signatures_is_what_it_always_was(tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    sqlimage.capture(sqlimage.MemoryDevice(noise("x", 65536)), image)
    assert "signature" not in dump(image)
    assert problems(image) == ["version 1: is not signed by a key that is trusted"]


@pytest.mark.parametrize(
    ("statement", "version", "says"),
    [
        ("UPDATE control SET source = 'elsewhere' WHERE version = 2", 2, "the control row differs"),
        ("UPDATE control SET created_at = '2020-01-01T00:00:00Z' WHERE version = 1", 1, "the control row differs"),
        ("UPDATE volume SET serial = 'x' WHERE version = 1", 1, "the volume table differs"),
        ("UPDATE cluster_map SET data_offset = data_offset + 4096 WHERE version = 2", 2, "the cluster map"),
        ("DELETE FROM bitmap WHERE version = 1 AND start_cluster > 100", 1, "the bitmap differs"),
        ("UPDATE file SET bytes = bytes + 1 WHERE version = 1 AND path LIKE '%/library.dll'", 1, "the file table"),
        ("INSERT INTO file (version, volume, path, deleted) VALUES (2, 0, '/no.txt', 1)", 2, "the file table"),
        ("UPDATE extent SET start_cluster = start_cluster + 1 WHERE version = 1", 1, "the extent table differs"),
        ("UPDATE property SET value = 'there' WHERE name = 'site'", 1, "the property table differs"),
        ("INSERT INTO property VALUES (2, 'site', 'there')", 2, "the property table differs"),
        ("UPDATE control SET label = 'older' WHERE version = 1", 1, "its label 'older' is not the one"),
        ("UPDATE control SET label = NULL WHERE version = 2", 2, "its label None is not the one"),
        ("UPDATE control SET parent_uuid = NULL WHERE version = 2", 2, "its parent is None; when it was signed"),
    ],
)
def test_a_row_that_was_changed_is_found_and_named(
    image: Path, tmp_path: Path, statement: str, version: int, says: str
) -> None:
    copy = copied(image, tmp_path, statement)
    found = problems(copy)
    assert any(what.startswith(f"version {version}: {says}") for what in found), found
    touched_label = "label" in statement
    if version == 1 and not touched_label:  # what builds on it has changed with it
        assert any("version 2: its parent" in what and "is not the one that was signed" in what for what in found)
        part = says.removesuffix(" differs")
        assert any(f"{part} of " in what for what in problems(copy, version="2"))
    else:
        assert all(what.startswith(f"version {version}:") for what in found)
    done = run_tool("verify", copy, "--trust", KEY.public.hex())
    assert done.returncode == 1
    assert all(what in done.stdout for what in found)


def test_a_content_that_was_replaced_together_with_its_digest_is_found(image: Path, tmp_path: Path) -> None:
    """What no digest shows: the bytes fit their digest, and the file is whole."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    row = f"digest = x'{digest}', bytes = x'{CONTENT.hex()}', flags = 0, stored_bytes = 4096, length = 4096"
    with Database.open(image) as database:
        first = database.row("SELECT data FROM cluster_map WHERE version = 1 GROUP BY data HAVING max(data_offset) = 0")
        assert first is not None
    copy = copied(
        image,
        tmp_path,
        f"DELETE FROM cluster_map WHERE data = {first[0]} AND start_cluster > (SELECT min(start_cluster) "
        f"FROM cluster_map WHERE data = {first[0]})",
        f"UPDATE cluster_map SET end_cluster = start_cluster WHERE data = {first[0]}",
        f"UPDATE data SET {row} WHERE id = {first[0]}",
    )
    assert run_tool("verify", copy).returncode == 0
    assert any("version 1: the cluster map or a content in it differs" in what for what in problems(copy))


def test_bytes_that_do_not_fit_their_digest_are_found_by_the_same_command(image: Path, tmp_path: Path) -> None:
    with Database.open(image) as database:
        a, b = (row[0] for row in database.rows("SELECT id FROM data WHERE bytes IS NOT NULL ORDER BY id LIMIT 2"))
    stored = f"(SELECT bytes, flags, stored_bytes FROM old WHERE old.id = {a} + {b} - data.id)"
    swap = (
        "CREATE TEMP TABLE old AS SELECT * FROM data",
        f"UPDATE data SET (bytes, flags, stored_bytes) = {stored} WHERE id IN ({a}, {b})",
    )
    copy = copied(image, tmp_path, *swap)
    done = run_tool("verify", copy, "--trust", KEY.public.hex(), "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert {problem["data"] for problem in told["problems"]} == {a, b}
    assert len(told["signatures"]) == 2  # the rows themselves are as they were


def rechained(*statements: str) -> Callable[[Path], None]:
    """A hand that changes the audit trail and makes the chain anew, so that it holds again."""

    def harm(image: Path) -> None:
        by_hand(image, *statements)
        connection = apsw.Connection(str(image))
        made = connection.execute("SELECT sql FROM sqlite_schema WHERE name LIKE 'audit_is_not%'").fetchall()
        connection.execute("DROP TRIGGER audit_is_not_changed; DROP TRIGGER audit_is_not_deleted")
        rows = connection.execute("SELECT * FROM audit ORDER BY id").fetchall()
        connection.execute("DELETE FROM audit")
        previous = bytes(32)
        for number, row in enumerate(rows, 1):
            told = (number, *row[1:11])
            hash_ = audit.row_hash(told, previous)
            connection.execute(f"INSERT INTO audit VALUES ({', '.join('?' * 13)})", (*told, previous, hash_))
            previous = hash_
        for (sql,) in made:
            connection.execute(str(sql))
        connection.close()
        with Database.open(image) as database:
            assert audit.broken_links(database) == []

    return harm


ORDER = (
    "UPDATE audit SET id = 100 WHERE id = 1",
    "UPDATE audit SET id = 1 WHERE id = 2",
    "UPDATE audit SET id = 2 WHERE id = 100",
)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda image: by_hand(image, "DELETE FROM audit WHERE id = 2"), "does not hold from row 1 to row 3"),
        (lambda image: by_hand(image, "UPDATE audit SET user = 'x' WHERE id = 1"), "does not hold from row 1"),
        (lambda image: by_hand(image, *ORDER), "does not hold from row 1"),
        (lambda image: by_hand(image, "DELETE FROM audit WHERE id > 2"), "audit row 3, signed at"),
        (rechained("DELETE FROM audit WHERE id = 2"), "audit row 3 is not the one that was signed"),
        (rechained("UPDATE audit SET user = 'x' WHERE id = 2"), "audit row 3 is not the one that was signed"),
        (rechained(*ORDER), "the audit rows about it are not those that were signed"),
        (rechained("DELETE FROM audit WHERE id = 4"), "audit row 6, signed at"),
    ],
    ids=range(8),
)
def test_an_audit_trail_that_was_changed_is_found_and_named(
    image: Path, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    copy = copied(image, tmp_path)
    harm(copy)
    assert any(says in what for what in problems(copy)), problems(copy)


def test_what_is_added_to_the_trail_later_does_no_harm(image: Path, tmp_path: Path) -> None:
    copy = copied(image, tmp_path)
    with sqlimage.open(str(copy), writable=True) as opened, opened.edit() as edit:
        edit.driver.write(7 << 20, b"a third")
    assert problems(copy) == ["version 3: is not signed by a key that is trusted"]
    assert [problems(copy, version=version) for version in ("golden", "second")] == [[], []]


def test_a_version_that_came_in_unsigned_is_told(image: Path, tmp_path: Path) -> None:
    copy = copied(image, tmp_path)
    sqlimage.capture(sqlimage.MemoryDevice((tmp_path.parent / "x").name.encode() * 4096), copy, append=True)
    assert problems(copy) == ["version 3: is not signed by a key that is trusted"]


def test_a_version_under_another_number_is_not_the_newest_by_that(image: Path, tmp_path: Path) -> None:
    """A hand that makes the older version the `latest`."""
    swap = [
        f"UPDATE {t} SET version = {new} WHERE version = {old}" for old, new in ((1, 9), (2, 1), (9, 2)) for t in TABLES
    ]
    found = problems(copied(image, tmp_path, *swap))
    assert all("the audit rows about it are not those that were signed" in what for what in found) and len(found) == 2


TABLES = ("control", "volume", "cluster_map", "bitmap", "file", "extent", "property")
DROP = tuple(f"DELETE FROM {table} WHERE version = 2" for table in TABLES)


def test_a_version_that_is_gone_is_missed_where_the_trail_does_not_say_why(image: Path, tmp_path: Path) -> None:
    assert problems(copied(image, tmp_path, *DROP, "DELETE FROM signature WHERE id = 2")) == [
        "version 2: was signed (audit row 6) and is not there any more"
    ]


def test_a_version_that_is_made_to_look_like_an_edit_is_not_passed_over(image: Path, tmp_path: Path) -> None:
    opened = "UPDATE control SET state = 'open' WHERE version = {}"
    found = problems(copied(image, tmp_path, opened.format(2)))
    assert len(found) == 1 and found[0].startswith("version 2: the control row differs")
    # Without its signature it is an edit as any other: a note says so, and nothing is said to be proved of it.
    copy = copied(image, tmp_path, opened.format(2), "DELETE FROM signature WHERE id = 2")
    report = checked(copy)
    assert [one.version for one in report.signatures] == [1]
    assert report.notes == ("version 2: is an edit that is not finished, which nobody can have signed",)
    assert problems(copy, version="2") == ["version 2: is not signed by a key that is trusted"]
    # And a file of nothing else proves nothing.
    by_hand(copy, *DROP, opened.format(1), "DELETE FROM signature")
    assert "there is no sealed version, so nothing that is signed" in problems(copy)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE signature SET signature = substr(signature, 1, 63)", "does not match what it states"),
        ("UPDATE signature SET signature = zeroblob(64)", "does not match what it states"),
        ("UPDATE signature SET signature = (SELECT signature FROM signature ORDER BY id DESC)", "does not match"),
        ("UPDATE signature SET statement = replace(statement, '2026', '2025')", "does not match what it states"),
        ("UPDATE signature SET statement = statement || ' '", "does not match what it states"),
        (f"UPDATE signature SET public_key = x'{OTHER.public.hex()}'", f"(it is signed by {OTHER.public.hex()})"),
        ("DELETE FROM signature", "version 1: is not signed by a key that is trusted"),
        ("DROP TABLE signature", "version 1: is not signed by a key that is trusted"),
    ],
)
def test_a_signature_that_was_changed_counts_for_nothing(
    image: Path, tmp_path: Path, statement: str, says: str
) -> None:
    if "'2026'" in statement:
        with Database.open(image) as database:
            year = (
                signature.of(database, checked(image).signatures[0].uuid)[0].statement.split(b'"at":"')[1][:4].decode()
            )
        statement = statement.replace("2026", year)
    copy = copied(image, tmp_path, statement)
    done = run_tool("verify", copy, "--trust", KEY.public.hex())
    assert done.returncode == 1
    assert says in done.stdout, done.stdout


def test_a_statement_that_is_no_json_does_no_harm(image: Path, tmp_path: Path) -> None:
    """SQL cannot write one; a hand that writes to the file can."""
    copy = copied(image, tmp_path)
    content, begin = copy.read_bytes(), b'{"sqlimage-signature"'
    assert begin in content
    copy.write_bytes(content.replace(begin, b"x" + begin[1:]))
    done = run_tool("verify", copy, "--trust", KEY.public.hex())
    assert (done.returncode, done.stderr) == (1, "")
    assert "does not match what it states" in done.stdout
    for command in (("compact", copy), ("ls", copy), ("versions", copy)):
        assert run_tool(*command).returncode in (0, 5)


def test_a_signature_is_of_no_other_version(image: Path, tmp_path: Path) -> None:
    """Two versions that say the same but for their UUIDs; the signature of one is moved to the other."""
    copy = copied(image, tmp_path)
    with sqlimage.open(str(copy)) as opened:
        first, second = (version.control.uuid for version in opened.versions())
    by_hand(copy, f"DELETE FROM signature WHERE version_uuid = '{second}'")
    by_hand(copy, f"UPDATE signature SET statement = replace(statement, '{first}', '{second}')")
    found = problems(copy)
    assert found[0] == "version 1: is not signed by a key that is trusted"
    assert "version 2: signature 1 by" in found[1] and "does not match what it states" in found[1]


def test_only_a_key_that_is_trusted_counts_and_any_of_several_will_do(image: Path, tmp_path: Path) -> None:
    assert all(f"(it is signed by {KEY.public.hex()})" in what for what in problems(image, OTHER))
    assert problems(image, OTHER, KEY) == []
    copy = copied(image, tmp_path)
    sqlimage.sign(copy, OTHER)
    assert problems(copy, KEY) == []
    assert problems(copy, OTHER, version="second") == []
    assert [what for what in problems(copy, OTHER) if not what.startswith("version 1: is not signed")] == []


def test_a_signature_that_no_longer_holds_is_told_beside_one_that_does(image: Path, tmp_path: Path) -> None:
    copy = copied(image, tmp_path)
    with sqlimage.open(str(copy), writable=True) as opened:
        opened.version("second").set_property("site", "Paris")
    sqlimage.sign(copy, OTHER)
    report = checked(copy, KEY, OTHER, version="second")
    assert report.problems == () and [one.public_key for one in report.signatures] == [OTHER.public]
    (note,) = report.notes
    assert KEY.public.hex() in note and "the property table differs" in note


def test_signing_again_with_the_same_key_replaces_its_signature(image: Path, tmp_path: Path) -> None:
    copy = copied(image, tmp_path)
    with sqlimage.open(str(copy), writable=True) as opened:
        opened.version("golden").set_property("site", "Paris")
    assert len(problems(copy)) == 2
    sqlimage.sign(copy, KEY, every=True)
    assert problems(copy) == []
    assert len(dump(copy)["signature"]) == 2


def test_an_older_signature_put_back_with_what_it_covered_is_found(image: Path, tmp_path: Path) -> None:
    copy = copied(image, tmp_path)
    with Database.open(copy) as database:
        old = signature.of(database, checked(copy).signatures[1].uuid)[0]
    with sqlimage.open(str(copy), writable=True) as opened:
        opened.version("second").set_property("site", "Paris")
    sqlimage.sign(copy, KEY)
    assert problems(copy) == []
    put_back = f"statement = '{old.statement.decode()}', signature = x'{old.signature.hex()}'"
    by_hand(
        copy,
        "DELETE FROM property WHERE version = 2 AND name = 'site'",
        f"UPDATE signature SET {put_back} WHERE json_extract(statement, '$.parent') IS NOT NULL",
    )
    (found,) = problems(copy)
    assert found.startswith("version 2: was signed anew by the same key (audit row 8)")


def test_what_is_not_sound_or_not_finished_is_not_signed(image: Path, tmp_path: Path) -> None:
    broken = copied(image, tmp_path, "UPDATE audit SET user = 'x' WHERE id = 1")
    before = dump(broken)
    with pytest.raises(sqlimage.RefusedError, match="audit row 1 was changed"):
        sqlimage.sign(broken, KEY)
    assert dump(broken) == before
    odd = copied(image, tmp_path, "UPDATE cluster_map SET end_cluster = 1 << 40 WHERE version = 2")
    with pytest.raises(sqlimage.RefusedError, match="beyond the medium"):
        sqlimage.sign(odd, KEY)
    work = copied(image, tmp_path)
    tool("edit", "begin", work, "--label", "work")
    with pytest.raises(sqlimage.RefusedError, match="an edit that is not finished"):
        sqlimage.sign(work, KEY, version="work")
    assert problems(work) == []  # what is not sealed is not asked for
    assert len(sqlimage.sign(work, OTHER, every=True).versions) == 2


def test_a_statement_that_is_not_of_the_format_is_told_in_one_line(image: Path, tmp_path: Path) -> None:
    with Database.open(image) as database:
        row = signature.of(database, checked(image).signatures[0].uuid)[0]
    assert is_signed(row.public_key, row.statement, row.signature)
    good = json.loads(row.statement)
    assert Statement.parse(row.statement).text().encode() == row.statement
    changes: tuple[dict[str, object], ...] = (
        {"sqlimage-signature": 2},
        {"sqlimage-signature": True},
        {"digest": "ab"},
        {"parts": {}},
        {"parent": "x"},
        {"at": 7},
        {"label": None},
        {"audit": {**good["audit"], "rows": -1}},
        {"audit": {**good["audit"], "id": 1 << 63}},
    )
    for change in changes:
        text = json.dumps({**good, **change})
        copy = copied(image, tmp_path)
        connection = apsw.Connection(str(copy))
        update = "UPDATE signature SET statement = ?, signature = ? WHERE id = ?"
        connection.execute(update, (text, KEY.sign(text.encode()), row.id))
        connection.close()
        (found,) = problems(copy, version="golden")
        assert "a statement" in found, found
