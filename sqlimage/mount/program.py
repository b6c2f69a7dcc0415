"""Programs that this room runs: those that end soon, and the drivers that serve a mount until it is gone."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

from sqlimage.errors import DeviceError

_MOST_SAID_BYTES = 1 << 16


def run_program(
    argv: list[str], *, package: str, environment: dict[str, str] | None = None, stdin: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    """A program that ends soon, whatever it answers.

    Raises :class:`~sqlimage.errors.DeviceError`, naming the Debian ``package``, where it is not installed.
    """
    return subprocess.run(
        [find_program(argv[0], package), *argv[1:]],
        capture_output=True,
        check=False,
        env={**program_environment(), **(environment or {})},
        stdin=subprocess.DEVNULL if stdin is None else stdin,
    )


def find_program(name: str, package: str) -> str:
    """Its path. Raises :class:`~sqlimage.errors.DeviceError`, naming the Debian ``package``, where it is missing."""
    found = which(name)
    if found is None:
        raise DeviceError(f"{name} is missing", hint=f"install the Debian package {package}")
    return found


def which(name: str) -> str | None:
    """The path of a program, those of the system's administrator among them; None where it is not installed."""
    return shutil.which(name, path=program_environment()["PATH"])


def program_environment() -> dict[str, str]:
    """The environment in which programs are run: names in UTF-8, messages in English."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"}


def last_line(said: bytes) -> str:
    """The last line a program said, for a message: printable and short."""
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip() and "dmesg" not in line]
    return "".join(c if c.isprintable() else "?" for c in lines[-1].strip())[:300] if lines else "it says nothing"


class DriverProcess:
    """A FUSE driver that serves a device file. ``stays`` tells that it runs on as our child; else it puts itself into
    the background once it has mounted, and is found by the device file that it holds open.

    Raises :class:`~sqlimage.errors.DeviceError` where the program is missing.
    """

    def __init__(self, name: str, package: str, arguments: list[str], *, path: str, stays: bool) -> None:
        program = find_program(name, package)
        self._path = path
        self._stays = stays
        self._fd = -1
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the driver
        # in a session of its own, or a Ctrl-C meant for us would end it before its mount is gone
        self._process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=program_environment(),
            cwd="/",
        )

    @property
    def has_failed(self) -> bool:
        """Whether it ended although it should be mounting."""
        code = self._process.poll()
        return code is not None and (self._stays or code != 0)

    @property
    def is_alive(self) -> bool:
        """Whether it serves."""
        if self._stays:
            return self._process.poll() is None
        return self._background() >= 0 and not select.select([self._fd], [], [], 0)[0]

    @property
    def said(self) -> str:
        """The last line of what it printed."""
        return last_line(os.pread(self._said.fileno(), _MOST_SAID_BYTES, 0))

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end. True where it ended by itself and well; else it is killed."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        if not self._stays and self._background() >= 0 and not select.select([self._fd], [], [], timeout_s)[0]:
            self.kill()
            return False
        return code == 0

    def kill(self) -> None:
        """End it at once, and what it has not written is lost."""
        self._process.kill()
        self._process.wait()
        if self._background() >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            select.select([self._fd], [], [], 10)

    def close(self) -> None:
        self._said.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def look(self) -> None:
        """Find the process in the background: to be called once it has mounted."""
        end = time.monotonic() + 5
        while not self._stays and self._background() < 0 and time.monotonic() < end:
            time.sleep(0.01)

    def _background(self) -> int:
        """A descriptor of the process that went into the background; -1 while there is none."""
        if self._fd < 0 and not self._stays and self._process.poll() == 0:
            for name in filter(str.isdecimal, os.listdir("/proc")):
                if name != str(os.getpid()) and _holds(name, self._path):
                    with contextlib.suppress(OSError):
                        self._fd = os.pidfd_open(int(name))
                    break
        return self._fd


def _holds(process: str, path: str) -> bool:
    try:
        held = os.listdir(f"/proc/{process}/fd")
    except OSError:
        return False
    for fd in held:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{process}/fd/{fd}") == path:
                return True
    return False
