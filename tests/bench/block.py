"""Measures an image as a disk, beside ``qemu-nbd`` on the compressed qcow2 of the same volume.

``python -m tests.bench.block --corpus DIR [--only NAME] [--repeat 3] [--json OUT] [--work DIR]``

The same clients (fio and nbdcopy, both on libnbd) talk to both servers over Unix sockets, in turn. Prints
Markdown; exit code 1 where a bar was missed or could not be measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from sqlimage.units import MIB
from tests.bench.cases import SQLIMAGE, ZSTD, qcow2, sqlimage_capture
from tests.bench.measure import measure, warm
from tests.bench.records import open_to_first_byte
from tests.bench.run import describe_machine, tool_versions

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


def _reads(pattern: str, size: str, depth: int) -> tuple[str, ...]:
    return (f"--rw={pattern}", f"--bs={size}", f"--iodepth={depth}", f"--runtime={_SECONDS}", "--time_based")


def _writes(depth: int) -> tuple[str, ...]:
    return (
        "--rw=randwrite",
        "--bs=4k",
        f"--iodepth={depth}",
        f"--io_size={_WRITES * 4096}",
        "--refill_buffers",
        "--end_fsync=1",
    )


JOBS = (
    Job("sequential 1 MiB reads, depth 1", "MB/s", 1.3, _reads("read", "1m", 1)),
    Job("sequential 1 MiB reads, depth 4", "MB/s", 1.3, _reads("read", "1m", 4)),
    Job("random 4 KiB reads, depth 1", "1/s", 1.3, _reads("randread", "4k", 1)),
    Job("random 4 KiB reads, depth 16", "1/s", 1.3, _reads("randread", "4k", 16)),
    Job("nbdcopy to null", "s", 1.0),
    Job("random 4 KiB writes and a flush, depth 1", "1/s", 2.0, _writes(1), writes=True),
    Job("random 4 KiB writes and a flush, depth 16", "1/s", 2.0, _writes(16), writes=True),
)


@dataclass
class Figures:
    """What one server reached at one job, round by round, and the most memory it held."""

    rounds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs and print the report; returns the exit code."""
    options = _parse(argv)
    jobs = [job for job in JOBS if not options.only or any(part in job.name for part in options.only)]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.work or options.corpus) as work:
        place = Path(work)
        figures = {job.name: {"sqlimage": Figures(), "qemu-nbd": Figures()} for job in jobs}
        _prepare(options.corpus, place)
        for turn in range(options.repeat):
            for job in jobs:
                for name, serve in (("qemu-nbd", _qemu_nbd), ("sqlimage", _sqlimage)):
                    print(f"{job.name}: {name}, {turn + 1} of {options.repeat}", file=sys.stderr, flush=True)
                    _round(job, serve, figures[job.name][name], place)
        opened = open_to_first_byte(place)
        empty = _empty_terabyte(options.corpus, place)
    machine, versions = describe_machine(), tool_versions()
    print(_report(jobs, figures, opened, empty, machine, versions, options.repeat))
    if options.json:
        told = {name: {who: asdict(one) for who, one in both.items()} for name, both in figures.items()}
        options.json.write_text(json.dumps({"machine": machine, "jobs": told, "opened_ms": opened}, indent=1) + "\n")
    met = [_ratio_met(job, figures[job.name]) for job in jobs]
    return 0 if all(met) and opened < 50 else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.block", description="An image as a disk.")
    parser.add_argument("--corpus", type=Path, required=True, help="directory that tests.bench.corpus filled")
    parser.add_argument("--only", action="append", help="only jobs whose name has this in it; repeatable")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (3)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--work", type=Path, help="where images are made and deleted (in the corpus)")
    return parser.parse_args(argv)


def _prepare(corpus: Path, place: Path) -> None:
    for contender in (sqlimage_capture("image.sqlimage", "ntfs.img"), qcow2("image.qcow2", "ntfs.img", *ZSTD)):
        out = place / "out"
        out.mkdir()
        words = {"{source}": str(corpus / "ntfs.img"), "{out}": str(out / "out")}
        warm(corpus / "ntfs.img")
        measure([words.get(word, word) for word in contender.argv], out)
        (out / "out").rename(place / contender.name)
        out.rmdir()


