"""Mapping pairs: which clusters hold a stream. One list in plain Python, or thousands at once on arrays.

A list is a row of pairs, each a header byte (low nibble: bytes of the length, high nibble: bytes of the LCN's
difference to the last one, 0 for a hole), ended by a zero byte. Both numbers are signed and little-endian.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import HOLE

_FIELD_BYTES_MAX = 8
_FEW = 32
"""With fewer lists than this still running, plain Python beats another round over arrays."""
READ_AHEAD_BYTES = 16
"""A buffer given to :func:`decode_many` must go on for this long after the last list."""


class MappingPairsError(Exception):
    """A list is malformed. ``index`` says which one; whoever knows the record turns this into an
    :class:`~sqlimage.errors.InconsistentVolume`."""

    def __init__(self, problem: str, index: int = 0) -> None:
        super().__init__(problem)
        self.problem = problem
        self.index = index


def decode(pairs: bytes, clusters: int, total_clusters: int, lcn: int = 0, vcn: int = 0) -> list[tuple[int, int]]:
    """Runs as (LCN or ``HOLE``, clusters) from the bytes between the pairs' start and the attribute's end.

    The runs must add up to ``clusters`` and lie in a volume of ``total_clusters``; ``lcn`` and ``vcn`` continue a
    list begun elsewhere. Raises :class:`MappingPairsError`.
    """
    runs: list[tuple[int, int]] = []
    at = 0
    while at < len(pairs):
        head = pairs[at]
        if head == 0:
            if vcn != clusters:
                raise MappingPairsError(f"the runs cover {vcn} clusters, HighestVcn says {clusters}")
            return runs
        middle = at + 1 + (head & 15)
        last = middle + (head >> 4)
        if not at + 1 < middle <= at + 1 + _FIELD_BYTES_MAX or head >> 4 > _FIELD_BYTES_MAX or last > len(pairs):
            raise MappingPairsError(f"a pair's header is {head:#04x}")
        length = int.from_bytes(pairs[at + 1 : middle], "little", signed=True)
        if not 1 <= length <= clusters - vcn:
            raise MappingPairsError(f"a run has {length} clusters, {clusters - vcn} are left")
        if last > middle:
            lcn += int.from_bytes(pairs[middle:last], "little", signed=True)
            if lcn < 0 or lcn + length > total_clusters:
                raise MappingPairsError(f"a run lies at LCN {lcn}, the volume has {total_clusters} clusters")
            runs.append((lcn, length))
        else:
            runs.append((HOLE, length))
        vcn += length
        at = last
    raise MappingPairsError("the list has no end before the attribute's")


def decode_many(
    buffer: NDArray[np.uint8], start: Int64s, end: Int64s, clusters: Int64s, total_clusters: int
) -> tuple[Int64s, Int64s, Int64s]:
    """The runs of many lists: how many each has, then all LCNs (or ``HOLE``) and lengths in clusters, in list order.

    List i lies in ``buffer[start[i] : end[i]]`` and must cover ``clusters[i]``. Raises :class:`MappingPairsError`.
    """
    which = np.arange(len(start), dtype=np.int64)
    at, lcn, vcn = start, np.zeros_like(start), np.zeros_like(start)
    rounds: list[tuple[Int64s, Int64s, Int64s]] = []
    while len(which) > _FEW:
        _refuse(which, at >= end[which], "the list has no end before the attribute's")
        head = buffer[at]
        ended = head == 0
        if ended.any():
            _refuse(which, ended & (vcn != clusters[which]), "the runs do not add up to HighestVcn")
            which, at, lcn, vcn, head = (a[~ended] for a in (which, at, lcn, vcn, head))
        length_bytes = (head & 15).astype(np.int64)
        lcn_bytes = (head >> 4).astype(np.int64)
        following = at + 1 + length_bytes + lcn_bytes
        wrong = (length_bytes == 0) | (length_bytes > _FIELD_BYTES_MAX) | (lcn_bytes > _FIELD_BYTES_MAX)
        _refuse(which, wrong | (following > end[which]), "a pair's header is wrong")
        length = _signed(buffer, at + 1, length_bytes)
        _refuse(which, (length < 1) | (length > clusters[which] - vcn), "a run's length is out of range")
        backed = lcn_bytes > 0
        lcn = lcn + np.where(backed, _signed(buffer, at + 1 + length_bytes, lcn_bytes), 0)
        _refuse(which, backed & ((lcn < 0) | (lcn > total_clusters - length)), "a run lies outside the volume")
        rounds.append((which, np.where(backed, lcn, HOLE), length))
        vcn = vcn + length
        at = following
    for i, place, last_lcn, last_vcn in zip(which.tolist(), at.tolist(), lcn.tolist(), vcn.tolist(), strict=True):
        try:
            pairs = buffer[place : end[i]].tobytes()
            runs = decode(pairs, int(clusters[i]), total_clusters, last_lcn, last_vcn)
        except MappingPairsError as error:
            error.index = i
            raise
        table = np.array(runs, dtype=np.int64).reshape(-1, 2)
        rounds.append((np.full(len(table), i, dtype=np.int64), table[:, 0], table[:, 1]))
    if not rounds:
        return np.zeros_like(start), start[:0], start[:0]
    owner, all_lcn, all_length = (np.concatenate(column) for column in zip(*rounds, strict=True))
    order = np.argsort(owner, kind="stable")  # rounds are in the order of the runs
    return np.bincount(owner, minlength=len(start)), all_lcn[order], all_length[order]


def encode_many(count: Int64s, lcn: Int64s, clusters: Int64s) -> tuple[NDArray[np.uint8], Int64s]:
    """Mapping pairs of many lists, each number in as few bytes as hold it, and where each list starts.

    List i has the next ``count[i]`` runs of (LCN or ``HOLE``, clusters); the starts end with that of no list, which is
    where the last one ends.
    """
    owner = np.repeat(np.arange(len(count), dtype=np.int64), count)
    backed = np.flatnonzero(lcn != HOLE)
    before = np.zeros(len(backed), dtype=np.int64)
    before[1:] = np.where(owner[backed][1:] == owner[backed][:-1], lcn[backed][:-1], 0)
    difference = np.zeros_like(lcn)
    difference[backed] = lcn[backed] - before
    length_bytes, lcn_bytes = _bytes_of(clusters), np.zeros_like(lcn)
    lcn_bytes[backed] = _bytes_of(difference[backed])
    pair_bytes = 1 + length_bytes + lcn_bytes
    end = np.cumsum(pair_bytes)
    at = end - pair_bytes + owner  # each list before has a byte for its end
    start = np.concatenate(([0], np.concatenate(([0], end))[np.cumsum(count)] + np.arange(1, len(count) + 1)))
    buffer = np.zeros(int(start[-1]), dtype=np.uint8)
    buffer[at] = length_bytes | lcn_bytes << 4
    for numbers, first, size in ((clusters, at + 1, length_bytes), (difference, at + 1 + length_bytes, lcn_bytes)):
        for place in range(int(size.max(initial=0))):
            has = size > place
            buffer[first[has] + place] = numbers[has] >> 8 * place & 0xFF
    return buffer, start


def _bytes_of(numbers: Int64s) -> Int64s:
    """How many bytes hold each number, its sign included."""
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    size = np.ones_like(numbers)
    for bits in range(7, 63, 8):
        size += magnitude >= 1 << bits
    return size


def _signed(buffer: NDArray[np.uint8], at: Int64s, size: Int64s) -> Int64s:
    """Signed little-endian integers of 1 to 8 bytes each; any value where ``size`` is 0."""
    word = np.ascontiguousarray(buffer[at[:, None] + np.arange(8)]).view("<i8")[:, 0].astype(np.int64, copy=False)
    unused_bits = np.minimum(64 - 8 * size, 63)
    return (word << unused_bits) >> unused_bits


def _refuse(which: Int64s, wrong: NDArray[np.bool_], problem: str) -> None:
    if wrong.any():
        raise MappingPairsError(problem, int(which[np.argmax(wrong)]))
