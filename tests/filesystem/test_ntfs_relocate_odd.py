"""NTFS volumes changed by hand: what must not be laid out anew, and what lies in the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import InconsistentVolume, RefusedError, UsageError
from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.media.memory import MemoryDevice
from tests.conftest import run
from tests.make.ntfs import VolumeBytes, clusters, make_everything, make_volume, mounted, put_pairs, write_tree
from tests.make.ntfs_relocated import check_by_others, files_of, relocated, restart_page, scattered, stretches

MIB = 1 << 20
DATA = 0x80
WISHES = (Wish(defragment=True), Wish(size_bytes=3 * MIB), Wish(size_bytes=9 * MIB))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_everything(tmp_path_factory.mktemp("odd") / "v.img")


def plan(made: VolumeBytes, wish: Wish) -> Relocation:
    volume = NtfsVolume(MemoryDevice(made.content))
    return volume.relocate(volume.scan(), wish)


def place_of(content: bytes | bytearray, path: str) -> int:
    """Where a file's first cluster lies, in bytes."""
    scan = NtfsVolume(MemoryDevice(bytes(content))).scan()
    row = int(scan.entries.content[scan.entries.path.index(path)])
    return int(scan.contents.run_offset[scan.contents.first_run[row]])


def be_dirty(made: VolumeBytes) -> None:
    made.patch_value(3, 0x70, 0x0A, b"\x01")


def be_old(made: VolumeBytes) -> None:
    made.patch_value(3, 0x70, 0x08, b"\x01\x02")


def have_changes_in_the_log(made: VolumeBytes) -> None:
    log = place_of(made.content, "/$LogFile")
    made.content[log : log + 8192] = restart_page(client=0, flags=0, lsn=9) * 2


def have_a_log_of_cached_metadata(made: VolumeBytes) -> None:
    log = place_of(made.content, "/$LogFile")
    made.content[log : log + 8192] = restart_page(client=0, flags=2, lsn=9, version=2) * 2


def have_a_damaged_log(made: VolumeBytes) -> None:
    log = place_of(made.content, "/$LogFile")
    made.content[log : log + 4] = b"RSTR"


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (be_dirty, "dirty"),
        (be_old, "version 1.2"),
        (have_changes_in_the_log, "changes that are not on the volume yet"),
        (have_a_log_of_cached_metadata, "memory or in its hibernation file"),
        (have_a_damaged_log, "no valid restart page"),
    ],
)
def test_a_volume_that_is_not_at_rest_is_refused(
    pristine: bytes, change: Callable[[VolumeBytes], None], said: str, wish: Wish
) -> None:
    made = VolumeBytes(pristine)
    change(made)
    with pytest.raises(RefusedError, match=said):
        plan(made, wish)
    plan(made, Wish(hidden_sectors=2048))
    plan(made, Wish(size_bytes=len(pristine), hidden_sectors=63))


def test_a_volume_on_which_windows_sleeps_is_refused(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 4 * MIB)
    with mounted(image) as root:
        (root / "hiberfil.sys").write_bytes(b"hibr" + bytes(5000))
    made = VolumeBytes(image.read_bytes())
    for wish in WISHES:
        with pytest.raises(RefusedError, match="sleeps"):
            plan(made, wish)


def test_windows_that_was_shut_down_left_a_clean_log(pristine: bytes, tmp_path: Path) -> None:
    made = VolumeBytes(pristine)
    log = place_of(pristine, "/$LogFile")
    made.content[log : log + 8192] = restart_page(client=0, flags=2, lsn=9) * 2
    assert scattered(relocated(MemoryDevice(made.content), Wish(defragment=True), tmp_path / "new.img").scan) == []


def test_the_scan_must_be_the_volumes_own(pristine: bytes, tmp_path: Path) -> None:
    other = NtfsVolume(MemoryDevice(make_volume(tmp_path / "v.img", 4 * MIB).read_bytes())).scan()
    with pytest.raises(UsageError, match="not this volume's own"):
        NtfsVolume(MemoryDevice(pristine)).relocate(other, Wish(defragment=True))


@pytest.mark.parametrize(
    "wish", [Wish(hidden_sectors=-1), Wish(sectors_per_track=65536), Wish(tracks_per_cylinder=-1, defragment=True)]
)
def test_fields_out_of_their_range_are_refused(pristine: bytes, wish: Wish) -> None:
    with pytest.raises(UsageError):
        plan(VolumeBytes(pristine), wish)


