"""What a restore writes where: a medium, or one volume of it, as it was captured or laid out anew. As data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import DamagedError
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.contract import Scan, VolumeFacts
from sqlimage.filesystem.relocation import Relocation
from sqlimage.fixup import Fixup
from sqlimage.journey.ext_resize import ResizedExt
from sqlimage.media.window import WritableWindow
from sqlimage.moves import Moves
from sqlimage.streams.cluster_map import MapTable
from sqlimage.units import MIB

_WINDOW_BYTES = MIB
_GAP_BYTES = 64 << 10
"""Fix-ups closer than this are read and written together."""


@dataclass(frozen=True, slots=True)
class RelaidVolume:
    """A volume that is laid out anew; places in bytes from the start of what is restored."""

    number: int
    offset_before: int
    length_before: int
    offset_bytes: int
    length_bytes: int
    scan_before: Scan
    kept: Runs
    """What was captured of it, within the old volume."""
    relocation: Relocation | None = None
    resized: ResizedExt | None = None
    """One of the two: how."""
    notes: tuple[str, ...] = ()
    """What there is to say of it, a sentence each."""

    @property
    def stays(self) -> bool:
        """Whether all of it, what lies behind its file system and what that calls free included, is where it was, so
        that no more than bytes of its control information change."""
        how = self.relocation
        is_in_place = how is not None and bool((how.moved_from == how.moved_to).all())
        return is_in_place and self.length_bytes == self.length_before

    @property
    def moves(self) -> Moves:
        """Within the volume."""
        how = self.relocation or self.resized
        assert how is not None
        if self.stays:
            return Moves.of_runs(Runs.of([(0, self.length_bytes)]))
        return Moves.of(how.moved_from, how.moved_to, how.moved_length)

    @property
    def allocated(self) -> Runs:
        """Within the new volume."""
        how = self.relocation or self.resized
        assert how is not None
        return self.kept.union(how.allocated) if self.stays else how.allocated

    @property
    def facts(self) -> VolumeFacts:
        """Of the new volume."""
        how = self.relocation or self.resized
        assert how is not None
        return how.facts

    @property
    def fixups(self) -> Sequence[Fixup]:
        """Within the new volume."""
        return self.relocation.fixups if self.relocation is not None else ()

    def write_control(self, target: WritableDevice, *, fresh: bool) -> int:
        """Write what comes neither from the image nor from fix-ups; how many bytes."""
        if self.resized is None:
            return 0
        return self.resized.write_control(WritableWindow(target, self.offset_bytes, self.length_bytes), fresh=fresh)


@dataclass(frozen=True, slots=True)
class Writes:
    """What is to be written, as columns: places and lengths (bytes), chunks, and where in them the bytes lie."""

    place: Int64s
    length: Int64s
    data: Int64s
    offset: Int64s

    def rows(self, which: Int64s) -> Writes:
        return Writes(self.place[which], self.length[which], self.data[which], self.offset[which])

    def runs(self) -> Runs:
        return Runs.from_arrays(self.place, self.length)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes."""

    size_bytes: int
    """Of what is written."""
    moves: Moves
    """From places of what is restored, as it is in the image."""
    allocated: Runs
    """Bytes of the destination that count; where no chunk is written to them they are zeros."""
    fixups: Sequence[Fixup] = ()
    """By place, disjoint."""
    volumes: tuple[RelaidVolume, ...] = ()
    notes: tuple[str, ...] = ()
    partitions: tuple[tuple[int, int], ...] | None = None
    """Of a disk that is arranged anew: where its partitions come to lie, offset and length in bytes."""
    by_old: Moves = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_old", self.moves.by_old())

    @classmethod
    def as_captured(cls, size_bytes: int, allocated: Runs) -> Layout:
        return cls(size_bytes, Moves.of_runs(Runs.of([(0, size_bytes)])), allocated)

    def writes(self, table: MapTable, bytes_per_cluster: int) -> Writes:
        """What map records (places in clusters of what is restored) come to."""
        start = table.start * bytes_per_cluster
        length = (table.end + 1) * bytes_per_cluster - start
        met, place = self.by_old.leave(start, length)
        return Writes(place, met.length, table.data[met.a], table.data_offset[met.a] + met.into_a)


def apply_fixups(target: WritableDevice, fixups: Sequence[Fixup]) -> None:
    """Make the changes, each only over the very bytes it expects; neighbours are read and written together.

    Raises :class:`~sqlimage.errors.DamagedError` where others are found.
    """
    for begin, end, some in _neighbours(fixups):
        content = bytearray(target.read(begin, end - begin))
        for fixup in some:
            place = slice(fixup.offset_bytes - begin, fixup.offset_bytes - begin + len(fixup.original))
            if content[place] != fixup.original:
                raise DamagedError(
                    f"byte {fixup.offset_bytes} of the destination: {fixup.reason}: the bytes to be replaced are not "
                    "what was planned with"
                )
            content[place] = fixup.replacement
        target.write(begin, content)


def check_fixups(target: BlockDevice, fixups: Sequence[Fixup]) -> None:
    """That the changes are there. Raises :class:`~sqlimage.errors.DamagedError` where one is not."""
    for begin, end, some in _neighbours(fixups):
        content = target.read(begin, end - begin)
        for fixup in some:
            at = fixup.offset_bytes - begin
            if content[at : at + len(fixup.replacement)] != fixup.replacement:
                raise DamagedError(
                    f"byte {fixup.offset_bytes} of the destination: {fixup.reason}: is not what was written",
                    hint="the destination does not keep what is written to it",
                )


def _neighbours(fixups: Sequence[Fixup]) -> Iterator[tuple[int, int, Sequence[Fixup]]]:
    """Fix-ups that lie close together, and from where to where they reach."""
    at = 0
    ends = [fixup.offset_bytes + len(fixup.original) for fixup in fixups]
    while at < len(fixups):
        begin, end, last = fixups[at].offset_bytes, ends[at], at + 1
        while last < len(fixups) and fixups[last].offset_bytes - end < _GAP_BYTES:
            if ends[last] - begin > _WINDOW_BYTES:
                break
            end, last = ends[last], last + 1
        yield begin, end, fixups[at:last]
        at = last
