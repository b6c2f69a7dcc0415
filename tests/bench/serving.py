"""Measuring disk servers: jobs of an NBD client, how they are run against a server, and how two servers compare.

What ``tests.bench.block`` and ``tests.bench.chains`` have in common.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.measure import Contender, filled, measure, warm

_SECONDS = 6
_WRITES = 40_000


@dataclass(frozen=True)
class Job:
    """One thing a client does; ``unit`` says what its figure counts, more of it being better unless it is ``s``."""

    name: str
    unit: str
    asked: float
    """How many times the peer's figure (of ``s``: at most this many times the peer's)."""
    fio: tuple[str, ...] = ()
    """Arguments of fio; empty: nbdcopy to null."""
    writes: bool = False


@dataclass
class Figures:
    """What one server reached at one job, round by round, and the most memory it held."""

    rounds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def reads(pattern: str, size: str, depth: int) -> tuple[str, ...]:
    """Arguments of fio: reads of one size for some seconds, ``depth`` of them on their way at any time."""
    return (f"--rw={pattern}", f"--bs={size}", f"--iodepth={depth}", f"--runtime={_SECONDS}", "--time_based")


def writes(depth: int) -> tuple[str, ...]:
    """Arguments of fio: a fixed number of random 4 KiB writes and a flush."""
    return (
        "--rw=randwrite",
        "--bs=4k",
        f"--iodepth={depth}",
        f"--io_size={_WRITES * 4096}",
        "--refill_buffers",
        "--end_fsync=1",
    )


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The options that every benchmark of a server takes."""
    found = argparse.ArgumentParser(prog=f"python -m tests.bench.{module}", description=description)
    found.add_argument("--corpus", type=_absolute, required=True, help="directory that tests.bench.corpus filled")
    found.add_argument("--only", action="append", help="only jobs whose name has this in it; repeatable")
    found.add_argument("--repeat", type=int, default=3, help="rounds (3)")
    found.add_argument("--json", type=Path, help="write every figure to this file")
    found.add_argument("--work", type=_absolute, help="where images are made and deleted (in the corpus)")
    return found


def _absolute(path: str) -> Path:
    return Path(path).absolute()  # fio runs elsewhere


def make_image(contender: Contender, corpus: Path, place: Path) -> Path:
    """Let a contender of another benchmark make the image that is served here, under its name."""
    source, out = corpus / contender.source, place / "out"
    out.mkdir()
    warm(source)
    measure(filled(contender.argv, {"source": source, "out": out / "out"}), out)
    (out / "out").rename(place / contender.name)
    out.rmdir()
    return place / contender.name


def serve_round(command: Sequence[str], job: Job, figures: Figures, place: Path) -> None:
    """Start a server (the path of its socket is appended), let a client do one job, and note what it reached."""
    socket = place / "s"
    with running([*command, str(socket)], socket) as server:
        uri = f"nbd+unix:///?socket={socket}"
        figures.rounds.append(_by_fio(job, uri) if job.fio else copy_seconds(uri))
        figures.peak_bytes = max(figures.peak_bytes, _peak_bytes(server.pid))


@contextmanager
def running(command: list[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server from when its socket is there until it has ended."""
    socket.unlink(missing_ok=True)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not socket.exists() and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        yield server
    finally:
        server.terminate()
        server.wait(timeout=60)


def _by_fio(job: Job, uri: str) -> float:
    """Bytes a second (in MB) or operations a second. The time of writes ends with the flush that follows them."""
    done = subprocess.run(
        ["fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", "--norandommap", "--output-format=json", *job.fio],
        capture_output=True,
        check=True,
        cwd="/",
    )
    told = json.loads(done.stdout[done.stdout.index(b"{") :])["jobs"][0]  # fio warns on the same stream
    if job.writes:
        return float(told["write"]["total_ios"]) / float(told["write"]["runtime"]) * 1000
    return float(told["read"]["bw_bytes"]) / 1e6 if job.unit == "MB/s" else float(told["read"]["iops"])


def copy_seconds(uri: str) -> float:
    """How long nbdcopy takes to read all of a medium."""
    begin = time.perf_counter()
    subprocess.run(["nbdcopy", uri, "null:"], check=True)
    return time.perf_counter() - begin


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def rate_ratio(ours: Figures, theirs: Figures) -> float:
    """The median over the rounds of ours / theirs."""
    return median(a / b for a, b in zip(ours.rounds, theirs.rounds, strict=True))


def is_met(job: Job, ours: Figures, theirs: Figures) -> bool:
    """Whether the ratio is on the right side of what the job asks."""
    ratio = rate_ratio(ours, theirs)
    return ratio <= job.asked if job.unit == "s" else ratio >= job.asked


def row(job: Job, ours: Figures, theirs: Figures) -> str:
    """A line of a Markdown table: both figures, their ratio, and the verdict."""
    asked = f"at most {job.asked:.2f}" if job.unit == "s" else f"at least {job.asked:.2f}"
    verdict = "met" if is_met(job, ours, theirs) else "**missed**"
    figures = f"{_spread(job, ours)} | {_spread(job, theirs)} | {rate_ratio(ours, theirs):.2f}"
    return f"| {job.name}, {job.unit} | {figures} | {asked} | {verdict} |"


def _spread(job: Job, one: Figures) -> str:
    digits = 2 if job.unit == "s" else 0
    return f"{median(one.rounds):,.{digits}f} ({min(one.rounds):,.{digits}f}-{max(one.rounds):,.{digits}f})"
