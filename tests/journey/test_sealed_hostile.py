"""An image that is encrypted as a whole, in the hands of strangers and of several processes at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.streams.database import Database
from sqlimage.streams.sealed import SealedStreams
from sqlimage.units import MIB
from tests.images import noise, run_tool, tool
from tests.make import ntfs
from tests.make.encrypted import KEY, changed, with_key, without_keys


@pytest.fixture(autouse=True)
def the_key_is_known() -> Iterator[None]:
    with_key()
    yield
    without_keys()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    made = ntfs.make_volume(tmp_path / "v.img", 16 * MIB)
    with ntfs.mounted(made) as root:
        ntfs.write_tree(root, {"noise.bin": noise("sealed", 1_500_000), "text.txt": b"text " * 9000})
    return made


@pytest.fixture
def image(volume: Path, tmp_path: Path) -> Path:
    sqlimage.capture(volume, tmp_path / "i.sqlimage", encrypt_all=True, ways=[KEY])
    return tmp_path / "i.sqlimage"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(KEY.content)
    return tmp_path / "key"


def test_a_transaction_that_fails_leaves_the_ones_before_it_alone(image: Path) -> None:
    with Database.open(image, writable=True) as database:
        with database.transaction():
            database.run("INSERT INTO property (version, name, value) VALUES (1, 'canary.first', 1)")
        with pytest.raises(ZeroDivisionError), database.transaction():
            database.run("INSERT INTO property (version, name, value) VALUES (1, 'canary.second', 2)")
            raise ZeroDivisionError
        with database.transaction():
            database.run("UPDATE control SET label = 'canarythird' WHERE version = 1")
    with sqlimage.open(str(image)) as opened:
        properties = opened.version("canarythird").properties()
    assert properties["canary.first"] == 1
    assert "canary.second" not in properties


def test_versions_of_a_parent_that_were_exchanged_are_refused(tmp_path: Path) -> None:
    parent, child, source = tmp_path / "p.sqlimage", tmp_path / "c.sqlimage", tmp_path / "s"
    source.write_bytes(noise("first", MIB))
    sqlimage.capture(source, parent, encrypt_all=True, ways=[KEY])
    source.write_bytes(noise("second", MIB))
    sqlimage.capture(source, parent, append=True)
    sqlimage.capture(source, child, parent=parent)
    with sqlimage.open(str(parent)) as opened:
        first, second = (version.control.uuid for version in opened.versions())
    changed(
        parent,
        "UPDATE control SET uuid = 'neither', parent_uuid = NULL WHERE version = 2",
        f"UPDATE control SET uuid = '{second}' WHERE version = 1",
        f"UPDATE control SET uuid = '{first}' WHERE version = 2",
    )
    with (
        sqlimage.open(str(child)) as opened,
        pytest.raises(sqlimage.FormatError, match="its versions are not those that were sealed"),
    ):
        opened.version().driver().read(0, MIB)


@pytest.mark.parametrize("has_key", [False, True])
def test_a_stranger_does_not_stand_in_for_a_parent(tmp_path: Path, has_key: bool) -> None:
    """Not even one who encrypts for the same recipient: the key is another."""
    parent, child, source = tmp_path / "p.sqlimage", tmp_path / "c.sqlimage", tmp_path / "s"
    source.write_bytes(noise("theirs", MIB))
    sqlimage.capture(source, parent, encrypt_all=True, ways=[KEY])
    sqlimage.capture(source, child, parent=parent)
    with sqlimage.open(str(parent)) as opened:
        uuid = opened.version().control.uuid
    parent.unlink()
    source.write_bytes(noise("a stranger's", MIB))
    sqlimage.capture(source, parent, encrypt_all=has_key, ways=[KEY] if has_key else [])
    with Database.open(parent, writable=True) as database, database.transaction():
        database.run("UPDATE control SET uuid = ?", [uuid])
    with (
        sqlimage.open(str(child)) as opened,
        pytest.raises(sqlimage.NotFoundError, match="but not encrypted as a whole with the same key"),
    ):
        opened.version().driver().read(0, MIB)


SWAPPED = "UPDATE cluster_map SET data = (SELECT min(data) FROM cluster_map WHERE data > 1) WHERE data > 1"


def test_a_map_that_was_changed_is_found_by_verify(image: Path, key: Path) -> None:
    changed(image, SWAPPED)
    done = run_tool("verify", image, "--key-file", key)
    assert done.returncode == 1
    assert "the cluster map of version 1 is not the one that was sealed" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["compact", "merge", "capture --append"])
def test_a_map_that_was_changed_is_not_sealed_anew(
    image: Path, volume: Path, key: Path, tmp_path: Path, command: str
) -> None:
    child = tmp_path / "child.sqlimage"
    sqlimage.capture(volume, child, parent=image)
    changed(image, SWAPPED)
    rest: dict[str, list[Path | str]] = {
        "compact": [image],
        "merge": [child, "--into", image],
        "capture --append": [volume, image, "--append"],
    }
    done = run_tool(command.split()[0], *rest[command], "--key-file", key)
    assert done.returncode == 5
    assert "the cluster map of version 1 is not the one that was sealed" in done.stderr


def test_a_map_of_a_child_that_was_changed_is_not_merged(image: Path, tmp_path: Path, key: Path) -> None:
    source, child = tmp_path / "s", tmp_path / "child.sqlimage"
    source.write_bytes(noise("child", 16 * MIB))
    sqlimage.capture(source, child, parent=image)
    changed(child, SWAPPED)
    before = image.read_bytes()
    done = run_tool("merge", child, "--into", image, "--key-file", key)
    assert done.returncode == 5
    assert "child.sqlimage: the cluster map of version 1 is not the one that was sealed" in done.stderr
    assert image.read_bytes() == before


def test_a_label_does_not_vouch_for_a_map(image: Path, tmp_path: Path) -> None:
    changed(image, SWAPPED)
    with Database.open(image, writable=True) as database, database.transaction():
        database.run("UPDATE control SET label = 'another' WHERE version = 1")
    with sqlimage.open(str(image)) as opened, pytest.raises(sqlimage.DamagedError, match="cluster map of version 1"):
        sqlimage.restore(opened.version(), tmp_path / "out")


@pytest.mark.parametrize("more", [(), ("DELETE FROM sealed_stream", SWAPPED)])
def test_an_image_does_not_pass_for_one_that_is_encrypted_by_file(
    image: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Of such a one neither the map nor the rows of files are checked by the key."""
    changed(image, "DELETE FROM feature WHERE name = 'sealed-streams'", *more)
    with (
        pytest.raises(sqlimage.FormatError, match="says that it is not encrypted as a whole"),
        sqlimage.open(str(image)) as opened,
    ):
        sqlimage.restore(opened.version(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_another_process_writes_meanwhile_stays(image: Path, key: Path) -> None:
    with sqlimage.open(str(image)) as opened, opened.edit() as edit:
        edit.driver.write(8 * MIB, b"canary written " * 1000)
        edit.driver.flush()
        tool("property", "set", image, "canary.other=process", "--key-file", key)
        edit.driver.write(9 * MIB, b"canary written " * 1000)
        edit.driver.flush()
        edit.commit()
    with sqlimage.open(str(image)) as opened:
        assert opened.version("1").properties()["canary.other"] == "process"
        assert [row.id for row in opened.audit()] == list(range(1, len(opened.audit()) + 1))
        assert sqlimage.verify(opened).is_whole


def test_a_writer_that_was_opened_earlier_takes_up_what_others_wrote(image: Path, volume: Path, key: Path) -> None:
    with sqlimage.Image.open(image, writable=True) as early:
        tool("capture", volume, image, "--append", "--key-file", key)
        early.version("1").set_property("canary.early", 1)
    with sqlimage.open(str(image)) as opened:
        assert len(opened.versions()) == 2
        assert opened.version("1").properties()["canary.early"] == 1
        assert sqlimage.verify(opened).is_whole


def test_an_image_is_opened_as_it_was_at_one_time(
    image: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("edit", "begin", image, "--key-file", key)
    really = SealedStreams._part
    writers: list[bool] = []

    def part(self: SealedStreams, stream: str, version: int, number: int, generation: int) -> object:
        if stream != "manifest" and not writers:
            writers.append(True)
            with Database.open(image, writable=True) as database:
                database.is_log_wanted = True
                with database.transaction():
                    database.run("INSERT INTO property (version, name, value) VALUES (1, 'canary.meanwhile', 1)")
        return really(self, stream, version, number, generation)

    with Database.open(image, writable=True) as database:
        database.use_log()
        monkeypatch.setattr(SealedStreams, "_part", part)
        with sqlimage.open(str(image)) as opened:
            assert "canary.meanwhile" not in opened.version("1").properties()
        with sqlimage.open(str(image)) as opened:
            assert opened.version("1").properties()["canary.meanwhile"] == 1
