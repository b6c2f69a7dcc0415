"""Volumes that are not at rest are captured as they are; what would be changed is told without changing anything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import sqlimage
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Relocatable, Wish
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.image.edits import content_of
from tests.images import noise, run_tool, tool
from tests.make.defragmented import Fat, check_at_rest, make_disk, make_ext4, restored
from tests.make.ntfs import VolumeBytes, clusters, make_everything, make_volume, mounted, write_tree
from tests.make.ntfs_relocated import restart_page


@dataclass
class Ntfs:
    """A volume to be changed by hand."""

    made: VolumeBytes

    @property
    def log(self) -> int:
        return int(clusters(self.made, "/$LogFile")[0] * self.made.cluster_bytes)


def be_dirty(volume: Ntfs) -> None:
    volume.made.patch_value(3, 0x70, 0x0A, b"\x01")


def be_of_an_old_version(volume: Ntfs) -> None:
    volume.made.patch_value(3, 0x70, 0x08, b"\x01\x02")


def have_changes_in_the_log(volume: Ntfs) -> None:
    volume.made.content[volume.log : volume.log + 8192] = restart_page(client=0, flags=0, lsn=9) * 2


def be_shut_down_fast(volume: Ntfs) -> None:
    volume.made.content[volume.log : volume.log + 8192] = restart_page(client=0, flags=2, lsn=9, version=2) * 2


def have_a_damaged_log(volume: Ntfs) -> None:
    volume.made.content[volume.log : volume.log + 4] = b"RSTR"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_everything(tmp_path_factory.mktemp("refused") / "v.img")


def check_as_it_is(content: bytes, said: str, place: Path) -> sqlimage.CaptureReport:
    """Captured with the wish and without, it is the same image; with it, there is a note why."""
    (place / "v.img").write_bytes(content)
    plain = sqlimage.capture(place / "v.img", place / "plain.sqlimage")
    report = sqlimage.capture(place / "v.img", place / "wished.sqlimage", defragment=True)
    (note,) = set(report.warnings) - set(plain.warnings)
    assert note.startswith("volume 0: is not defragmented: ") and said in note, note
    assert (report.volumes[0].moved_bytes, report.volumes[0].fixups) == (None, 0)
    assert report.volumes[0].captured_as == plain.volumes[0].captured_as
    assert content_of(place / "wished.sqlimage") == content_of(place / "plain.sqlimage")
    assert report.stored_bytes == plain.stored_bytes
    with sqlimage.open(str(place / "wished.sqlimage")) as opened:
        assert "defragmented" not in json.loads(opened.audit()[0].detail)
    check_at_rest(place / "wished.sqlimage")
    explained = sqlimage.explain_capture(place / "v.img")
    assert explained.fixups == () and explained.volumes[0].moved_bytes == 0
    assert [told for told in explained.notes if said in told] != []
    return report


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (be_dirty, "the volume is marked dirty"),
        (be_of_an_old_version, "version 1.2 cannot be laid out anew"),
        (have_changes_in_the_log, "$LogFile has changes that are not on the volume yet"),
        (be_shut_down_fast, "Windows holds parts of the volume in its memory or in its hibernation file"),
        (have_a_damaged_log, "$LogFile has no valid restart page"),
    ],
)
def test_an_ntfs_volume_that_is_not_at_rest_is_captured_as_it_is_and_noted(
    pristine: bytes, change: Callable[[Ntfs], None], said: str, tmp_path: Path
) -> None:
    made = VolumeBytes(pristine)
    change(Ntfs(made))
    check_as_it_is(bytes(made.content), said, tmp_path)


def test_a_volume_on_which_windows_sleeps_is_captured_as_it_is_and_noted(tmp_path: Path) -> None:
    source = make_volume(tmp_path / "made.img", 4 * MIB)
    with mounted(source) as root:
        write_tree(root, {"hiberfil.sys": b"hibr" + noise("memory", 50_000), "file": b"content" * 999})
    report = check_as_it_is(source.read_bytes(), "a system sleeps on the volume", tmp_path)
    assert "volume 0 is hibernated: its system has not been shut down" in report.warnings
    assert report.volumes[0].left_out == ("/hiberfil.sys",)


def test_a_fat_volume_that_is_in_use_or_contradicts_itself_is_captured_as_it_is_and_noted(tmp_path: Path) -> None:
    content = bytearray(Fat(12, 1440 * KIB, 1).make(tmp_path / "made.img").read_bytes())
    content[37] |= 1
    check_as_it_is(bytes(content), "marked as in use", tmp_path)
    (tmp_path / "plain.sqlimage").unlink()
    (tmp_path / "wished.sqlimage").unlink()
    content[37] &= ~1
    second = int.from_bytes(content[14:16], "little") * 512 + int.from_bytes(content[22:24], "little") * 512
    content[second + 600] ^= 0x10
    check_as_it_is(bytes(content), "FAT 1 and FAT 2 differ", tmp_path)


def test_the_command_line_says_why_and_ends_well(pristine: bytes, tmp_path: Path) -> None:
    made = VolumeBytes(pristine)
    be_dirty(Ntfs(made))
    (tmp_path / "v.img").write_bytes(made.content)
    done = run_tool("capture", tmp_path / "v.img", tmp_path / "i.sqlimage", "--defragment")
    assert done.returncode == 0
    assert "note: volume 0: is not defragmented: NTFS: the volume is marked dirty" in done.stderr
    assert "defragmented: " not in done.stdout


def moved_only(volume: Relocatable, content: bytes, wish: Wish) -> bytes:
    """The volume with everything moved and no fix-up applied."""
    plan = volume.relocate(volume.scan(), wish)
    moved = bytearray(plan.facts.size_bytes)
    moves = zip(plan.moved_from.tolist(), plan.moved_to.tolist(), plan.moved_length.tolist(), strict=True)
    for old, new, length in moves:
        moved[new : new + length] = content[old : old + length]
    return bytes(moved)


@pytest.fixture(scope="module")
def disk(pristine: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, bytes]]:
    """NTFS, FAT and ext4 on a disk; and the disk as it would be with everything moved, by offset of the volumes."""
    place = tmp_path_factory.mktemp("explained")
    fat = Fat(12, 1440 * KIB, 1).make(place / "fat.img").read_bytes()
    ext4 = make_ext4(place / "ext4.img", 4 * MIB, {"file": b"1"}).read_bytes()
    table = "label: gpt\nstart=2048, size=8192\nstart=12288, size=2880\nstart=16384, size=8192\n"
    source = make_disk(place / "disk.img", table, {2048: pristine, 12288: fat, 16384: ext4}, 14 * MIB)
    wish = Wish(defragment=True)
    moved = {
        2048 * 512: moved_only(NtfsVolume(MemoryDevice(pristine)), pristine, wish),
        12288 * 512: moved_only(FatVolume(MemoryDevice(fat)), fat, wish),
    }
    return source, moved


def changes(explained: sqlimage.Explanation, moved: dict[int, bytes]) -> Iterator[tuple[int, bytes, bytes]]:
    """Of each fix-up its place on the disk, its original and what lies there when everything has moved."""
    for fixup in explained.fixups:
        begin = max(at for at in moved if at <= fixup.offset_bytes)
        at = fixup.offset_bytes - begin
        yield fixup.offset_bytes, fixup.original, moved[begin][at : at + len(fixup.original)]


def test_explained_every_original_is_what_lies_there_once_all_is_moved_and_every_replacement_what_a_capture_makes_of_it(
    disk: tuple[Path, dict[int, bytes]], tmp_path: Path
) -> None:
    source, moved = disk
    explained = sqlimage.explain_capture(source)
    assert len(explained.fixups) > 15
    assert all(original == found for _, original, found in changes(explained, moved))
    report = sqlimage.capture(source, tmp_path / "i.sqlimage", defragment=True)
    copy = restored(tmp_path / "i.sqlimage", tmp_path / "copy.img").read_bytes()
    for at, original, replacement, reason in explained.fixups:
        assert copy[at : at + len(replacement)] == replacement != original and reason
    told = [(v.number, v.file_system, v.moved_bytes, v.fixups) for v in explained.volumes]
    made = [(v.number, v.file_system, v.moved_bytes or 0, v.fixups) for v in report.volumes]
    assert told == made
    assert [(v.offset_before, v.length_before) for v in explained.volumes] == [
        (v.offset_bytes, v.length_bytes) for v in explained.volumes
    ]
    assert explained.notes == ("volume 2 is not defragmented: ext4 cannot be, NTFS and FAT can",)
    assert explained.size_bytes == explained.size_before == source.stat().st_size


def test_the_command_line_explains_as_a_table_or_as_json_and_makes_no_file(
    disk: tuple[Path, dict[int, bytes]], tmp_path: Path
) -> None:
    source, _ = disk
    explained, before = sqlimage.explain_capture(source), source.read_bytes()
    image = tmp_path / "i.sqlimage"
    done = run_tool("capture", source, image, "--defragment", "--explain")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "note: volume 2 is not defragmented: ext4 cannot be" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("volume 0: ntfs, 4.0 MiB at byte 1048576: ") and lines[0].endswith(" fix-ups")
    assert all(
        any(line.startswith(str(f.offset_bytes)) and f.reason in line for line in lines) for f in explained.fixups
    )
    told = json.loads(tool("capture", source, image, "--defragment", "--explain", "--json"))
    assert [
        (row["offset_bytes"], bytes.fromhex(row["original"]), bytes.fromhex(row["replacement"]), row["reason"])
        for row in told["fixups"]
    ] == [tuple(fixup) for fixup in explained.fixups]
    assert [row["moved_bytes"] for row in told["volumes"]] == [v.moved_bytes for v in explained.volumes]
    assert os.listdir(tmp_path) == []
    assert source.read_bytes() == before


def test_one_partition_is_explained_alone(disk: tuple[Path, dict[int, bytes]], tmp_path: Path) -> None:
    source, moved = disk
    explained = sqlimage.explain_capture(source, partition=2)
    (volume,) = explained.volumes
    assert (volume.file_system, volume.offset_bytes) == ("fat12", 0)
    assert len(explained.fixups) == volume.fixups > 0
    assert all(original == found for _, original, found in changes(explained, {0: moved[12288 * 512]}))
    told = json.loads(tool("capture", source, tmp_path / "n", "--partition", 2, "--defragment", "--explain", "--json"))
    assert len(told["fixups"]) == volume.fixups


def test_explaining_without_anything_to_explain_is_a_usage_error(
    disk: tuple[Path, dict[int, bytes]], tmp_path: Path
) -> None:
    done = run_tool("capture", disk[0], tmp_path / "i.sqlimage", "--explain")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--explain tells what --defragment would do; add --defragment" in done.stderr
    done = run_tool("capture", tmp_path / "none.img", tmp_path / "i.sqlimage", "--defragment", "--explain")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert os.listdir(tmp_path) == []


def test_what_has_no_volume_to_lay_out_is_explained_as_nothing(tmp_path: Path) -> None:
    explained = sqlimage.explain_capture(MemoryDevice(noise("raw", MIB)))
    assert (explained.fixups, explained.volumes[0].moved_bytes) == ((), 0)
    assert explained.notes == ("volume 0 is not defragmented: no known file system",)
    report = sqlimage.capture(MemoryDevice(noise("raw", MIB)), tmp_path / "i.sqlimage", defragment=True)
    assert report.warnings == ("volume 0 is taken raw: no known file system",)
    assert content_of(tmp_path / "i.sqlimage") == noise("raw", MIB)
