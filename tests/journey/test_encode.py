"""Jobs become map records that lead back to exactly the bytes that were read, whatever holes lie between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sqlimage.codec.chunk import decode
from sqlimage.image.describe import storable
from sqlimage.journey.encode import Encoder
from sqlimage.journey.jobs import NOBODY, Pack, Piece, Window
from sqlimage.media.memory import MemoryDevice

UNIT = 512


def test_a_content_that_begins_with_a_hole_smaller_than_a_chunk_is_mapped_rightly() -> None:
    check([[(1, 100, 10), (11, 500, 10)]], 1000)
    check([[(3, 20, 1)]], 100)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), min_size=1, max_size=6), min_size=1, max_size=6
    ),
    st.integers(0, 3),
)
def test_any_contents_with_holes_come_back(contents: list[list[tuple[int, int]]], spread: int) -> None:
    """Each content is (hole before, clusters) pairs; on the medium they lie one behind the other, ``spread`` apart."""
    at, laid = 0, []
    for content in contents:
        place, pieces = 0, []
        for hole, count in content:
            place += hole
            pieces.append((place, at, count))
            place, at = place + count, at + count + spread
        laid.append(pieces)
    check(laid, at)


def check(contents: list[list[Piece]], clusters: int) -> None:
    """Encode contents on a medium whose clusters are all different (every fifth one zeros) and read them back."""
    medium = bytearray(clusters * UNIT)
    for cluster in range(clusters):
        if cluster % 5:
            medium[cluster * UNIT : (cluster + 1) * UNIT] = cluster.to_bytes(4, "little") * (UNIT // 4)
    window = Window(16, UNIT)
    for pieces in contents:
        window.add(pieces, NOBODY)
    encoder = Encoder(MemoryDevice(medium), UNIT, 16 * UNIT, 1)
    chunks: dict[int, bytes] = {}
    copy = bytearray(len(medium))
    mapped: set[int] = set()
    for job in window.jobs():
        result = encoder.begin(job)()
        for chunk in result.chunks:
            assert chunk.stored is not None
            chunks[chunk.id] = decode(chunk.stored, chunk.flags, chunk.length, chunk.digest)
        for first, last, data, offset in result.records:
            length = (last - first + 1) * UNIT
            assert data is not None
            assert offset + length <= len(chunks[data])
            copy[first * UNIT : first * UNIT + length] = chunks[data][offset : offset + length]
            assert not mapped & set(range(first, last + 1)), "two records for one cluster"
            mapped |= set(range(first, last + 1))
        assert isinstance(job, Pack) or job.clusters > 0
    wanted = {cluster for pieces in contents for _, start, count in pieces for cluster in range(start, start + count)}
    assert mapped <= wanted
    for cluster in wanted:
        assert copy[cluster * UNIT : (cluster + 1) * UNIT] == medium[cluster * UNIT : (cluster + 1) * UNIT], cluster


def test_paths_that_are_not_unicode_keep_their_directories_apart() -> None:
    paths = ["/\ud800", "/\ud800/x", "/\ud801", "/\ud801/x", "/plain"]
    safe = storable(paths)
    assert safe == ["/\ufffd", "/\ufffd/x", "/\ufffd~2", "/\ufffd~2/x", "/plain"]
    "".join(safe).encode("utf-8")