def test_hidden_sectors_that_the_field_cannot_hold_are_none(pristine: bytes, tmp_path: Path) -> None:
    relocation = relocated(MemoryDevice(pristine), Wish(hidden_sectors=1 << 32), tmp_path / "new.img")
    assert relocation.facts.hidden_sectors == 0


def test_sizes_that_are_none_at_all_are_refused(pristine: bytes) -> None:
    for size in (0, 1, 511, 512, 1024, 4096):
        with pytest.raises(RefusedError, match="needs"):
            plan(VolumeBytes(pristine), Wish(size_bytes=size))


def test_no_volume_has_more_clusters_than_32_bits_tell(pristine: bytes) -> None:
    relocation = plan(VolumeBytes(pristine), Wish(size_bytes=1 << 44))
    assert relocation.facts.total_clusters == (1 << 32) - 1
    assert relocation.facts.size_bytes == ((1 << 32) - 1) * 1024 + 512


def test_a_volume_without_a_backup_boot_sector_gets_one(pristine: bytes, tmp_path: Path) -> None:
    device = MemoryDevice(pristine[:-512])
    for wish in (Wish(size_bytes=len(pristine)), Wish(size_bytes=len(pristine), defragment=True)):
        relocated(device, wish, tmp_path / "new.img")
        check_by_others(tmp_path / "new.img")
        content = (tmp_path / "new.img").read_bytes()
        assert len(content) == len(pristine) and content[-512:] == content[:512]
    facts = relocated(device, Wish(hidden_sectors=5), tmp_path / "new.img").facts
    assert facts.size_bytes == len(pristine) - 512


def test_a_backup_boot_sector_that_is_none_is_replaced(pristine: bytes, tmp_path: Path) -> None:
    content = pristine[:-512] + b"not a boot sector".ljust(512)
    relocated(MemoryDevice(content), Wish(defragment=True), tmp_path / "new.img")
    new = (tmp_path / "new.img").read_bytes()
    assert new[-512:] == new[:512] != pristine[:512]


def test_ntfscluster_finds_each_file_where_the_plan_says(pristine: bytes, tmp_path: Path) -> None:
    image = tmp_path / "new.img"
    relocation = relocated(MemoryDevice(pristine), Wish(defragment=True), image)
    for path in ("/large", "/a/second", "/packed/text", "/sparse"):
        backed = [run for run in stretches(relocation.scan.contents, files_of(relocation.scan)[path]) if run[0] != HOLE]
        first, end = backed[0][0] // 1024, sum(backed[-1]) // 1024
        told = run("ntfscluster", "-f", "-c", f"{first}-{end - 1}", image).stdout.decode()
        assert f"{path}/$DATA" in told and "* one inode found" in told


def mark(made: VolumeBytes, lcns: list[int], in_use: bool) -> None:
    """Set or clear bits of $Bitmap."""
    at = place_of(made.content, "/$Bitmap")
    for lcn in lcns:
        byte, bit = at + lcn // 8, 1 << lcn % 8
        made.content[byte] = made.content[byte] | bit if in_use else made.content[byte] & ~bit


