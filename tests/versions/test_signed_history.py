"""What is done with versions that are signed, and what is said of their signatures after it: the truth, each time."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import zstandard

import sqlimage
from sqlimage.image.fingerprint import Fingerprints
from sqlimage.streams import audit, control, schema, signature
from sqlimage.streams.database import Database
from sqlimage.streams.writer import SUFFIX, WriterLock
from tests.image.edits import check_whole
from tests.images import noise, run_tool, tool
from tests.make.signing import KEY, OTHER, by_hand, checked, copied, problems
from tests.versions.chains import make

SIZE = 1 << 20


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """golden (1) <- second (2) <- third (3) in base, a child file of the second and a child file of that, signed."""
    place = tmp_path_factory.mktemp("history")
    base, child, grandchild = (place / f"{name}.sqlimage" for name in ("base", "child", "grandchild"))
    sqlimage.capture(sqlimage.MemoryDevice(noise("first", SIZE)), base, preset="fast", label="golden")
    edit(base, "second")
    edit(base, "third")
    edit(base, "child", version="second", into=child)
    edit(child, "later")
    edit(child, "grandchild", into=grandchild)
    for image in (base, child, grandchild):
        sqlimage.sign(image, KEY, every=True)
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "family"))


def edit(image: Path, label: str, *, version: str | None = None, into: Path | None = None, pieces: int = 3) -> None:
    with sqlimage.open(str(image), writable=True) as opened, opened.edit(version, label=label, into=into) as edit:
        for n in range(pieces):
            edit.driver.write(n * (SIZE // pieces) + 8192, noise((label, n), 5000))


def all_hold(image: Path) -> None:
    """Every version is as it was signed, without a reservation but for what other files hold."""
    report = checked(image)
    assert report.problems == ()
    assert [note for note in report.notes if "holds ancestors" not in note] == []


def test_what_is_signed_holds_over_files_and_says_which_others_hold_contents(place: Path) -> None:
    for name in ("base", "child", "grandchild"):
        all_hold(place / f"{name}.sqlimage")
    notes = checked(place / "grandchild.sqlimage").notes
    assert [note.partition(":")[0] for note in notes] == [str(place / f"{n}.sqlimage") for n in ("base", "child")]


def test_a_new_version_on_top_leaves_every_signature_as_it_is(place: Path) -> None:
    base = place / "base.sqlimage"
    edit(base, "fourth")
    sqlimage.capture(sqlimage.MemoryDevice(noise("fifth", SIZE)), base, append=True, label="fifth")
    assert problems(base) == [f"version {n}: is not signed by a key that is trusted" for n in (4, 5)]
    sqlimage.sign(base, KEY, every=True)
    all_hold(base)


def test_an_edit_that_is_discarded_leaves_every_signature_as_it_is(place: Path) -> None:
    base = place / "base.sqlimage"
    tool("edit", "begin", base, "--label", "gone")
    assert problems(base) == []
    tool("edit", "discard", base)
    all_hold(base)


def test_a_merged_version_keeps_its_signature_and_the_trail_that_is_not_covered_is_told(place: Path) -> None:
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    sqlimage.merge(child, base)
    child.unlink()
    report = checked(base)
    assert report.problems == ()
    assert [one.version for one in report.signatures] == [1, 2, 3, 4, 5]
    assert [note.partition(":")[0] for note in report.notes] == ["version 4", "version 5"]
    assert all("was signed in another file and merged" in note for note in report.notes)
    all_hold_but_notes = checked(place / "grandchild.sqlimage")
    assert all_hold_but_notes.problems == ()
    sqlimage.merge(place / "grandchild.sqlimage", base)
    assert (checked(base).problems, len(checked(base).notes)) == ((), 3)
    # A signature made here covers the whole trail.
    sqlimage.sign(base, KEY, every=True)
    all_hold(base)
    check_whole(base)


def test_what_a_hand_does_to_a_merged_version_is_found_as_before(place: Path) -> None:
    base = place / "base.sqlimage"
    sqlimage.merge(place / "child.sqlimage", base)
    changed = copied(base, place / "a", "UPDATE bitmap SET end_cluster = end_cluster - 1 WHERE version = 1")
    assert sum("is not the one that was signed" in what for what in problems(changed)) == 4
    told = copied(base, place / "b", "UPDATE audit SET user = 'x' WHERE action = 'edit-commit' AND version = 4")
    assert any(what.startswith("version 4: the audit rows about it") for what in problems(told))


def test_a_label_to_which_a_merge_adds_a_number_is_the_one_that_was_signed(place: Path) -> None:
    base, child = place / "base.sqlimage", place / "again.sqlimage"
    edit(base, "third", version="third", into=child)
    sqlimage.sign(child, KEY)
    sqlimage.merge(child, base)
    with sqlimage.open(str(base)) as opened:
        assert opened.versions()[-1].control.label == "third~2"
    assert problems(base) == []


def test_no_file_can_claim_of_all_its_versions_that_they_were_merged(place: Path) -> None:
    """A trail made anew in which a `merge` row claims it of the first version."""
    base = place / "base.sqlimage"
    with Database.open(base) as database:
        uuid = control.uuids(database)[0]
    with Database.open(base, writable=True) as database, database.transaction():
        rows = audit.read_all(database)
        for trigger in ("audit_is_not_changed", "audit_is_not_deleted"):
            database.run(f"DROP TRIGGER {trigger}")
        database.run("DELETE FROM audit")
        told = {"versions": [{"version": 1, "uuid": uuid}]}
        audit.append(database, "merge", tool="forged", version=None, detail={**told})
        for row in rows:
            audit.repeat(database, row, row.version or 0)
        for sql in schema.schema_sql()[0].split("CREATE TRIGGER")[1:]:
            database.run("CREATE TRIGGER" + sql.partition("END;")[0] + "END")
    found = problems(base, version="golden")
    assert any("is not the one that was signed" in what for what in found), found


def test_squashed_versions_are_not_what_was_signed_and_the_trail_says_why(place: Path) -> None:
    base = place / "base.sqlimage"
    for name in ("child", "grandchild"):
        (place / f"{name}.sqlimage").unlink()
    assert "its signature does not cover this change" in run_tool("squash", base, "--from", "2", "--to", "3").stderr
    found = problems(base)
    assert all(what.startswith("version 3: ") for what in found)
    assert any("its parent is" in what and "tells of a change since (squash" in what for what in found)
    with Database.open(base) as database:
        assert len(signature.signed(database)) == 2  # those of what is gone are gone
    sqlimage.sign(base, KEY)
    all_hold(base)


def test_a_rebased_version_is_not_what_was_signed_and_neither_is_what_builds_on_it(place: Path) -> None:
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    done = run_tool("rebase", f"{child}@child", "--onto", f"{base}@third")
    assert done.returncode == 0 and "its signature does not cover this change" in done.stderr
    found = problems(child)
    assert any("version 1: its parent is" in what for what in found)
    assert any("tells of a change since (rebase" in what for what in found)
    assert any(what.startswith("version 2: its parent") and "is not the one that was signed" in what for what in found)
    assert problems(place / "grandchild.sqlimage") != []
    all_hold(base)
    sqlimage.sign(child, KEY, every=True)
    all_hold(child)


def test_a_version_that_is_pruned_takes_its_signature_along_and_the_others_hold(place: Path) -> None:
    base = place / "base.sqlimage"
    sqlimage.prune(base, ["third"])
    all_hold(base)
    with Database.open(base) as database:
        assert signature.signed(database) == set(control.uuids(database))


def test_a_flattened_version_is_a_new_one_that_nobody_has_signed(place: Path) -> None:
    flat = place / "flat.sqlimage"
    with sqlimage.open(str(place / "child.sqlimage")) as opened:
        sqlimage.flatten(opened.version(), flat)
    assert problems(flat) == ["version 1: is not signed by a key that is trusted"]
    sqlimage.sign(flat, KEY)
    all_hold(flat)


def test_a_property_that_is_set_later_is_told_on_the_version_and_on_what_inherits_it(place: Path) -> None:
    base = place / "base.sqlimage"
    done = run_tool("property", "set", f"{base}@second", "site=Paris")
    assert done.returncode == 0 and "its signature does not cover this change" in done.stderr
    found = problems(base)
    assert found[0].startswith("version 2: the property table differs")
    assert "tells of a change since (property" in found[0]
    assert "version 3: its parent" in found[1] and "the property table of" in found[1]
    assert len(found) == 2
    (child,) = problems(place / "child.sqlimage", version="child")
    assert "the property table of" in child
    tool("property", "unset", f"{base}@second", "site")
    all_hold(base)  # every row is as it was signed; what came between stands in the trail


def fine(work: Path) -> Path:
    """An image whose second version is in many small pieces."""
    image = work / "fine.sqlimage"
    sqlimage.capture(sqlimage.MemoryDevice(noise("first", SIZE)), image, preset="fast")
    edit(image, "pieces", pieces=40)
    edit(image, "after")
    return image


def test_compact_leaves_alone_what_a_signature_covers(tmp_path: Path) -> None:
    image = fine(tmp_path)
    copy = copied(image, tmp_path / "unsigned")
    child = tmp_path / "child.sqlimage"
    assert sqlimage.compact(copy).recut_contents > 0  # without a signature they are cut anew
    signed = copied(image, tmp_path / "signed")
    sqlimage.sign(signed, KEY)
    report = sqlimage.compact(signed)
    assert (report.recut_contents, report.kept_for_signatures) == (0, 3)
    assert problems(signed, version="after") == []
    # So it does for a child file that is signed.
    edit(image, "child", version="pieces", into=child)
    sqlimage.sign(child, KEY)
    report = sqlimage.compact(image)
    assert (report.recut_contents, report.kept_for_signatures) == (0, 2)
    all_hold(child)
    assert "kept for signatures" in tool("compact", image)


def test_contents_that_are_stored_in_another_way_keep_a_signature(place: Path) -> None:
    """As a merge or another compression level leaves them."""
    base = place / "base.sqlimage"
    with Database.open(base) as database:
        first = database.row("SELECT id, bytes, flags FROM data WHERE flags = 0 ORDER BY id")
    assert first is not None
    packed = zstandard.ZstdCompressor(level=1).compress(first[1])
    by_hand(base, f"UPDATE data SET flags = 1, stored_bytes = {len(packed)}, bytes = x'{packed.hex()}' WHERE id = 1")
    all_hold(base)
    check_whole(base)


def test_a_parent_under_the_same_uuid_that_is_another_is_found(place: Path) -> None:
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    other = place / "other.sqlimage"
    sqlimage.capture(sqlimage.MemoryDevice(noise("an impostor", SIZE)), other, preset="fast", label="second")
    with Database.open(base) as database:
        second = control.find_version(database, "second")
    by_hand(other, f"UPDATE control SET uuid = '{second.uuid}'")
    base.unlink()
    other.rename(base)
    found = problems(child)
    assert f"version 1: its parent {second.uuid} in {base} is not the one that was signed" in found[0]
    done = run_tool("verify", child, "--trust", KEY.public.hex())
    assert done.returncode == 1 and found[0] in done.stdout
    base.unlink()
    assert all("needs its parent" in what for what in problems(child))


def test_a_version_whose_parent_is_not_signed_can_be_signed_and_covers_it(place: Path) -> None:
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    sqlimage.sign(child, OTHER)
    assert problems(child, OTHER, version="later") == []
    by_hand(base, "UPDATE control SET source = 'x' WHERE label = 'golden'")
    assert any("is not the one that was signed" in what for what in problems(child, OTHER, version="later"))


def test_a_chain_of_many_versions_is_one_walk(tmp_path: Path) -> None:
    """Each fingerprint is made once, however many versions are asked about."""
    chain = make(tmp_path, 12)
    report = sqlimage.sign(chain.one, KEY, every=True)
    assert len(report.versions) == 12
    assert len({one.digest for one in report.versions}) == 12
    assert problems(chain.one) == []
    with Database.open(chain.one) as database:
        made = Fingerprints()
        newest = made.of(database, control.versions(database)[-1])
        assert made.of(database, control.versions(database)[-2]) is newest.parent


def test_what_is_signed_in_one_file_reads_the_same_wherever_its_files_lie(place: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(place / "base.sqlimage", away / "renamed.sqlimage")
    child = place / "child.sqlimage"
    assert run_tool("verify", child, "--trust", KEY.public.hex()).returncode == 1
    assert run_tool("verify", child, "--trust", KEY.public.hex(), "--search", away).returncode == 0


def test_a_reader_of_the_trail_learns_who_signed_what(place: Path) -> None:
    rows = [row for row in json.loads(tool("audit", place / "base.sqlimage", "--json")) if row["action"] == "sign"]
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert {json.loads(row["detail"])["public_key"] for row in rows} == {KEY.public.hex()}
    assert json.loads(tool("info", place / "base.sqlimage", "--json"))["signed_by"] == [KEY.public.hex()]
    assert KEY.public.hex() in tool("info", place / "base.sqlimage")


def test_signing_needs_the_lock_of_a_writer(place: Path) -> None:
    base = place / "base.sqlimage"
    before = hashlib.sha256(base.read_bytes()).digest()
    lock = WriterLock(str(base), "something else")
    try:
        with pytest.raises(sqlimage.RefusedError, match="something else"):
            sqlimage.sign(base, KEY)
    finally:
        lock.close()
    assert hashlib.sha256(base.read_bytes()).digest() == before
    assert not (place / f"base.sqlimage{SUFFIX}").exists()
