"""What a relocation is made of, each by itself: mapping pairs, layouts, sizes, bitmaps, logs."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.filesystem.content import InlineContent
from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ntfs.boot import BootSector, Geometry
from sqlimage.filesystem.ntfs.relocate_bitmap import bits_of
from sqlimage.filesystem.ntfs.relocate_layout import from_the_front, into_gaps
from sqlimage.filesystem.ntfs.relocate_log import log_problem
from sqlimage.filesystem.ntfs.relocate_pack import pack
from sqlimage.filesystem.ntfs.relocate_size import Demand, span_for
from sqlimage.filesystem.ntfs.relocate_table import NEW, Moved, Places, Table, moved, resized
from sqlimage.filesystem.ntfs.runlist import decode, encode_many
from tests.make.ntfs_relocated import restart_page

RUNS = st.lists(
    st.tuples(
        st.integers(0, 1 << 40) | st.integers(0, 300) | st.just(HOLE), st.integers(1, 1 << 34) | st.integers(1, 99)
    )
)
"""Runs as LCN and length."""


def encoded(lists: list[list[tuple[int, int]]]) -> list[bytes]:
    table = np.array([run for runs in lists for run in runs], dtype=np.int64).reshape(-1, 2)
    count = np.array([len(runs) for runs in lists], dtype=np.int64)
    pairs, start = encode_many(count, table[:, 0], table[:, 1])
    return [pairs[low:high].tobytes() for low, high in pairwise(start)]


@given(st.lists(RUNS, max_size=8))
def test_run_lists_are_read_as_they_were_written(lists: list[list[tuple[int, int]]]) -> None:
    for runs, pairs in zip(lists, encoded(lists), strict=True):
        assert decode(pairs, sum(length for _, length in runs), 1 << 50) == runs


@pytest.mark.parametrize(
    ("runs", "pairs"),
    [
        ([], "00"),
        ([(0x5634, 0x18), (HOLE, 0x10), (0x5624, 8), (0x15625, 4)], "21 18 34 56  01 10  11 08 f0  31 04 01 00 01  00"),
        ([(127, 127)], "11 7f 7f 00"),
        ([(128, 128)], "22 80 00 80 00 00"),
        ([(200, 1), (72, 1), (200, 1)], "21 01 c8 00 11 01 80 21 01 80 00 00"),
        ([(0, 16)], "11 10 00 00"),
        ([(32767, 32768)], "23 00 80 00 ff 7f 00"),
    ],
)
def test_no_number_takes_a_byte_more_than_it_needs(runs: list[tuple[int, int]], pairs: str) -> None:
    assert encoded([runs, runs]) == [bytes.fromhex(pairs)] * 2


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, int]:
    """Streams in pieces all over a volume, some of them holes, and how many clusters it has."""
    pieces = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=30))
    at, rows = 0, []
    for gap, length, owner in pieces:
        rows.append((owner, at + gap, length))
        at += gap + length
    for owner in draw(st.lists(st.integers(0, 5), max_size=4)):
        rows.append((owner, HOLE, draw(st.integers(1, 9))))
    rows = sorted(draw(st.permutations(rows)), key=lambda row: row[0])
    columns = np.array(rows, dtype=np.int64)
    return Table(columns[:, 0], columns[:, 0], columns[:, 1], columns[:, 2]), at + draw(st.integers(0, 9))


def check(table: Table, places: Places, clusters: int) -> Moved:
    """Every cluster has a place of its own within the volume, and the same one in its stream."""
    result = moved(table, places, np.zeros(6, dtype=np.bool_), merge=True)
    old, new, length = result.old, result.new, result.length
    where = {int(a) + i: int(b) + i for a, b, count in zip(old, new, length, strict=True) for i in range(int(count))}
    assert sorted(where) == sorted(cluster for row in clusters_of(table) for cluster in row if cluster >= 0)
    assert len(set(where.values())) == len(where) and all(0 <= cluster < clusters for cluster in where.values())
    wanted = [[where.get(cluster, cluster) for cluster in row] for row in clusters_of(table)]
    assert clusters_of(result.table) == wanted
    return result


def clusters_of(table: Table) -> list[list[int]]:
    """The clusters of each owner in their order."""
    out: list[list[int]] = [[] for _ in range(6)]
    for owner, lcn, length in zip(table.owner.tolist(), table.lcn.tolist(), table.length.tolist(), strict=True):
        out[owner] += [lcn if lcn < 0 else lcn + i for i in range(length)]
    return out


def pieces_of(result: Moved) -> list[int]:
    """Places where a stream does not go on behind itself, for each owner."""
    out = []
    for row in clusters_of(result.table):
        backed = [cluster for cluster in row if cluster >= 0]
        out.append(sum(b != a + 1 for a, b in pairwise(backed)) + bool(backed))
    return out


@given(tables(), st.permutations(range(6)))
def test_from_the_front_every_stream_is_one_run_and_no_cluster_is_left_out(
    made: tuple[Table, int], order: list[int]
) -> None:
    table, _ = made
    used = int(table.length[table.backed].sum())
    places = from_the_front(table, np.array(order), np.zeros(6, dtype=np.bool_), used)
    assert places is not None
    result = check(table, places, used)
    assert max(pieces_of(result)) <= 1
    firsts = [min((c for c in clusters_of(result.table)[owner] if c >= 0), default=None) for owner in order]
    told = [first for first in firsts if first is not None]
    assert told == sorted(told)


@given(tables(), st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_streams_are_laid_around_what_stays(made: tuple[Table, int], order: list[int], stay: set[int]) -> None:
    table, clusters = made
    fixed = np.array([owner in stay for owner in range(6)])
    places = from_the_front(table, np.array(order), fixed, clusters)
    assert places is not None
    result = check(table, places, clusters)
    for owner in stay:
        assert clusters_of(result.table)[owner] == clusters_of(table)[owner]
    limit = int(table.length[table.backed].sum())
    ends = [lcn + n for o, lcn, n in zip(table.owner, table.lcn, table.length, strict=True) if lcn >= 0 and fixed[o]]
    tight = max([limit, *ends])
    places = from_the_front(table, np.array(order), fixed, tight)
    assert places is not None
    check(table, places, tight)


@given(tables(), st.integers(0, 100), st.integers(0, 5), st.booleans())
def test_only_what_lies_beyond_the_end_goes_into_gaps(
    made: tuple[Table, int], spare: int, whole: int, cut: bool
) -> None:
    table, _ = made
    clusters = int(table.length[table.backed].sum()) + spare
    places = into_gaps(table, clusters, whole, cut=cut)
    if places is None:
        return
    result = check(table, places, clusters)
    beyond = table.backed & (table.lcn + table.length > clusters)
    going = ~table.backed | beyond | ((table.owner == whole) & beyond[table.owner == whole].any())
    if cut:
        for old, new, length in zip(result.old.tolist(), result.new.tolist(), result.length.tolist(), strict=True):
            inside = old + length <= clusters and old not in clusters_of(table)[whole]
            assert old == new or not inside
        return
    stays = {int(lcn) + i for lcn, n in zip(table.lcn[~going], table.length[~going], strict=True) for i in range(n)}
    for old, new, length in zip(result.old.tolist(), result.new.tolist(), result.length.tolist(), strict=True):
        assert old == new or not stays & set(range(old, old + length))
    if beyond[table.owner == whole].any():
        assert pieces_of(result)[whole] == 1


def test_pieces_too_large_for_any_gap_are_not_torn() -> None:
    columns = np.array([(0, 0, 4), (1, 6, 4), (2, 12, 4)], dtype=np.int64)
    table = Table(columns[:, 0], columns[:, 0], columns[:, 1], columns[:, 2])
    assert into_gaps(table, 12, 0, cut=False) is None
    assert into_gaps(table, 16, 0, cut=False) is not None


def test_what_a_stream_has_to_move_is_kept_together_where_a_gap_takes_it() -> None:
    columns = np.array([(0, 0, 1), (0, 90, 2), (0, 80, 2), (1, 5, 1), (1, 95, 1), (2, 10, 1)], dtype=np.int64)
    table = Table(columns[:, 0], columns[:, 0], columns[:, 1], columns[:, 2])
    places = into_gaps(table, 12, 2, cut=False)
    assert places is not None
    result = moved(table, places, np.zeros(6, dtype=np.bool_), merge=False)
    assert clusters_of(result.table) == [[0, 1, 2, 3, 4], [5, 6], [10], [], [], []]


def test_a_bitmap_that_grows_stays_where_it_is_if_there_is_room_behind_it() -> None:
    columns = np.array([(0, 10, 2), (0, NEW, 3), (1, 0, 4), (2, 20, 1)], dtype=np.int64)
    table = Table(columns[:, 0], columns[:, 0], columns[:, 1], columns[:, 2])
    for room, place in ((30, 10), (14, 4)):
        places = into_gaps(table, room, 0, cut=False)
        assert places is not None
        result = moved(table, places, np.zeros(6, dtype=np.bool_), merge=True)
        assert clusters_of(result.table)[0] == list(range(place, place + 5))


def test_items_that_must_come_first_do_so_where_the_order_of_the_others_cannot_be_kept() -> None:
    gaps, size = Runs.of([(0, 5), (10, 5)]), np.array([3, 5, 2], dtype=np.int64)
    for first, places in ((0, [10, 0, 13]), (1, [0, 10, 3])):
        packed = pack(gaps, size, first)
        assert packed is not None
        assert [place for _, place in sorted(zip(packed.item.tolist(), packed.place.tolist(), strict=True))] == places
    assert pack(gaps, size + 1, 0) is None


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=20),
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.integers(0, 3),
)
def test_items_fill_gaps_without_overlap_and_are_torn_only_where_no_gap_takes_them(
    gaps: list[tuple[int, int]], sizes: list[int], first: int
) -> None:
    free = Runs.of(gaps)
    packed = pack(free, np.array(sizes, dtype=np.int64), min(first, len(sizes)))
    if sum(sizes) > free.total:
        assert packed is None
        return
    assert packed is not None
    pieces = sorted(zip(packed.item.tolist(), packed.inside.tolist(), packed.place.tolist(), strict=True))
    used: list[int] = []
    for (item, inside, place), after in zip(pieces, [*pieces[1:], (-1, 0, 0)], strict=True):
        end = after[1] if after[0] == item else sizes[item]
        used += range(place, place + end - inside)
    assert len(set(used)) == len(used) == sum(sizes)
    assert free.covers(Runs.of((place, 1) for place in used))
    assert {item for item, _, _ in pieces} == set(range(len(sizes)))


@given(tables(), st.integers(0, 5), st.integers(0, 60))
def test_a_stream_that_is_made_longer_or_shorter_keeps_its_start(made: tuple[Table, int], owner: int, to: int) -> None:
    table, _ = made
    before = clusters_of(table)
    if not before[owner] or to == 0:
        return
    for filler in (NEW, HOLE):
        after = clusters_of(resized(table, owner, to, filler))
        assert after[owner] == (before[owner] + [filler] * to)[:to]
        assert after[:owner] + after[owner + 1 :] == before[:owner] + before[owner + 1 :]


@given(
    st.integers(1, 400),
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 30)), max_size=12),
    st.sampled_from([8, 16, 512]),
)
def test_the_least_size_is_the_first_that_fits(in_use: int, bad: list[tuple[int, int]], unit: int) -> None:
    demand = Demand(1000, in_use, unit, Runs.of(bad).clip(0, 1000))
    assert demand.least() == next(clusters for clusters in range(1001) if demand.fits(clusters))


def test_where_a_size_does_not_fit_though_a_smaller_one_does_the_volume_spans_less() -> None:
    boot = BootSector(512, 1, 0, 0, 0, 9000, 4, 8, -10, 1, 0)
    geometry = Geometry(boot, 512, 1024, 9000, 9001 * 512)
    demand = Demand(9000, 4094, 512, Runs.of([(4095, 2)]))
    assert [demand.fits(clusters) for clusters in (4094, 4095, 4096, 4097, 4098)] == [False, True, True, False, True]
    assert span_for(geometry, demand, 4098 * 512).clusters == 4095
    assert span_for(geometry, demand, 4099 * 512).clusters == 4098
    with pytest.raises(RefusedError, match=f"needs {4096 * 512} bytes"):
        span_for(geometry, demand, 4095 * 512)


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 700))), st.integers(0, 600), st.integers(1, 200))
def test_a_bitmap_has_a_bit_for_each_cluster(runs: list[tuple[int, int]], first: int, count: int) -> None:
    wanted = np.zeros(10_000, dtype=np.bool_)
    for start, length in runs:
        wanted[start : start + length] = True
    packed = np.packbits(wanted, bitorder="little").tobytes()
    assert bits_of(Runs.of(runs), first, count) == packed[first : first + count]


EMPTY = b"\xff" * (4 << 20)


@pytest.mark.parametrize(
    "log",
    [
        EMPTY,
        restart_page(client=0xFFFF, flags=0, lsn=5) + EMPTY[:4096],
        restart_page(client=0, flags=2, lsn=5) * 2,
        restart_page(client=0, flags=0, lsn=5) + restart_page(client=0xFFFF, flags=0, lsn=6),
        restart_page(client=0, flags=2, lsn=5, signature=b"CHKD") + EMPTY[:4096],
        bytes(4096) + restart_page(client=0xFFFF, flags=0, lsn=6),
    ],
)
def test_a_log_is_clean_where_its_newest_restart_page_says_so_or_it_was_never_used(log: bytes) -> None:
    assert log_problem(InlineContent(log)) is None


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        (restart_page(client=0, flags=0, lsn=5) * 2, "changes"),
        (restart_page(client=0, flags=2, lsn=5) + restart_page(client=0, flags=0, lsn=6), "changes"),
        (restart_page(client=0, flags=2, lsn=5, version=2) * 2, "version 2"),
        (b"", "no valid restart page"),
        (bytes(8192), "no valid restart page"),
        (b"RSTR" + bytes(8188), "no valid restart page"),
        (restart_page(client=0xFFFF, flags=0, lsn=6)[:4090], "no valid restart page"),
        (restart_page(client=0xFFFF, flags=0, lsn=6, area=4090) * 2, "no valid restart page"),
        (b"\xff" * 5000 + b"x" + b"\xff" * 5000, "no valid restart page"),
        (EMPTY[: 2 << 20] + b"RCRD" + EMPTY[: (2 << 20) - 4], "no valid restart page"),
        (struct.pack("<4sHHQI", b"RSTR", 30, 9, 0, 1 << 31) + bytes(8168), "no valid restart page"),
    ],
)
def test_a_log_is_not_clean(log: bytes, problem: str) -> None:
    found = log_problem(InlineContent(log))
    assert found is not None and problem in found
