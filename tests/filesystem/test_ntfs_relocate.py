"""NTFS volumes laid out anew: carried out on a copy, read by this reader, by ntfs-3g, its tools and sleuthkit."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, ContentFlag, Scan
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Relocatable, Wish
from sqlimage.media.file import FileDevice
from tests.conftest import run
from tests.make.ntfs import make_volume, mounted, write_tree
from tests.make.ntfs_relocated import check_by_others, files_of, listed_by_sleuthkit, relocated, scattered, stretches
from tests.make.ntfs_scattered import make_scattered, read_through_driver

MIB = 1 << 20


@dataclass(frozen=True)
class Made:
    """A fragmented volume, what was written to it, and how it is read."""

    image: Path
    files: dict[str, bytes]
    volume: NtfsVolume
    scan: Scan
    smallest: int

    @property
    def size(self) -> int:
        return self.volume.facts.size_bytes


@pytest.fixture(
    scope="module",
    params=[
        (512, 8 * MIB, 1024),
        pytest.param((1024, 32 * MIB, 2048), marks=pytest.mark.slow),
        pytest.param((4096, 32 * MIB, 8192), marks=pytest.mark.slow),
        pytest.param((65536, 256 * MIB, 65536), marks=pytest.mark.slow),
    ],
    ids=lambda made: str(made[0]),
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    cluster_bytes, size_bytes, gap_bytes = request.param
    image = tmp_path_factory.mktemp("relocate") / "v.img"
    files = make_scattered(image, size_bytes, cluster_bytes, gap_bytes)
    volume = NtfsVolume(FileDevice(image))
    scan = volume.scan()
    return Made(image, files, volume, scan, volume.smallest_bytes(scan))


def check(made: Made, wish: Wish, target: Path) -> Scan:
    """Lay it out as wished; whoever knows NTFS finds it right, and every file as it was. The new scan."""
    relocation = relocated(made.image, wish, target)
    check_by_others(target)
    assert listed_by_sleuthkit(target) == listed_by_sleuthkit(made.image)
    return relocation.scan


def test_the_volume_is_in_pieces_before(made: Made) -> None:
    relocatable: Relocatable = made.volume
    assert relocatable.smallest_bytes(made.scan) < made.size
    contents = made.scan.contents
    assert contents.stream.count("$ATTRIBUTE_LIST") >= 2
    assert "0:" in scattered(made.scan) and "5:$I30" in scattered(made.scan)
    assert int(np.diff(contents.first_run).max()) > 250


def test_defragmented_every_stream_is_one_run(made: Made, tmp_path: Path) -> None:
    scan = check(made, Wish(defragment=True), tmp_path / "new.img")
    assert scattered(scan) == []
    for row in range(len(scan.contents)):
        holes = scan.contents.run_offset[scan.contents.first_run[row] : scan.contents.first_run[row + 1]] == HOLE
        if not holes.any() and scan.contents.stream[row] != "$ATTRIBUTE_LIST":
            assert len(stretches(scan.contents, row)) <= 1
    read_through_driver(tmp_path / "new.img", made.files)
    check_by_others(tmp_path / "new.img")


def test_defragmented_files_follow_each_other_in_directory_order_from_the_front(made: Made, tmp_path: Path) -> None:
    relocation = made.volume.relocate(made.scan, Wish(defragment=True))
    contents = relocation.scan.contents
    heap = relocation.allocated.clip(0, relocation.facts.total_clusters * relocation.facts.bytes_per_cluster)
    assert heap == Runs.of([(0, heap.total)])
    firsts = []
    for path, row in sorted(files_of(relocation.scan).items(), key=lambda file: file[0].upper().replace("/", "\0")):
        places = [place for place, _ in stretches(contents, row) if place != HOLE]
        if places and path != "/tree/0/0/file 0000" and ":" not in path:
            firsts.append(places[0])
    assert firsts == sorted(firsts) and len(firsts) > 500
    mft = int(np.flatnonzero(contents.record == 0)[0])
    assert stretches(contents, mft)[0][0] > firsts[-1]


def test_what_is_defragmented_stays_as_it_is(made: Made, tmp_path: Path) -> None:
    relocated(made.image, Wish(defragment=True), tmp_path / "new.img")
    volume = NtfsVolume(FileDevice(tmp_path / "new.img"))
    again = volume.relocate(volume.scan(), Wish(defragment=True))
    assert again.fixups == ()
    assert np.array_equal(again.moved_from, again.moved_to)


def test_compression_units_keep_their_shape(made: Made, tmp_path: Path) -> None:
    contents = made.scan.contents
    packed = np.flatnonzero(contents.flags & ContentFlag.COMPRESSED).tolist()
    if made.volume.facts.bytes_per_cluster > 4096:
        assert packed == []
        return
    new = made.volume.relocate(made.scan, Wish(defragment=True)).scan.contents
    for row in packed:
        shapes = [[(place == HOLE, length) for place, length in stretches(c, row)] for c in (contents, new)]
        covered = [np.cumsum([length for _, length in shape]) for shape in shapes]
        borders = [{int(at) for at, next_at in pairwise(ends)} for ends in covered]
        assert any(is_hole for is_hole, _ in shapes[0])
        assert [s for s in shapes[1] if s[0]] == [s for s in merged(shapes[0]) if s[0]]
        assert borders[1] <= borders[0]


def merged(shape: list[tuple[bool, int]]) -> list[tuple[bool, int]]:
    out: list[tuple[bool, int]] = []
    for is_hole, length in shape:
        if out and out[-1][0] == is_hole:
            length += out.pop()[1]
        out.append((is_hole, length))
    return out


@pytest.mark.parametrize("defragment", [False, True])
def test_it_becomes_as_small_as_it_says_and_not_a_cluster_smaller(made: Made, defragment: bool, tmp_path: Path) -> None:
    check(made, Wish(defragment=defragment, size_bytes=made.smallest), tmp_path / "new.img")
    new = NtfsVolume(FileDevice(tmp_path / "new.img"))
    heap_end = new.facts.total_clusters * new.facts.bytes_per_cluster
    assert new.facts.size_bytes == made.smallest
    assert new.allocated().clip(0, heap_end).total == heap_end
    assert new.smallest_bytes(new.scan()) == made.smallest
    for less in (1, new.facts.bytes_per_sector, new.facts.bytes_per_cluster):
        with pytest.raises(RefusedError, match=f"needs {made.smallest} bytes, there are {made.smallest - less}"):
            made.volume.relocate(made.scan, Wish(defragment=defragment, size_bytes=made.smallest - less))


def test_made_smaller_only_what_must_move_moves(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 16 * MIB)
    files = {f"{i % 5}/file {i}": bytes([i]) * (i % 7 * 20_000) for i in range(200)}
    with mounted(image) as root:
        write_tree(root, files)
        for i in range(0, 200, 3):
            (root / f"{i % 5}/file {i}").unlink()
            del files[f"{i % 5}/file {i}"]
    wish = Wish(size_bytes=13 * MIB)
    relocation = relocated(image, wish, tmp_path / "new.img")
    moved = relocation.moved_from != relocation.moved_to
    ends = relocation.moved_from[moved] + relocation.moved_length[moved]
    assert len(ends) > 5 and (ends > relocation.facts.total_clusters * 4096).all()
    check_by_others(tmp_path / "new.img")
    read_through_driver(tmp_path / "new.img", files)
    check_by_others(tmp_path / "new.img")


def test_made_smaller_without_a_gap_for_what_must_move_it_is_defragmented(made: Made, tmp_path: Path) -> None:
    if made.volume.facts.bytes_per_cluster > 4096:
        pytest.skip("here the gaps are as large as what must move")
    assert scattered(check(made, Wish(size_bytes=(made.size + made.smallest) // 2), tmp_path / "new.img")) == []


def test_made_larger_nothing_moves_but_the_bitmap(made: Made, tmp_path: Path) -> None:
    size = made.size * 30 + 12_345
    scan = check(made, Wish(size_bytes=size), tmp_path / "new.img")
    relocation = made.volume.relocate(made.scan, Wish(size_bytes=size))
    moved = int(relocation.moved_length[relocation.moved_from != relocation.moved_to].sum())
    bitmap = int(np.flatnonzero(scan.contents.record == 6)[0])
    unit = made.volume.facts.bytes_per_cluster
    old_bitmap = sum(length for _, length in stretches(made.scan.contents, bitmap))
    assert moved <= old_bitmap + unit
    assert len(stretches(scan.contents, bitmap)) == 1
    assert relocation.facts.total_clusters == (size // 512 - 1) * 512 // unit
    assert scan.contents.size_bytes[bitmap] >= relocation.facts.total_clusters / 8
    read_through_driver(tmp_path / "new.img", made.files)
    check_by_others(tmp_path / "new.img")


@pytest.mark.slow
@pytest.mark.parametrize("defragment", [False, True])
@pytest.mark.parametrize("tenth", range(11))
def test_any_size_between(made: Made, defragment: bool, tenth: int, tmp_path: Path) -> None:
    size = made.smallest + (made.size - made.smallest) * tenth // 10 + tenth * 777
    check(made, Wish(defragment=defragment, size_bytes=size), tmp_path / "new.img")


def test_ntfsresize_makes_the_new_volume_smaller_still(made: Made, tmp_path: Path) -> None:
    relocated(made.image, Wish(defragment=True, size_bytes=made.size * 3), tmp_path / "new.img")
    wanted = made.size * 2
    run("ntfsresize", "--force", "--no-progress-bar", "--size", str(wanted), tmp_path / "new.img")
    assert NtfsVolume(FileDevice(tmp_path / "new.img")).facts.size_bytes <= wanted


def test_elsewhere_on_a_disk_only_the_boot_sectors_change(made: Made, tmp_path: Path) -> None:
    wish = Wish(hidden_sectors=2048, sectors_per_track=63, tracks_per_cylinder=255, size_bytes=made.size)
    relocation = relocated(made.image, wish, tmp_path / "new.img")
    assert {fixup.reason for fixup in relocation.fixups} == {"boot sector", "backup boot sector"}
    assert np.array_equal(relocation.moved_from, relocation.moved_to)
    content = (tmp_path / "new.img").read_bytes()
    for at in (0, len(content) - 512):
        assert struct.unpack_from("<HHI", content, at + 0x18) == (63, 255, 2048)
    check_by_others(tmp_path / "new.img")


def test_the_backup_boot_sector_lies_behind_the_last_sector(made: Made, tmp_path: Path) -> None:
    size = made.size * 3 + 700
    relocated(made.image, Wish(size_bytes=size, hidden_sectors=63), tmp_path / "new.img")
    content = (tmp_path / "new.img").read_bytes()
    assert content[:512] == content[(size // 512 - 1) * 512 :][:512]
    assert int.from_bytes(content[0x28:0x30], "little") == size // 512 - 1


def test_bits_behind_the_last_cluster_are_set(made: Made, tmp_path: Path) -> None:
    relocation = relocated(made.image, Wish(size_bytes=made.size + 37 * 65536), tmp_path / "new.img")
    volume = NtfsVolume(FileDevice(tmp_path / "new.img"))
    bits = np.unpackbits(np.frombuffer(volume.open(6).read(0, 1 << 30), dtype=np.uint8), bitorder="little")
    assert len(bits) % 64 == 0 and bits[relocation.facts.total_clusters :].all()


def test_record_numbers_and_times_are_as_they_were(made: Made, tmp_path: Path) -> None:
    relocated(made.image, Wish(defragment=True), tmp_path / "new.img")
    for record in (5, 64, 70):
        old, new = (run("ntfsinfo", "-i", str(record), image).stdout for image in (made.image, tmp_path / "new.img"))
        told = [re.findall(rb".*(?:Time|equence|LSN|ilename|ata size).*", text) for text in (old, new)]
        assert told[0] == told[1] and len(told[0]) > 6


def test_reasons_name_the_structures(made: Made) -> None:
    relocation = made.volume.relocate(made.scan, Wish(defragment=True, size_bytes=made.size * 2))
    kinds = {re.sub(r"\d+", "N", fixup.reason).split(" of ")[0] for fixup in relocation.fixups}
    assert kinds >= {"boot sector", "backup boot sector", "$Bitmap", "MFT record N: run list", "$MFTMirr record N"}
    reasons = {fixup.reason for fixup in relocation.fixups}
    assert "MFT record 8: run list of $Bad" in reasons and "MFT record 6: run list of $DATA" in reasons


def test_a_volume_on_large_sectors(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 64 * MIB, sector=4096)
    files = {f"file {i}": os.urandom(20_000 + i) for i in range(40)}
    with mounted(image) as root:
        write_tree(root, files)
    volume = NtfsVolume(FileDevice(image))
    scan = volume.scan()
    for wish in (
        Wish(defragment=True),
        Wish(size_bytes=volume.smallest_bytes(scan)),
        Wish(size_bytes=500 * MIB, hidden_sectors=256),
    ):
        relocated(image, wish, tmp_path / "new.img")
        check_by_others(tmp_path / "new.img")
    read_through_driver(tmp_path / "new.img", files)
