"""Measures sqlimage beside its peers.

``python -m tests.bench.run --corpus DIR [--only NAME] [--repeat 3] [--json OUT] [--work DIR]``

``tests.bench.corpus`` makes the volumes. Machines drift: only ratios of one run count, so all contenders of a case
take turns. Prints Markdown; exit code 1 where a bar was missed or could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

from sqlimage.units import MIB, format_size
from tests.bench.bars import Results, Verdict, judge
from tests.bench.cases import CASES
from tests.bench.measure import Case, Result, ratio, run_case

_VERSIONS = {
    "qemu-img": ("qemu-img", "--version"),
    "wimlib": ("wimlib-imagex", "--version"),
    "partclone": ("partclone.ntfs", "--version"),
    "mksquashfs": ("mksquashfs", "-version"),
    "zstd": ("zstd", "--version"),
    "borg": ("borg", "--version"),
    "restic": ("restic", "version"),
    "casync": ("casync", "--version"),
}


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES, module: str = "run") -> int:
    """Run the cases that the arguments choose and print the report; returns the exit code.

    ``module`` is what the user started, which the help names.
    """
    options = _parse(argv, cases, module)
    chosen = [case for case in cases if not options.only or case.name in options.only]
    results: dict[str, dict[str, Result]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.work or options.corpus) as work:
        for case in chosen:
            done = run_case(case, options.corpus, Path(work) / case.name, options.repeat, _progress)
            results[case.name] = {result.contender: result for result in done}
    verdicts = judge(results)
    machine, versions = describe_machine(), tool_versions()
    print(report(chosen, results, verdicts, machine, versions, options.repeat))
    if options.json:
        document = {
            "machine": machine,
            "versions": versions,
            "repeat": options.repeat,
            "cases": {name: {who: asdict(one) for who, one in case.items()} for name, case in results.items()},
            "bars": [asdict(verdict) for verdict in verdicts],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(verdict.met for verdict in verdicts) else 1


def _parse(argv: Sequence[str] | None, cases: Sequence[Case], module: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{module}", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="directory that tests.bench.corpus filled")
    parser.add_argument("--only", action="append", choices=[case.name for case in cases], help="a case, repeatable")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (3)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--work", type=Path, help="where outputs are written and deleted (in the corpus)")
    options = parser.parse_args(argv)
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    if not options.corpus.is_dir():
        parser.error(f"{options.corpus}: no such directory; python -m tests.bench.corpus makes one")
    return options


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def describe_machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": model[0] if model else platform.machine(),
        "memory": format_size(memory[0]) if memory else "unknown",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def tool_versions() -> dict[str, str]:
    """What each program says of itself, in one line."""
    versions = {"sqlimage": version("sqlimage")}
    for name, command in _VERSIONS.items():
        if not shutil.which(command[0]):
            versions[name] = "not installed"
            continue
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = [line.strip(" *") for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        versions[name] = told[0] if told else "unknown"
    return versions


def report(
    cases: Sequence[Case],
    results: Results,
    verdicts: Sequence[Verdict],
    machine: dict[str, str],
    versions: dict[str, str],
    repeat: int,
) -> str:
    """Everything as Markdown."""
    lines = [
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory']} of memory, kernel "
        f"{machine['kernel']}, Python {machine['python']}; everything in the page cache. Medians of {repeat} rounds "
        "(least to most), contenders taking turns; ratios are medians of each round's.",
        "",
        *(f"- {name}: {version}" for name, version in versions.items()),
    ]
    for case in cases:
        lines += ["", f"### {case.title} (`{case.name}`)", "", *_case_table(case, results[case.name])]
    lines += ["", "### Bars", "", "| bar | asked | measured | |", "|---|---|---|---|"]
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines += [f"| {v.name} | {v.asked} | {v.measured} | {words[v.met]} |" for v in verdicts]
    return "\n".join(lines)


def _case_table(case: Case, results: Mapping[str, Result]) -> list[str]:
    subject = results[case.subject]
    compared = f"time of {case.subject} / this | size of {case.subject} / this"
    size = "added, MB" if any(contender.start for contender in case.contenders) else "output, MB"
    lines = [f"| | time, s | CPU, s | peak, MiB | {size} | {compared} |", "|---|---|---|---|---|---|---|"]
    notes = []
    for name, result in results.items():
        if not result.measured:
            notes.append(f"- {name} was not measured: {result.failure}")
            continue
        ratios = ["", ""]
        if name != case.subject:
            found = [ratio(subject, result, what) for what in ("wall_seconds", "output_bytes")]
            ratios = ["" if one is None else f"{one:.2f}" for one in found]
        cells = [
            _spread(result.of("wall_seconds")),
            _spread(result.of("cpu_seconds")),
            f"{max(result.of('peak_bytes')) / MIB:.0f}",
            f"{median(result.of('output_bytes')) / 1e6:.2f}",
            *ratios,
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines + (["", *notes] if notes else [])


def _spread(figures: list[float]) -> str:
    return f"{median(figures):.2f} ({min(figures):.2f}-{max(figures):.2f})"


if __name__ == "__main__":
    sys.exit(main())
