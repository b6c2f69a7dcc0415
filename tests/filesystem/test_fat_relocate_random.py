"""Random trees in random places, of random shapes, to random sizes: every one is laid out right, or refused at once."""

from __future__ import annotations

import random
import shutil
import struct
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs, first_overlap
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.fat.boot import geometry_of, parse
from sqlimage.filesystem.fat.relocate_place import overlap, place
from sqlimage.filesystem.fat.relocate_size import clusters_max, new_size, resized, smallest_bytes
from sqlimage.filesystem.relocation import Wish
from sqlimage.media.file import FileDevice
from sqlimage.units import KIB, MIB
from tests.make.cost import PATIENCE
from tests.make.fat import BareVolume, make_volume
from tests.make.fat_oracle import by_place, carry_out, fsck, in_pieces, walked
from tests.make.fat_tree import ScatteredVolume
from tests.make.relocated import moved

SHAPES: list[tuple[int, int, int, int, tuple[str, ...]]] = [
    (12, 1440 * KIB, 1, 512, ()),
    (12, 360 * KIB, 2, 512, ("-r", "112")),
    (12, 1300 * KIB, 8, 512, ("-a", "-R", "3")),
    (12, 2 * MIB, 1, 512, ("-a", "-R", "2")),  # close to the last cluster number
    (12, 6 * MIB, 1, 4096, ()),
    (16, 2200 * KIB, 1, 512, ("-a",)),  # close to the fewest clusters
    (16, 4 * MIB, 1, 512, ("-R", "7", "-r", "48")),
    (32, 1 * MIB, 1, 512, ("-a", "-R", "33")),  # a FAT32 by BPB_FATSz16 only
    (32, 3 * MIB, 2, 1024, ()),
    (32, 5 * MIB, 1, 4096, ()),
]


@cache
def empty(shape: int) -> bytes:
    bits, size, per_cluster, sector, options = SHAPES[shape]
    with tempfile.TemporaryDirectory() as work:
        path = make_volume(
            Path(work) / "v", size, bits, sectors_per_cluster=per_cluster, bytes_per_sector=sector, options=options
        )
        return path.read_bytes()


def populated(shape: int, seed: int, longest: int, crowded: bool, bad: bool) -> ScatteredVolume:
    """Files, directories, deleted files between them, until the volume is half or almost full."""
    volume = ScatteredVolume(bytearray(empty(shape)), seed, longest)
    noise = random.Random(seed)
    if bad:
        volume.mark_bad(*noise.sample(range(2, volume.clusters + 2), noise.randint(1, 4)))
    floor = 8 if crowded else volume.free // 2
    paths = ["/"]
    for k in range(60):
        above = noise.choice(paths)
        if len(volume.directories["/"].entries) > 40 and above == "/":
            continue
        path = f"{above.rstrip('/')}/{k}{noise.choice(('', ' and a rather longer name'))}"
        size = int(noise.choice((0, 1, 2, 3, 11)) * volume.bytes_per_cluster * noise.random() * (1 + 9 * crowded))
        if volume.free - size // volume.bytes_per_cluster < floor + 4:
            break
        if noise.random() < 0.2:
            volume.add_directory(path)
            paths.append(path)
        else:
            volume.add_file(path, noise.randbytes(size), noise.choice((0x20, 0x21, 0x06)), deleted=noise.random() < 0.2)
    volume.finish()
    return volume


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.integers(0, len(SHAPES) - 1),
    seed=st.integers(0, 1 << 32),
    longest=st.sampled_from((0, 1, 3, 40)),
    crowded=st.booleans(),
    bad=st.booleans(),
    defragment=st.booleans(),
    size=st.one_of(st.none(), st.tuples(st.sampled_from(("least", "now")), st.integers(-3, 3)), st.floats(0, 3)),
)
def test_any_tree_is_laid_out_right_or_refused_before_anything(
    shape: int,
    seed: int,
    longest: int,
    crowded: bool,
    bad: bool,
    defragment: bool,
    size: tuple[str, int] | float | None,
) -> None:
    volume = populated(shape, seed, longest, crowded, bad)
    sector = volume.sector
    work = Path(tempfile.mkdtemp())
    try:
        source = work / "v"
        source.write_bytes(volume.content)
        assert fsck(source)[0] == 0
        opened = FatVolume(FileDevice(source))
        least, facts = opened.smallest_bytes(opened.scan()), opened.facts
        if isinstance(size, tuple):
            wanted = {"least": least, "now": facts.size_bytes}[size[0]] + size[1] * sector
        else:
            wanted = None if size is None else int(facts.size_bytes * size)
        wish = Wish(defragment, wanted, hidden_sectors=seed & 0xFFFF)
        if wanted is not None and wanted < least:
            with pytest.raises(RefusedError, match=f"give it {least} bytes or more"):
                opened.relocate(opened.scan(), wish)
            return
        plan = carry_out(source, wish, work / "new", mtools=volume.bits != 32)  # mtools takes a small FAT32 for FAT12
        assert plan.facts.hidden_sectors == seed & 0xFFFF
        if wanted is not None:
            spans_less = bool(plan.facts.notes)
            assert wanted - plan.facts.size_bytes < sector or spans_less
            growth = max(volume.bytes_per_cluster, 4096, volume.fats * sector)  # a step of the FATs that wins nothing
            most = clusters_max(volume.bits)
            assert bad or plan.facts.total_clusters == most or wanted - plan.facts.size_bytes < growth * 2
        if defragment and not bad:
            assert in_pieces(plan.scan) == []
            assert by_place(plan.scan) == walked(plan.scan)
        if not defragment and wanted is not None and plan.facts.size_bytes <= facts.size_bytes:
            inside = opened.allocated().clip(0, plan.facts.size_bytes - facts.bytes_per_cluster)
            assert np.array_equal(moved(plan, inside.start), inside.start)  # what can stay does
    finally:
        shutil.rmtree(work)


