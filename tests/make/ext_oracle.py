"""What others say of an ext volume: the kernel, debugfs and dumpe2fs; and what we say, in the same words."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, Contents, EntryKind, Scan
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.units import KIB, MIB
from tests.conftest import run

_KINDS = {stat.S_IFREG: EntryKind.FILE, stat.S_IFDIR: EntryKind.DIRECTORY, stat.S_IFLNK: EntryKind.SYMLINK}
_PIECE = KIB
"""No file system's block is smaller."""


class Seen(NamedTuple):
    """One name of a volume."""

    inode: int
    mode: int
    size: int
    """0 for what is not a file, a directory or a link."""
    modified_ns: int
    digest: str
    """Of a file's bytes that are not zero, and where they are; of a link's target."""


def digest_of(stretches: Iterable[tuple[int, bytes]]) -> str:
    """Of a file's stretches, as offset and bytes: the same whatever zeros they hold."""
    digest = sha256()
    for at, data in stretches:
        for piece in range(0, len(data), _PIECE):
            stripped = data[piece : piece + _PIECE].rstrip(b"\0")
            if stripped:
                digest.update(b"%d:" % (at + piece) + stripped)
    return digest.hexdigest()


def seen_by_kernel(root: Path) -> dict[bytes, Seen]:
    """Every name below the root of a mounted volume."""
    found = {}
    top = os.fsencode(root)
    digests: dict[int, str] = {}
    pending = [b"/"]
    while pending:
        path = pending.pop()
        info = os.lstat(top + path)
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFDIR:
            pending += [path.rstrip(b"/") + b"/" + name for name in os.listdir(top + path)]
        elif kind == stat.S_IFLNK:
            digests[info.st_ino] = sha256(os.readlink(top + path)).hexdigest()
        elif kind == stat.S_IFREG and info.st_ino not in digests:
            digests[info.st_ino] = digest_of(_data_of(top + path))
        size = info.st_size if kind in (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG) else 0
        found[path] = Seen(info.st_ino, info.st_mode, size, info.st_mtime_ns, digests.get(info.st_ino, ""))
    return found


