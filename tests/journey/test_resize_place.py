"""Where a volume is restored to: a device that is smaller or larger, a partition that begins somewhere else, and what
is told of the place."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import sqlimage
from sqlimage.filesystem.probe import open_file_system
from sqlimage.journey.resizable import Size
from sqlimage.media.file import FileDevice
from sqlimage.media.partition import partition_window
from sqlimage.units import MIB
from tests.conftest import run
from tests.make import resized
from tests.make.resized import captured, check, contents, explained, free_of, hidden_sectors, noise, restored
from tests.media.disks import make_disk
from tests.media.kinds import loop_device

slow = pytest.mark.slow
KINDS = ["fat12", pytest.param("ntfs", marks=slow), pytest.param("fat32", marks=slow), pytest.param("ext4", marks=slow)]
WITH_PLACE = ["ntfs", "fat12", pytest.param("fat32", marks=slow), pytest.param("fat16", marks=slow)]


class Images:
    """One volume of each kind, made when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __call__(self, kind: str) -> Path:
        image = self._place / f"{kind}.sqlimage"
        return image if image.exists() else captured(resized.make(kind, self.volume(kind)), image)

    def volume(self, kind: str) -> Path:
        return self._place / kind


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"))


def stale(size: int) -> bytes:
    """What a device held before."""
    return noise("stale", size)


@contextmanager
def stale_device(path: Path, size: int) -> Iterator[str]:
    """A block device that holds something else."""
    path.write_bytes(stale(size))
    with loop_device(path) as name:
        yield name