@given(
    size=st.lists(st.integers(0, 30), max_size=40),
    gaps=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 60)), min_size=1, max_size=30),
)
def test_units_are_placed_whole_wherever_a_gap_has_room(size: list[int], gaps: list[tuple[int, int]]) -> None:
    apart, length = np.array(gaps, dtype=np.int64).T
    free = Runs(np.cumsum(apart) + np.cumsum(length) - length, length)
    size = size[: int(np.searchsorted(np.cumsum(size), free.total, side="right"))]
    put = place(np.array(size, dtype=np.int64), free)
    assert first_overlap(put.start, put.length) is None
    assert free.covers(Runs.from_arrays(put.start, put.length))
    assert (np.diff(put.unit) >= 0).all()
    assert np.bincount(put.unit, put.length, minlength=len(size)).tolist() == size
    left = free.subtract(Runs.from_arrays(put.start, put.length))
    cut = np.flatnonzero(np.bincount(put.unit, minlength=len(size)) > 1)
    if len(cut) == 0 and len(size):
        assert len(put.unit) == sum(map(bool, size))
    for unit in cut.tolist():
        assert size[unit] > max(left.length, default=0)


def test_a_unit_that_fits_nowhere_is_cut_into_as_few_pieces_as_can_be() -> None:
    put = place(np.array([9], dtype=np.int64), Runs.of([(0, 1), (10, 2), (20, 5), (30, 1), (40, 5)]))
    assert (put.start.tolist(), put.length.tolist()) == ([20, 40], [5, 4])


def test_units_that_fit_are_placed_in_order_from_the_front() -> None:
    sizes = np.array([3, 0, 5, 4, 2, 9, 1], dtype=np.int64)
    assert place(sizes, Runs.of([(10, 30)])).start.tolist() == [10, 13, 18, 22, 24, 33]
    put = place(sizes, Runs.of([(10, 7), (20, 14), (40, 5)]))
    pieces = list(zip(put.unit.tolist(), put.start.tolist(), put.length.tolist(), strict=True))
    assert pieces == [(0, 10, 3), (2, 20, 5), (3, 13, 4), (4, 25, 2), (5, 28, 6), (5, 40, 3), (6, 27, 1)]


@given(
    clusters=st.integers(1, 60),
    taken=st.sets(st.integers(2, 61)),
    spoiled=st.sets(st.integers(2, 61), max_size=20),
)
def test_the_smallest_size_has_as_many_good_clusters_as_are_taken(
    clusters: int, taken: set[int], spoiled: set[int]
) -> None:
    geometry = geometry_of(parse(bytes(BareVolume(12, clusters).content[:512])))
    inside = range(2, clusters + 2)
    bad = Runs.of([(cluster, 1) for cluster in spoiled if cluster in inside])
    allocated = Runs.of([(cluster, 1) for cluster in taken if cluster in inside]).union(bad)
    needed = allocated.total - bad.total
    least = next(n for n in range(clusters + 1) if sum(c not in spoiled for c in range(2, n + 2)) >= needed)
    assert smallest_bytes(geometry, allocated, bad) == geometry.heap_offset + max(least, 1) * 512