def _data_of(path: bytes) -> Iterator[tuple[int, bytes]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        end = 0
        while True:
            try:
                at = os.lseek(fd, end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(fd, at, os.SEEK_HOLE)
            yield at, os.pread(fd, end - at, at)
    finally:
        os.close(fd)


def seen_by_us(volume: ExtVolume, scan: Scan | None = None) -> dict[bytes, Seen]:
    """The same of our reader; what is no name of a directory is left out."""
    scan = scan or volume.scan()
    entries, contents = scan.entries, scan.contents
    place, is_zero = contents.run_place(), contents.reads_as_zeros()
    digests: dict[int, str] = {}
    found = {}
    for n, path in enumerate(entries.path):
        kind, record, row = entries.kind[n], int(entries.record[n]), int(entries.content[n])
        if kind == EntryKind.METADATA or path.startswith("/$OrphanFiles/"):
            continue
        assert kind == _KINDS.get(stat.S_IFMT(int(entries.attributes[n])), EntryKind.SPECIAL), path
        size = int(contents.size_bytes[row]) if row >= 0 else 0
        if kind in (EntryKind.FILE, EntryKind.SYMLINK) and record not in digests:
            content = volume.open(record)
            assert content.size_bytes == size
            if size <= MIB:
                data = content.read(0, size + 1)
                assert len(data) == size
                digests[record] = digest_of([(0, data)]) if kind == EntryKind.FILE else sha256(data).hexdigest()
            else:
                mine = slice(int(contents.first_run[row]), int(contents.first_run[row + 1]))
                runs = zip(place[mine].tolist(), contents.run_length[mine].tolist(), is_zero[mine], strict=True)
                digests[record] = digest_of((at, content.read(at, length)) for at, length, zero in runs if not zero)
        seen = Seen(record, int(entries.attributes[n]), size, int(entries.modified_ns[n]), digests.get(record, ""))
        found[os.fsencode(path)] = seen
    return found


class Run(NamedTuple):
    """Blocks of a file, from which of it, and from which of the volume."""

    logical: int
    start: int
    blocks: int
    unwritten: bool


_RANGE = re.compile(r"\((\d+)(?:-(\d+))?(\[u\])?\):(\d+)")


def runs_by_debugfs(image: Path, inodes: Iterable[int]) -> dict[int, list[Run]]:
    """The runs of some inodes, neighbours joined."""
    numbers = list(inodes)
    commands = image.with_name(image.name + ".debugfs")
    commands.write_text("".join(f"stat <{number}>\n" for number in numbers))
    text = run("debugfs", "-f", commands, image).stdout.decode("ascii", "replace")
    commands.unlink()
    found = {}
    for number, part in zip(numbers, text.split("debugfs: stat ")[1:], strict=True):
        assert part.startswith(f"<{number}>")
        _, _, told = part.partition("EXTENTS:\n" if "EXTENTS:\n" in part else "BLOCKS:\n")
        found[number] = joined(
            Run(int(low), int(start), int(high or low) - int(low) + 1, bool(unwritten))
            for low, high, unwritten, start in _RANGE.findall(told)
        )
    return found


def runs_by_us(contents: Contents, block: int) -> dict[int, list[Run]]:
    """The same of our reader, holes left out."""
    first = contents.first_run.tolist()
    place = contents.run_place() // block
    unwritten = contents.run_unwritten
    found = {}
    for row, record in enumerate(contents.record.tolist()):
        found[record] = joined(
            Run(
                int(place[n]),
                int(contents.run_offset[n]) // block,
                int(contents.run_length[n]) // block,
                unwritten is not None and bool(unwritten[n]),
            )
            for n in range(first[row], first[row + 1])
            if contents.run_offset[n] != HOLE
        )
    return found


def joined(runs: Iterable[Run]) -> list[Run]:
    result: list[Run] = []
    for one in runs:
        last = result[-1] if result else None
        if (
            last
            and one[:2] == (last.logical + last.blocks, last.start + last.blocks)
            and one.unwritten == last.unwritten
        ):
            result[-1] = last._replace(blocks=last.blocks + one.blocks)
        else:
            result.append(one)
    return result


def allocated_by_dumpe2fs(image: Path) -> Runs:
    """Bytes that dumpe2fs does not call free."""
    told = told_by_dumpe2fs(image)
    assert told is not None
    return told


def told_by_dumpe2fs(image: Path) -> Runs | None:
    """The same; None where it gives up, as over bitmaps of which only some have been written."""
    done = subprocess.run(["dumpe2fs", image], capture_output=True, check=False)
    if done.returncode:
        return None
    text = done.stdout.decode("utf-8", "replace")

    def number(name: str) -> int:
        found = re.search(rf"^{name}: +(\d+)$", text, re.MULTILINE)
        return int(found[1]) if found else 0

    block, count = number("Block size"), number("Block count")
    ratio = max(number("Cluster size") // block, 1)
    free = [
        (int(low), int(high or low) - int(low) + ratio)
        for line in re.findall(r"^  Free blocks: (.*)$", text, re.MULTILINE)
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", line)
    ]
    used = Runs.of(free).clip(0, count).complement(count)
    return Runs(used.start * block, used.length * block)


def keep_only(image: Path, volume: ExtVolume, target: Path) -> Path:
    """A copy of a volume that holds nothing but what has to be kept: its allocated bytes, without unwritten runs."""
    contents = volume.scan().contents
    unwritten = contents.run_unwritten
    left_out = Runs.empty()
    if unwritten is not None:
        left_out = Runs.from_arrays(contents.run_offset[unwritten], contents.run_length[unwritten])
    with image.open("rb") as source, target.open("wb") as copy:
        copy.truncate(image.stat().st_size)
        for start, length in volume.allocated().subtract(left_out):
            source.seek(start)
            copy.seek(start)
            copy.write(source.read(length))
    return target


def checked(image: Path) -> int:
    """What ``e2fsck -fn`` ends with: 0 where it finds nothing wrong."""
    return subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False).returncode
