"""Which versions can be restored to another size: children, edits, versions whose parents are other files; and which
cannot, and why."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

import sqlimage
from sqlimage.media.file import FileDevice
from sqlimage.units import MIB
from tests.conftest import run
from tests.make import ext, fat, ntfs, resized
from tests.make.ext import needs_mount
from tests.make.resized import captured, check, contents, free_of, noise, restored
from tests.media.disks import make_disk

slow = pytest.mark.slow


def changed(kind: str, before: Path, after: Path) -> Path:
    """A copy of a volume in which files were changed, removed and added."""
    shutil.copy(before, after)
    new = {f"new/{n}": noise(("changed", n), 9000 * n) for n in range(5)}
    if kind == "ntfs":
        with ntfs.mounted(after) as root:
            ntfs.write_tree(root, new)
            (root / "last").unlink()
            with (root / "large").open("r+b") as file:
                file.write(b"changed")
    elif kind == "ext4":
        with ext.in_memory() as work:
            inside = Path(shutil.copy(after, work / "v"))
            with ext.mounted(inside) as root:
                ntfs.write_tree(root, new)
                (root / "large").unlink()
            shutil.copy(inside, after)
    else:
        fat.fill(after, new, after.with_suffix(".tree"))
        fat.delete(after, "/LARGE.BIN")
    assert contents(after) != contents(before)
    return after


def resized_both_ways(kind: str, image: Path, version: str | None, volume: Path, place: Path) -> None:
    for size in ("minimum", volume.stat().st_size * 9 // 8):
        report = restored(image, place / "out", version, size=size, force=True)
        assert report.files_compared > 20
        check(kind, place / "out", contents(volume))


@pytest.mark.parametrize(
    "kind", ["ntfs", pytest.param("fat12", marks=slow), pytest.param("ext4", marks=[slow, needs_mount])]
)
def test_a_child_in_a_file_of_its_own_and_one_in_the_same_file(kind: str, tmp_path: Path) -> None:
    one = resized.make(kind, tmp_path / "one")
    two = changed(kind, one, tmp_path / "two")
    captured(one, tmp_path / "parent.sqlimage")
    captured(two, tmp_path / "child.sqlimage", parent=tmp_path / "parent.sqlimage")
    resized_both_ways(kind, tmp_path / "child.sqlimage", None, two, tmp_path)
    captured(two, tmp_path / "parent.sqlimage", append=True)
    resized_both_ways(kind, tmp_path / "parent.sqlimage", "2", two, tmp_path)
    resized_both_ways(kind, tmp_path / "parent.sqlimage", "1", one, tmp_path)


@pytest.mark.parametrize(
    "kind", ["fat12", pytest.param("ntfs", marks=slow), pytest.param("ext4", marks=[slow, needs_mount])]
)
def test_an_edit_and_a_child_of_it(kind: str, tmp_path: Path) -> None:
    one = resized.make(kind, tmp_path / "one")
    two = changed(kind, one, tmp_path / "two")
    image = captured(one, tmp_path / "i.sqlimage")
    before, after = one.read_bytes(), two.read_bytes()
    with sqlimage.open(str(image), writable=True) as opened, opened.edit() as edit:
        for at in range(0, len(after), 4096):
            if after[at : at + 4096] != before[at : at + 4096]:
                edit.driver.write(at, after[at : at + 4096])
        edit.commit()
    resized_both_ways(kind, image, "2", two, tmp_path)
    captured(two, tmp_path / "child.sqlimage", parent=image)
    resized_both_ways(kind, tmp_path / "child.sqlimage", None, two, tmp_path)


def test_an_image_is_resized_the_same_whatever_its_parents(tmp_path: Path) -> None:
    one = resized.make("fat12", tmp_path / "one")
    two = changed("fat12", one, tmp_path / "two")
    captured(one, tmp_path / "parent.sqlimage")
    captured(two, tmp_path / "child.sqlimage", parent=tmp_path / "parent.sqlimage")
    captured(two, tmp_path / "alone.sqlimage")
    for size in ("minimum", 4 * MIB):
        for name in ("child", "alone"):
            restored(tmp_path / f"{name}.sqlimage", tmp_path / name, size=size, force=True)
        assert (tmp_path / "child").read_bytes() == (tmp_path / "alone").read_bytes()


def dirty(kind: str, volume: Path) -> None:
    """What a system leaves that was not shut down."""
    if kind == "ntfs":
        made = ntfs.VolumeBytes(volume.read_bytes())
        made.patch_value(3, 0x70, 0x0A, b"\x01")
        volume.write_bytes(made.content)
    else:
        with volume.open("r+b") as file:
            file.seek(37)
            file.write(b"\x01")  # BS_Reserved1: in use


@pytest.mark.parametrize("kind", ["ntfs", "fat12"])
def test_a_dirty_volume_is_restored_as_it_is_and_to_no_other_size(kind: str, tmp_path: Path) -> None:
    volume = resized.make(kind, tmp_path / "v")
    dirty(kind, volume)
    image = captured(volume, tmp_path / "i")
    restored(image, tmp_path / "plain")
    assert contents(tmp_path / "plain") == contents(volume)
    for size in ("minimum", volume.stat().st_size // 2, volume.stat().st_size * 2):
        with pytest.raises(sqlimage.RefusedError, match=r"dirty|in use"):
            restored(image, tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()
    disk = make_disk(tmp_path / "disk", "label: dos\nstart=4096, size=40000\n", 40 * MIB)
    report = restored(image, disk, partition=1)
    (note,) = report.notes
    assert "4096 sectors lie before it" in note
    if kind == "fat12":
        assert note.startswith("its boot sector does not say") and "in use" in note
    with closing(FileDevice(disk)) as device:
        assert contents(sqlimage.Window(device, 4096 * 512, volume.stat().st_size)) == contents(volume)


@needs_mount
def test_a_journal_to_be_recovered_is_replayed_where_the_size_changes(tmp_path: Path) -> None:
    with ext.in_memory() as work:
        made = ext.make_volume(work / "v", 16 * MIB, "-t", "ext4")
        with ext.mounted(made) as root:
            for n in range(20):
                (root / f"{n}").write_bytes(noise(n, 20_000))
            ext.settle(root)
            (root / "late").write_bytes(noise("late", 50_000))
            ext.commit(root)
            ext.crash(root)
        volume = Path(shutil.copy(made, tmp_path / "v"))
    image = captured(volume, tmp_path / "i")
    for size in ("minimum", 24 * MIB):
        report = restored(image, tmp_path / "out", size=size, force=True)
        assert any("e2fsck mended the volume" in note for note in report.notes)
        check("ext4", tmp_path / "out", contents(ext.recovered(volume, tmp_path / "mended")))
    restored(image, tmp_path / "plain")
    assert contents(tmp_path / "plain") == contents(volume)
    run("e2fsck", "-fn", ext.recovered(tmp_path / "plain", tmp_path / "mended"))


def test_what_cannot_be_laid_out_anew_is_named(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise("file", 100_000))
    run("genisoimage", "-quiet", "-R", "-o", tmp_path / "iso9660", tmp_path / "tree")
    for kind, maker in (("exfat", "mkfs.exfat"), ("swap", "mkswap")):
        with (tmp_path / kind).open("wb") as file:
            file.truncate(8 * MIB)
        run(maker, tmp_path / kind)
    (tmp_path / "raw").write_bytes(noise("raw", MIB))
    for kind, name in (("iso9660", "iso9660"), ("exfat", "exfat"), ("swap", "swap"), ("raw", "what no reader knows")):
        image = captured(tmp_path / kind, tmp_path / f"{kind}.sqlimage")
        for size in ("minimum", 100 * MIB, 512):
            with pytest.raises(sqlimage.RefusedError) as refused:
                restored(image, tmp_path / "out", size=size)
            assert str(refused.value).startswith(f"volume 0: {name} cannot be laid out anew; restore it as it was")
        restored(image, tmp_path / "plain", force=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["fat12", pytest.param("ntfs", marks=slow)])
def test_a_volume_that_may_be_a_pools_is_kept_whole_and_as_it_is(kind: str, tmp_path: Path) -> None:
    volume = resized.make(kind, tmp_path / "v")
    free = free_of(volume)
    with volume.open("r+b") as file:
        file.seek(128 * 1024 - 40)
        file.write(bytes.fromhex("117a0cb17ada1002"))  # the end of what a vdev label of ZFS begins with
        for start, length in free:
            file.seek(start)
            file.write(noise("pool", length))
    image = captured(volume, tmp_path / "i")
    for options in ({"size": "minimum"}, {"size": 50 * MIB}, {"hidden_sectors": 63}):
        with pytest.raises(sqlimage.RefusedError, match=f"{kind}, with zfs_member beside it, cannot be laid out anew"):
            restored(image, tmp_path / "out", **options)
    disk = make_disk(tmp_path / "disk", "label: dos\nstart=2048, size=40000\n", 32 * MIB)
    (note,) = restored(image, disk, partition=1).notes
    assert "does not say that 2048 sectors" in note
    assert disk.read_bytes()[MIB : MIB + volume.stat().st_size] == volume.read_bytes()
