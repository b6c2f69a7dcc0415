"""The tables of exFAT: FAT chains, the Allocation Bitmap, the Up-case Table, checksums; also on TexFAT volumes."""

from __future__ import annotations

import random
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.content import InlineContent
from sqlimage.filesystem.exfat import ExfatVolume, table
from sqlimage.filesystem.exfat.bitmap import allocated_clusters
from sqlimage.filesystem.exfat.boot import read_boot
from sqlimage.filesystem.exfat.checksum import rotated_sum, rotated_sums
from sqlimage.filesystem.exfat.places import Places
from sqlimage.filesystem.exfat.table import Ending, Table
from sqlimage.filesystem.exfat.upcase import decode
from sqlimage.media.memory import MemoryDevice
from tests.make import exfat as make
from tests.make.exfat import UP_CASE, BareVolume, file_set, table_entry


@given(st.binary(max_size=200), st.sampled_from([16, 32]))
def test_a_checksum_is_that_of_the_specification(data: bytes, bits: int) -> None:
    assert rotated_sum(data, bits) == make.rotated_sum(data, bits)


@given(
    st.binary(min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 299), st.integers(0, 299)), min_size=1, max_size=40),
    st.sampled_from([(), (2, 3), (0,)]),
)
def test_checksums_of_many_stretches_are_those_of_each(
    data: bytes, stretches: list[tuple[int, int]], left_out: tuple[int, ...]
) -> None:
    pairs = [(low % len(data), size % (len(data) - low % len(data) + 1)) for low, size in stretches]
    start, length = np.array(pairs, dtype=np.int64).T
    found = rotated_sums(np.frombuffer(data, dtype=np.uint8), start, length, left_out)
    assert found.tolist() == [make.rotated_sum(data[low : low + size], 16, left_out) for low, size in pairs]


@given(st.lists(st.booleans(), min_size=1, max_size=400), st.integers(0, 7))
def test_set_bits_become_runs_of_clusters(bits: list[bool], behind: int) -> None:
    raw = np.packbits(np.array(bits + [True] * behind), bitorder="little").tobytes()
    expected = Runs.of([(k + 2, 1) for k, is_set in enumerate(bits) if is_set])
    assert allocated_clusters(InlineContent(raw), len(bits)) == expected


@pytest.mark.parametrize("pattern", [b"\x00", b"\xff", b"\x0f", b"\x80", b"\x01"])
def test_runs_go_on_over_the_pieces_a_large_bitmap_is_read_in(pattern: bytes) -> None:
    raw = pattern * ((2 << 20) + 17)
    total = len(raw) * 8 - 3
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")[:total]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], bits, [0])).astype(np.int8)))
    found = allocated_clusters(InlineContent(raw), total)
    assert found == Runs(edges[::2] + 2, edges[1::2] - edges[::2])


def compressed(mapping: list[int]) -> list[int]:
    """The units of an up-case table, with every run of identity mappings counted."""
    units: list[int] = []
    at = 0
    while at < len(mapping):
        end = at
        while end < len(mapping) and mapping[end] == end and end - at < 0xFFFF:
            end += 1
        if end > at:
            units += [0xFFFF, end - at]
        else:
            units.append(mapping[at])
            end = at + 1
        at = end
    return units


def packed(units: list[int]) -> bytes:
    return struct.pack(f"<{len(units)}H", *units)


@given(st.dictionaries(st.integers(0, 0xFFFE), st.integers(0, 0xFFFE), max_size=60))
@settings(max_examples=12, deadline=None)
def test_an_up_case_table_says_the_same_compressed_or_not(changes: dict[int, int]) -> None:
    mapping = list(range(1 << 16))
    for unit, upper in changes.items():
        mapping[unit] = upper
    for raw in (packed(mapping), packed(compressed(mapping))):
        assert decode(raw, make.rotated_sum(raw, 32)).tolist() == mapping


def test_a_short_up_case_table_leaves_the_rest_as_it_is() -> None:
    raw = packed([0xFFFF, 0x61, 0x41])
    found = decode(raw, make.rotated_sum(raw, 32)).tolist()
    assert found[0x60:0x64] == [0x60, 0x41, 0x62, 0x63]


