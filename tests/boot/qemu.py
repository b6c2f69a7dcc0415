"""Guests for tests: a machine, what it says on its serial console, and the end of it."""

from __future__ import annotations

import selectors
import subprocess
import time
from pathlib import Path

from sqlimage.boot import Machine, qemu_command
from tests.conftest import run

MACHINE = Machine(memory_bytes=512 << 20, interface="virtio", extra=("-no-reboot",))
SECONDS = 60.0


def says(place: Path, *words: bytes, machine: Machine = MACHINE, command: list[str] | None = None) -> bytes:
    """Start a guest on a file and wait until it has said one of the words or has ended; what it has said."""
    argv = command or qemu_command(str(place), machine, discard_writes=True)
    said = bytearray()
    deadline = time.monotonic() + SECONDS
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as guest:
        assert guest.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(guest.stdout, selectors.EVENT_READ)
            while not any(word in said for word in words) and time.monotonic() < deadline:
                if selector.select(1.0):
                    part = guest.stdout.read1(4096)  # type: ignore[attr-defined]
                    if not part:
                        break
                    said += part
        guest.kill()
    return bytes(said)


def assemble(source: str, work: Path, origin: int) -> bytes:
    """Machine code of 16-bit assembly, linked for a place in memory."""
    files = [work / f"code.{suffix}" for suffix in ("s", "o", "elf", "bin")]
    files[0].write_text(source)
    run("as", "--32", "-o", files[1], files[0])
    run("ld", "-m", "elf_i386", "-Ttext", hex(origin), "-e", "start", "-o", files[2], files[1])
    run("objcopy", "-O", "binary", files[2], files[3])
    return files[3].read_bytes()