def _round(job: Job, serve: Callable[[Path, Path, bool], list[str]], figures: Figures, place: Path) -> None:
    socket = place / "s"
    with tempfile.TemporaryDirectory(dir=place) as fresh:
        for image in (place / "image.sqlimage", place / "image.qcow2"):
            warm(image)
        with _running([*serve(place, Path(fresh), job.writes), str(socket)], socket) as server:
            uri = f"nbd+unix:///?socket={socket}"
            figures.rounds.append(_fio(job, uri) if job.fio else _copy(uri))
            figures.peak_bytes = max(figures.peak_bytes, _peak(server.pid))


def _qemu_nbd(place: Path, fresh: Path, writes: bool) -> list[str]:
    if not writes:
        return ["qemu-nbd", "-f", "qcow2", "-r", "-t", "-e", "16", str(place / "image.qcow2"), "-k"]
    overlay = fresh / "overlay.qcow2"
    base = str(place / "image.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay], check=True)
    return ["qemu-nbd", "-f", "qcow2", "-t", "-e", "16", str(overlay), "-k"]


def _sqlimage(place: Path, fresh: Path, writes: bool) -> list[str]:
    if not writes:
        return [SQLIMAGE, "serve", str(place / "image.sqlimage"), "--socket"]
    child = ["--writable", "--into", str(fresh / "child.sqlimage")]
    return [SQLIMAGE, "serve", str(place / "image.sqlimage"), *child, "--socket"]


@contextmanager
def _running(command: list[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
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


def _fio(job: Job, uri: str) -> float:
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


def _copy(uri: str) -> float:
    begin = time.perf_counter()
    subprocess.run(["nbdcopy", uri, "null:"], check=True)
    return time.perf_counter() - begin


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _empty_terabyte(corpus: Path, place: Path) -> float | None:
    """Seconds that nbdcopy needs for 1 TiB with 1 GiB of files on it."""
    source = corpus / "ntfs_1t.img"
    if not source.exists():
        return None
    subprocess.run([SQLIMAGE, "capture", source, place / "1t.sqlimage"], check=True, stdout=subprocess.DEVNULL)
    with _running([SQLIMAGE, "serve", str(place / "1t.sqlimage"), "--socket", str(place / "s")], place / "s"):
        return _copy(f"nbd+unix:///?socket={place / 's'}")


def _ratio(job: Job, both: dict[str, Figures]) -> float:
    pairs = zip(both["sqlimage"].rounds, both["qemu-nbd"].rounds, strict=True)
    return median(ours / theirs for ours, theirs in pairs)


def _ratio_met(job: Job, both: dict[str, Figures]) -> bool:
    return _ratio(job, both) <= job.asked if job.unit == "s" else _ratio(job, both) >= job.asked


def _report(
    jobs: Sequence[Job],
    figures: dict[str, dict[str, Figures]],
    opened: float,
    empty: float | None,
    machine: dict[str, str],
    versions: dict[str, str],
    repeat: int,
) -> str:
    lines = [
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory']}, kernel {machine['kernel']}, Python "
        f"{machine['python']}, {versions['qemu-img']}; in the page cache; medians of {repeat} rounds (least to most).",
        "",
        "| NTFS volume of 2 GiB as a disk | sqlimage | qemu-nbd, qcow2 zstd 64 KiB | ratio | asked | |",
        "|---|---|---|---|---|---|",
    ]
    for job in jobs:
        both = figures[job.name]
        asked = f"at most {job.asked:.1f}" if job.unit == "s" else f"at least {job.asked:.1f}"
        lines.append(
            f"| {job.name}, {job.unit} | {_spread(job, both['sqlimage'])} | {_spread(job, both['qemu-nbd'])} | "
            f"{_ratio(job, both):.2f} | {asked} | {'met' if _ratio_met(job, both) else '**missed**'} |"
        )
    peak = max(both["sqlimage"].peak_bytes for both in figures.values())
    lines += ["", f"Most memory of the server: {peak / MIB:.0f} MiB."]
    lines.append(f"Opening an image of 1,000,000 map records and reading its first 4 KiB: {opened:.1f} ms (asked: 50).")
    if empty is not None:
        lines.append(f"nbdcopy of a medium of 1 TiB with 1 GiB of files: {empty:.1f} s.")
    return "\n".join(lines)


def _spread(job: Job, one: Figures) -> str:
    digits = 2 if job.unit == "s" else 0
    return f"{median(one.rounds):,.{digits}f} ({min(one.rounds):,.{digits}f}-{max(one.rounds):,.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
