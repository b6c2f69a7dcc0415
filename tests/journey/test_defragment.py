"""A capture with every file in one piece: the same volume, laid out anew, to every reader there is."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import sqlimage
from sqlimage.filesystem.contract import ContentFlag
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.images import noise, tool
from tests.make import fat, fat_oracle
from tests.make.defragmented import (
    Both,
    Fat,
    capture_both,
    check_at_rest,
    check_fat,
    check_ntfs,
    digest_of,
    files_of,
    restored,
    torn,
)
from tests.make.ntfs import VolumeBytes, make_everything, make_volume, mounted, scatter_free_space, write_tree
from tests.make.ntfs_relocated import check_by_others
from tests.make.ntfs_scattered import make_scattered, read_through_driver


@dataclass(frozen=True)
class Made:
    """A fragmented volume, what was written to it, and both images of it."""

    source: Path
    files: dict[str, bytes]
    both: Both

    @property
    def image(self) -> Path:
        return self.both.image


@pytest.fixture(
    scope="module",
    params=[
        (512, 8 * MIB, 1024),
        pytest.param((4096, 32 * MIB, 8192), marks=pytest.mark.slow),
        pytest.param((65536, 256 * MIB, 65536), marks=pytest.mark.slow),
    ],
    ids=lambda made: str(made[0]),
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    cluster_bytes, size_bytes, gap_bytes = request.param
    place = tmp_path_factory.mktemp("defragment")
    files = make_scattered(place / "v.img", size_bytes, cluster_bytes, gap_bytes)
    return Made(place / "v.img", files, capture_both(place / "v.img", place))


def test_every_file_of_a_fragmented_ntfs_volume_is_one_run_and_every_stretch_of_a_sparse_one(made: Made) -> None:
    assert len(torn(Path(made.both.plain.image))) > 300
    assert torn(made.image) == []
    with sqlimage.open(str(made.image)) as opened:
        sparse = "SELECT clusters, start_cluster FROM extent JOIN file USING (version, volume, record, stream) "
        rows = opened.database.rows(sparse + "WHERE path = '/sparse' ORDER BY file_offset")
        allocated = opened.version().allocated()
    assert len(rows) >= 150
    ends = [start + count for count, start in rows]
    assert [start for _, start in rows[1:]] == ends[:-1], "the stretches follow each other"
    assert len(allocated) <= 2, "all from the front, but for the backup boot sector"


def test_the_report_and_the_audit_tell_what_moved(made: Made) -> None:
    (volume,), (plain,) = made.both.defragmented.volumes, made.both.plain.volumes
    assert plain.moved_bytes is None and plain.fixups == 0
    assert volume.moved_bytes is not None and volume.moved_bytes > made.both.plain.allocated_bytes // 2
    assert volume.fixups > 500
    with sqlimage.open(str(made.image)) as opened:
        (row,) = opened.audit()
    told = {"0": {"moved_bytes": volume.moved_bytes, "fixups": volume.fixups}}
    assert (row.action, json.loads(row.detail)["defragmented"]) == ("capture", told)
    with sqlimage.open(made.both.plain.image) as opened:
        assert "defragmented" not in json.loads(opened.audit()[0].detail)


def test_the_image_is_no_larger(made: Made) -> None:
    assert made.both.defragmented.stored_bytes <= made.both.plain.stored_bytes * 1.02
    assert made.both.defragmented.image_bytes <= made.both.plain.image_bytes * 1.02


def test_a_restored_copy_is_right_to_every_reader_and_ntfs_3g_works_on_it(made: Made, tmp_path: Path) -> None:
    copy = restored(made.image, tmp_path / "copy.img")
    check_ntfs(copy)
    with mounted(copy, "ro,streams_interface=windows") as root:
        assert (root / "linked").stat().st_ino == (root / "tree/0/0/file 0000").stat().st_ino
        assert (root / "linked").stat().st_nlink == 2
        assert os.readlink(root / "symlink") == "tree/0"
        assert (root / "sparse").stat().st_blocks * 512 < len(made.files["sparse"]) / 2
    read_through_driver(copy, made.files)
    check_by_others(copy)


def test_captured_again_nothing_moves_and_the_image_is_the_same(made: Made, tmp_path: Path) -> None:
    copy = restored(made.image, tmp_path / "copy.img")
    report = sqlimage.capture(copy, tmp_path / "again.sqlimage", defragment=True)
    assert (report.volumes[0].moved_bytes, report.volumes[0].fixups) == (0, 0)
    assert files_of(tmp_path / "again.sqlimage") == files_of(made.image)
    as_it_is = sqlimage.capture(copy, tmp_path / "as it is.sqlimage")
    assert report.stored_bytes == as_it_is.stored_bytes
    check_at_rest(tmp_path / "again.sqlimage")


def test_the_command_line_does_the_same_and_says_so(made: Made, tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    said = tool("capture", made.source, image, "--defragment")
    assert f"{made.both.defragmented.volumes[0].fixups} fix-ups" in said
    assert "defragmented: " in said
    assert files_of(image) == files_of(made.image)
    tool("restore", image, tmp_path / "copy.img")
    assert digest_of(tmp_path / "copy.img") == digest_of(restored(made.image, tmp_path / "other.img"))
    report = json.loads(tool("capture", made.source, tmp_path / "j.sqlimage", "--defragment", "--json"))
    assert report["volumes"][0]["moved_bytes"] == made.both.defragmented.volumes[0].moved_bytes
    for file in ("/large 0", "/large 2"):
        assert len(json.loads(tool("extent", image, file, "--json"))) == 1


def volume_with_page_file(path: Path) -> tuple[Path, dict[str, bytes]]:
    """A page file in hundreds of pieces, and what else there is."""
    make_volume(path, 8 * MIB, cluster_bytes=1024)
    with mounted(path) as root:
        written = scatter_free_space(root, 4096)
        write_tree(root, {"pagefile.sys": noise("page", MIB), "beside": b"beside" * 9000})
    return path, {**written, "beside": b"beside" * 9000}


def test_page_and_hibernation_files_are_left_out_still(tmp_path: Path) -> None:
    source, written = volume_with_page_file(tmp_path / "v.img")
    both = capture_both(source, tmp_path)
    assert both.defragmented.volumes[0].left_out == both.plain.volumes[0].left_out == ("/pagefile.sys",)
    assert both.defragmented.volumes[0].left_out_bytes == both.plain.volumes[0].left_out_bytes == MIB
    assert [row[0] for row in torn(Path(both.plain.image))].count("/pagefile.sys") > 20 and torn(both.image) == []
    assert both.defragmented.stored_bytes <= both.plain.stored_bytes * 1.05 < MIB // 2
    copy = restored(both.image, tmp_path / "copy.img")
    check_ntfs(copy)
    read_through_driver(copy, {**written, "pagefile.sys": bytes(MIB)})


@pytest.mark.slow
def test_page_files_are_kept_when_asked(tmp_path: Path) -> None:
    source, written = volume_with_page_file(tmp_path / "v.img")
    kept = capture_both(source, tmp_path, keep_page_files=True)
    assert kept.defragmented.volumes[0].left_out == ()
    assert torn(kept.image) == []
    copy = restored(kept.image, tmp_path / "copy.img")
    check_ntfs(copy)
    read_through_driver(copy, {**written, "pagefile.sys": noise("page", MIB)})


def test_files_that_were_written_in_part_only_and_streams_of_every_kind_read_as_before(tmp_path: Path) -> None:
    """Bytes beyond the initialized size are zeros, whatever lies there; and a compressed file's clusters are moved as
    they are."""
    content = VolumeBytes(make_everything(tmp_path / "v.img"))
    volume = NtfsVolume(MemoryDevice(content.content))
    scan = volume.scan()
    number = int(scan.entries.record[scan.entries.path.index("/large")])
    at = content.attribute_at(number, 0x80)
    content.patch(number, at + 0x38, (30_001).to_bytes(8, "little"))  # initialized size
    (tmp_path / "v.img").write_bytes(content.content)
    both = capture_both(tmp_path / "v.img", tmp_path)
    copy = restored(both.image, tmp_path / "copy.img")
    check_ntfs(copy)
    with mounted(copy, "ro,streams_interface=windows") as root:
        assert (root / "large").read_bytes() == b"L" * 30_001 + bytes(39_999)
        assert (root / "packed/text").read_bytes() == b"to be or not to be " * 9000
        assert (root / "small:stream").read_bytes() == b"beside"
    contents = scan.contents
    assert (contents.flags & ContentFlag.COMPRESSED).any() and (contents.flags & ContentFlag.SPARSE).any()


@pytest.mark.parametrize(
    "shape",
    [
        Fat(12, 1440 * KIB, 1),
        Fat(12, 8 * MIB, 8),
        Fat(16, 9 * MIB, 1),
        Fat(32, 34 * MIB, 1),
        pytest.param(Fat(16, 300 * MIB, 64), marks=pytest.mark.slow),
        pytest.param(Fat(32, 300 * MIB, 8), marks=pytest.mark.slow),
    ],
    ids=lambda shape: f"fat{shape.bits}-{shape.size_bytes // KIB}K-{shape.sectors_per_cluster}",
)
def test_every_file_of_a_fragmented_fat_volume_is_one_run(shape: Fat, tmp_path: Path) -> None:
    source = shape.make(tmp_path / "v.img")
    device = FileDevice(source)
    volume = FatVolume(device)
    scan = volume.scan()
    told = fat_oracle.digests(volume, scan)
    assert len(fat_oracle.in_pieces(scan)) > 20 and len(told) == 48
    both = capture_both(source, tmp_path)
    assert len(torn(Path(both.plain.image))) > 50 and torn(both.image) == []
    assert both.defragmented.volumes[0].fixups > 0
    assert both.defragmented.stored_bytes <= both.plain.stored_bytes * 1.02
    assert both.defragmented.image_bytes <= both.plain.image_bytes * 1.03 + 8192
    check_fat(restored(both.image, tmp_path / "copy.img"), told)
    device.close()


def test_a_disk_in_another_format_and_a_device_of_the_callers_are_laid_out_anew_too(tmp_path: Path) -> None:
    source = Fat(16, 9 * MIB, 1).make(tmp_path / "v.img")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, tmp_path / "v.qcow2")
    images = [tmp_path / f"{n}.sqlimage" for n in range(3)]
    sqlimage.capture(source, images[0], defragment=True)
    sqlimage.capture(tmp_path / "v.qcow2", images[1], defragment=True)
    sqlimage.capture(MemoryDevice(source.read_bytes()), images[2], defragment=True)
    copies = {restored(image, tmp_path / "copy.img").read_bytes() for image in images}
    assert len(copies) == 1 and copies != {source.read_bytes()}


def test_what_lies_behind_the_file_system_stays_where_it_is(tmp_path: Path) -> None:
    """A partition may be longer than its volume; the report of a volume without files moves nothing."""
    source = Fat(12, 1440 * KIB, 1).make(tmp_path / "v.img")
    tail = noise("tail", 100 * KIB)
    with source.open("ab") as file:
        file.write(tail)
    both = capture_both(source, tmp_path)
    assert torn(both.image) == []
    assert restored(both.image, tmp_path / "copy.img").read_bytes()[-len(tail) :] == tail

    empty = fat.make_volume(tmp_path / "empty.img", 1440 * KIB, 12)
    report = sqlimage.capture(empty, tmp_path / "empty.sqlimage", defragment=True)
    assert (report.volumes[0].moved_bytes, report.volumes[0].fixups) == (0, 0)
    assert restored(tmp_path / "empty.sqlimage", tmp_path / "copy.img").read_bytes() == empty.read_bytes()
