"""What boots, boots after it was captured with every file in one piece and restored to another size, elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

import sqlimage
from sqlimage.boot import qemu_command
from tests.boot.qemu import MACHINE, says
from tests.boot.test_guest import check_fat
from tests.conftest import run
from tests.make import bootable as media
from tests.make.resized import captured, explained, restored
from tests.make.resized_disk import places
from tests.media.disks import make_disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
MIB = 1 << 20
TYPES = {12: "1", 16: "e", 32: "c"}


def boots(path: Path, geometry: sqlimage.Geometry | None = None) -> bool:
    """Whether a disk starts a system that changes its files and says so."""
    command = qemu_command(str(path), MACHINE, geometry=geometry)
    said = says(path, media.BOOT_DONE, b"Boot error", b"Boot failed", b"No DEFAULT", command=command)
    return media.BOOT_DONE in said


def cut(path: Path, number: int, target: Path) -> Path:
    offset, length = places(path)[number]
    with path.open("rb") as file:
        file.seek(offset)
        target.write_bytes(file.read(length))
    return target


def disk_with_room(path: Path, start: int, sectors: int, kind: str) -> Path:
    """A disk with boot code and an active partition that is empty."""
    make_disk(
        path, f"label: dos\nstart={start}, size={sectors}, type={kind}, bootable\n", (start + sectors + 2048) * 512
    )
    with path.open("r+b") as file:
        file.write(media.MBR_CODE.read_bytes()[:440])
    return path


@pytest.mark.parametrize("size", ["minimum", "smaller", "larger"])
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_a_fat_volume_boots_from_the_partition_it_was_made_to_fit(bits: int, size: str, tmp_path: Path) -> None:
    image = captured(media.fat_volume(bits), tmp_path / "i", defragment=True)
    least = explained(image, tmp_path / "no", size="minimum").size_bytes
    # the guest writes a file: a volume without a free cluster would be too small for that
    wanted = {"minimum": least + 4 * MIB // 64, "smaller": (least + media.FAT_SIZES[bits]) // 2}
    sectors = wanted.get(size, media.FAT_SIZES[bits] * 2) // 512
    start = {"minimum": 63, "smaller": 2048, "larger": 10240}[size]
    shape = sqlimage.Geometry.for_size((start + sectors + 2048) * 512, 63, 16)
    disk = disk_with_room(tmp_path / "disk", start, sectors, TYPES[bits])
    report = restored(image, disk, partition=1, size="maximum", geometry=shape)
    assert not any("SYSLINUX" in note for note in report.notes)
    assert boots(disk, shape)
    check_fat(cut(disk, 0, tmp_path / "volume"))


@pytest.mark.parametrize("size", ["minimum", "larger"])
@pytest.mark.parametrize("defragment", [False, True])
def test_a_whole_disk_boots_when_it_is_smaller_or_larger(size: str, defragment: bool, tmp_path: Path) -> None:
    image, disk = captured(media.whole_disk(), tmp_path / "i", defragment=defragment), tmp_path / "disk"
    large = media.DISK_SECTORS * 512 + 48 * MIB
    least = explained(image, disk, size="minimum").size_bytes
    report = restored(image, disk, size=least + 2 * MIB if size == "minimum" else large)
    assert not any("SYSLINUX" in note for note in report.notes)
    before = [length for _, length in places(media.whole_disk())]
    after = [length for _, length in places(disk)]
    assert sum(after) < sum(before) if size == "minimum" else sum(after) > sum(before)
    assert boots(disk)
    ext = cut(disk, 1, tmp_path / "ext")
    run("e2fsck", "-fn", ext)
    written = media.WRITTEN_TEXT + media.kernel_release().encode() + b"\n"
    assert run("debugfs", "-R", f"cat {media.EXT_WRITTEN}", ext).stdout == written
    assert run("debugfs", "-R", f"cat {media.RENAMED_TO}", ext).stdout == media.CONTENT[media.RENAMED_FROM]
    run("fsck.fat", "-n", cut(disk, 0, tmp_path / "fat"))
