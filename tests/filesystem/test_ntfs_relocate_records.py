"""Where metadata goes, and what MFT records are afterwards: NTFS volumes with run lists written by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sqlimage.filesystem.contract import Scan
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Wish
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from tests.make.ntfs import VolumeBytes, clusters, make_everything, make_volume, mounted, put_pairs, write_tree
from tests.make.ntfs_relocated import check_by_others, relocated

MIB = 1 << 20
DATA = 0x80


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_everything(tmp_path_factory.mktemp("records") / "v.img")


def record_of(scan: Scan, path: str) -> int:
    return int(scan.entries.record[scan.entries.path.index(path)])


def run_count(scan: Scan, path: str) -> int:
    row = int(scan.entries.content[scan.entries.path.index(path)])
    return int(scan.contents.first_run[row + 1] - scan.contents.first_run[row])


def test_metadata_lies_by_record_number_before_all_files(pristine: bytes) -> None:
    volume = NtfsVolume(MemoryDevice(pristine))
    contents = volume.relocate(volume.scan(), Wish(defragment=True)).scan.contents
    backed = np.flatnonzero(contents.run_offset >= 0)
    place = np.full(len(contents), 1 << 62)
    np.minimum.at(place, contents.run_owner()[backed], contents.run_offset[backed])
    order = [int(contents.record[row]) for row in np.argsort(place, kind="stable").tolist() if place[row] < 1 << 62]
    metadata = [record for record in order if 0 < record < 16 and record != 5]
    assert order[0] == 7 and metadata[1:] == sorted(metadata[1:]) and {1, 2, 4, 6, 9, 10} < set(metadata)
    assert max(map(order.index, metadata)) < min(order.index(record) for record in order if record >= 24)
    assert order[-1] == 0


def test_a_run_list_that_becomes_shorter_leaves_zeros_behind_the_records_end(pristine: bytes, tmp_path: Path) -> None:
    made = VolumeBytes(pristine)
    number = record_of(NtfsVolume(MemoryDevice(pristine)).scan(), "/large")
    lcn, length = clusters(made, "/large")
    starts = list(range(0, length, 4))[::-1]
    put_pairs(made, number, DATA, 0, [(lcn + start, min(4, length - start)) for start in starts])
    (old_free,) = struct.unpack_from("<I", made.record(number), 0x18)
    made.patch(number, old_free, b"of a longer past")
    old = made.record(number)
    relocated(MemoryDevice(made.content), Wish(defragment=True), tmp_path / "new.img")
    check_by_others(tmp_path / "new.img")
    new = VolumeBytes((tmp_path / "new.img").read_bytes()).record(number)
    (new_free,) = struct.unpack_from("<I", new, 0x18)
    assert new_free < old_free - 40
    assert not any(new[new_free:])
    assert old[8:0x18] == new[8:0x18] and old[0x30:0x32] == new[0x30:0x32]


def test_runs_that_could_be_one_become_one_where_they_are_written_anew_only(pristine: bytes, tmp_path: Path) -> None:
    made = VolumeBytes(pristine)
    number = record_of(NtfsVolume(MemoryDevice(pristine)).scan(), "/large")
    lcn, length = clusters(made, "/large")
    put_pairs(made, number, DATA, 0, [(lcn, 10), (lcn + 10, 20), (lcn + 30, length - 30)])
    device = MemoryDevice(made.content)
    assert run_count(relocated(device, Wish(size_bytes=9 * MIB), tmp_path / "new.img").scan, "/large") == 3
    assert run_count(relocated(device, Wish(defragment=True), tmp_path / "new.img").scan, "/large") == 1
    packed = (tmp_path / "new.img").read_bytes()
    made = VolumeBytes(packed)
    lcn, length = clusters(made, "/large")
    put_pairs(made, number, DATA, 0, [(lcn, 10), (lcn + 10, length - 10)])
    again = relocated(MemoryDevice(made.content), Wish(defragment=True), tmp_path / "new.img")
    assert [fixup.reason for fixup in again.fixups] == [f"MFT record {number}: run list of $DATA"]
    assert run_count(again.scan, "/large") == 1


def test_no_record_is_torn_by_the_new_end(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 8 * MIB, cluster_bytes=512)
    with mounted(image) as root:
        write_tree(root, {f"file {i}": bytes([i]) * 20_000 for i in range(30)})
    packed = tmp_path / "packed.img"
    relocated(image, Wish(defragment=True), packed)
    with mounted(packed) as root:
        (root / "file 7").unlink()
    volume = NtfsVolume(FileDevice(packed))
    scan = volume.scan()
    mft = int(scan.entries.content[scan.entries.path.index("/$MFT")])
    run_row = int(scan.contents.first_run[mft])
    assert run_count(scan, "/$MFT") == 1
    end = int(scan.contents.run_offset[run_row] + scan.contents.run_length[run_row])
    for lost in (9, 10):
        size = end - lost * 512 + 512
        new = relocated(packed, Wish(size_bytes=size), tmp_path / "new.img").scan
        check_by_others(tmp_path / "new.img")
        row = slice(int(new.contents.first_run[mft]), int(new.contents.first_run[mft + 1]))
        assert run_count(new, "/$MFT") == (2 if lost == 10 else 1)
        assert not (new.contents.run_length[row] % 1024).any()
