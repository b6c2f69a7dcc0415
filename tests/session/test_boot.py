"""A machine boots from an image, and what its guest did is a version with a story that names the files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.images import run_tool, tool
from tests.make import bootable as media
from tests.session.use import actions, beside, check_at_rest, digest, refused, restored, states, told

pytestmark = pytest.mark.timeout(100)
MACHINE = ("--memory", "512MiB", "--interface", "virtio")
GUEST = ("--", "-no-reboot")


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("boot") / "fat.sqlimage"
    tool("capture", media.fat_volume(16), image, "--label", "golden", "--preset", "fast")
    return image


@pytest.fixture
def fat(captured: Path, place: Path) -> Path:
    return Path(shutil.copy(captured, place / "fat.sqlimage"))


def boots(image: object, *options: object) -> str:
    """Boot and wait until the guest has powered off; what it said and what the command did."""
    said = tool("boot", image, *options, *MACHINE, *GUEST)
    assert media.BOOT_DONE.decode() in said, said[-2000:]
    return said


def check_story(image: Path) -> None:
    """The audit trail names what the guest did to the FAT volume."""
    assert {
        ("created", media.FAT_WRITTEN),
        ("deleted", media.DELETED),
        ("renamed", media.RENAMED_TO),
    } == {(action, path) for action, path in actions(image) if path is not None}


def test_a_guest_of_a_captured_volume_writes_a_version_and_the_old_one_stays(fat: Path, tmp_path: Path) -> None:
    before = restored(fat, tmp_path / "before.raw")
    said = boots(fat, "--commit", "--label", "booted", "-m", "first start")
    assert media.FAT_WRITTEN in said.partition(media.BOOT_DONE.decode())[2]
    assert states(fat) == [(1, "sealed"), (2, "sealed")]
    check_story(fat)
    assert tool("cat", fat, media.FAT_WRITTEN) == f"{media.WRITTEN_TEXT.decode()}{media.kernel_release()}\n"
    assert tool("cat", f"{fat}@booted", media.RENAMED_TO).encode() == media.CONTENT[media.RENAMED_FROM]
    refused(3, "DELETED", "cat", fat, media.DELETED)
    assert tool("cat", f"{fat}@golden", media.DELETED).encode() == media.CONTENT[media.DELETED]
    assert restored(f"{fat}@1", tmp_path / "after.raw") == before
    check_at_rest(fat)


@pytest.mark.slow
def test_without_a_word_about_the_end_the_edit_stays_open_and_boots_again(fat: Path) -> None:
    said = boots(fat)
    assert f"go on with it as {fat}@2" in said
    assert beside(fat) == []
    assert [row["version"] for row in told("edit", "list", fat)] == [2]
    refused(4, f"{fat}@2", "boot", fat)
    # The guest finds its own changes: what it would delete is gone, so it does not get to its last word.
    again = run_tool("boot", f"{fat}@2", "--commit", *MACHINE, *GUEST)
    assert again.returncode == 0 and media.BOOT_DONE.decode() not in again.stdout
    assert "can't remove" in again.stdout
    assert states(fat) == [(1, "sealed"), (2, "sealed")]
    check_story(fat)
    check_at_rest(fat)


@pytest.mark.slow
def test_a_whole_disk_boots_and_its_raw_partition_is_told_by_clusters(place: Path, tmp_path: Path) -> None:
    image = place / "disk.sqlimage"
    tool("capture", media.whole_disk(), image, "--preset", "fast")
    before = restored(image, tmp_path / "before.raw")
    boots(image, "--commit")
    assert states(image) == [(1, "sealed"), (2, "sealed")]
    assert actions(image) == [("edit-begin", None), ("edit-commit", None)]
    assert told("audit", image)[-1]["length_bytes"] > 0
    assert restored(f"{image}@1", tmp_path / "after.raw") == before
    check_at_rest(image)


@pytest.mark.slow
def test_a_discarded_start_leaves_no_version(fat: Path, tmp_path: Path) -> None:
    before = restored(fat, tmp_path / "before.raw")
    assert boots(fat, "--discard").splitlines()[-1] == "what was written is gone"
    assert states(fat) == [(1, "sealed")]
    assert restored(fat, tmp_path / "after.raw") == before
    check_at_rest(fat)


@pytest.mark.slow
def test_a_read_only_start_changes_no_byte_of_the_image(fat: Path) -> None:
    before = digest(fat)
    boots(fat, "--read-only")
    assert digest(fat) == before
    assert beside(fat) == []


@pytest.mark.slow
def test_a_start_into_a_child_leaves_the_parents_bytes(fat: Path, place: Path) -> None:
    before, child = digest(fat), place / "child.sqlimage"
    boots(fat, "--commit", "--into", child)
    assert digest(fat) == before
    assert tool("cat", child, media.FAT_WRITTEN).startswith(media.WRITTEN_TEXT.decode())
    assert tool("cat", child, media.RENAMED_TO).encode() == media.CONTENT[media.RENAMED_FROM]
    check_at_rest(child)


def test_a_machine_that_cannot_start_leaves_the_image_as_it_was(fat: Path, tmp_path: Path) -> None:
    refused(2, "--interface", "boot", fat, "--interface", "scsi")
    refused(2, "exclude each other", "boot", fat, "--commit", "--discard")
    refused(3, "no version", "boot", f"{fat}@9")
    done = run_tool("boot", fat, *MACHINE, "--", "-no-such-option")
    assert done.returncode == 6
    assert "ended with 1" in done.stderr
    assert states(fat) == [(1, "sealed")]
    assert beside(fat) == []
