"""A Linux boots from what is served over NBD, changes files, and the changes are in the medium afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sqlimage.boot import Machine, boot, bootable
from sqlimage.device import BlockDevice
from sqlimage.media.compose import ComposedDisk
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.partition import partition_window
from tests.boot.qemu import MACHINE, says
from tests.boot.test_command import Facts
from tests.conftest import run
from tests.make import bootable as media

Booting = Callable[[BlockDevice, Machine], bytes]
pytestmark = pytest.mark.timeout(100)


@pytest.fixture
def booting(capfd: pytest.CaptureFixture[str]) -> Booting:
    """Boots a device; what the guest said. QEMU must end by itself, without an error."""

    def boots(device: BlockDevice, machine: Machine) -> bytes:
        problems: list[str] = []
        code = boot(device, machine, on_problem=problems.append)
        said = "".join(capfd.readouterr()).encode()
        assert (code, problems) == (0, []), said[-2000:]
        return said

    return boots


def check_fat(volume: Path) -> None:
    """The guest's changes, read by mtools, on a volume that fsck.fat finds in order."""
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    run("fsck.fat", "-n", volume)
    listed = run("mdir", "-b", "-/", "-i", volume, env=env).stdout.decode().split("\n")
    for there in (media.FAT_WRITTEN, media.RENAMED_TO, media.KEPT):
        assert f"::{there}" in listed
    for gone in (media.DELETED, media.RENAMED_FROM):
        assert f"::{gone}" not in listed
    written = media.WRITTEN_TEXT + media.kernel_release().encode() + b"\n"
    for name, content in (
        (media.FAT_WRITTEN, written),
        (media.RENAMED_TO, media.CONTENT[media.RENAMED_FROM]),
        (media.KEPT, media.CONTENT[media.KEPT]),
    ):
        assert run("mcopy", "-i", volume, f"::{name}", "-", env=env).stdout == content


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_a_composed_fat_volume_boots_and_keeps_what_the_guest_wrote(
    bits: int, booting: Booting, tmp_path: Path
) -> None:
    path = tmp_path / "volume.raw"
    shutil.copyfile(media.fat_volume(bits), path)
    volume = WritableFileDevice(path)
    medium = bootable(volume, [Facts(0, f"fat{bits}", 0)])
    assert isinstance(medium.device, ComposedDisk)
    assert media.BOOT_DONE in booting(medium.device, MACHINE)
    volume.close()
    check_fat(path)
    assert path.read_bytes()[28:32] == bytes(4), "the image keeps its own number of hidden sectors"


@pytest.mark.slow
def test_a_volume_of_an_old_disk_boots_from_ide_where_it_used_to_start(booting: Booting, tmp_path: Path) -> None:
    volume = MemoryDevice(media.fat_volume(16, 63).read_bytes())
    medium = bootable(volume, [Facts(0, "fat16", 63)])
    assert medium.note.endswith("from sector 63 on")
    assert media.BOOT_DONE + b" /dev/sda" in booting(medium.device, replace(MACHINE, interface="ide"))
    path = tmp_path / "volume.raw"
    path.write_bytes(volume.content)
    check_fat(path)


def test_a_whole_disk_boots_as_it_is_and_its_second_partition_is_changed(booting: Booting, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    shutil.copyfile(media.whole_disk(), path)
    disk = WritableFileDevice(path)
    medium = bootable(disk, [Facts(1, "fat16", 2048), Facts(2, "ext4", None)])
    assert medium.device is disk
    assert media.BOOT_DONE in booting(medium.device, MACHINE)
    ext = tmp_path / "ext.raw"
    window = partition_window(disk, 2)
    ext.write_bytes(window.read(0, window.size_bytes))
    disk.close()
    run("e2fsck", "-fn", ext)
    written = media.WRITTEN_TEXT + media.kernel_release().encode() + b"\n"
    assert run("debugfs", "-R", f"cat {media.EXT_WRITTEN}", ext).stdout == written
    assert run("debugfs", "-R", f"cat {media.RENAMED_TO}", ext).stdout == media.CONTENT[media.RENAMED_FROM]
    for gone in (media.DELETED, media.RENAMED_FROM):
        assert b"File not found" in run("debugfs", "-R", f"stat {gone}", ext).stderr


def test_a_read_only_medium_boots_and_stays_as_it_is(booting: Booting) -> None:
    original = media.whole_disk()
    before = original.read_bytes()
    disk = FileDevice(original)
    assert media.BOOT_DONE in booting(disk, MACHINE)
    disk.close()
    assert original.read_bytes() == before


def test_the_media_boot_without_anything_of_ours() -> None:
    assert media.BOOT_DONE in says(media.whole_disk(), media.BOOT_DONE)
