"""Images for tests: small volumes made once, captured through the public API."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import zstandard

import sqlimage
from sqlimage.image.medium import SourceVolume, inspect
from sqlimage.media.memory import MemoryDevice
from tests.forked import Server

_SECONDS = 120.0


@functools.cache
def _server() -> Server:
    return Server()


def sample_volume(target: Path) -> Path:
    """The NTFS volume that ships with the package, 8 MiB, unpacked to ``target``."""
    packed = (files("sqlimage.cli") / "sample" / "sample.ntfs.zst").read_bytes()
    target.write_bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=8 << 20))
    return target


def noise(seed: object, length: int) -> bytes:
    """Bytes that no compressor shrinks, the same for the same seed."""
    return b"".join(hashlib.sha256(f"{seed}:{n}".encode()).digest() for n in range(-(-length // 32)))[:length]


def kept_bytes(image: Path, source: bytes) -> bytes:
    """What a restore must give: the source in every allocated cluster except page files, zeros elsewhere."""
    with sqlimage.open(str(image)) as opened:
        version = opened.version()
        unit = version.control.bytes_per_cluster
        expected = bytearray(len(source))
        for start, length in version.allocated():
            expected[start * unit : (start + length) * unit] = source[start * unit : (start + length) * unit]
        left_out = opened.database.rows(
            "SELECT start_cluster, end_cluster FROM owner "
            "WHERE lower(path) IN ('/pagefile.sys', '/swapfile.sys', '/hiberfil.sys')"
        )
        for start, end in left_out:
            expected[start * unit : (end + 1) * unit] = bytes((end + 1 - start) * unit)
        for volume in inspect(MemoryDevice(source)).volumes:
            for start, length in _unwritten(volume):
                expected[start : start + length] = bytes(length)
        return bytes(expected[: len(source)])


def _unwritten(volume: SourceVolume) -> Iterator[tuple[int, int]]:
    """Stretches of a medium that are a file's, but were never written."""
    contents = volume.scan.contents if volume.scan else None
    if contents is not None and contents.run_unwritten is not None:
        for n in contents.run_unwritten.nonzero()[0].tolist():
            yield volume.offset_bytes + int(contents.run_offset[n]), int(contents.run_length[n])


def tool(*arguments: object, code: int = 0) -> str:
    """Run the command line; its stdout. Fails where the exit code is another one or a traceback shows."""
    done = run_tool(*arguments)
    assert done.returncode == code, (arguments, done.returncode, done.stdout[-1500:], done.stderr[-1500:])
    return done.stdout


def run_tool(
    *arguments: object, stdin: str | Path = os.devnull, seconds: float = _SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user would; all but its start, which costs most of the time of
    most commands (:mod:`tests.forked`). Killed after ``seconds``, with :class:`subprocess.TimeoutExpired`."""
    program = str(Path(sys.executable).with_name("sqlimage"))
    argv, server = [program, *map(str, arguments)], _server()
    if server.can_run():
        done = server.run(program, argv[1:], seconds, str(stdin))
    else:
        with open(stdin, "rb") as given:
            done = subprocess.run(
                argv, stdin=given, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
            )
    assert "Traceback" not in done.stderr, done.stderr
    return done
