"""The FAT as segments, against a model that follows one cluster after the other."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.fat import layout, table
from sqlimage.filesystem.fat.boot import Geometry, geometry_of, parse
from sqlimage.filesystem.fat.table import Ending, Table, load, read_entries
from sqlimage.filesystem.fat.walk import Pages, walk
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from tests.make.fat import END, BareVolume

BITS = [12, 16, 32]


def geometry(volume: BareVolume) -> Geometry:
    return geometry_of(parse(bytes(volume.content[:512])))


def loaded(volume: BareVolume) -> Table:
    return load(MemoryDevice(volume.content), geometry(volume))


def model(volume: BareVolume, entries: dict[int, int], first: int) -> tuple[list[int], Ending]:
    """The clusters of a chain, up to a loop, and how it ends."""
    clusters: list[int] = []
    at = first
    while True:
        if not 2 <= at < volume.clusters + 2:
            return clusters, Ending.OUTSIDE
        value = entries.get(at, 0)
        if value in (0, layout.BAD_CLUSTER[volume.bits]):
            return clusters, Ending.BAD if value else Ending.FREE
        if at in clusters:
            return clusters, Ending.LOOP
        clusters.append(at)
        if value >= layout.END_OF_CHAIN[volume.bits]:
            return clusters, Ending.END
        at = value


def spread(runs: list[tuple[int, int]]) -> list[int]:
    return [cluster for start, length in runs for cluster in range(start, start + length)]


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_table_gives_the_chains_and_the_allocation_of_the_model(bits: int, data: st.DataObject) -> None:
    volume = BareVolume(bits, 40 if bits != 16 else 4085)
    volume.link(2, 0)
    special = [0, 0, 1, volume.clusters + 2, layout.BAD_CLUSTER[bits], layout.END_OF_CHAIN[bits]]
    entries: dict[int, int] = {}
    for cluster in range(2, 42):
        value = data.draw(st.one_of(st.just(cluster + 1), st.sampled_from(special), st.integers(2, 41)))
        entries[cluster] = value
        volume.link(cluster, value)
    device, where = MemoryDevice(volume.content), geometry(volume)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "SLAB_ENTRIES", data.draw(st.sampled_from([1, 3, 7, 1 << 15])))
        patch.setattr(table, "ROUNDS_TOGETHER", data.draw(st.sampled_from([1, 2, 64])))
        fat = load(device, where)
        assert spread(list(fat.allocated())) == sorted(c for c in entries if entries[c])
        first = np.arange(-1, 44, dtype=np.int64)
        chains = fat.follow(first)
    for row, cluster in enumerate(first.tolist()):
        part = slice(chains.first_run[row], chains.first_run[row + 1])
        got = spread(list(zip(chains.start[part].tolist(), chains.length[part].tolist(), strict=True)))
        if cluster == 0:
            assert (got, chains.ending[row]) == ([], Ending.END)
            continue
        clusters, ending = model(volume, entries, cluster)
        assert chains.ending[row] == ending
        assert chains.clusters[row] == len(got)
        assert got == clusters if ending != Ending.LOOP else got == clusters[: len(got)]
        walked: list[tuple[int, int]] = []
        if ending == Ending.END:
            walked = list(walk(Pages(device, where), cluster))
            assert spread(walked) == clusters
        else:
            with pytest.raises(InconsistentVolume, match=ending.words):
                for step in walk(Pages(device, where), cluster):
                    walked.append(step)
            if ending != Ending.LOOP:
                assert spread(walked) == clusters


@pytest.mark.parametrize("bits", BITS)
def test_entries_are_unpacked_from_any_first_one(bits: int) -> None:
    volume = BareVolume(bits, 4085 if bits == 16 else 3000)
    values = {cluster: (cluster * 2654435761) & 0x0FFFFFFF & ((1 << bits) - 1) for cluster in range(2, 3002)}
    for cluster, value in values.items():
        volume.link(cluster, value)
    for first, count in ((2, 1), (3, 1), (2, 3000), (3, 999), (1001, 2001), (3001, 1)):
        got = read_entries(MemoryDevice(volume.content), geometry(volume), first, count)
        assert got.tolist() == [values[first + k] for k in range(count)]


def test_the_reserved_bits_of_a_fat32_entry_say_nothing() -> None:
    volume = BareVolume(32, 100)
    volume.chain(5, 9)
    for cluster in (5, 6, 9):
        volume.content[volume.fat_offset + cluster * 4 + 3] |= 0xF0
    fat = loaded(volume)
    assert list(fat.allocated()) == [(2, 1), (5, 1), (9, 1)]
    assert fat.follow(np.array([5])).clusters.tolist() == [2]


def test_bad_clusters_are_allocated_and_nobodys() -> None:
    volume = BareVolume(12, 100)
    for cluster in (7, 8, 20):
        volume.link(cluster, 0xFF7)
    fat = loaded(volume)
    assert list(fat.allocated()) == [(7, 2), (20, 1)]
    assert fat.follow(np.array([7])).ending.tolist() == [Ending.BAD]


def test_holes_of_the_medium_are_free_clusters(tmp_path: Path) -> None:
    volume = BareVolume(32, 2_000_000, heap=False)
    clusters = (3, 40_000, 40_001, 1_500_000, 2_000_001)
    volume.chain(*clusters)
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(len(volume.content))
        for at in range(0, len(volume.content), 4096):
            if any(block := volume.content[at : at + 4096]):
                os.pwrite(file.fileno(), block, at)
    assert path.stat().st_blocks * 512 < 100_000
    fat = load(FileDevice(path), geometry(volume))
    assert spread(list(fat.allocated())) == [2, *clusters]
    chains = fat.follow(np.array([3]))
    assert chains.start.tolist() == [3, 40_000, 1_500_000, 2_000_001]
    assert chains.length.tolist() == [1, 2, 1, 1]


def test_a_file_in_a_million_pieces_is_followed_to_its_end() -> None:
    volume = BareVolume(32, 2_000_001, heap=False)
    order = np.concatenate((np.arange(4, 2_000_002, 2), [END]))
    entries = np.frombuffer(volume.content, dtype="<u4", count=2_000_003, offset=volume.fat_offset)
    entries[3] = order[0]
    entries[order[:-1]] = order[1:]
    chains = loaded(volume).follow(np.array([3]))
    assert chains.clusters.tolist() == [1_000_000]
    assert chains.ending.tolist() == [Ending.END]
    steps = walk(Pages(MemoryDevice(volume.content), geometry(volume)), 3)
    assert sum(count for _, count in steps) == 1_000_000


def test_chains_that_all_share_one_long_tail_do_not_fill_the_memory() -> None:
    volume = BareVolume(32, 100_000, heap=False)
    volume.chain(*range(4, 40_000, 2))
    with pytest.raises(InconsistentVolume, match="share clusters"):
        loaded(volume).follow(np.full(50_000, 4, dtype=np.int64))