def cut(source: Path | str, target: Path, offset: int = 0, length: int | None = None) -> Path:
    """A part of a disk, in a file of its own."""
    with open(source, "rb") as file:
        file.seek(offset)
        target.write_bytes(file.read() if length is None else file.read(length))
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_and_a_larger_device_are_filled_and_free_space_is_left_alone_unless_wiped(
    images: Images, kind: str, tmp_path: Path
) -> None:
    expected = contents(images.volume(kind)) if images(kind) else {}
    captured_bytes = resized.SIZES[kind]
    for size in (captured_bytes * 15 // 16 // 4096 * 4096, captured_bytes * 3 // 2):
        with stale_device(tmp_path / "device", size) as name:
            report = restored(images(kind), name, size="maximum", force=True)
            assert report.medium_bytes == size
        after, before = cut(tmp_path / "device", tmp_path / "v").read_bytes(), stale(size)
        check(kind, tmp_path / "v", expected)
        free = free_of(tmp_path / "v")
        assert free.total > size // 9
        assert all(after[at : at + n] == before[at : at + n] for at, n in free)
        with loop_device(tmp_path / "device") as name:
            restored(images(kind), name, size="maximum", force=True, wipe=True)
        after = cut(tmp_path / "device", tmp_path / "v").read_bytes()
        assert not any(any(after[at : at + n]) for at, n in free_of(tmp_path / "v"))
        check(kind, tmp_path / "v", expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_too_small_is_refused_with_both_numbers_and_keeps_what_it_holds(
    images: Images, kind: str, tmp_path: Path
) -> None:
    smallest = explained(images(kind), tmp_path / "no", size="minimum").size_bytes
    short, captured_bytes = (smallest - 1) // 512 * 512, resized.SIZES[kind]
    with stale_device(tmp_path / "device", short) as name:
        for options, said in (
            ({"size": "maximum"}, (f"({short} bytes) do not suffice", f"({smallest} bytes)")),
            ({}, (f"({short} bytes)", f"({captured_bytes} bytes)", "--size maximum")),
            ({"size": "minimum"}, (f"({short} bytes), ", f"({smallest} bytes) are needed")),
            ({"size": captured_bytes * 2}, (f"({short} bytes)", f"({captured_bytes * 2} bytes) are needed")),
        ):
            with pytest.raises(sqlimage.RefusedError) as refused:
                restored(images(kind), name, force=True, **options)
            assert all(part in str(refused.value) for part in said), refused.value
    assert (tmp_path / "device").read_bytes() == stale(short)


def test_a_device_that_would_suffice_says_how(images: Images, tmp_path: Path) -> None:
    with stale_device(tmp_path / "device", 8 * MIB) as name:
        with pytest.raises(sqlimage.RefusedError, match="--size maximum fits it in; it needs"):
            restored(images("ntfs"), name, size=10 * MIB, force=True)
        with pytest.raises(sqlimage.RefusedError, match="is not empty; use --force"):
            restored(images("ntfs"), name, size="maximum")
    assert (tmp_path / "device").read_bytes() == stale(8 * MIB)


@pytest.mark.parametrize("size", ["minimum", None, pytest.param("maximum", marks=slow)])
@pytest.mark.parametrize("kind", WITH_PLACE)
def test_a_volume_in_a_partition_says_where_it_begins(
    images: Images, kind: str, size: Size | None, tmp_path: Path
) -> None:
    length = resized.SIZES[kind] // 512 + 999
    disk = make_disk(tmp_path / "disk", f"label: dos\nstart=2048, size=2048\nstart=4103, size={length}\n", 64 * MIB)
    restored(images(kind), disk, partition=2, size=size)
    with closing(FileDevice(disk)) as device:
        begins = hidden_sectors(partition_window(device, 2))
    assert begins == [4103] * len(begins)
    assert len(begins) == (2 if kind in ("ntfs", "fat32") else 1)
    spans = explained(images(kind), disk, partition=2, size=size).size_bytes
    check(kind, cut(disk, tmp_path / "v", 4103 * 512, spans), contents(images.volume(kind)))
    assert disk.read_bytes()[2048 * 512 : 4103 * 512] == bytes((4103 - 2048) * 512)


def test_what_a_boot_sector_says_of_its_place_is_told_only_where_it_changes(images: Images, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", "label: gpt\nstart=2048, size=40960\nstart=43008, size=40960\n")
    note = ("its boot sector says that 43008 sectors lie before it, as there do",)
    assert restored(images("ntfs"), disk, partition=2).notes == note
    there = captured(disk, tmp_path / "there", partition=2)
    assert restored(there, disk, partition=2, force=True).notes == ()
    assert restored(there, disk, partition=2, force=True, size="maximum").notes == ()
    assert restored(there, disk, partition=1).notes == (note[0].replace("43008", "2048"),)
    assert restored(there, tmp_path / "file").notes == ()
    assert hidden_sectors(tmp_path / "file")[0] == 43008
    assert restored(images("fat12"), disk, partition=1, force=True, hidden_sectors=63).notes == ()
    with closing(FileDevice(disk)) as device:
        assert hidden_sectors(partition_window(device, 1)) == [63]


def test_what_has_no_place_to_tell_is_restored_as_it_is(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", "label: gpt\nstart=2048, size=40960\n")
    (tmp_path / "raw").write_bytes(noise("raw", MIB))
    run("mke2fs", "-q", "-t", "ext4", tmp_path / "ext", "8M")
    for name in ("raw", "ext"):
        image = captured(tmp_path / name, tmp_path / f"{name}.sqlimage")
        report = restored(image, disk, partition=1, force=True)
        assert (report.notes, report.fixups) == ((), 0)
    assert cut(disk, tmp_path / "raw", MIB, MIB).read_bytes() != noise("raw", MIB)
    assert subprocess.run(["e2fsck", "-fn", cut(disk, tmp_path / "v", MIB, 8 * MIB)], check=False).returncode == 0


def test_the_volume_of_one_disk_goes_into_a_partition_of_another(images: Images, tmp_path: Path) -> None:
    sectors = resized.SIZES["ntfs"] // 512
    source = make_disk(tmp_path / "source", f"label: dos\nstart=63, size=2048\nstart=4096, size={sectors}\n")
    restored(images("ntfs"), source, partition=2)
    image = captured(source, tmp_path / "i")
    target = make_disk(tmp_path / "target", f"label: gpt\nstart=10240, size={sectors * 3 // 4}\n")
    before = target.read_bytes()
    with pytest.raises(sqlimage.RefusedError, match="the image needs 12"):
        restored(image, target, volume=1, partition=1)
    assert target.read_bytes() == before
    report = restored(image, target, volume=1, partition=1, size="maximum")
    assert report.medium_bytes == sectors * 3 // 4 * 512
    volume = cut(target, tmp_path / "v", 10240 * 512, report.medium_bytes)
    check("ntfs", volume, contents(images.volume("ntfs")))
    assert hidden_sectors(volume) == [10240, 10240]
    restored(image, tmp_path / "alone", volume=1, size="minimum", hidden_sectors=7)
    check("ntfs", tmp_path / "alone", contents(images.volume("ntfs")))
    assert hidden_sectors(tmp_path / "alone") == [7, 7]


@pytest.mark.parametrize("kind", WITH_PLACE)
def test_geometry_and_hidden_sectors_go_into_every_copy_of_the_boot_sector(
    images: Images, kind: str, tmp_path: Path
) -> None:
    shape = sqlimage.Geometry.parse("1000/16/32")
    restored(images(kind), tmp_path / "plain")
    plain = (tmp_path / "plain").read_bytes()
    report = restored(images(kind), tmp_path / "v", hidden_sectors=0x1234567, geometry=shape)
    after = (tmp_path / "v").read_bytes()
    assert report.medium_bytes == len(after) == len(plain)
    backups = {"ntfs": [len(plain) - 512], "fat32": [6 * 512]}.get(kind, [])
    expected = bytearray(plain)
    for at in (0, *backups):
        expected[at + 24 : at + 32] = bytes([32, 0, 16, 0]) + (0x1234567).to_bytes(4, "little")
    assert after == expected
    restored(images(kind), tmp_path / "v", hidden_sectors=5, geometry=shape, size="minimum", force=True)
    after = (tmp_path / "v").read_bytes()
    assert after[24:32] == bytes([32, 0, 16, 0, 5, 0, 0, 0])
    assert hidden_sectors(tmp_path / "v") == [5] * (1 + len(backups))
    check(kind, tmp_path / "v", contents(images.volume(kind)))


def test_what_lies_behind_a_file_system_stays_where_only_its_boot_sector_changes(tmp_path: Path) -> None:
    volume = resized.make("fat12", tmp_path / "v")
    with volume.open("ab") as file:
        file.write(bytes(70_000) + noise("behind", 100_000))
        file.truncate(4 * MIB)
    image = captured(volume, tmp_path / "i")
    restored(image, tmp_path / "plain")
    expected = bytearray((tmp_path / "plain").read_bytes())
    assert expected[3 * MIB :] == volume.read_bytes()[3 * MIB :]
    restored(image, tmp_path / "out", hidden_sectors=2048)
    expected[28:32] = (2048).to_bytes(4, "little")
    assert (tmp_path / "out").read_bytes() == expected
    disk = make_disk(tmp_path / "disk", "label: dos\nstart=2048, size=8192\nstart=10240, size=9000\n", 32 * MIB)
    restored(image, disk, partition=1)
    assert cut(disk, tmp_path / "out", MIB, 4 * MIB).read_bytes() == expected
    whole = captured(disk, tmp_path / "whole")
    report = restored(whole, disk, geometry=sqlimage.Geometry.parse("9/8/7"), force=True)
    assert report.notes == ()
    expected[24:28] = bytes([7, 0, 8, 0])
    assert cut(disk, tmp_path / "out", MIB, 4 * MIB).read_bytes() == expected


def test_free_clusters_of_a_volume_that_is_kept_whole_stay_in_a_partition_too(tmp_path: Path) -> None:
    """A file lies on clusters that $Bitmap calls free: nothing it says is trusted, and all of it was captured."""
    volume = resized.make("ntfs", tmp_path / "v")
    content, chance = bytearray(volume.read_bytes()), random.Random(1)
    with closing(FileDevice(volume)) as device:
        opened = open_file_system(device)
        assert opened is not None
        scan = opened.scan()
        row = int(scan.entries.content[scan.entries.path.index("/$Bitmap")])
        at = int(scan.contents.run_offset[scan.contents.first_run[row]])
        free = opened.allocated().complement(len(content))
    content[at : at + 1000] = bytes(500) + content[at + 500 : at + 1000]
    for start, length in free:
        content[start : start + length] = chance.randbytes(length)
    report = sqlimage.capture(sqlimage.MemoryDevice(content), tmp_path / "i", preset="fast")
    assert report.volumes[0].captured_as == "raw"
    disk = make_disk(tmp_path / "disk", "label: dos\nstart=2048, size=30000\n", 32 * MIB)
    restored(tmp_path / "i", disk, partition=1)
    after = bytearray(cut(disk, tmp_path / "out", MIB, len(content)).read_bytes())
    for boot_sector in (0, len(content) - 512):
        after[boot_sector + 28 : boot_sector + 32] = content[boot_sector + 28 : boot_sector + 32]
    assert after == content
    for size in ("minimum", len(content) * 2):
        with pytest.raises((sqlimage.RefusedError, sqlimage.FormatError)):
            restored(tmp_path / "i", tmp_path / "new", size=size)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["ext4", "exfat", "raw"])
def test_what_does_not_tell_its_place_is_not_made_to(kind: str, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(noise("raw", MIB))
    if kind != "raw":
        with (tmp_path / kind).open("wb") as file:
            file.truncate(8 * MIB)
        run(f"mkfs.{kind}", tmp_path / kind)
    image = captured(tmp_path / kind, tmp_path / "i")
    for options in ({"hidden_sectors": 63}, {"geometry": sqlimage.Geometry.parse("10/16/63")}):
        with pytest.raises(sqlimage.RefusedError, match="--hidden-sectors"):
            restored(image, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_more_hidden_sectors_than_a_boot_sector_has_room_for_are_refused_or_told(
    images: Images, tmp_path: Path
) -> None:
    for number in (-1, 1 << 32):
        with pytest.raises(sqlimage.UsageError, match="allowed are 0 to 4294967295"):
            restored(images("ntfs"), tmp_path / "v", hidden_sectors=number)
    assert not (tmp_path / "v").exists()
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(3 << 40)
    run("sgdisk", "-n", f"1:{5 << 30}:+40M", tmp_path / "disk")
    for kind in ("ntfs", "fat12"):
        (note,) = restored(images(kind), tmp_path / "disk", partition=1, force=True).notes
        assert f"say that {5 << 30} sectors lie before it" in note
        assert "cannot say" in note or "does not say" in note
        volume = cut(tmp_path / "disk", tmp_path / "v", 5 << 39, resized.SIZES[kind])
        check(kind, volume, contents(images.volume(kind)))
