"""Images for tests: small volumes made once, captured through the public API."""

from __future__ import annotations

import bisect
import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import zstandard

import sqlimage
from sqlimage.device import BlockDevice
from sqlimage.image.medium import SourceVolume, inspect
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from tests.forked import Server

_SECONDS = 120.0
_WINDOW_BYTES = 1 << 20


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


class Kept:
    """What a restore must give of a captured medium: the source in every allocated cluster except page files and what
    was never written, zeros elsewhere."""

    def __init__(self, image: Path, source: BlockDevice) -> None:
        with sqlimage.open(str(image)) as opened:
            version = opened.version()
            unit = version.control.bytes_per_cluster
            self._allocated = [(start * unit, (start + length) * unit) for start, length in version.allocated()]
            left_out = opened.database.rows(
                "SELECT start_cluster, end_cluster FROM owner "
                "WHERE lower(path) IN ('/pagefile.sys', '/swapfile.sys', '/hiberfil.sys')"
            )
            gone = [(start * unit, (end + 1) * unit) for start, end in left_out]
        for volume in inspect(source).volumes:
            gone += [(start, start + length) for start, length in _unwritten(volume)]
        self._gone = _joined(gone)

    def of(self, content: bytes, at: int = 0) -> bytes:
        """What is kept of a part of the source."""
        expected = bytearray(len(content))
        for start, end in _within(self._allocated, at, at + len(content)):
            expected[start - at : end - at] = content[start - at : end - at]
        for start, end in _within(self._gone, at, at + len(content)):
            expected[start - at : end - at] = bytes(end - start)
        return bytes(expected)


def kept_bytes(image: Path, source: bytes) -> bytes:
    """All that a restore must give."""
    return Kept(image, MemoryDevice(source)).of(source)


def check_restored(image: Path | None, source: Path, restored: Path) -> None:
    """Compare a restored medium with what is kept of the source, of which None stands for all. Where both have holes,
    nothing is read."""
    assert restored.stat().st_size == source.stat().st_size
    with closing(FileDevice(source)) as before, closing(FileDevice(restored)) as after:
        kept = Kept(image, before) if image else None
        for start in range(0, before.size_bytes, _WINDOW_BYTES):
            length = min(_WINDOW_BYTES, before.size_bytes - start)
            if any(extent.is_data for device in (before, after) for extent in device.extents(start, length)):
                content = before.read(start, length)
                expected = kept.of(content, start) if kept else content
                assert after.read(start, length) == expected, f"differs between byte {start} and {start + length}"


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs in order, none of which reaches into the next."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if joined and start <= joined[-1][1]:
            start, end = joined[-1][0], max(end, joined.pop()[1])
        joined.append((start, end))
    return joined


def _within(runs: list[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of sorted runs that lie in a stretch."""
    for n in range(max(bisect.bisect_right(runs, (start, start)) - 1, 0), len(runs)):
        if runs[n][0] >= end:
            return
        if runs[n][1] > start:
            yield max(runs[n][0], start), min(runs[n][1], end)


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
