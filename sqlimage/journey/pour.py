"""Jobs of work through threads into the data stream, in order and within bounds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from sqlimage.journey.encode import Encoded, Encoder
from sqlimage.journey.jobs import Job
from sqlimage.journey.write import Writer

_IN_FLIGHT_BYTES = 64 << 20
"""How much of the source may be under way between reading and writing."""
_WRITEBACK_BYTES = 32 << 20
"""How much is stored before the kernel is asked to begin writing it."""


def pour(
    jobs: Iterable[Job],
    encoder: Encoder,
    writer: Writer,
    *,
    bytes_per_cluster: int,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    start_writeback: Callable[[], None] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Run the jobs on threads and write what they come to in the order of the plan; memory is bounded by the window.

    ``meanwhile`` is called once, while the first jobs are under way; ``progress`` is told the bytes that were read.
    """
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="capture")
    window: deque[tuple[int, Future[Encoded]]] = deque()
    in_flight = synced = 0

    def write_oldest() -> None:
        nonlocal in_flight, synced
        length, future = window.popleft()
        writer.add(future.result())
        in_flight -= length
        if start_writeback and writer.totals.stored_bytes - synced > _WRITEBACK_BYTES:
            synced = writer.totals.stored_bytes
            start_writeback()
        if progress:
            progress(writer.totals.read_bytes)

    try:
        for job in jobs:
            length = job.clusters * bytes_per_cluster
            if meanwhile and in_flight + length > _IN_FLIGHT_BYTES:
                meanwhile()
                meanwhile = None
            while window and (in_flight + length > _IN_FLIGHT_BYTES or window[0][1].done()):
                write_oldest()
            window.append((length, pool.submit(encoder.begin(job))))
            in_flight += length
        if meanwhile:
            meanwhile()
        while window:
            write_oldest()
    finally:
        pool.shutdown(cancel_futures=True)
