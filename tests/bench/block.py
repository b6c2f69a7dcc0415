"""Measures an image as a disk, beside ``qemu-nbd`` on the compressed qcow2 of the same volume.

``python -m tests.bench.block --corpus DIR [--only NAME] [--repeat 3] [--json OUT] [--work DIR]``

The same clients (fio and nbdcopy, both on libnbd) talk to both servers over Unix sockets, in turn. Prints
Markdown; exit code 1 where a bar was missed or could not be measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from sqlimage.units import MIB
from tests.bench.cases import SQLIMAGE, ZSTD, qcow2, sqlimage_capture
from tests.bench.measure import warm
from tests.bench.records import open_to_first_byte
from tests.bench.run import describe_machine, tool_versions
from tests.bench.serving import (
    Figures,
    Job,
    copy_seconds,
    is_met,
    make_image,
    parser,
    reads,
    row,
    running,
    serve_round,
    writes,
)

JOBS = (
    Job("sequential 1 MiB reads, depth 1", "MB/s", 1.3, reads("read", "1m", 1)),
    Job("sequential 1 MiB reads, depth 4", "MB/s", 1.3, reads("read", "1m", 4)),
    Job("random 4 KiB reads, depth 1", "1/s", 1.3, reads("randread", "4k", 1)),
    Job("random 4 KiB reads, depth 16", "1/s", 1.3, reads("randread", "4k", 16)),
    Job("nbdcopy to null", "s", 1.0),
    Job("random 4 KiB writes and a flush, depth 1", "1/s", 2.0, writes(1), writes=True),
    Job("random 4 KiB writes and a flush, depth 16", "1/s", 2.0, writes(16), writes=True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs and print the report; returns the exit code."""
    options = parser("block", "An image as a disk.").parse_args(argv)
    jobs = [job for job in JOBS if not options.only or any(part in job.name for part in options.only)]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.work or options.corpus) as work:
        place = Path(work)
        figures = {job.name: {"sqlimage": Figures(), "qemu-nbd": Figures()} for job in jobs}
        for contender in (sqlimage_capture("image.sqlimage", "ntfs.img"), qcow2("image.qcow2", "ntfs.img", *ZSTD)):
            make_image(contender, options.corpus, place)
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
    met = [is_met(job, *_both(figures[job.name])) for job in jobs]
    return 0 if all(met) and opened < 50 else 1


def _round(job: Job, serve: Callable[[Path, Path, bool], list[str]], figures: Figures, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place) as fresh:
        for image in (place / "image.sqlimage", place / "image.qcow2"):
            warm(image)
        serve_round(serve(place, Path(fresh), job.writes), job, figures, place)


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


def _empty_terabyte(corpus: Path, place: Path) -> float | None:
    """Seconds that nbdcopy needs for 1 TiB with 1 GiB of files on it."""
    source = corpus / "ntfs_1t.img"
    if not source.exists():
        return None
    subprocess.run([SQLIMAGE, "capture", source, place / "1t.sqlimage"], check=True, stdout=subprocess.DEVNULL)
    with running([SQLIMAGE, "serve", str(place / "1t.sqlimage"), "--socket", str(place / "s")], place / "s"):
        return copy_seconds(f"nbd+unix:///?socket={place / 's'}")


def _both(figures: dict[str, Figures]) -> tuple[Figures, Figures]:
    return figures["sqlimage"], figures["qemu-nbd"]


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
    lines += [row(job, *_both(figures[job.name])) for job in jobs]
    peak = max(both["sqlimage"].peak_bytes for both in figures.values())
    lines += ["", f"Most memory of the server: {peak / MIB:.0f} MiB."]
    lines.append(f"Opening an image of 1,000,000 map records and reading its first 4 KiB: {opened:.1f} ms (asked: 50).")
    if empty is not None:
        lines.append(f"nbdcopy of a medium of 1 TiB with 1 GiB of files: {empty:.1f} s.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
