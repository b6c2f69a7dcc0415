"""The image driver with its write side: an open version as a writable block device."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from sqlimage.device import Buffer, check_range
from sqlimage.errors import DamagedError, RefusedError, SqlimageError
from sqlimage.extent import Runs
from sqlimage.image.chunks import SMALL, Cache
from sqlimage.image.driver import ImageDriver
from sqlimage.image.flatmap import WINDOW_CLUSTERS
from sqlimage.image.overlay import Overlay
from sqlimage.image.store import Ancestor, Store
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.units import MIB

WRITE_BACK_BYTES = 64 * MIB
"""How much may be written before it goes to the database without a flush; twice as much is held at most."""
_STEP_CLUSTERS = 1 << 16


class EditDriver(ImageDriver):
    """One open version. What is written is kept in memory until ``flush``, which is one commit: when it returns, all
    that was written before it survives a power cut, and what was written after it is there whole or not at all, cluster
    by cluster.

    ``database`` is the connection that writes; nobody else may use it meanwhile. Where the database refuses (a full
    disk), ``flush`` raises :class:`~sqlimage.errors.DeviceError`, what was flushed before stays, and what was not is
    still held and goes with the next flush.
    """

    def __init__(
        self,
        database: Database,
        control: Control,
        *,
        search: Sequence[str] = (),
        cache: Cache = SMALL,
        write_back_bytes: int = WRITE_BACK_BYTES,
    ) -> None:
        super().__init__(database, control, search=search, cache=cache)
        self._limit_bytes = write_back_bytes
        self._database = database
        self._shortening: threading.Thread | None = None
        self._store = Store(database, control, self._ancestors)
        self._overlay = Overlay(self._unit)
        self._flushing = Overlay(self._unit)
        """What is on its way into the database: beneath the overlay, above the map."""
        self._lock = threading.Lock()
        """Held for moments: whenever the overlays change or are looked at."""
        self._write_lock = threading.Lock()
        """One writer at a time: a write of half a cluster reads the other half first."""
        self._flush_lock = threading.Lock()
        self._turn = 0
        self._background: threading.Thread | None = None
        self._has_written = False
        self._is_fenced = False

    def _ancestors(self) -> list[Ancestor]:
        """The other files of the lineage, with the versions in each that belong to it."""
        look = self._look
        return [(each, look.lineage.in_file(file)) for file, each in enumerate(look.connections[1:], 1)]

    @property
    def has_written(self) -> bool:
        """Whether anything was written since this driver was made."""
        return self._has_written

    def fence(self, *, up: bool = True) -> None:
        """Let nobody write any more, from before a version is read to be sealed; or again, where that failed."""
        with self._write_lock:
            self._is_fenced = up

    def _check_fence(self) -> None:
        if self._is_fenced:
            raise RefusedError(f"{self._path}: the edit of version {self._control.version} has ended")

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self.size_bytes, self._path)
        if not len(buffer):
            return
        view = memoryview(buffer)
        first, last = offset_bytes // self._unit, (offset_bytes + len(view) - 1) // self._unit
        # The overlays first and the map after them: what a commit moves from the one to the other is then seen in at
        # least one of them.
        while True:
            turn = self._turn
            over = self._over(first, last)
            try:
                if len(over) <= last - first:
                    super().read_into(offset_bytes, view)
                break
            except DamagedError:
                with self._flush_lock:  # a commit under way may have removed it and not said so yet
                    if turn == self._turn:
                        raise  # else a chunk was superseded and removed while it was looked for
        self._lay_over(over, offset_bytes, view)

    def _over(self, first: int, last: int) -> dict[int, bytes]:
        """What the overlays say of clusters; empty bytes stand for zeros."""
        over: dict[int, bytes] = {}
        with self._lock:
            for overlay in (self._flushing, self._overlay):
                if overlay:
                    for start, end in overlay.zeros_within(first, last):
                        over.update(dict.fromkeys(range(start, end), b""))
                    held = overlay.data
                    if held:
                        for cluster in range(first, last + 1):
                            if cluster in held:
                                over[cluster] = held[cluster]
        return over

    def _lay_over(self, over: dict[int, bytes], offset: int, view: memoryview) -> None:
        unit, end = self._unit, offset + len(view)
        for cluster, content in over.items():
            place = cluster * unit
            low, high = max(place, offset), min(place + unit, end)
            view[low - offset : high - offset] = content[low - place : high - place] if content else bytes(high - low)

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        length = len(data)
        check_range(offset_bytes, length, self.size_bytes, self._path)
        if not length:
            return
        self._bound()
        unit, end = self._unit, offset_bytes + length
        with self._write_lock:
            self._check_fence()
            first, last = offset_bytes // unit, (end - 1) // unit
            head, tail = offset_bytes - first * unit, (last + 1) * unit - end
            source = bytes(data)
            if head or tail:
                before = self._cluster(first)[:head] if head else b""
                after = self._cluster(last)[unit - tail :] if tail else b""
                source = b"".join((before, source, after))
            if first == last:
                clusters = {first: source}
            else:
                clusters = {first + n: source[n * unit : (n + 1) * unit] for n in range(last - first + 1)}
            with self._lock:
                self._overlay.data.update(clusters)
            self._has_written = True

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        check_range(offset_bytes, length_bytes, self.size_bytes, self._path)
        if not length_bytes:
            return
        self._bound()
        unit, end = self._unit, offset_bytes + length_bytes
        # The last cluster of the medium may be cut by its end: nothing of it lies beyond.
        whole_end = -(-end // unit) if end == self.size_bytes else end // unit
        first = -(-offset_bytes // unit)
        if first >= whole_end:
            if offset_bytes < end:
                self.write(offset_bytes, bytes(length_bytes))
            return
        if offset_bytes < first * unit:
            self.write(offset_bytes, bytes(first * unit - offset_bytes))
        if whole_end * unit < end:
            self.write(whole_end * unit, bytes(end - whole_end * unit))
        with self._write_lock, self._lock:
            self._check_fence()
            self._overlay.zero(first, whole_end - 1)
            self._has_written = True

    def _cluster(self, number: int) -> bytes:
        """One whole cluster as it reads now; what lies beyond the end of the medium is zero."""
        content = bytearray(self._unit)
        place = number * self._unit
        self.read_into(place, memoryview(content)[: min(self._unit, self.size_bytes - place)])
        return bytes(content)

    def _bound(self) -> None:
        """Begin to write back where much is held; wait where too much is. Before a write, not after it: where nothing
        can be written back, the write is refused and what is held grows no more."""
        held = self._overlay.held_bytes
        if held > self._limit_bytes:
            self.flush()
        elif held > self._limit_bytes // 8 and not self._flush_lock.locked():
            background = self._background
            if background is None or not background.is_alive():
                self._background = threading.Thread(target=self._flush_quietly, name="write-back", daemon=True)
                self._background.start()

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except Exception:
            # Nothing is lost: what could not be written is held on, and the guest's own flush will be told.
            return

    def flush(self) -> None:
        with self._flush_lock:
            with self._lock:
                if not self._overlay:
                    return
                self._flushing, self._overlay = self._overlay, Overlay(self._unit)
            try:
                changed = self._store.write(self._flushing)
            except BaseException:
                with self._lock:
                    self._flushing.put_under(self._overlay)
                    self._overlay, self._flushing = self._flushing, Overlay(self._unit)
                raise
            first, last = changed.start // WINDOW_CLUSTERS, (changed.end - 1) // WINDOW_CLUSTERS
            self._look.map.forget_between(zip(first.tolist(), last.tolist(), strict=True))
            with self._lock:
                self._turn += 1
                self._flushing = Overlay(self._unit)
            if self._database.is_log_long and not (self._shortening and self._shortening.is_alive()):
                self._shortening = threading.Thread(target=self._shorten_log, name="checkpoint", daemon=True)
                self._shortening.start()

    def _shorten_log(self) -> None:
        with suppress(SqlimageError):  # where it fails now it is done at the end
            self._database.shorten_log()

    def _mapped(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        for low in range(first, last + 1, _STEP_CLUSTERS):
            high = min(low + _STEP_CLUSTERS - 1, last)
            with self._lock:
                overlays = [overlay for overlay in (self._flushing, self._overlay) if overlay]
            if not overlays:
                yield from super()._mapped(low, last)
                return
            runs = Runs.of((start, end - start) for start, end in super()._mapped(low, high))
            with self._lock:
                for overlay in overlays:
                    runs = overlay.shown_by(low, high, runs)
            yield from ((start, start + length) for start, length in runs)

    def remove_superseded(self) -> None:
        """Remove chunks that later writes have made needless; inside the caller's transaction."""
        self._store.remove_superseded()

    def close(self) -> None:
        """Let go of everything; what was not flushed is lost."""
        self.fence()
        with self._flush_lock:
            with self._lock:
                self._overlay = Overlay(self._unit)  # a flush that waits for its turn finds nothing to do
            if self._shortening:
                self._shortening.join()
            self._store.close()
        super().close()
