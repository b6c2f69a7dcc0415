"""An ext2, ext3 or ext4 volume made smaller or larger on its way to a destination, by resize2fs on a clone that holds
its control information only. What resize2fs does with the data of files is read off the clone, and checked: that
e2fsck finds nothing wrong, and that every file has its bytes in the same order as before. So what cannot be done is
known before anything is written, the destination never has to hold more than the new size, and no tool touches it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import DamagedError, InconsistentVolume, RefusedError
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.contract import ContentFlag, Scan, VolumeFacts
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.filesystem.ext.layout import Compat
from sqlimage.filesystem.ext.superblock import read_geometry
from sqlimage.filesystem.ext.tree import ORPHANS
from sqlimage.journey import e2fsprogs
from sqlimage.journey.e2fsprogs import AS_CAPTURED, check_tools
from sqlimage.journey.ext_clone import Clone, data_of_files, unwritten_of_files
from sqlimage.journey.ext_moves import follow, steps_down, steps_up
from sqlimage.journey.ext_times import keep_times
from sqlimage.units import GIB, MIB, format_size

__all__ = ["ResizedExt", "check_tools", "resized", "smallest_bytes"]

_STEP_BYTES, _STEPS_MAX = GIB, 64
"""So much is written to the clone at once, or more where there would be more steps: data that is moved and tables of
inodes that are made are zeros there, and take space until they are dropped."""
_MARGIN_BYTES = 64 * MIB
"""Room for what resize2fs writes beside that: tables of inodes that are moved."""
_FINENESS = 128
"""The smallest size is found to one part in so many."""
_COPY_BYTES = MIB


@dataclass(frozen=True, slots=True)
class ResizedExt:
    """A volume as it will be. Places are bytes from its start. Use as a context manager: it holds a temporary file."""

    facts: VolumeFacts
    """Of the new volume. Its ``size_bytes`` may be less than what was asked for: whole clusters, and no last block
    group that has hardly room for its own tables."""
    moved_from: Int64s
    moved_to: Int64s
    moved_length: Int64s
    """The data of files, moved or not: old place, new place, length. Sorted by new place, disjoint in both."""
    control: Runs
    """Of the new volume: what is allocated and is neither data nor unwritten, and is read from the clone."""
    allocated: Runs
    """Of the new volume, as :meth:`~sqlimage.filesystem.contract.FileSystem.allocated` tells."""
    notes: tuple[str, ...]
    """What was mended, a sentence each."""
    _clone: Clone

    def write_control(self, target: WritableDevice, *, fresh: bool) -> int:
        """Write the control information to the volume's new place; how many bytes were written. Zeros are no writes:
        they are zeroed, or left as they are where the target is ``fresh`` and so reads as zeros already."""
        written = 0
        for start, length in self.control:
            for extent in self._clone.device.extents(start, length):
                end = extent.offset_bytes + extent.length_bytes
                if not extent.is_data and not fresh:
                    target.zero(extent.offset_bytes, extent.length_bytes)
                for at in range(extent.offset_bytes, end if extent.is_data else 0, _COPY_BYTES):
                    count = min(_COPY_BYTES, end - at)
                    target.write(at, self._clone.device.read(at, count))
                    written += count
        return written

    def check_control(self, target: BlockDevice) -> None:
        """Raises :class:`~sqlimage.errors.DamagedError` where the control information is not in the new place."""
        for start, length in self.control:
            for extent in self._clone.device.extents(start, length):
                end = extent.offset_bytes + extent.length_bytes
                for at in range(extent.offset_bytes, end if extent.is_data else 0, _COPY_BYTES):
                    count = min(_COPY_BYTES, end - at)
                    if target.read(at, count) != self._clone.device.read(at, count):
                        raise DamagedError(
                            f"bytes {at} to {at + count} of the resized volume are not what was written",
                            hint="the destination does not keep what is written to it",
                        )

    def close(self) -> None:
        """Let go of the temporary file. Closing twice is allowed."""
        self._clone.close()

    def __enter__(self) -> ResizedExt:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resized(
    volume: BlockDevice, size_bytes: int, *, scan: Scan | None = None, directory: str | None = None
) -> ResizedExt:
    """The ext volume that begins at the start of ``volume``, brought to ``size_bytes``: what its partition or device
    will have room for. ``scan`` is the volume's own, where it is known; temporary files go to ``directory``.

    A journal that needs recovery is replayed, and what e2fsck mends without asking is mended. Raises
    :class:`~sqlimage.errors.RefusedError` where more than that is wrong, where the size is too small (telling the
    smallest), and where resize2fs cannot do it; :class:`~sqlimage.errors.NotFoundError` where the tools are missing;
    :class:`~sqlimage.errors.DeviceError` where there is no room for temporary files, and
    :class:`~sqlimage.errors.InconsistentVolume`.
    """
    check_tools()
    with closing(_Before(volume, scan, directory)) as before:
        try:
            return before.bring(before.clone.copy(), size_bytes)
        except RefusedError:
            if size_bytes >= before.facts.size_bytes:
                raise
            smallest, clone = before.descend(size_bytes)
            if smallest >= before.facts.size_bytes:
                clone.close()
                raise
            try:  # at times it can be reached from between
                return before.bring(clone, size_bytes)
            except RefusedError:
                raise RefusedError(
                    f"the volume cannot be made {format_size(size_bytes)} ({size_bytes} bytes), it needs "
                    f"{format_size(smallest)} ({smallest} bytes)"
                ) from None


def smallest_bytes(volume: BlockDevice, *, scan: Scan | None = None, directory: str | None = None) -> int:
    """A size to which the volume can be brought, tried out, so that a smaller one by more than one part in 128 (a MiB
    at least) cannot be reached; the present size where none can.

    Raises as :func:`resized` does.
    """
    check_tools()
    with closing(_Before(volume, scan, directory)) as before:
        size, clone = before.descend(0)
        clone.close()
        return size


class _Before:
    """A volume before it is resized: its clone, checked and mended."""

    def __init__(self, volume: BlockDevice, scan: Scan | None, directory: str | None) -> None:
        source = ExtVolume(volume)
        geometry, _ = read_geometry(volume)
        if geometry.compat & Compat.HAS_JOURNAL and not geometry.journal_inode:
            # where it is at hand, e2fsck would replay it: here, and never again where it belongs
            raise RefusedError("the volume's journal is on another device", hint=AS_CAPTURED)
        found = scan or source.scan()
        self.facts = source.facts
        self.notes: tuple[str, ...] = ()
        self._data, unwritten = data_of_files(volume, self.facts, found), unwritten_of_files(found.contents)
        self.clone = Clone(self.facts.size_bytes, directory)
        try:
            self.clone.fill(volume, source.allocated().subtract(self._data).subtract(unwritten))
            if mended := e2fsprogs.mend(self.clone.fd):
                self.notes = (f"e2fsck mended the volume: {mended}",)
                source = ExtVolume(self.clone.device)
                self.facts, names = source.facts, found.entries.path
                found = source.scan()
                lost = {path for path in names if not path.startswith(ORPHANS)}.difference(found.entries.path)
                if lost:
                    raise RefusedError(f"the volume is damaged: e2fsck would take {min(lost)!a}", hint=AS_CAPTURED)
            self._scan, contents = found, found.contents
            alive = (contents.flags & ContentFlag.INDEX == 0)[contents.run_owner()] & ~contents.reads_as_zeros()
            runs = Runs.from_arrays(contents.run_offset[alive], contents.run_length[alive])
            self._data = self._data.intersect(runs)
        except BaseException:
            self.clone.close()
            raise

    def bring(self, clone: Clone, size_bytes: int) -> ResizedExt:
        """The volume at another size. ``clone`` becomes the result's; it is closed where there is none.

        Raises as :func:`resized` does.
        """
        try:
            notes = (*self.notes, *_set_size(clone, size_bytes))
            volume = ExtVolume(clone.device)
            facts, scan, allocated = volume.facts, volume.scan(), volume.allocated()
            moves = follow(self._scan, scan, self._data)
            if keep_times(self.clone.device, self._scan.entries, clone.device, scan.entries):
                e2fsprogs.check(clone.fd)
            moved = Runs.from_arrays(moves.new, moves.length)
            if moved.total != self._data.total or not allocated.covers(moved) or facts.size_bytes > size_bytes:
                raise InconsistentVolume("files", "data of them is lost")
        except InconsistentVolume as problem:
            clone.close()
            raise RefusedError(f"resize2fs would not leave the volume whole ({problem})", hint=AS_CAPTURED) from None
        except BaseException:
            clone.close()
            raise
        control = allocated.subtract(moved).subtract(unwritten_of_files(scan.contents))
        return ResizedExt(facts, moves.old, moves.new, moves.length, control, allocated, notes, clone)

    def descend(self, too_small: int) -> tuple[int, Clone]:
        """The smallest size that works, and a clone that has it, which is the caller's to close; ``too_small`` is one
        that is known not to work. Each try begins where the last good one ended, so that little has to be moved."""
        unit = self.facts.bytes_per_cluster
        low, high = max(too_small, self._data.total) // unit, self.facts.size_bytes // unit
        best = self.clone.copy()
        try:
            while high - low > max(1, high // _FINENESS, MIB // unit):
                middle = (low + high) // 2
                tried = best.copy()
                try:
                    _set_size(tried, middle * unit)
                except (RefusedError, InconsistentVolume):
                    low = middle
                else:
                    best, tried, high = tried, best, middle
                finally:
                    tried.close()
        except BaseException:
            best.close()
            raise
        return high * unit, best

    def close(self) -> None:
        """Let go of the clone."""
        self.clone.close()


def _set_size(clone: Clone, size_bytes: int) -> tuple[str, ...]:
    """Let resize2fs do it on a clone, and e2fsck check it; what is to be told, a sentence each."""
    volume = ExtVolume(clone.device)
    present, unit, block = volume.facts.size_bytes, volume.facts.bytes_per_cluster, volume.facts.alignment_bytes
    wanted = size_bytes // unit * unit
    if wanted < present:
        above = volume.allocated().clip(wanted, present)
        step = _step_bytes(above.total)
        sizes = steps_down(above, step, unit)
    else:
        share = _inode_share(clone.device)
        step = _step_bytes(int((wanted - present) * share))
        sizes = steps_up(present, wanted, step, share, unit)
    clone.need(step + _MARGIN_BYTES)
    for size in (*sizes, wanted):
        known = clone.written()
        # resize2fs makes a file that is too short longer by writing a byte at its end that is not zero
        clone.set_size(max(size, clone.device.size_bytes))
        e2fsprogs.set_blocks(clone.fd, size // block)
        clone.set_size(size)
        clone.drop_zeros(known)
    mended = e2fsprogs.check_resized(clone.fd)
    return (f"e2fsck mended what resize2fs had left: {mended}",) if mended else ()


def _step_bytes(total: int) -> int:
    """How much of so many bytes is written in one step."""
    return min(total, max(_STEP_BYTES, -(-total // _STEPS_MAX)))


def _inode_share(device: BlockDevice) -> float:
    """Which part of each new block group is written at once; where groups can be uninitialised, hardly any."""
    geometry, _ = read_geometry(device)
    return 0.0 if geometry.has_group_flags else geometry.inode_table_blocks / geometry.blocks_per_group
