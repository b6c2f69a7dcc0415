"""A volume restored to another size: everything it held is in it, and everybody who knows its file system agrees."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import sqlimage
from sqlimage.media.foreign.source import open_source
from sqlimage.units import MIB
from tests.make import ntfs, resized
from tests.make.ext import needs_mount
from tests.make.ntfs_scattered import fill_up
from tests.make.resized import captured, check, contents, explained, free_of, noise, restored, use

slow = pytest.mark.slow
EVERYDAY = ["ntfs", "fat12", "ext4"]
EVERY_KIND = [*EVERYDAY, *(pytest.param(kind, marks=slow) for kind in ("fat16", "fat32", "ext2", "ext3"))]
AND_FAT32 = [*EVERYDAY, "fat32", *(pytest.param(kind, marks=slow) for kind in ("fat16", "ext2", "ext3"))]


@dataclass(frozen=True)
class Made:
    """A volume and its image; ``expected`` are the digests of its files."""

    kind: str
    volume: Path
    image: Path
    expected: dict[str, str]
    minimum: int

    @property
    def size(self) -> int:
        return self.volume.stat().st_size

    def as_in(self, path: Path) -> None:
        check(self.kind, path, self.expected)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("volumes")


@cache
def _made(kind: str, place: Path) -> Made:
    volume = resized.make(kind, place / kind)
    image = captured(volume, place / f"{kind}.sqlimage")
    minimum = explained(image, place / "nothing", size="minimum").size_bytes
    return Made(kind, volume, image, contents(volume), minimum)


@pytest.fixture(params=EVERY_KIND)
def made(request: pytest.FixtureRequest, place: Path) -> Made:
    return _made(request.param, place)


@pytest.fixture
def of_ntfs(place: Path) -> Made:
    return _made("ntfs", place)


@pytest.mark.parametrize("made", AND_FAT32, indirect=True)
def test_at_its_minimum_a_volume_is_smaller_in_order_and_holds_every_file(made: Made, tmp_path: Path) -> None:
    report = restored(made.image, tmp_path / "v", size="minimum")
    assert report.medium_bytes == made.minimum == (tmp_path / "v").stat().st_size < made.size
    assert report.captured_bytes == made.size
    assert report.files_compared > 20
    made.as_in(tmp_path / "v")


def test_between_its_minimum_and_its_size_a_volume_can_be_used_as_before(made: Made, tmp_path: Path) -> None:
    size = (made.minimum + made.size) // 2 // 512 * 512
    report = restored(made.image, tmp_path / "v", size=size)
    assert report.medium_bytes == size == (tmp_path / "v").stat().st_size
    made.as_in(tmp_path / "v")
    use(made.kind, tmp_path / "v", made.expected)


def test_on_more_room_a_volume_grows_and_the_new_room_can_be_used(made: Made, tmp_path: Path) -> None:
    size = made.size * 5 // 4 + 512
    before = free_of(made.volume).total
    report = restored(made.image, tmp_path / "v", size=size)
    assert report.medium_bytes == (tmp_path / "v").stat().st_size == size
    made.as_in(tmp_path / "v")
    if made.kind not in ("fat12", "fat16"):
        assert free_of(tmp_path / "v").total > before + made.size // 5
    use(made.kind, tmp_path / "v", made.expected)


@pytest.mark.parametrize(
    "made", ["ntfs", "fat12", *(pytest.param(kind, marks=slow) for kind in ("fat32", "ext4"))], indirect=True
)
def test_at_the_size_it_was_captured_at_a_volume_is_what_a_plain_restore_gives(made: Made, tmp_path: Path) -> None:
    restored(made.image, tmp_path / "plain")
    restored(made.image, tmp_path / "v", size=made.size)
    made.as_in(tmp_path / "v")
    if made.kind.startswith("ext"):
        return  # resize2fs writes times and counts
    assert (tmp_path / "v").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize("less", [1, pytest.param(512, marks=slow), "half", pytest.param("all", marks=slow)])
def test_what_is_less_than_the_minimum_is_refused_with_both_numbers_and_nothing_is_written(
    made: Made, less: int | str, tmp_path: Path
) -> None:
    size = {"half": made.minimum // 2, "all": 0}.get(str(less), made.minimum - less if isinstance(less, int) else 0)
    with pytest.raises(sqlimage.RefusedError) as refused:
        restored(made.image, tmp_path / "v", size=size)
    assert f"({size // 512 * 512} bytes) do not suffice" in str(refused.value)
    assert f"needs {sqlimage.format_size(made.minimum)} ({made.minimum} bytes)" in str(refused.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "made", ["ntfs", *(pytest.param(kind, marks=slow) for kind in ("fat12", "ext4"))], indirect=True
)
def test_the_smallest_volume_grows_back_to_what_it_was_and_further(made: Made, tmp_path: Path) -> None:
    restored(made.image, tmp_path / "small", size="minimum")
    captured(tmp_path / "small", tmp_path / "small.sqlimage")
    for size in (made.size, made.size * 2):
        restored(tmp_path / "small.sqlimage", tmp_path / "v", size=size, force=True)
        assert (tmp_path / "v").stat().st_size == size
        made.as_in(tmp_path / "v")
    captured(tmp_path / "v", tmp_path / "large.sqlimage")
    assert explained(tmp_path / "large.sqlimage", tmp_path / "no", size="minimum").size_bytes < made.minimum * 1.1


@needs_mount
def test_names_modes_links_times_and_attributes_are_as_the_kernel_saw_them(place: Path, tmp_path: Path) -> None:
    made = _made("ext4", place)
    before = resized.as_the_kernel_sees(made.volume)
    assert len(before) > 100
    for size in ("minimum", made.size * 2):
        restored(made.image, tmp_path / "v", size=size, force=True)
        assert resized.as_the_kernel_sees(tmp_path / "v") == before


def test_a_new_file_has_no_size_to_fill(of_ntfs: Made, tmp_path: Path) -> None:
    with pytest.raises(sqlimage.UsageError, match="a new file has no size of its own to fill; say how large"):
        restored(of_ntfs.image, tmp_path / "v", size="maximum")
    assert os.listdir(tmp_path) == []


def test_sizes_are_cut_to_whole_sectors(of_ntfs: Made, tmp_path: Path) -> None:
    report = restored(of_ntfs.image, tmp_path / "v", size=of_ntfs.size + 1000)
    assert report.medium_bytes == of_ntfs.size + 512
    of_ntfs.as_in(tmp_path / "v")


@pytest.mark.parametrize(
    "name",
    ["qcow2", pytest.param("vhdx", marks=slow), pytest.param("vmdk", marks=slow), pytest.param("vpc", marks=slow)],
)
def test_the_file_can_be_a_container(of_ntfs: Made, name: str, tmp_path: Path) -> None:
    for size in (of_ntfs.minimum, of_ntfs.size * 2):
        report = restored(of_ntfs.image, tmp_path / "v", destination_format=name, size=size, force=True)
        assert report.medium_bytes == size
        assert report.files_compared > 20
        opened = open_source(tmp_path / "v")
        assert opened.size_bytes == size + report.padding_bytes
        (tmp_path / "raw").write_bytes(opened.read(0, size))
        opened.close()
        of_ntfs.as_in(tmp_path / "raw")


def test_an_existing_file_is_replaced_only_by_force_and_only_by_what_was_proved(of_ntfs: Made, tmp_path: Path) -> None:
    target = tmp_path / "v"
    target.write_bytes(b"precious")
    with pytest.raises(sqlimage.RefusedError, match="exists and is not empty; use --force"):
        restored(of_ntfs.image, target, size="minimum")
    with pytest.raises(sqlimage.RefusedError, match="do not suffice"):
        restored(of_ntfs.image, target, size=MIB, force=True)
    assert target.read_bytes() == b"precious"
    restored(of_ntfs.image, target, size="minimum", force=True)
    of_ntfs.as_in(target)
    assert os.listdir(tmp_path) == ["v"]


def test_a_volume_that_is_nothing_but_full_can_only_grow(tmp_path: Path) -> None:
    volume = ntfs.make_volume(tmp_path / "full", 4 * MIB, cluster_bytes=512)
    with ntfs.mounted(volume) as root:
        fill_up(root, random.Random(1), "all of it")
    expected = contents(volume)
    image = captured(volume, tmp_path / "i")
    minimum = explained(image, tmp_path / "v", size="minimum").size_bytes
    assert minimum > 4 * MIB - 200_000
    restored(image, tmp_path / "v", size=8 * MIB)
    check("ntfs", tmp_path / "v", expected)
    restored(image, tmp_path / "least", size=minimum)
    check("ntfs", tmp_path / "least", expected)


def test_page_files_are_left_out_and_come_back_as_zeros_where_the_volume_is_smaller(tmp_path: Path) -> None:
    volume = ntfs.make_volume(tmp_path / "windows", 8 * MIB, cluster_bytes=4096)
    with ntfs.mounted(volume) as root:
        (root / "pagefile.sys").write_bytes(noise("pages", MIB))
        (root / "document").write_bytes(noise("document", 100_000))
    expected = contents(volume)
    image = captured(volume, tmp_path / "i")
    restored(image, tmp_path / "v", size="minimum")
    found = contents(tmp_path / "v")
    assert found["/document"] == expected["/document"]
    with ntfs.mounted(tmp_path / "v") as root:
        assert (root / "pagefile.sys").read_bytes() == bytes(MIB)


@pytest.mark.parametrize(
    "made", ["fat12", *(pytest.param(kind, marks=slow) for kind in ("ntfs", "fat32"))], indirect=True
)
def test_a_defragmented_capture_is_resized_as_any_other(made: Made, tmp_path: Path) -> None:
    image = captured(made.volume, tmp_path / "i", defragment=True)
    for size in ("minimum", made.size * 5 // 4):
        restored(image, tmp_path / "v", size=size, force=True)
        made.as_in(tmp_path / "v")


def test_what_a_tool_of_the_file_system_calls_its_minimum_is_no_smaller(of_ntfs: Made, tmp_path: Path) -> None:
    shutil.copy(of_ntfs.volume, tmp_path / "v")
    said = subprocess.run(["ntfsresize", "--info", "--force", "--no-progress-bar", tmp_path / "v"], capture_output=True)
    found = re.search(rb"You might resize at (\d+) bytes", said.stdout)
    assert found is not None
    assert of_ntfs.minimum <= int(found[1]) * 1.02