@pytest.mark.parametrize(
    "units",
    [[0xFFFF, 0xFFFF] * 2, [0xFFFF, 0xFFFF, 1, 2], [0] * 65535 + [0xFFFF, 2], [0xFFFF, 0xFFFF] * 30_000],
)
def test_an_up_case_table_of_too_many_characters_is_refused(units: list[int]) -> None:
    raw = packed(units)
    with pytest.raises(InconsistentVolume, match="more than 65536 characters"):
        decode(raw, make.rotated_sum(raw, 32))


def test_a_damaged_up_case_table_is_refused() -> None:
    volume = BareVolume(100)
    volume.content[volume.offset_of(volume.up_case_at) + 5] ^= 1
    found = ExfatVolume(MemoryDevice(volume.content))
    assert found.allocated()
    with pytest.raises(InconsistentVolume, match="Up-case Table: its checksum is"):
        found.scan()


def naive_chain(links: dict[int, int], first: int, wanted: int, clusters: int) -> tuple[list[int], int]:
    """The clusters of a chain one by one, and why it stops."""
    path: list[int] = []
    at = first
    while len(path) < wanted:
        if at == make.END:
            return path, Ending.END
        if at == make.BAD:
            return path, Ending.BAD
        if at == 0:
            return path, Ending.FREE
        if not 2 <= at < clusters + 2:
            return path, Ending.OUTSIDE
        if at in path:
            return path, Ending.LOOP
        path.append(at)
        at = links.get(at, 0)
    return path, Ending.ENOUGH


@given(st.data(), st.sampled_from([3, 8, 1 << 14]), st.sampled_from([2, 64]))
@settings(max_examples=150, deadline=None)
def test_chains_are_followed_as_one_by_one(data: st.DataObject, page: int, rounds: int) -> None:
    clusters = data.draw(st.integers(4, 60))
    inside = st.integers(2, clusters + 1)
    targets = st.one_of(inside, st.sampled_from([0, 1, make.END, make.BAD, clusters + 2, 1 << 31]))
    links = {cluster: cluster + 1 for cluster in data.draw(st.sets(inside))}
    links |= data.draw(st.dictionaries(inside, targets))
    wanted = data.draw(st.lists(st.tuples(inside, st.integers(0, clusters)), min_size=1, max_size=8))
    volume = BareVolume(clusters)
    for cluster in range(2, clusters + 2):
        volume.link(cluster, links.get(cluster, 0))
    device = MemoryDevice(volume.content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table, "PAGE_ENTRIES", page)
        patched.setattr(table, "ROUNDS_TOGETHER", rounds)
        patched.setattr(table, "PAGES_KEPT", 2)
        found = Table(device, read_boot(device).geometry).follow(*np.array(wanted, dtype=np.int64).T)
    for k, (first, count) in enumerate(wanted):
        path, ending = naive_chain(links, first, count, clusters)
        part = slice(found.first_run[k], found.first_run[k + 1])
        runs = list(zip(found.start[part].tolist(), found.length[part].tolist(), strict=True))
        assert found.ending[k] == ending
        if ending != Ending.LOOP:
            assert [start + at for start, length in runs for at in range(length)] == path
            assert all(a + n != b for (a, n), (b, _) in pairwise(runs))


@given(st.integers(2, 60), st.integers(0, 70), st.sampled_from([3, 1 << 14]))
def test_the_successor_of_a_cluster_is_what_its_entry_says(cluster: int, target: int, page: int) -> None:
    volume = BareVolume(60)
    for k in range(2, 62):
        volume.link(k, k + 1)
    volume.link(cluster, target)
    device = MemoryDevice(volume.content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table, "PAGE_ENTRIES", page)
        found = Table(device, read_boot(device).geometry)
        assert found.successor(cluster) == (target if 2 <= target < 62 else None)


@given(st.lists(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 12)), max_size=6), max_size=12))
def test_places_that_meet_are_told(additions: list[list[tuple[int, int]]]) -> None:
    taken: set[int] = set()
    places = Places()
    for runs in additions:
        start, length = np.array(runs, dtype=np.int64).reshape(-1, 2).T
        mine = [set(range(low, low + size)) for low, size in runs]
        clash = sum(map(len, mine)) + len(taken) > len(taken.union(*mine))
        met = places.add(start, length)
        assert (met is not None) == clash
        if met is not None:
            others = taken.union(*(cells for k, cells in enumerate(mine) if k != met))
            assert mine[met] & others
            return
        taken = taken.union(*mine)


