"""An ext volume at another size: planned on a clone of its control information, and right when it is written."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlimage.device import Buffer
from sqlimage.errors import DeviceError, NotFoundError, RefusedError
from sqlimage.extent import Runs
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.journey import e2fsprogs, ext_resize
from sqlimage.journey.ext_clone import Clone, data_of_files
from sqlimage.journey.ext_resize import check_tools, resized, smallest_bytes
from sqlimage.media.file import FileDevice
from sqlimage.units import GIB, KIB, MIB, TIB
from tests.conftest import CHECKOUT, run
from tests.images import noise
from tests.make.ext import crash, in_memory, make_volume, mounted, needs_mount, recovered, settle
from tests.make.ext_oracle import checked
from tests.make.ext_resized import (
    KINDS,
    brought_to,
    check_plan,
    filled,
    filled_at_its_end,
    make_tree,
    seen,
    write_resized,
)

_SIZE = 48 * MIB


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with in_memory() as name:
        make_tree(name / "tree", 3 * MIB)
        yield name


@pytest.fixture(scope="module")
def ext4(place: Path) -> Path:
    return filled(place / "ext4.img", _SIZE, "ext4 1K", place / "tree")


@pytest.mark.parametrize("kind", [pytest.param("ext2 4K", marks=pytest.mark.slow), "ext3 1K", "ext4 4K"])
def test_a_volume_is_as_small_and_as_large_as_is_wished_with_all_it_holds(place: Path, kind: str) -> None:
    volume = filled(place / "volume.img", _SIZE, kind, place / "tree")
    device = FileDevice(volume)
    least = smallest_bytes(device)
    assert least < _SIZE * 3 // 4
    for size in (least, (least + _SIZE) // 2, 3 * _SIZE):
        assert brought_to(volume, size, place / "target.img") == ()
        assert seen(place / "target.img") == seen(volume)
    device.close()


def test_the_volume_has_whole_blocks_of_what_it_may_take(place: Path, ext4: Path) -> None:
    brought_to(ext4, 40 * MIB + 1023, place / "target.img")
    assert (place / "target.img").stat().st_size == 40 * MIB


def test_at_its_present_size_it_stays_where_it_is(place: Path, ext4: Path) -> None:
    device = FileDevice(ext4)
    with resized(device, _SIZE) as plan:
        assert (plan.moved_from == plan.moved_to).all()
        assert plan.allocated == ExtVolume(device).allocated()
    device.close()


def test_where_a_size_is_too_small_the_smallest_is_told(ext4: Path) -> None:
    device = FileDevice(ext4)
    least = smallest_bytes(device)
    for size in (0, least - 2 * MIB):
        with pytest.raises(
            RefusedError, match=rf"cannot be made .* \({size} bytes\), it needs .* \(\d+ bytes\)"
        ) as told:
            resized(device, size)
        assert abs(int(str(told.value).split("(")[-1].split(" ")[0]) - least) <= MIB
    device.close()


def test_no_data_of_files_are_read_and_the_source_is_not_written(place: Path, ext4: Path) -> None:
    reads: list[tuple[int, int]] = []

    class Watched(FileDevice):
        def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
            reads.append((offset_bytes, len(buffer)))
            super().read_into(offset_bytes, buffer)

    before = ext4.read_bytes()
    device = Watched(ext4)
    volume = ExtVolume(device)
    data = data_of_files(device, volume.facts, volume.scan())
    assert data.total > 6 * MIB  # the journal's are among them
    resized(device, 30 * MIB).close()
    assert not len(Runs.of(reads).intersect(data))
    assert ext4.read_bytes() == before
    device.close()


def test_what_a_destination_held_before_does_not_show(place: Path, ext4: Path) -> None:
    target = place / "target.img"
    target.write_bytes(b"\xa5" * (96 * MIB))
    device = FileDevice(ext4)
    with resized(device, 96 * MIB) as plan:
        write_resized(device, plan, target, fresh=False)
    device.close()
    assert checked(target) == 0
    assert seen(target) == seen(ext4)


@pytest.mark.parametrize("kind", ["ext3 4K", "ext4 1K"])
def test_data_at_the_end_come_down_in_steps_that_take_little_room(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def watched(fd: int, blocks: int) -> None:
        taken.append(os.fstat(fd).st_blocks * 512)
        set_blocks(fd, blocks)

    set_blocks = e2fsprogs.set_blocks
    monkeypatch.setattr(ext_resize, "_STEP_BYTES", MIB)
    monkeypatch.setattr(e2fsprogs, "set_blocks", watched)
    volume = filled_at_its_end(place / "high.img", 64 * MIB, kind)
    brought_to(volume, 24 * MIB, place / "target.img")
    assert seen(place / "target.img") == seen(volume)
    assert 3 <= len(taken) <= 40
    assert max(taken) - taken[0] < 2 * MIB


@pytest.mark.parametrize("kind", ["ext2 4K", "ext4 4K"])
def test_a_volume_that_grows_two_hundredfold_takes_little_room(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext_resize, "_STEP_BYTES", 8 * MIB)
    volume = filled(place / "volume.img", 16 * MIB, kind, make_tree(place / f"small {kind}", MIB))
    device = FileDevice(volume)
    with resized(device, 3 * GIB) as plan:
        check_plan(plan, 16 * MIB, 3 * GIB)
        assert plan.facts.size_bytes == 3 * GIB
        write_resized(device, plan, place / "target.img")
    device.close()
    assert (place / "target.img").stat().st_blocks * 512 < 16 * MIB
    assert checked(place / "target.img") == 0
    assert seen(place / "target.img") == seen(volume)
    (place / "target.img").unlink()


def test_inodes_that_must_keep_their_numbers_only_grow(place: Path) -> None:
    volume = make_volume(place / "v.img", _SIZE, "-t", "ext4", "-O", "stable_inodes", "-d", place / "tree")
    device = FileDevice(volume)
    assert smallest_bytes(device) == _SIZE
    with pytest.raises(RefusedError, match="stable_inodes"):
        resized(device, 40 * MIB)
    device.close()
    brought_to(volume, 2 * _SIZE, place / "target.img")
    assert seen(place / "target.img") == seen(volume)


def test_a_journal_on_another_device_is_left_alone(place: Path) -> None:
    volume = make_volume(place / "v.img", 16 * MIB, "-t", "ext4")
    run("debugfs", "-w", "-R", "ssv journal_inum 0", volume)
    device = FileDevice(volume)
    with pytest.raises(RefusedError, match="journal is on another device; restore it at the size it was captured at"):
        resized(device, 12 * MIB)
    device.close()


def test_what_e2fsck_mends_without_asking_is_mended_and_told(place: Path) -> None:
    volume = filled(place / "v.img", _SIZE, "ext4 4K", place / "tree")
    run("debugfs", "-w", "-R", "sif /known links_count 5", volume)
    run("debugfs", "-w", "-R", "ssv state 2", volume)
    (note,) = brought_to(volume, 40 * MIB, place / "target.img")
    assert "e2fsck mended the volume: Inode" in note
    assert "ref count is 5" in note
    assert seen(place / "target.img") == seen(volume)


def test_what_takes_a_decision_is_refused_in_its_words(place: Path) -> None:
    volume = filled(place / "v.img", _SIZE, "ext2 4K", place / "tree")
    run("debugfs", "-w", "-R", "sif /known block[0] 1", volume)
    device = FileDevice(volume)
    with pytest.raises(RefusedError, match=r"the volume is damaged \(e2fsck: .+\); restore it at the size it was capt"):
        resized(device, 40 * MIB)
    run("debugfs", "-w", "-R", "feature FEATURE_C20", volume)
    with pytest.raises(RefusedError, match=r"cannot be checked \(e2fsck: the volume has unsupported feature\(s\)"):
        smallest_bytes(device)
    device.close()


@needs_mount
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ext4", ""),
        ("ext3", "data=journal"),
        pytest.param("ext4", "data=journal", marks=pytest.mark.slow),
        pytest.param("ext2", "", marks=pytest.mark.slow),
    ],
)
def test_a_volume_that_was_in_use_is_as_its_journal_leaves_it(place: Path, kind: str, options: str) -> None:
    volume = make_volume(place / "v.img", _SIZE, "-t", kind, "-b", "1024")
    with mounted(volume, options) as root:
        for n in range(40):
            (root / f"{n}").write_bytes(noise(n, 30_000 + n))
        (root / "gone").write_bytes(noise("gone", 2 * MIB))
        settle(root)
        with (root / "gone").open("rb"):
            (root / "gone").unlink()
            for n in range(0, 39, 3):
                (root / f"{n}").write_bytes(noise((n, 1), 20_000))
                os.truncate(root / f"{n + 1}", 10_000 + n)
            (root / "new").mkdir()
            (root / "new" / "file").write_bytes(b"new")
            fd = os.open(root / "new" / "file", os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            crash(root)
    notes = brought_to(volume, 30 * MIB, place / "target.img")
    assert any("e2fsck mended the volume: " in note for note in notes)
    assert seen(place / "target.img") == seen(recovered(volume, place / "recovered.img"))


@needs_mount
def test_times_and_attributes_stay_though_inodes_get_other_numbers(place: Path) -> None:
    volume = make_volume(place / "v.img", _SIZE, *KINDS["no flex_bg"])
    with mounted(volume) as root:
        for n in range(12):
            (root / f"d{n}").mkdir()
            for m in range(30):
                (root / f"d{n}" / f"{m}").write_bytes(noise((n, m), 1000))
            os.setxattr(root / f"d{n}" / "1", "user.large", b"x" * 700)
            os.chown(root / f"d{n}" / "2", 1000 + n, 2000)
            os.utime(root / f"d{n}" / "3", ns=(1_000_000_000_123_456_789, 987_654_321_987_654_321))
            os.utime(root / f"d{n}", ns=(1_500_000_000_000_000_001, 1_400_000_000_000_000_002))
    with mounted(volume, "ro") as root:
        before, numbers = _told(root)
    brought_to(volume, 16 * MIB, place / "target.img")
    with mounted(place / "target.img", "ro") as root:
        after, other_numbers = _told(root)
    assert after == before
    assert other_numbers != numbers


def _told(root: Path) -> tuple[dict[str, tuple[object, ...]], dict[str, int]]:
    told: dict[str, tuple[object, ...]] = {}
    numbers = {}
    for path in [root, *root.rglob("*")]:
        info = path.lstat()
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        owner = (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_size)
        told[str(path.relative_to(root))] = (*owner, info.st_mtime_ns, info.st_ctime_ns, info.st_atime_ns, attributes)
        numbers[str(path.relative_to(root))] = info.st_ino
    return told, numbers


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tools()
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name == "resize2fs" else name)
    with pytest.raises(NotFoundError, match=r"resize2fs is missing.*e2fsprogs"):
        check_tools()


def test_too_little_room_for_temporary_files_is_told(tmp_path: Path) -> None:
    with (
        Clone(MIB, str(tmp_path)) as clone,
        pytest.raises(DeviceError, match=r"has .* free, 1024\.0 PiB are needed.*TMPDIR"),
    ):
        clone.need(1 << 60)
    with pytest.raises(DeviceError, match=f"a temporary file in {tmp_path}/none cannot be made"):
        Clone(MIB, f"{tmp_path}/none")
    with pytest.raises(DeviceError, match="cannot be made 9007199254740992 bytes long"):
        Clone(8192 * TIB, str(tmp_path))


def test_an_interruption_ends_the_tool_and_leaves_nothing(tmp_path: Path, ext4: Path) -> None:
    tools, temporary = tmp_path / "tools", tmp_path / "temporary"
    tools.mkdir()
    temporary.mkdir()
    (tools / "e2fsck").write_text(f"#!/bin/sh\ntrap '' INT\necho $$ > {tmp_path}/pid\nexec sleep 100\n")
    (tools / "e2fsck").chmod(0o755)
    code = (
        "from sqlimage.journey.ext_resize import resized; from sqlimage.media.file import FileDevice; import sys\n"
        "try: resized(FileDevice(sys.argv[1]), 1 << 25)\nexcept KeyboardInterrupt: print('interrupted')"
    )
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, ext4], env=environment, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().endswith("\n"):
        assert time.monotonic() < end
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[0] == "interrupted\n"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # its number may be another's already
        assert b"sleep" not in Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline").read_bytes()
    assert list(temporary.iterdir()) == []


def test_what_is_reserved_for_a_file_is_reserved_afterwards(place: Path, ext4: Path) -> None:
    small = make_tree(place / "with hole", 100 * KIB, 7)
    volume = filled(place / "v.img", 32 * MIB, "ext4 4K", small)
    run("debugfs", "-w", "-R", "fallocate /known 1000 1500", volume)
    run("e2fsck", "-fp", volume)
    device = FileDevice(volume)
    was = ExtVolume(device).scan().contents
    assert was.run_unwritten is not None
    device.close()
    brought_to(volume, 24 * MIB, place / "target.img")
    assert seen(place / "target.img") == seen(volume)
    device = FileDevice(place / "target.img")
    now = ExtVolume(device).scan().contents
    assert now.run_unwritten is not None
    assert now.run_length[now.run_unwritten].sum() == was.run_length[was.run_unwritten].sum() >= 500 * 4096
    device.close()
