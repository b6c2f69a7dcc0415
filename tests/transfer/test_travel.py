"""Images go into stores and come back, and nothing goes twice; the same with every kind of store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import sqlimage
from sqlimage.codec.keyring import keyring
from sqlimage.errors import NotFoundError, RefusedError
from sqlimage.transfer.pull import pull
from sqlimage.transfer.push import PushReport, push
from sqlimage.transfer.stores.contract import SEGMENTS, Content, Store
from sqlimage.transfer.stores.memory import MemoryStore
from sqlimage.transfer.stores.wrappers import Checked, Counted, Retrying
from sqlimage.units import KIB
from tests.images import noise, tool
from tests.make import fat, travelling
from tests.make.encrypted import KEY, with_key, without_keys
from tests.make.travelling import SEGMENT_BYTES, rows_of
from tests.transfer.stores.shelves import KINDS, MakeStore, shelves

NAME = "base.sqlimage"


@pytest.fixture(scope="module", params=KINDS)
def make_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeStore]:
    with shelves(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return travelling.image(tmp_path_factory.mktemp("base"))


class Traffic:
    """How many bytes went to a store and came from it."""

    def __init__(self, store: Store) -> None:
        self.sent = self.received = 0
        self.store = Counted(store, self._count)

    def _count(self, sent: int, received: int) -> None:
        self.sent += sent
        self.received += received


def pushed(path: Path, store: Store, name: str = NAME, **options: object) -> PushReport:
    return push(str(path), None, store, name, segment_bytes=SEGMENT_BYTES, **options)  # type: ignore[arg-type]


def test_what_was_pushed_is_pulled_row_for_row_and_goes_once(make_store: MakeStore, base: Path, tmp_path: Path) -> None:
    store = make_store()
    report = pushed(base, store)
    assert report.segments == report.sent_segments > 10 and report.there_bytes == 0
    again = pushed(base, store)
    assert (again.identity, again.segments) == (report.identity, report.segments)
    assert (again.sent_segments, again.there_bytes) == (0, report.sent_bytes)
    target = tmp_path / "pulled.sqlimage"
    came = pull(Checked(store), NAME, str(target))
    assert (came.identity, came.fetched_bytes) == (report.identity, report.sent_bytes)
    assert rows_of(target) == rows_of(base)
    tool("verify", target, "--files")
    assert pull(Checked(store), NAME, str(target)).fetched_segments == 0


def test_an_interrupted_push_goes_on_with_what_is_not_there(make_store: MakeStore, base: Path, tmp_path: Path) -> None:
    class Breaking(Counted):
        left = 5

        def put(self, name: str, content: bytes | bytearray | memoryview) -> bool:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().put(name, content)

    store = make_store()
    with pytest.raises(KeyboardInterrupt):
        pushed(base, Breaking(store, lambda sent, received: None))
    with pytest.raises(NotFoundError):
        store.get(NAME, 1)  # the name stands for nothing until all is there
    report = pushed(base, store)
    assert report.there_bytes == 5 * SEGMENT_BYTES
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    tool("verify", tmp_path / "pulled.sqlimage")


def test_a_child_sends_its_own_data_and_brings_its_parent_back(make_store: MakeStore, tmp_path: Path) -> None:
    base = travelling.image(tmp_path / "here")
    child = travelling.child(base)
    store = make_store()
    first = pushed(base, store)
    traffic = Traffic(store)
    report = push(str(child), None, traffic.store, "child.sqlimage", segment_bytes=SEGMENT_BYTES)
    own = sum(row[3] for row in rows_of(child)["data"] if row[-1] is not None)  # type: ignore[misc]
    assert traffic.sent < own * 1.05 + 16 * KIB < first.sent_bytes / 10  # its streams, too
    assert report.parents == ()
    there = tmp_path / "there"
    there.mkdir()
    came = pull(Checked(store), "child.sqlimage", str(there / "c.sqlimage"))
    assert [Path(parent.image).name for parent in came.parents] == [NAME]
    assert rows_of(there / "c.sqlimage") == rows_of(child)
    assert rows_of(there / NAME) == rows_of(base)
    tool("verify", there / "c.sqlimage", "--files")


def test_a_parent_that_is_not_there_goes_along(make_store: MakeStore, tmp_path: Path) -> None:
    base = travelling.image(tmp_path / "here")
    child = travelling.child(base)
    grandchild = travelling.child(child, "grandchild.sqlimage", b"of another day" * 999)
    store = make_store()
    report = pushed(grandchild, store, "g.sqlimage")
    assert [re.split("[/:]", parent.url)[-1] for parent in report.parents] == ["child.sqlimage"]
    assert [re.split("[/:]", parent.url)[-1] for parent in report.parents[0].parents] == [NAME]
    (tmp_path / "there").mkdir()
    pull(Checked(store), "g.sqlimage", str(tmp_path / "there" / "g.sqlimage"))
    tool("verify", tmp_path / "there" / "g.sqlimage", "--files")
    assert len(list((tmp_path / "there").iterdir())) == 3


def test_a_parent_that_is_at_hand_is_not_pulled(make_store: MakeStore, tmp_path: Path) -> None:
    base = travelling.image(tmp_path / "here")
    child = travelling.child(base)
    store = make_store()
    pushed(child, store, "child.sqlimage")
    (tmp_path / "there").mkdir()
    came = pull(Checked(store), "child.sqlimage", str(tmp_path / "there" / "c.sqlimage"), search=[str(base.parent)])
    assert came.parents == ()


def test_a_new_version_in_the_same_file_sends_what_is_new(make_store: MakeStore, tmp_path: Path) -> None:
    image = travelling.image(tmp_path)
    store = make_store()
    pushed(image, store)
    (tmp_path / "new").write_bytes(noise("new", 90_000))
    with sqlimage.changing(str(image), label="second") as changes:
        changes.put(str(tmp_path / "new"), "/new.bin")
    traffic = Traffic(store)
    report = pushed(image, traffic.store)
    assert traffic.sent < 130_000
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    assert rows_of(tmp_path / "pulled.sqlimage") == rows_of(image)
    tool("verify", tmp_path / "pulled.sqlimage")
    third = tmp_path / "third"
    third.write_bytes(noise("third", 70_000))
    with sqlimage.changing(str(image), label="third") as changes:
        changes.put(str(third), "/third.bin")
    assert pushed(image, store).sent_bytes < 110_000
    target = tmp_path / "again.sqlimage"
    assert pull(Checked(store), NAME, str(target)).segments > report.segments
    assert rows_of(target) == rows_of(image)


def test_a_shelf_holds_nothing_twice(base: Path) -> None:
    store = MemoryStore()
    report = pushed(base, store)
    lengths = {name: store.head(name) or 0 for name in store.list()}
    assert sum(lengths.values()) < report.sent_bytes + 1000


def test_a_push_that_was_killed_just_after_the_name_has_lost_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    class Killed(Counted):
        def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
            super().publish(name, segment, keep)
            raise KeyboardInterrupt

    image = travelling.image(tmp_path)
    store = make_store()
    with pytest.raises(KeyboardInterrupt):
        pushed(image, Killed(store, lambda sent, received: None))
    (tmp_path / "new").write_bytes(noise("new", 90_000))
    with sqlimage.changing(str(image), label="second") as changes:
        changes.put(str(tmp_path / "new"), "/new.bin")
    assert pushed(image, store).sent_bytes < 130_000
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    assert rows_of(tmp_path / "pulled.sqlimage") == rows_of(image)


def test_a_property_that_changed_costs_the_streams_and_no_data(make_store: MakeStore, tmp_path: Path) -> None:
    image = travelling.image(tmp_path)
    store = make_store()
    pushed(image, store)
    tool("property", "set", image, "site=Berlin")
    assert pushed(image, store).sent_bytes < 16 * KIB
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    assert rows_of(tmp_path / "pulled.sqlimage") == rows_of(image)


def test_a_pull_goes_on_though_the_name_stands_for_something_newer(make_store: MakeStore, tmp_path: Path) -> None:
    """What was begun is finished: its segments are still where they were."""
    image = travelling.image(tmp_path)
    before = rows_of(image)
    store = make_store()
    pushed(image, store)

    class Breaking(Counted):
        left = 4

        def get(self, name: str, most_bytes: int) -> Content:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().get(name, most_bytes)

    target = tmp_path / "pulled.sqlimage"
    url = "s3://somewhere/base.sqlimage"
    with pytest.raises(KeyboardInterrupt):
        pull(Checked(Breaking(store, lambda sent, received: None)), NAME, str(target), url=url)
    tool("property", "set", image, "site=Berlin")
    pushed(image, store)
    with pytest.raises(RefusedError, match="is not what"):
        pull(Checked(store), NAME, str(target), url="s3://elsewhere/base.sqlimage")
    pull(Checked(store), NAME, str(target), url=url)
    assert rows_of(target) == before


def test_another_image_is_not_replaced_unless_told(make_store: MakeStore, base: Path, tmp_path: Path) -> None:
    store = make_store()
    other = travelling.image(tmp_path)
    pushed(base, store)
    with pytest.raises(RefusedError, match="another image"):
        pushed(other, store)
    pushed(other, store, replace=True)
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    assert rows_of(tmp_path / "pulled.sqlimage") == rows_of(other)


def test_what_is_in_the_way_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    pushed(base, store)
    for content in (b"", b"somebody's text"):
        target = tmp_path / "there"
        target.write_bytes(content)
        with pytest.raises(sqlimage.SqlimageError):
            pull(Checked(store), NAME, str(target))
        assert target.read_bytes() == content
    other = travelling.image(tmp_path)
    with pytest.raises(RefusedError, match="exists already"):
        pull(Checked(store), NAME, str(other))


@pytest.mark.parametrize("how", ["as a whole", "by file"])
def test_what_is_encrypted_travels_without_its_key_and_stays_so(tmp_path: Path, how: str) -> None:
    secret = noise("secret", 300_000)
    volume = travelling.volume(tmp_path, files=3)
    (tmp_path / "secret.bin").write_bytes(secret)
    fat.copy_in(volume, tmp_path / "secret.bin")
    image = tmp_path / "i.sqlimage"
    globs = ["/secret.bin"] if how == "by file" else []
    sqlimage.capture(str(volume), str(image), encrypt=globs, encrypt_all=not globs, ways=[KEY])
    without_keys()
    store = MemoryStore()
    pushed(image, store)
    everything = b"".join(store.get(name, 1 << 30) for name in store.list())
    assert secret[1000:1100] not in everything
    if how == "as a whole":
        assert b"readme.txt" not in everything
    target = tmp_path / "pulled.sqlimage"
    pull(Checked(store), NAME, str(target))
    assert rows_of(target) == rows_of(image)
    without_keys()
    with sqlimage.open(str(target)) if how == "by file" else pytest.raises(sqlimage.LockedError):
        sqlimage.open(str(target)).close()
    with_key()
    try:
        with sqlimage.open(str(target)) as opened, opened.version().content("/SECRET.BIN") as content:
            assert content.read(0, 300_000) == secret
        with sqlimage.open(str(target)) as opened:
            assert sqlimage.verify(opened).problems == []
    finally:
        keyring.forget()


def test_signatures_travel(base: Path, tmp_path: Path) -> None:
    image = tmp_path / "signed.sqlimage"
    image.write_bytes(base.read_bytes())
    tool("sign", "--new-key", tmp_path / "release")
    tool("sign", image, "--all", "--key", tmp_path / "release")
    store = MemoryStore()
    pushed(image, store)
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    tool("verify", tmp_path / "pulled.sqlimage", "--trust", tmp_path / "release.pub")


def test_segments_that_are_gone_are_told_by_number_and_all_others_are_fetched(base: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    pushed(base, store)
    whole = {name: store.get(name, 1 << 30) for name in store.list()}
    target = tmp_path / "pulled.sqlimage"
    poor = MemoryStore()
    left_out = sorted(name for name in whole if name.startswith(SEGMENTS) and name != store.first(NAME))[:2]
    for name, content in whole.items():
        if name not in left_out and name != NAME:
            poor.put(name, content)
    poor.publish(NAME, store.first(NAME))
    with pytest.raises(NotFoundError, match="are not there"):
        pull(Checked(poor), NAME, str(target))
    with sqlimage.open(str(target)) as opened:
        missing = opened.database.rows("SELECT lower(hex(digest)) FROM segment WHERE state = 'missing'")
    assert sorted(SEGMENTS + digest for (digest,) in missing) == left_out
    for name in left_out:
        poor.put(name, whole[name])
    assert pull(Checked(poor), NAME, str(target)).fetched_segments == 2
    tool("verify", target)


def test_a_store_that_lies_is_asked_again_and_then_not_believed(base: Path, tmp_path: Path) -> None:
    class Lying(Counted):
        lies = 0

        def get(self, name: str, most_bytes: int) -> Content:
            content = super().get(name, most_bytes)
            if self.lies and name != NAME:
                self.lies -= 1
                return bytes(content[:-1]) + bytes([content[-1] ^ 1])
            return content

    store = MemoryStore()
    pushed(base, store)
    lying = Lying(store, lambda sent, received: None)
    lying.lies = 3
    pull(Retrying(Checked(lying), sleep=lambda seconds: None), NAME, str(tmp_path / "a.sqlimage"))
    tool("verify", tmp_path / "a.sqlimage")
    lying.lies = 1 << 30
    with pytest.raises(sqlimage.DeviceError, match="digest"):
        pull(Retrying(Checked(lying), sleep=lambda seconds: None), NAME, str(tmp_path / "b.sqlimage"))
    lying.lies = 0
    pull(Checked(lying), NAME, str(tmp_path / "b.sqlimage"))
    tool("verify", tmp_path / "b.sqlimage")


def test_pointers_of_strangers_lead_nowhere(tmp_path: Path) -> None:
    """Where a child's parent is said to be: only a name on the same shelf counts, and only if it is that parent."""
    base = travelling.image(tmp_path / "here")
    child = travelling.child(base)
    store = MemoryStore()
    pushed(child, store, "child.sqlimage")
    uuid = sqlimage.open(str(base)).version().control.uuid
    (tmp_path / "there").mkdir()
    for told in (
        b"{}",
        b"[]",
        b"nonsense",
        json.dumps({"image": "../../etc/passwd"}).encode(),
        json.dumps({"image": "child.sqlimage"}).encode(),
        json.dumps({"image": "nothing"}).encode(),
        json.dumps({"image": 7}).encode(),
    ):
        store.put(f"versions/{uuid}", told)
        target = tmp_path / "there" / "c.sqlimage"
        try:
            pull(Checked(store), "child.sqlimage", str(target))
        except sqlimage.SqlimageError as problem:
            assert "Traceback" not in str(problem)
        assert {path.name for path in (tmp_path / "there").iterdir()} <= {"c.sqlimage", "child.sqlimage"}
        for path in (tmp_path / "there").iterdir():
            path.unlink()
