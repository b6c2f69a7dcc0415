"""A captured volume comes back: every allocated cluster but the page files, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sqlimage
from tests.conftest import run
from tests.images import kept_bytes, noise, sample_volume


def restored(image: Path, target: Path) -> bytes:
    with sqlimage.open(str(image)) as opened:
        sqlimage.restore(opened.version(), target, force=True)
        assert sqlimage.verify(opened).is_whole
    return target.read_bytes()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_volume(tmp_path_factory.mktemp("sample") / "sample.ntfs")


@pytest.mark.parametrize("preset", ["fast", "balanced", "archive"])
def test_an_ntfs_volume_comes_back_with_every_preset(sample: Path, tmp_path: Path, preset: str) -> None:
    image = tmp_path / "i.sqlimage"
    report = sqlimage.capture(sample, image, preset=preset)
    assert report.volumes[0].captured_as == "files"
    assert report.volumes[0].left_out == ("/pagefile.sys",)
    copy = restored(image, tmp_path / "copy")
    assert copy == kept_bytes(image, sample.read_bytes())
    run("ntfsresize", "--info", "--force", "--no-progress-bar", tmp_path / "copy")


def test_page_files_are_kept_on_request(sample: Path, tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    assert sqlimage.capture(sample, image, keep_page_files=True).volumes[0].left_out == ()
    with sqlimage.open(str(image)) as opened, opened.version().content("/pagefile.sys") as content:
        assert content.size_bytes == 65536
        assert any(content.read(0, 65536))


def test_free_clusters_are_not_in_the_image_though_the_source_has_stale_data_there(
    sample: Path, tmp_path: Path
) -> None:
    source = sample.read_bytes()
    image = tmp_path / "i.sqlimage"
    sqlimage.capture(sample, image)
    copy = restored(image, tmp_path / "copy")
    stale = noise_of_the_deleted_file()
    assert stale in source
    assert stale not in copy


def noise_of_the_deleted_file() -> bytes:
    from tests.make.sample import noise as sample_noise

    return sample_noise("deleted", 4096)


@pytest.mark.parametrize("fat", [12, 16, 32])
def test_a_fat_volume_comes_back(tmp_path: Path, fat: int) -> None:
    volume = tmp_path / "v.fat"
    with volume.open("wb") as file:
        file.truncate({12: 2 << 20, 16: 24 << 20, 32: 40 << 20}[fat])
    run("mkfs.fat", "-F", str(fat), "-n", "TESTVOL", volume)
    (tmp_path / "a.bin").write_bytes(noise("a", 300_001))
    (tmp_path / "A long file name.text").write_bytes(b"short\n" * 100)
    for name in ("a.bin", "A long file name.text"):
        run("mcopy", "-i", volume, tmp_path / name, f"::{name}")
    run("mcopy", "-i", volume, tmp_path / "a.bin", "::gone.bin")
    run("mdel", "-i", volume, "::gone.bin")
    image = tmp_path / "i.sqlimage"
    report = sqlimage.capture(volume, image)
    assert report.volumes[0].file_system == f"fat{fat}"
    copy = restored(image, tmp_path / "copy")
    assert copy == kept_bytes(image, volume.read_bytes())
    run("fsck.fat", "-n", tmp_path / "copy")
    run("mcopy", "-i", tmp_path / "copy", "::a.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == noise("a", 300_001)


def test_what_no_reader_knows_is_taken_raw_and_says_so(tmp_path: Path) -> None:
    source = tmp_path / "unknown.img"
    content = noise("raw", 70_000) + bytes(200_000) + b"the end"
    source.write_bytes(content)
    image = tmp_path / "i.sqlimage"
    report = sqlimage.capture(source, image)
    assert report.volumes[0].captured_as == "raw"
    assert "volume 0 is taken raw: no known file system" in report.warnings
    assert restored(image, tmp_path / "copy") == content
    with sqlimage.open(str(image)) as opened:
        assert opened.version().properties()["capture.raw_reason.0"] == "no known file system"
        assert json.loads(opened.audit()[0].detail)["taken_raw"] == {"0": "no known file system"}
        assert opened.version().volumes()[0].raw_reason == "no known file system"


def test_a_volume_that_contradicts_itself_is_taken_raw_bit_for_bit(sample: Path, tmp_path: Path) -> None:
    content = bytearray(sample.read_bytes())
    content[0x30:0x38] = (1 << 40).to_bytes(8, "little")  # the MFT lies far beyond the volume
    source = tmp_path / "bad.ntfs"
    source.write_bytes(content)
    report = sqlimage.capture(source, tmp_path / "i.sqlimage")
    assert report.volumes[0].captured_as == "raw"
    assert report.volumes[0].raw_reason and "Mft" in report.volumes[0].raw_reason
    assert restored(tmp_path / "i.sqlimage", tmp_path / "copy") == content


def test_a_disk_with_partitions_comes_back_whole_and_each_volume_is_read(sample: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    table = "label: gpt\nstart=2048, size=16384, name=first\nstart=40960, size=65536, type=linux\n"
    run("sfdisk", "-q", disk, input=table.encode())
    with disk.open("r+b") as file:
        file.seek(2048 * 512)
        file.write(sample.read_bytes())
        file.seek(40960 * 512)
        file.write(noise("second", 100_000))
    image = tmp_path / "i.sqlimage"
    report = sqlimage.capture(disk, image)
    assert [volume.captured_as for volume in report.volumes] == ["files", "raw"]
    copy = restored(image, tmp_path / "copy")
    assert copy == kept_bytes(image, disk.read_bytes())
    run("sfdisk", "--verify", "-q", tmp_path / "copy")
    with sqlimage.open(str(image)) as opened:
        first, second = opened.version().volumes()
        assert (first.file_system, first.partition_number, first.partition_name) == ("ntfs", 1, "first")
        assert (first.hidden_sectors, second.hidden_sectors) == (2048, 40960)
        with opened.version().content("/0/Users/joe/Documents/haystack.txt") as content:
            assert b"a needle" in content.read(0, content.size_bytes)


def test_one_partition_of_a_disk_is_captured_and_goes_back_into_one(sample: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    run("sfdisk", "-q", disk, input=b"label: dos\nstart=2048, size=16384, type=7\nstart=20480, size=20480, type=7\n")
    with disk.open("r+b") as file:
        file.seek(2048 * 512)
        file.write(sample.read_bytes())
    image = tmp_path / "i.sqlimage"
    sqlimage.capture(disk, image, partition=1)
    before = disk.read_bytes()
    with sqlimage.open(str(image)) as opened:
        version = opened.version()
        assert version.control.medium_bytes == 8 << 20
        assert (version.volumes()[0].hidden_sectors, version.volumes()[0].partition_type) == (2048, "0x07")
        sqlimage.restore(version, disk, partition=2)
        with pytest.raises(sqlimage.RefusedError, match="not empty"):
            sqlimage.restore(version, disk, partition=2)
    after = disk.read_bytes()
    assert after[: 20480 * 512] == before[: 20480 * 512]
    expected = bytearray(kept_bytes(image, sample.read_bytes()))
    for boot_sector in (0, len(expected) - 512):  # they say how many sectors lie before them
        expected[boot_sector + 28 : boot_sector + 32] = (20480).to_bytes(4, "little")
    assert after[20480 * 512 : 20480 * 512 + (8 << 20)] == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_medium_comes_back_and_the_driver_reads_it_like_a_bytearray(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    blocks = st.sampled_from([bytes(512), bytes(4096), bytes(8192), noise(1, 512), noise(2, 4096), b"z" * 4096])
    content = b"".join(data.draw(st.lists(blocks, max_size=60))) + noise(3, data.draw(st.integers(0, 700)))
    place = tmp_path_factory.mktemp("any")
    image = place / "i.sqlimage"
    sqlimage.capture(sqlimage.MemoryDevice(content), image, preset="fast")
    assert restored(image, place / "copy") == content
    with sqlimage.open(str(image)) as opened:
        driver = opened.driver()
        for _ in range(10):
            start = data.draw(st.integers(0, len(content)))
            length = data.draw(st.integers(0, len(content) - start))
            assert driver.read(start, length) == content[start : start + length]
        at = 0
        for extent in driver.extents(0, len(content)):
            assert extent.offset_bytes == at
            at += extent.length_bytes
            if not extent.is_data:
                assert not any(content[extent.offset_bytes : at])
        assert at == len(content)
        with pytest.raises(sqlimage.DeviceError):
            driver.read(len(content), 1)
        driver.close()
