"""An image held for writing by one process, through a write-ahead log, so that readers go on reading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlimage.errors import SqlimageError
from sqlimage.streams.database import Database
from sqlimage.streams.writer import WriterLock

_FREE_PAGES_AT_A_TIME = 16_384


@contextmanager
def writing(path: str | os.PathLike[str], doing: str) -> Iterator[Database]:
    """The image for the one who writes to it while the block runs; ``doing`` tells others what is going on.

    What was committed is brought into the file at the end; where nothing was written, not a byte changes. Raises
    :class:`~sqlimage.errors.RefusedError` where another process is writing to it, by name, and
    :class:`~sqlimage.errors.DamagedError` where a cluster map is not the one that was sealed.
    """
    with_links = os.path.realpath(path)
    lock = WriterLock(with_links, doing)
    try:
        database = Database.open(with_links, writable=True)
        try:
            if database.is_sealed:
                database.check_maps()  # what is written is sealed anew, and would vouch for whatever is there
            database.is_log_wanted = True
            yield database
        finally:
            try:
                if not database.is_log_wanted:
                    # Where there is no room for it, the log stays for the next writer: what was committed is in it.
                    with suppress(SqlimageError):
                        database.end_log()
            finally:
                database.close()
    finally:
        lock.close()


def give_back_space(database: Database) -> None:
    """Free pages back to the file system, as far as the file was made for that; mere housekeeping."""
    with suppress(SqlimageError):
        free = database.rows("PRAGMA freelist_count")
        while free != [(0,)]:
            database.rows(f"PRAGMA incremental_vacuum({_FREE_PAGES_AT_A_TIME})")
            before, free = free, database.rows("PRAGMA freelist_count")
            if database.is_log_long:
                database.shorten_log()
            if free == before:
                return
