"""What this process has taken, for tests that bound it in a process of their own."""

from __future__ import annotations

from pathlib import Path


def peak_bytes() -> int:
    """The most memory this process has held since it was executed: VmHWM of proc_pid_status(5).

    Not ru_maxrss of getrusage(2), which a program executed takes over from the process that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kibibytes = status.partition("VmHWM:")[2].split(maxsplit=1)[0]
    return int(kibibytes) << 10


PATIENCE = 10
"""How much longer than on an idle machine something may take before a test calls it a hang: a bound on time tells
work that grows with its square, or that never ends, from work that is due. It is never a measure of speed."""
