"""A line that breaks while something is written to it is an error, never the end of the process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_SIGPIPE = (signal.SIGPIPE,)


@contextlib.contextmanager
def without_sigpipe() -> Iterator[None]:
    """This thread, and those that are started in the block, are not ended by a connection that the other side has
    closed: a command line lets SIGPIPE end the process, and neither Python nor Rust writes with ``MSG_NOSIGNAL``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGPIPE)
    try:
        yield
    finally:
        if signal.SIGPIPE not in before:
            signal.sigtimedwait(_SIGPIPE, 0)  # what waits would be delivered now
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