@given(
    bits=st.sampled_from((12, 16, 32)),
    clusters=st.integers(0, 3000),
    per_cluster=st.sampled_from((1, 2, 8, 64)),
    fats=st.integers(1, 3),
    reserved=st.integers(1, 40),
    spare=st.integers(0, 2),
    tail=st.integers(0, 63),
    more=st.integers(0, 5000),
)
@example(12, 1021, 8, 2, 1, 0, 7, 1)  # the FATs are full, and the sectors behind the last cluster stay
@example(32, 0, 1, 3, 1, 0, 0, 141)  # one step more than enough would cost clusters
def test_a_volume_grows_to_as_many_clusters_as_its_room_can_have(
    bits: int, clusters: int, per_cluster: int, fats: int, reserved: int, spare: int, tail: int, more: int
) -> None:
    clusters += {12: 1, 16: 4085, 32: 65525}[bits]
    fat = -(-(clusters + 2) * bits // 4096) + spare
    root = 0 if bits == 32 else 4
    heap = reserved + fats * fat + root
    sectors = heap + clusters * per_cluster + min(tail, per_cluster - 1)
    head = BareVolume(bits, 100 if bits == 12 else 5000, root_entries=64, heap=False).content
    struct.pack_into("<BHBH", head, 13, per_cluster, reserved, fats, root * 16)
    struct.pack_into("<H", head, 19, 0)
    struct.pack_into("<H", head, 22, 0 if bits == 32 else fat)
    struct.pack_into("<II" if bits == 32 else "<I", head, 32, *((sectors, fat) if bits == 32 else (sectors,)))
    boot = parse(bytes(head[:512]))
    geometry = geometry_of(boot)
    size = new_size(geometry, boot, (sectors + more) * 512, 0, Runs.empty())
    after = resized(geometry, boot, size)
    alignment = max(per_cluster * 512, min(geometry.heap_offset & -geometry.heap_offset, 4096))

    def possible(growth: int) -> int:
        entries = (fat + growth) * 4096 // bits - 2
        return min(entries, clusters_max(bits), (sectors + more - heap - fats * growth) // per_cluster)

    growths = [growth for growth in range(400) if fats * growth * 512 % alignment == 0]
    assert after.total_clusters == max(map(possible, growths)) >= clusters
    assert size.fat_sectors == fat + next(growth for growth in growths if possible(growth) == after.total_clusters)
    assert sectors <= size.total_sectors <= sectors + more
    assert bool(size.note) == (more + sectors - size.total_sectors >= per_cluster)
    assert (after.heap_offset - geometry.heap_offset) % alignment == 0


@given(a=st.lists(st.integers(0, 9), max_size=20), b=st.lists(st.integers(0, 9), max_size=20))
def test_two_sequences_of_lengths_are_cut_at_each_others_borders(a: list[int], b: list[int]) -> None:
    b = [*b, max(0, sum(a) - sum(b))]
    units = [(k, n) for k, length in enumerate(a) for n in range(length)]
    others = [(k, n) for k, length in enumerate(b) for n in range(length)]
    parts = overlap(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64))
    got_a, got_b = [], []
    for of_a, into_a, of_b, into_b, length in np.column_stack(parts).tolist():
        assert length > 0
        got_a += [(of_a, into_a + n) for n in range(length)]
        got_b += [(of_b, into_b + n) for n in range(length)]
    assert got_a == units
    assert got_b == others[: len(units)]


def test_a_hundred_thousand_files_are_planned_within_three_seconds(tmp_path: Path) -> None:
    source = make_volume(tmp_path / "v", 80 * MIB, 32, sectors_per_cluster=1)
    volume = ScatteredVolume(bytearray(source.read_bytes()), seed=1, longest=1)
    for directory in range(100):
        volume.add_directory(f"/d{directory}")
    for k in range(100_000):
        volume.add_file(f"/d{k % 100}/{k}", b"x" * (k % 700))
    source.write_bytes(volume.finish())
    opened = FatVolume(FileDevice(source))
    scan = opened.scan()
    for wish in (Wish(defragment=True), Wish(size_bytes=opened.smallest_bytes(scan)), Wish(size_bytes=160 * MIB)):
        opened = FatVolume(FileDevice(source))
        started = time.monotonic()
        plan = opened.relocate(scan, wish)
        assert time.monotonic() - started < 3 * PATIENCE
        assert not wish.defragment or in_pieces(plan.scan) == []
        assert len(plan.fixups) < 15_000
