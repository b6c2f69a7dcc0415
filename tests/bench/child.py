"""Runs one command and tells what it took: ``python child.py FD COMMAND...``, with nothing of the project loaded.

The kernel counts the memory of whoever starts a process as that process' own until it runs its program, so a small
process must do it. Written to FD: exit code, wall seconds, CPU seconds, peak resident KiB.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    told, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(told, False)
    started = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawnp(command[0], command, os.environ), 0)
    wall_seconds = time.perf_counter() - started
    figures = (os.waitstatus_to_exitcode(status), wall_seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
    os.write(told, " ".join(str(figure) for figure in figures).encode())


if __name__ == "__main__":
    main()
