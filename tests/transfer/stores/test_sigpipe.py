"""A process that SIGPIPE ends, as the command line is, survives a line that breaks while it writes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_WRITE = """
import signal, socket, sys, threading
from contextlib import nullcontext
from sqlimage.transfer.stores.sigpipe import without_sigpipe

signal.signal(signal.SIGPIPE, signal.SIG_DFL)

def write():
    ours, theirs = socket.socketpair()
    theirs.close()
    try:
        ours.send(b"x")
    except BrokenPipeError:
        print("told", flush=True)

with without_sigpipe() if sys.argv[1] == "without" else nullcontext():
    if sys.argv[2] == "here":
        write()
    else:
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
print("alive", flush=True)
if sys.argv[1] == "without":
    write()
"""


@pytest.mark.parametrize("thread", ["here", "elsewhere"])
def test_a_broken_line_is_an_error_in_the_block_and_the_end_outside_of_it(thread: str) -> None:
    argv = [sys.executable, "-c", _WRITE]
    done = subprocess.run([*argv, "without", thread], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["told", "alive"], done.stderr
    assert done.returncode == -signal.SIGPIPE
    done = subprocess.run([*argv, "with", thread], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGPIPE, "")
