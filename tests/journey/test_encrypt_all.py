"""Encryption of an image as a whole: without the key nobody learns a name, a label, a property or a byte of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.units import MIB
from tests.images import kept_bytes, noise, run_tool, tool
from tests.make import ntfs
from tests.make.encrypted import KEY, changed, is_shown, with_key, without_keys

FILES = {
    "Canary Directory/canary file.txt": b"canary content " * 3,
    "Canary Directory/text.txt": b"canary text, line after line. " * 4000,
    "noise.bin": b"canary noise" + noise("all", 700_000),
}
SECRETS = ("canary", "CanaryLabel", "canaryversion", "canary.property", "canaryvalue", "canaryuser", "canarymessage")
DIGESTS = [hashlib.sha256(content).digest() for content in FILES.values()]


@pytest.fixture(autouse=True)
def the_key_is_known() -> Iterator[None]:
    with_key()
    yield
    without_keys()


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = ntfs.make_volume(tmp_path_factory.mktemp("canary") / "canary.img", 16 * MIB, label="CanaryLabel")
    with ntfs.mounted(image) as root:
        ntfs.write_tree(root, FILES)
    return image


@pytest.fixture(scope="module")
def made(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("image") / "i.sqlimage"
    sqlimage.capture(
        volume,
        target,
        encrypt_all=True,
        ways=[KEY],
        label="canaryversion",
        property_values={"canary.property": "canaryvalue", "number": 7, "bytes": b"canary", "real": 0.5},
    )
    return target


@pytest.fixture
def image(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "i.sqlimage"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(KEY.content)
    return tmp_path / "key"


def test_nothing_of_it_is_in_the_file(made: Path) -> None:
    assert is_shown(made, *SECRETS, *DIGESTS) == []


def test_with_the_key_all_streams_are_what_a_plain_image_has(made: Path, volume: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.sqlimage"
    sqlimage.capture(volume, plain)
    asked = [
        "SELECT path, kind, bytes, modified_at, record, stream, attributes, digest FROM effective_file ORDER BY path",
        "SELECT record, stream, file_offset, start_cluster, clusters FROM effective_extent ORDER BY 1, 2, 3",
        "SELECT number, length_bytes, file_system, label, serial, total_clusters FROM volume",
        "SELECT path, start_cluster, end_cluster FROM owner ORDER BY 1, 2",
        "SELECT start_cluster, end_cluster FROM effective_bitmap ORDER BY 1",
    ]
    streams: list[list[list[tuple[object, ...]]]] = []
    for path in (made, plain):
        with sqlimage.open(str(path)) as opened, sqlimage.Query(opened.version()) as query:
            streams.append([list(query.run(sql).rows) for sql in asked])
    assert streams[0] == streams[1]


def test_with_the_key_the_volume_comes_back_bit_for_bit(made: Path, volume: Path, tmp_path: Path) -> None:
    with sqlimage.open(str(made)) as opened:
        assert sqlimage.verify(opened).is_whole
        assert opened.version("canaryversion").properties()["bytes"] == b"canary"
        assert opened.version().properties()["real"] == 0.5
        sqlimage.restore(opened.version(), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == kept_bytes(made, volume.read_bytes())


@pytest.mark.parametrize(
    "command",
    ["info", "versions", "ls", "audit", "verify", "property list", "sql", "cat", "restore", "compact", "edit begin"],
)
def test_without_the_key_a_command_says_what_it_needs(image: Path, tmp_path: Path, command: str) -> None:
    more: dict[str, list[str]] = {"sql": ["SELECT 1"], "cat": ["/noise.bin"], "restore": [str(tmp_path / "out")]}
    rest = more.get(command, [])
    before = image.read_bytes()
    done = run_tool(*command.split(), image, *rest)
    assert done.returncode == 7
    assert done.stdout == ""
    assert "is encrypted; it needs a key file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert image.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_the_slots_are_shown_without_the_key(image: Path) -> None:
    without_keys()
    assert [slot.kind for slot in sqlimage.list_slots(image)] == ["key-file"]


def test_what_is_written_later_is_sealed_too(image: Path, volume: Path, key: Path, tmp_path: Path) -> None:
    new = tmp_path / "canarynew.txt"
    new.write_bytes(b"canary: a new file " * 1000)
    options = ("--key-file", key)
    tool("put", image, new, "/canarynew.txt", "--user", "canaryuser", "-m", "canarymessage", *options)
    tool("property", "set", image, "canary.later=canaryvalue", *options)
    child, deep = tmp_path / "child.sqlimage", tmp_path / "deep.sqlimage"
    with ntfs.mounted(volume) as root:
        (root / "canarylater.txt").write_bytes(b"canary: later " * 1000)
    tool("capture", volume, child, "--parent", image, "--label", "canaryversion", *options)
    tool("capture", volume, image, "--append", *options)
    tool("put", child, new, "/canarydeep.txt", "--into", deep, *options)
    digests = [hashlib.sha256(content).digest() for content in (b"canary: later " * 1000, new.read_bytes())]
    for where in (image, child, deep):
        assert is_shown(where, *SECRETS, *DIGESTS, *digests) == []
        tool("verify", where, "--files", *options)
    assert "/canarylater.txt" in tool("ls", deep, *options)
    of_all = "SELECT count(DISTINCT path) FROM effective_file WHERE path IN ('/canarylater.txt', '/canarydeep.txt')"
    assert tool("sql", deep, of_all, *options).split() == ["count(DISTINCT", "path)", "2"]
    assert tool("audit", image, *options).count("canarynew") == 1
    tool("merge", child, "--into", image, *options)
    tool("flatten", child, tmp_path / "flat.sqlimage", *options)
    deep.rename(tmp_path / "deep.moved")  # it builds on the child's version, which is in the file now
    child.rename(tmp_path / "child.moved")
    tool("prune", image, "3", *options)
    tool("squash", image, "--from", "2", "--to", "4", *options)
    tool("compact", image, *options)
    for where in (image, tmp_path / "flat.sqlimage"):
        assert is_shown(where, *SECRETS, *DIGESTS, *digests) == []
        tool("verify", where, "--files", *options)
        assert tool("cat", where, "/canarylater.txt", *options).encode() == b"canary: later " * 1000


def test_nothing_shows_while_it_is_written(image: Path) -> None:
    with sqlimage.open(str(image)) as opened, opened.edit(user="canaryuser", message="canarymessage") as edit:
        for n in range(20):
            edit.driver.write(8 * MIB + n * 65536, b"canary written " * 1000)
            edit.driver.flush()
            if n == 10:
                assert is_shown(image, *SECRETS) == []
    assert is_shown(image, *SECRETS) == []


def test_a_child_of_another_key_is_not_merged(image: Path, volume: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.sqlimage"
    sqlimage.capture(volume, plain)
    with sqlimage.open(str(image)) as opened:
        changed(plain, f"UPDATE control SET parent_uuid = '{opened.version().control.uuid}'")
    with pytest.raises(sqlimage.RefusedError, match="is encrypted as a whole"):
        sqlimage.merge(plain, image)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE cluster_map SET data = (SELECT max(data) FROM cluster_map) WHERE start_cluster = 0", "cluster map of"),
        ("UPDATE cluster_map SET data_offset = 0", "cluster map of"),
        ("DELETE FROM cluster_map WHERE start_cluster > 100", "cluster map of"),
        ("UPDATE bitmap SET end_cluster = end_cluster + 1 WHERE start_cluster = 0", "cluster map of"),
        ("UPDATE data SET bytes = (SELECT bytes FROM data WHERE id = 1) WHERE id = 2", "not what was encrypted"),
        ("UPDATE data SET digest = zeroblob(32) WHERE id = 1", "cluster map of"),
        ("UPDATE data SET flags = 0", "is not encrypted, and all of the image is"),
        ("UPDATE data SET length = length + 1", "not what was encrypted"),
        ("UPDATE control SET medium_bytes = medium_bytes - 4096", "not those that were sealed"),
        ("UPDATE control SET state = 'open'", "not those that were sealed"),
        ("UPDATE control SET uuid = '00000000-0000-0000-0000-000000000000'", "not those that were sealed"),
        ("DELETE FROM control", "not those that were sealed"),
        ("DELETE FROM sealed_stream WHERE stream = 'file'", "is missing"),
        ("DELETE FROM sealed_stream", "is missing"),
        ("UPDATE sealed_stream SET stream = 'extent', part = 9 WHERE stream = 'file'", "is missing"),
        ("UPDATE sealed_stream SET bytes = zeroblob(length(bytes)) WHERE stream = 'audit'", "is not what was sealed"),
        ("UPDATE sealed_stream SET bytes = x''", "is not what was sealed"),
        ("UPDATE sealed_stream SET version = 2 WHERE stream = 'file'", "is missing"),
        ("UPDATE format SET value = '00112233445566778899aabbccddeeff' WHERE name = 'identity'", "not what was sealed"),
        ("UPDATE format SET value = '00112233445566778899aabbccddeeff' WHERE name = 'key_id'", "opens it"),
        ("UPDATE format SET value = 7 WHERE name = 'key_id'", "not 16 bytes in hexadecimal"),
        ("DELETE FROM format WHERE name = 'key_id'", "names no key"),
        ("DELETE FROM format WHERE name = 'identity'", "no identity"),
        ("DELETE FROM key_slot", "has no key slot"),
        ("UPDATE key_slot SET wrapped_key = zeroblob(72)", "opens it"),
        ("UPDATE key_slot SET kind = 'passphrase'", "key slot 1"),
    ],
)
def test_what_a_stranger_changes_is_refused(image: Path, tmp_path: Path, statement: str, told: str) -> None:
    changed(image, statement)
    with (
        pytest.raises((sqlimage.FormatError, sqlimage.LockedError), match=told),
        sqlimage.open(str(image)) as opened,
    ):
        sqlimage.restore(opened.version(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sealed_stream_of_an_earlier_time_is_refused(image: Path, tmp_path: Path) -> None:
    """Put back as a whole the file is simply older; a part of it is not."""
    old = Path(shutil.copy(image, tmp_path / "old"))
    with sqlimage.Image.open(image, writable=True) as opened:
        opened.version().set_property("canary.property", "another")
    changed(
        image,
        f"ATTACH '{old}' AS old",
        "UPDATE sealed_stream SET bytes = (SELECT bytes FROM old.sealed_stream AS was WHERE was.stream = 'property') "
        "WHERE stream = 'property'",
    )
    with pytest.raises(sqlimage.DamagedError, match="'property' of version 1 is not what was sealed"):
        sqlimage.open(str(image))


def test_contents_and_streams_of_another_image_are_refused(image: Path, volume: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.sqlimage"
    with ntfs.mounted(volume) as root:
        (root / "more.bin").write_bytes(noise("more", 500_000))
    sqlimage.capture(volume, child, parent=image)
    for table, place in (("sealed_stream", "stream = 'file'"), ("sealed_stream", "TRUE"), ("data", "id = 1")):
        other = Path(shutil.copy(child, tmp_path / "other.sqlimage"))
        key = "stream, version, part" if table == "sealed_stream" else "id"
        changed(
            other,
            f"ATTACH '{image}' AS theirs",
            f"UPDATE {table} SET bytes = (SELECT bytes FROM theirs.{table} AS was WHERE ({key}) = "
            f"({', '.join(f'{table}.{name}' for name in key.split(', '))})) WHERE {place}",
        )
        with pytest.raises(sqlimage.FormatError), sqlimage.open(str(other)) as opened:
            sqlimage.restore(opened.version(), tmp_path / "out")


def test_who_writes_after_somebody_else_does_not_undo_it(image: Path) -> None:
    with sqlimage.Image.open(image, writable=True) as early, sqlimage.Image.open(image) as reading:
        with sqlimage.Image.open(image, writable=True) as late:
            late.version().set_property("late", 1)
            with late.edit(label="more") as edit:
                edit.driver.write(0, bytes(4096))
        early.version("1").set_property("early", 1)
        assert len(early.versions()) == 2
        assert reading.version().driver().read(4096, 4096)
    with sqlimage.open(str(image)) as opened:
        assert sqlimage.verify(opened).is_whole
        found = opened.version("more").properties()
        assert found["late"] == found["early"] == 1


def test_what_a_transaction_takes_back_is_taken_back_in_memory_too(image: Path) -> None:
    with sqlimage.Image.open(image, writable=True) as opened:
        database = opened.database
        for _ in range(3):
            with pytest.raises(KeyError), database.transaction():
                database.run("UPDATE property SET value = 8 WHERE name = 'number'")
                database.seal()
                raise KeyError
            assert opened.version().properties()["number"] == 7
        opened.version().set_property("number", 9)
    with sqlimage.open(str(image)) as opened:
        assert opened.version().properties()["number"] == 9
        assert sqlimage.verify(opened).is_whole


def test_every_reader_of_a_sealed_image_leaves_it_as_it_is(image: Path, key: Path) -> None:
    before = image.read_bytes()
    for command in ("info", "ls", "audit", "versions"):
        tool(command, image, "--key-file", key)
    assert image.read_bytes() == before


def test_an_image_on_the_shelf_that_is_locked_is_told(image: Path, key: Path) -> None:
    done = run_tool("find", image.parent, "--where", "number = 7")
    assert "is encrypted" in done.stderr
    assert str(image) in tool("find", image.parent, "--where", "number = 7", "--key-file", key)
