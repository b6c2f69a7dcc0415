"""What is missing of an image, fetched from a store when it is needed, and ahead of that."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from sqlimage.errors import DeviceError
from sqlimage.streams.segments import Place
from sqlimage.transfer.kept import Kept
from sqlimage.transfer.stores.contract import Store
from sqlimage.units import KIB, MIB

_LEAST_AHEAD_BYTES, _MOST_AHEAD_BYTES = 64 * KIB, 4 * MIB


class StoreOrigin:
    """Fetches contents of one image by ranges. What lies behind the one that is asked for comes along: a little at
    first, more and more where one follows the other."""

    def __init__(
        self,
        store: Store,
        identity: str,
        names: Sequence[str],
        places: Sequence[Place],
        kept: Kept,
        early: bytes = b"",
    ) -> None:
        """``names`` are those of the segments, in order, and ``places`` what lies in them, by segment and offset;
        ``early`` is what has been fetched of the first segment: its first bytes."""
        self._store = store
        self._identity = identity
        self._names = list(names)
        self._places = places
        self._pieces: dict[int, list[int]] = {}
        """Of each content its pieces, as rows of the places, in order."""
        for row, place in enumerate(places):
            self._pieces.setdefault(place[0], []).append(row)
        for rows in self._pieces.values():
            rows.sort(key=lambda row: places[row][1])
        self._kept = kept
        self._early = early
        self._coming: dict[int, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._next_row = -1
        self._ahead_bytes = _LEAST_AHEAD_BYTES
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def fetch(self, data: int, length_bytes: int) -> bytes | None:
        rows = self._pieces.get(data)
        if rows is None:
            return None
        if sum(self._places[row][4] for row in rows) != length_bytes:
            raise DeviceError(f"data {data}: is not stored there as the image says")
        pieces = [self._piece(row) for row in rows]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, row: int) -> bytes:
        early = self._from_early(row)
        if early is not None:
            return early
        kept = self._kept.get(self._identity, row)
        if kept is not None and len(kept) == self._places[row][4]:
            return kept
        return self._fetch(row)

    def _from_early(self, row: int) -> bytes | None:
        _, _, segment, low, length, _ = self._places[row]
        if segment != 1 or low + length > len(self._early):
            return None
        return self._early[low : low + length]

    def _fetch(self, row: int) -> bytes:
        with self._lock:
            coming = self._coming.get(row)
            if coming is None:
                rows = self._rows_from(row)
                for each in rows:
                    self._coming[each] = Future()
                mine = self._coming[row]
        if coming is not None:
            return coming.result()
        self._fetch_rows(rows)
        return mine.result()

    def _rows_from(self, row: int) -> range:
        """The row and those behind it that come along; under the lock."""
        self._ahead_bytes = (
            min(2 * self._ahead_bytes, _MOST_AHEAD_BYTES) if row == self._next_row else _LEAST_AHEAD_BYTES
        )
        end = self._end_of(row, self._ahead_bytes)
        self._next_row = end
        return range(row, end)

    def _end_of(self, row: int, most_bytes: int) -> int:
        """The row before which a range ends that begins with ``row``: it stays within a segment, leaves out what is on
        its way, and has at most so many bytes, unless one content has more."""
        _, _, segment, begin, *_ = self._places[row]
        at = row + 1
        while at < len(self._places) and at not in self._coming:
            _, _, there, offset, length, _ = self._places[at]
            if there != segment or offset + length - begin > most_bytes:
                break
            at += 1
        return at

    def _fetch_rows(self, rows: range) -> bool:
        """Fetch a range of contents, one request; whoever waits for one of them is told. Whether it was possible."""
        problem: BaseException | None = None
        contents: list[tuple[int, bytes]] = []
        try:
            _, _, segment, at, *_ = self._places[rows[0]]
            _, _, _, last, length, _ = self._places[rows[-1]]
            fetched = self._store.get_range(self._names[segment - 1], at, last + length - at)
            if len(fetched) != last + length - at:
                raise DeviceError(
                    f"{self._store.where}: segment {segment} is shorter than it should be",
                    hint="what lies there is damaged",
                )
            view = memoryview(fetched)
            for row in rows:
                low, length = self._places[row][3] - at, self._places[row][4]
                contents.append((row, bytes(view[low : low + length])))
            self._kept.put(self._identity, contents)
        except BaseException as caught:
            problem = caught
        with self._lock:
            waiting = [self._coming.pop(row) for row in rows]
        for number, future in enumerate(waiting):
            if problem is not None:
                future.set_exception(problem)
            else:
                future.set_result(contents[number][1])
        return problem is None

    def forget(self, data: int) -> None:
        self._early = b""
        for row in self._pieces.get(data, ()):
            self._kept.drop(self._identity, row)

    def prefetch(self) -> None:
        """From now on fetch everything, in the order in which it is read, beside whatever is asked for; as far as there
        is room to keep it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._prefetch, name="prefetch", daemon=True)
            self._thread.start()

    def _prefetch(self) -> None:
        at = 0
        while at < len(self._places) and not self._stop.is_set():
            with self._lock:
                if at in self._coming or self._kept.has(self._identity, at):
                    at += 1
                    continue
                rows = range(at, self._end_of(at, _MOST_AHEAD_BYTES))
                length = sum(self._places[row][4] for row in rows)
                if self._kept.held_bytes() + length > self._kept.limit_bytes:
                    return
                for each in rows:
                    self._coming[each] = Future()
            if not self._fetch_rows(rows):
                return  # whoever needs it will be told why
            at = rows[-1] + 1

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._kept.close()
        self._store.close()