def free_clusters(made: VolumeBytes) -> list[int]:
    volume = NtfsVolume(MemoryDevice(made.content))
    heap = volume.facts.total_clusters * made.cluster_bytes
    free = volume.allocated().clip(0, heap).complement(heap)
    unit = made.cluster_bytes
    return [lcn for start, length in free for lcn in range(start // unit, (start + length) // unit)]


def with_bad_clusters(pristine: bytes, choose: Callable[[list[int]], list[int]]) -> tuple[VolumeBytes, list[int]]:
    """A volume some of whose free clusters are bad."""
    made = VolumeBytes(pristine)
    bad = sorted(choose(free_clusters(made)))
    runs, at = [], 0
    for lcn in bad:
        if lcn > at:
            runs.append((HOLE, lcn - at))
        runs.append((lcn, 1))
        at = lcn + 1
    total = NtfsVolume(MemoryDevice(pristine)).facts.total_clusters
    runs.append((HOLE, total - at))
    mark(made, bad, in_use=True)
    put_pairs(made, 8, DATA, 1, runs)
    return made, bad


@pytest.mark.parametrize("defragment", [False, True])
def test_bad_clusters_are_laid_around(pristine: bytes, defragment: bool, tmp_path: Path) -> None:
    made, bad = with_bad_clusters(pristine, lambda free: free[7 :: len(free) // 9])
    device = MemoryDevice(made.content)
    volume = NtfsVolume(device)
    smallest = volume.smallest_bytes(volume.scan())
    with pytest.raises(RefusedError):
        plan(made, Wish(defragment=defragment, size_bytes=smallest - 1))
    for size in (None, smallest, smallest + 1024, smallest + 99_000, 8 * MIB):
        relocation = relocated(device, Wish(defragment=defragment, size_bytes=size), tmp_path / "new.img")
        scan = relocation.scan
        row = next(r for r in np.flatnonzero(scan.contents.record == 8).tolist() if scan.contents.stream[r] == "$Bad")
        places = [(p // 1024, n // 1024) for p, n in stretches(scan.contents, row) if p != HOLE]
        assert [lcn for start, length in places for lcn in range(start, start + length)] == [
            lcn for lcn in bad if lcn < relocation.facts.total_clusters
        ]
        assert scan.contents.size_bytes[row] == relocation.facts.total_clusters * 1024
        check_by_others(tmp_path / "new.img", "--bad-sectors")
        if defragment and size is None:
            assert set(scattered(scan)) <= {"2:", "8:$Bad"}  # no gap takes $LogFile


def test_clusters_that_nobody_has_are_kept(pristine: bytes, tmp_path: Path) -> None:
    made = VolumeBytes(pristine)
    free = free_clusters(made)
    lost = free[-3:] + free[10:12]
    for i, lcn in enumerate(lost):
        made.content[lcn * 1024 : lcn * 1024 + 8] = b"lost %03d" % i
    before = NtfsVolume(MemoryDevice(made.content))
    least = before.smallest_bytes(before.scan())
    mark(made, lost, in_use=True)
    volume = NtfsVolume(MemoryDevice(made.content))
    smallest = volume.smallest_bytes(volume.scan())
    assert smallest in (least + 5 * 1024, least + 6 * 1024)
    for wish in (Wish(defragment=True), Wish(size_bytes=smallest), Wish(size_bytes=5 * MIB)):
        relocated(MemoryDevice(made.content), wish, tmp_path / "new.img")
        content = (tmp_path / "new.img").read_bytes()
        assert all(content.count(b"lost %03d" % i) == 1 for i in range(5))


def test_a_stream_in_free_clusters_contradicts_the_bitmap(pristine: bytes) -> None:
    made = VolumeBytes(pristine)
    lcn, _ = clusters(made, "/large")
    mark(made, [lcn + 3], in_use=False)
    for wish in WISHES:
        with pytest.raises(InconsistentVolume, match=f"cluster {lcn + 3} is free"):
            plan(made, wish)


def test_two_streams_in_one_place_are_a_contradiction(pristine: bytes) -> None:
    made = VolumeBytes(pristine)
    scan = NtfsVolume(MemoryDevice(made.content)).scan()
    large = int(scan.entries.record[scan.entries.path.index("/large")])
    lcn, length = clusters(made, "/large")
    other, _ = clusters(made, "/$LogFile")
    put_pairs(made, large, DATA, 0, [(lcn, length - 1), (other, 1)])
    for wish in WISHES:
        with pytest.raises(InconsistentVolume, match=f"two streams have cluster {other}"):
            plan(made, wish)


@pytest.mark.parametrize(
    ("number", "runs", "said"),
    [
        (1, [(1500, 1), (1502, 3)], "where the boot sector says"),
        (1, [(HOLE, 4)], "hole"),
        (6, [(HOLE, 1)], "hole"),
        (7, [(100, 8)], "from cluster 0"),
        (7, [(0, 4), (8, 4)], "from cluster 0"),
    ],
)
def test_system_files_out_of_place_are_a_contradiction(
    pristine: bytes, number: int, runs: list[tuple[int, int]], said: str
) -> None:
    made = VolumeBytes(pristine)
    volume = NtfsVolume(MemoryDevice(pristine))
    contents = volume.scan().contents
    row = int(np.flatnonzero(contents.record == number)[0])
    old = [lcn for start, count in stretches(contents, row) for lcn in range(start // 1024, (start + count) // 1024)]
    if number != 6:
        mark(made, old, in_use=False)
    mark(made, [lcn + i for lcn, count in runs for i in range(count) if lcn != HOLE] + [0], in_use=True)
    put_pairs(made, number, DATA, 0, runs)
    for wish in WISHES:
        with pytest.raises(InconsistentVolume, match=said):
            plan(made, wish)


def be_tight(made: VolumeBytes, path: str) -> None:
    """Leave the record of a file no byte for anything longer."""
    scan = NtfsVolume(MemoryDevice(made.content)).scan()
    number = int(scan.entries.record[scan.entries.path.index(path)])
    made.patch(number, 0x1C, bytes(made.record(number)[0x18:0x1C]))


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A volume with files that must lie below cluster 32,768 (``b``) and 128 (``low``), or their run lists need eight
    bytes more. A large file comes before them in the directory."""
    image = make_volume(tmp_path_factory.mktemp("tight") / "v.img", 64 * MIB, cluster_bytes=512)
    with mounted(image) as root:
        write_tree(root, {"b": b"b" * 512 * 300, "low": b"l" * 512 * 8})
        os.truncate(root / "b", 512 * 340)
        os.truncate(root / "low", 17 * MIB)
        write_tree(root, {"a": b"a" * 25 * MIB, "m": b"m" * 2000})
    made = VolumeBytes(image.read_bytes())
    scan = NtfsVolume(MemoryDevice(made.content)).scan()
    number = int(scan.entries.record[scan.entries.path.index("/low")])
    (lcn, length), low = clusters(made, "/low"), 24
    assert set(range(low, low + 8)) <= set(free_clusters(made)) and length == 8
    made.content[low * 512 : (low + 8) * 512] = made.content[lcn * 512 : (lcn + 8) * 512]
    mark(made, list(range(lcn, lcn + 8)), in_use=False)
    mark(made, list(range(low, low + 8)), in_use=True)
    put_pairs(made, number, DATA, 0, [(low, 8), (HOLE, 17 * MIB // 512 - 8)])
    return bytes(made.content)


def firsts(relocation: Relocation) -> dict[str, int]:
    """The first cluster of each file."""
    rows = files_of(relocation.scan)
    return {path: stretches(relocation.scan.contents, row)[0][0] // 512 for path, row in rows.items()}


def test_files_come_by_name_where_records_have_room(tight: bytes, tmp_path: Path) -> None:
    lcn = firsts(relocated(MemoryDevice(tight), Wish(defragment=True), tmp_path / "new.img"))
    assert lcn["/a"] < 32768 < lcn["/b"] < lcn["/low"] < lcn["/m"]


def test_a_stream_whose_run_list_would_outgrow_its_record_comes_to_the_front(tight: bytes, tmp_path: Path) -> None:
    made = VolumeBytes(tight)
    be_tight(made, "/b")
    assert 127 < clusters(made, "/b")[0] < 32768 and clusters(made, "/b")[1] == 300
    relocation = relocated(MemoryDevice(made.content), Wish(defragment=True), tmp_path / "new.img")
    lcn = firsts(relocation)
    assert lcn["/b"] < 128 < lcn["/a"] < 32768 < lcn["/low"] < lcn["/m"]
    assert scattered(relocation.scan) == []


def test_where_the_front_is_too_far_it_stays_where_it_is(tight: bytes, tmp_path: Path) -> None:
    made = VolumeBytes(tight)
    be_tight(made, "/low")
    be_tight(made, "/b")
    relocation = relocated(MemoryDevice(made.content), Wish(defragment=True), tmp_path / "new.img")
    lcn = firsts(relocation)
    assert lcn["/low"] == 24 < lcn["/b"] < lcn["/a"] < lcn["/m"]
    assert scattered(relocation.scan) == []


def test_what_fits_nowhere_is_refused_by_its_name(pristine: bytes) -> None:
    made, bad = with_bad_clusters(pristine, lambda free: [free[30], free[30] + 9])
    assert bad[0] > 127
    made.patch(8, 0x1C, bytes(made.record(8)[0x18:0x1C]))
    plan(made, Wish(defragment=True))
    with pytest.raises(RefusedError, match=r"/\$BadClus:\$Bad fits nowhere"):
        plan(made, Wish(size_bytes=64 * MIB))
