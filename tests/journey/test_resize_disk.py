"""A whole disk on a smaller or larger one: partitions moved and resized, the table rewritten, and everything still
there."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import sqlimage
from sqlimage.journey.resizable import Size
from sqlimage.units import MIB
from tests.conftest import run
from tests.make import fat, ntfs, resized_disk
from tests.make.ext import needs_mount
from tests.make.resized import captured, contents, explained, noise, restored
from tests.make.resized_disk import GPT, KINDS, MBR, SIZE, Disk, check, places
from tests.media.disks import make_disk
from tests.media.kinds import loop_device

slow = pytest.mark.slow
pytestmark = needs_mount
SCHEMES = (("mbr", MBR), ("gpt", GPT))


@dataclass(frozen=True)
class Made:
    disk: Disk
    image: Path
    minimum: int

    def as_in(self, path: Path | str, work: Path) -> None:
        check(self.disk, path, work)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disks")


@cache
def _made(script: str, place: Path) -> Made:
    name = script[7:10]
    disk = resized_disk.make(place / name, script, KINDS[script])
    image = captured(disk.path, place / f"{name}.sqlimage")
    return Made(disk, image, explained(image, place / "nothing", size="minimum").size_bytes)


BY_TURNS = {
    first: pytest.mark.parametrize(
        "made",
        [pytest.param(script, id=name, marks=() if name == first else slow) for name, script in SCHEMES],
        indirect=True,
    )
    for first, _ in SCHEMES
}
"""Both schemes, but every day only the one."""


@pytest.fixture(params=[MBR, GPT], ids=["mbr", "gpt"])
def made(request: pytest.FixtureRequest, place: Path) -> Made:
    return _made(request.param, place)


@BY_TURNS["gpt"]
@pytest.mark.parametrize("size", ["minimum", pytest.param("between", marks=slow)])
def test_on_a_smaller_disk_every_partition_is_there_and_in_order(made: Made, size: str, tmp_path: Path) -> None:
    wanted = (made.minimum + SIZE) // 2 // 512 * 512 if size == "between" else made.minimum
    report = restored(made.image, tmp_path / "disk", size="minimum" if size == "minimum" else wanted)
    assert report.medium_bytes == wanted == (tmp_path / "disk").stat().st_size < SIZE
    assert report.captured_bytes == SIZE
    made.as_in(tmp_path / "disk", tmp_path)
    lengths = [length for _, length in places(tmp_path / "disk")]
    before = [length for _, length in places(made.disk.path)]
    for kind, now, then in zip(made.disk.kinds, lengths, before, strict=True):
        assert now == then if kind in ("swap", "raw") else now <= then
    if size == "minimum":
        assert sum(lengths) < sum(before)


@BY_TURNS["mbr"]
def test_on_a_larger_disk_the_largest_partition_grows_and_those_behind_it_move(made: Made, tmp_path: Path) -> None:
    report = restored(made.image, tmp_path / "disk", size=SIZE + 20 * MIB)
    assert report.medium_bytes == (tmp_path / "disk").stat().st_size == SIZE + 20 * MIB
    made.as_in(tmp_path / "disk", tmp_path)
    before, after = places(made.disk.path), places(tmp_path / "disk")
    grown = [kind for kind, (_, old), (_, new) in zip(made.disk.kinds, before, after, strict=True) if old != new]
    assert grown == ["ext4"]
    assert after[3 if made.disk.kinds[3] == "ext4" else 2][1] == 36 * MIB
    notes = [note for note in report.notes if "moved as it is" in note]
    behind = made.disk.kinds[made.disk.kinds.index("ext4") + 1 :]
    assert len(notes) == len(behind)


@BY_TURNS["gpt"]
@pytest.mark.parametrize("size", [pytest.param(None, marks=slow), SIZE])
def test_at_its_own_size_a_disk_is_what_it_was(made: Made, size: int | None, tmp_path: Path) -> None:
    restored(made.image, tmp_path / "plain")
    restored(made.image, tmp_path / "disk", size=size)
    assert (tmp_path / "disk").read_bytes() == (tmp_path / "plain").read_bytes()
    made.as_in(tmp_path / "disk", tmp_path)


@BY_TURNS["gpt"]
@pytest.mark.parametrize("by", [-12, pytest.param(31, marks=slow)])
def test_a_device_that_held_something_else_is_filled(made: Made, by: int, tmp_path: Path) -> None:
    target = tmp_path / "device"
    target.write_bytes(b"stale!! " * ((SIZE + by * MIB) // 8))
    with loop_device(target) as name:
        report = restored(made.image, name, size="maximum", force=True)
        assert report.medium_bytes == SIZE + by * MIB
        made.as_in(name, tmp_path)
    content = target.read_bytes()
    ends = [offset + length for offset, length in places(target)]
    assert content[max(ends) : max(ends) + 8] in (b"stale!! ", bytes(8), b""), "free space is left alone"
    assert b"stale" not in content[512 : places(target)[0][0]], "what lies between partitions is not free"


@BY_TURNS["mbr"]
@pytest.mark.parametrize("less", [512, pytest.param(MIB, marks=slow), pytest.param(40 * MIB, marks=slow)])
def test_a_disk_that_is_too_small_is_refused_with_both_numbers(made: Made, less: int, tmp_path: Path) -> None:
    size = made.minimum - less if less < made.minimum else 1 * MIB
    with pytest.raises(sqlimage.RefusedError) as refused:
        restored(made.image, tmp_path / "disk", size=size)
    assert f"({size} bytes) do not suffice" in str(refused.value)
    assert f"({made.minimum} bytes)" in str(refused.value)
    assert os.listdir(tmp_path) == []
    (tmp_path / "device").write_bytes(b"precious" * (size // 8))
    with loop_device(tmp_path / "device") as name:
        for options in ({"size": "maximum"}, {}):
            with pytest.raises(sqlimage.RefusedError):
                restored(made.image, name, force=True, **options)
    assert (tmp_path / "device").read_bytes() == b"precious" * (size // 8)


@BY_TURNS["gpt"]
def test_how_many_sectors_lie_before_a_volume_is_the_tables_to_say(made: Made, tmp_path: Path) -> None:
    for size in (None, "minimum"):
        with pytest.raises(sqlimage.UsageError, match=r"the partition table says .* restore one volume with --volume"):
            restored(made.image, tmp_path / "disk", hidden_sectors=63, size=size)
    assert os.listdir(tmp_path) == []


def test_a_geometry_goes_into_the_boot_sectors_and_chs_fields(place: Path, tmp_path: Path) -> None:
    made = _made(MBR, place)
    shape = sqlimage.Geometry.parse("146/16/63")
    restored(made.image, tmp_path / "disk", geometry=shape)
    check(made.disk, tmp_path / "disk", tmp_path)
    content = (tmp_path / "disk").read_bytes()
    for number, (offset, length) in enumerate(places(tmp_path / "disk")[:2]):
        assert content[offset + 24 : offset + 28] == bytes([63, 0, 16, 0])
        record = content[446 + 16 * number :][:16]
        assert record[1:4] == shape.to_chs(offset // 512).to_bytes()
        assert record[5:8] == shape.to_chs((offset + length) // 512 - 1).to_bytes()


def test_a_partition_in_use_keeps_its_length_and_the_others_give(tmp_path: Path) -> None:
    script = "label: gpt\nstart=2048, size=12MiB\nstart=26624, size=12MiB\nstart=51200, size=8MiB\n"
    disk = resized_disk.make(tmp_path / "source", script, ("ntfs", "ntfs", "fat16"), 40 * MIB)
    content = bytearray(disk.path.read_bytes())
    start, length = places(disk.path)[1]
    volume = ntfs.VolumeBytes(bytes(content[start : start + length]))
    volume.patch_value(3, 0x70, 0x0A, b"\x01")
    content[start : start + length] = volume.content
    disk.path.write_bytes(content)
    image = captured(disk.path, tmp_path / "i")
    smallest = explained(image, tmp_path / "disk", size="minimum").size_bytes
    report = restored(image, tmp_path / "disk", size=smallest)
    assert any(note.startswith("volume 1 is moved as it is: ") and "dirty" in note for note in report.notes)
    lengths = [length for _, length in places(tmp_path / "disk")]
    assert lengths[0] < 8 * MIB and lengths[1] == 12 * MIB and lengths[2] < 6 * MIB

    with closing(sqlimage.FileDevice(tmp_path / "disk")) as device:
        for (offset, length), expected in zip(places(tmp_path / "disk"), disk.expected, strict=True):
            assert contents(sqlimage.Window(device, offset, length)) == expected
    restored(image, tmp_path / "large", size=60 * MIB)
    assert [length for _, length in places(tmp_path / "large")][1:] == [12 * MIB, 8 * MIB]


def test_what_lies_in_no_partition_and_has_no_room_is_told(tmp_path: Path) -> None:
    disk = resized_disk.make(tmp_path / "source", "label: gpt\nsize=4MiB\nsize=1MiB\n", ("fat12", "raw"), 24 * MIB)
    with disk.path.open("r+b") as file:
        file.seek(6 * MIB)
        file.write(noise("behind", MIB))
        file.seek(20 * MIB)
        file.write(noise("further behind", MIB))
    image = captured(disk.path, tmp_path / "i")
    note = "1.0 MiB that are not zeros lie behind the last partition, in no volume, and have no room any more"
    assert explained(image, tmp_path / "disk", size=16 * MIB).notes == (note,)
    report = restored(image, tmp_path / "disk", size=16 * MIB)
    assert report.notes == (note,)
    check(disk, tmp_path / "disk", tmp_path)
    assert (tmp_path / "disk").read_bytes()[6 * MIB : 7 * MIB] == noise("behind", MIB)
    report = restored(image, tmp_path / "disk", size=40 * MIB, force=True)
    assert all("no room" not in note for note in report.notes)
    content = (tmp_path / "disk").read_bytes()
    assert content.count(noise("behind", MIB)) == content.count(noise("further behind", MIB)) == 1


@pytest.mark.parametrize("size", [12 * MIB, *(pytest.param(n * MIB, marks=slow) for n in (24, 40))])
def test_a_gpt_without_its_backup_gets_one_on_a_device_that_held_something_else(size: int, tmp_path: Path) -> None:
    disk = resized_disk.make(tmp_path / "source", "label: gpt\nsize=4MiB\nsize=1MiB\n", ("fat12", "raw"), 24 * MIB)
    with disk.path.open("r+b") as file:
        file.seek(24 * MIB - 33 * 512)
        file.write(bytes(33 * 512))
    image = captured(disk.path, tmp_path / "i")
    (tmp_path / "device").write_bytes(b"stale!! " * (size // 8))
    with loop_device(tmp_path / "device") as name:
        restored(image, name, size="maximum", force=True)
        check(disk, name, tmp_path)


@pytest.mark.parametrize("size", ["minimum", *(pytest.param(n * MIB, marks=slow) for n in (30, 60))])
def test_a_disk_of_4096_byte_sectors(size: Size, tmp_path: Path) -> None:
    source, part = tmp_path / "source", tmp_path / "part"
    make_disk(source, "label: gpt\nsize=8MiB\nsize=12MiB\nsize=12MiB\n", 40 * MIB, 4096)
    expected = []
    with source.open("r+b") as file, loop_device(source, "--sector-size", "4096") as name:
        for (offset, length), kind in zip(places(name), ("fat", "ntfs", "raw"), strict=True):
            if kind == "fat":
                fat.make_volume(part, length, 12, sectors_per_cluster=1, bytes_per_sector=4096)
                fat.fill(part, {f"{n}": noise(n, 9000 * n) for n in range(9)}, tmp_path / "tree")
            elif kind == "ntfs":
                ntfs.make_volume(part, length, sector=4096)
                with ntfs.mounted(part) as root:
                    ntfs.write_tree(root, {f"{n}": noise(n, 9000 * n) for n in range(9)})
            else:
                part.write_bytes(noise("raw", length))
            file.seek(offset)
            file.write(part.read_bytes())
            expected.append(contents(part) if kind != "raw" else {})
    with loop_device(source, "--sector-size", "4096") as name:
        image = captured(Path(name), tmp_path / "i")
    report = restored(image, tmp_path / "disk", size=size)
    assert (tmp_path / "disk").stat().st_size == report.medium_bytes
    with loop_device(tmp_path / "disk", "--sector-size", "4096") as name:
        assert b"No errors detected" in run("sfdisk", "--verify", name).stdout
        assert b"No problems found" in run("sgdisk", "-v", name).stdout
        for (offset, length), files in zip(places(name), expected, strict=True):
            with open(name, "rb") as file:
                file.seek(offset)
                part.write_bytes(file.read(length))
            if files:
                assert contents(part) == files
            else:
                assert part.read_bytes() == noise("raw", length)
    assert report.medium_bytes % 4096 == 0


def test_a_master_boot_record_fills_as_much_of_a_disk_as_it_can_tell_of(tmp_path: Path) -> None:
    disk = resized_disk.make(tmp_path / "source", "label: dos\nsize=4MiB\nsize=1MiB\n", ("raw", "blank"), 16 * MIB)
    image = captured(disk.path, tmp_path / "i")
    with pytest.raises(sqlimage.RefusedError, match="a GPT would hold it"):
        restored(image, tmp_path / "large", size=3 << 40)
    with (tmp_path / "device").open("wb") as file:
        file.truncate(3 << 40)
    with loop_device(tmp_path / "device") as name:
        report = restored(image, name, size="maximum")
    assert report.medium_bytes == ((1 << 32) - 1) * 512
    assert any("FAT12 has at most 4084 clusters" in note for note in report.notes)
    (raw, _), (_, length) = places(tmp_path / "device")
    assert raw == MIB and length > 2_199_000_000_000