def texfat() -> BareVolume:
    """Two FATs and two bitmaps that differ: by the second a file lies in clusters 20 and 30, by the first elsewhere."""
    volume = BareVolume(100, fats=2, cluster_shift=1)
    second = volume.free
    volume.chain(second)
    for first, last in ((volume.bitmap, volume.up_case_at), (volume.up_case_at, volume.root), (volume.root, second)):
        volume.chain(*range(first, last), fat=1)
    volume.chain(second, fat=1)
    for cluster, data in ((20, b"a"), (30, b"b"), (40, b"c")):
        volume.write(cluster, data * volume.bytes_per_cluster)
    volume.write(second, bytes(volume.content[volume.offset_of(2) :][: volume.bitmap_bytes]))
    volume.link(20, 30, 1)
    volume.link(30, make.END, 1)
    volume.link(20, 40, 0)
    volume.link(40, make.END, 0)
    volume.use(20, 30, bitmap=second)
    volume.use(20, 40)
    volume.write(
        volume.root,
        table_entry(0x81, second, volume.bitmap_bytes, flags=1)
        + volume.root_entries
        + b"\xa1\xff\xff\xff"  # TexFAT padding, whatever its SecondaryCount
        + bytes(28)
        + file_set("file", 20, 2048),
    )
    return volume


@pytest.mark.parametrize(("active", "end"), [(0, b"c"), (1, b"b")])
def test_of_two_fats_and_bitmaps_the_active_ones_are_used(active: int, end: bytes) -> None:
    volume = texfat()
    volume.fields["VolumeFlags"] = active
    found = ExfatVolume(MemoryDevice(volume.seal().content))
    scan = found.scan()
    assert scan.entries.path == ["/", "/file", "/$Bitmap", "/$UpCase"]
    assert found.open(int(scan.entries.record[1])).read(0, 5000) == b"a" * 1024 + end * 1024
    assert scan.contents.run_offset[scan.contents.first_run[1] :][:2].tolist() == [
        volume.offset_of(20),
        volume.offset_of(30 if active else 40),
    ]
    assert found.allocated().covers(Runs.from_arrays(scan.contents.run_offset, scan.contents.run_length))
    assert not found.allocated().covers(Runs.of([(volume.offset_of(40 if active else 30), 1)]))


def test_the_active_fat_is_told_by_the_main_boot_sector_even_where_the_rest_of_it_is_damaged() -> None:
    volume = texfat()
    volume.fields["VolumeFlags"] = 1
    volume.seal(backup=False).content[300] ^= 1
    found = ExfatVolume(MemoryDevice(volume.content))
    assert found.facts.notes
    assert found.open(int(found.scan().entries.record[1])).read(1024, 1) == b"b"


def test_long_chains_in_pieces_are_followed_quickly() -> None:
    chance = random.Random(3)
    clusters = list(range(700, 40_000))
    chance.shuffle(clusters)
    volume = BareVolume(40_000)
    volume.chain(*clusters)
    device = MemoryDevice(volume.content)
    found = Table(device, read_boot(device).geometry).follow(np.array(clusters[:1]), np.array([len(clusters)]))
    assert found.ending[0] == Ending.ENOUGH
    held = [
        start + at
        for start, length in zip(found.start.tolist(), found.length.tolist(), strict=True)
        for at in range(length)
    ]
    assert held == clusters


def test_the_recommended_up_case_table_is_upper_case(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = make.make_volume(tmp_path_factory.mktemp("v") / "v", 8 << 20)
    found = ExfatVolume(MemoryDevice(path.read_bytes()))
    entries = found.scan().entries
    raw = found.open(int(entries.record[entries.path.index("/$UpCase")])).read(0, 1 << 17)
    upper = decode(raw, 0xE619D30D).tolist()
    assert make.rotated_sum(raw, 32) == 0xE619D30D
    assert [upper[ord(letter)] for letter in "azäéßΩωяЯ1~"] == [ord(letter) for letter in "AZÄÉßΩΩЯЯ1~"]
    assert upper[0xFFFF] == 0xFFFF
    by_python = [ord(chr(k).upper()) if len(chr(k).upper()) == 1 else k for k in range(0xD800)]
    assert sum(a != b for a, b in zip(upper, by_python, strict=False)) < 800  # Unicode has grown since


def test_the_smallest_table_of_the_maker_is_one() -> None:
    upper = decode(UP_CASE, make.rotated_sum(UP_CASE, 32)).tolist()
    assert upper == [make.ascii_upper(unit) for unit in range(1 << 16)]
