"""Measuring commands: wall time, CPU time, peak memory and the size of what they leave behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

_BLOCK_BYTES = 1 << 20
_CHILD = Path(__file__).with_name("child.py")
CACHE = "cache"
"""Directories of this name do not count as output."""


@dataclass(frozen=True)
class Contender:
    """A program that does a job. In ``argv`` ``{source}``, ``{out}`` and ``{start}`` stand for paths."""

    name: str
    argv: tuple[str, ...]
    source: str
    """A volume of the corpus, or an image that ``prepare`` made; empty: it works on ``start`` alone."""
    needs: tuple[str, ...]
    """Programs without which it cannot run."""
    start: str = ""
    """A file or directory that ``prepare`` made. Each run gets a fresh copy of it at ``{start}``, unmeasured, and may
    change it: that is how a program is measured that adds to something."""


@dataclass(frozen=True)
class Case:
    """One job for several contenders, which take turns at it."""

    name: str
    title: str
    subject: str
    """The contender whose ratios to all others are printed."""
    contenders: tuple[Contender, ...]
    prepare: tuple[Contender, ...] = ()
    """Run once beforehand, unmeasured; what each leaves at ``{out}``, others use by its name as ``source`` or
    ``start``."""


@dataclass(frozen=True)
class Measurement:
    wall_seconds: float
    cpu_seconds: float
    """User and system time of the command and all processes it waited for."""
    peak_bytes: int
    """Resident memory of the largest single process among them."""
    output_bytes: int
    """By how much all files together grew, caches apart; of sparse ones what they occupy counts."""


@dataclass
class Result:
    """What a contender did, round by round."""

    contender: str
    rounds: list[Measurement] = field(default_factory=list)
    failure: str | None = None
    """Why it was not measured to the end."""

    def of(self, what: str) -> list[float]:
        """One figure of every round: ``wall_seconds``, ``cpu_seconds``, ``peak_bytes`` or ``output_bytes``."""
        return [float(getattr(one, what)) for one in self.rounds]

    @property
    def measured(self) -> bool:
        return self.failure is None and bool(self.rounds)


class CommandFailed(Exception):
    """A command that is measured ended with an error; the message holds the end of its standard error."""


def measure(argv: Sequence[str], out_directory: Path) -> Measurement:
    """Run a command to its end and measure it and by how much the files in ``out_directory`` grew.

    Raises :class:`CommandFailed` where it ends with anything but exit code 0 or cannot be started.
    """
    held_before = _held_bytes(out_directory)
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as told:
        subprocess.run(
            [sys.executable, "-I", "-S", str(_CHILD), str(told.fileno()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[told.fileno()],
            check=False,
        )
        told.seek(0)
        code, wall_seconds, cpu_seconds, peak_kib = told.read().decode().split() or ["none", "0", "0", "0"]
        if code != "0":
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 600))
            said = errors.read().decode(errors="replace").strip()
            raise CommandFailed(f"{' '.join(argv)}: exit {code}: {said}")
    os.sync()  # some file systems allocate only now, and the next contender shall not pay for writing this one's output
    return Measurement(
        wall_seconds=float(wall_seconds),
        cpu_seconds=float(cpu_seconds),
        peak_bytes=int(peak_kib) * 1024,
        output_bytes=_held_bytes(out_directory) - held_before,
    )


def filled(argv: Sequence[str], places: Mapping[str, Path]) -> list[str]:
    """The words of a command with ``{source}``, ``{out}`` and the like replaced by paths."""
    words = list(argv)
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", str(place)) for word in words]
    return words


def _held_bytes(directory: Path) -> int:
    """All files but those below directories called ``cache``: what a backup program could make again."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(_occupied(path) for path in files if CACHE not in path.relative_to(directory).parts)


def _occupied(path: Path) -> int:
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512)


def warm(path: Path) -> None:
    """Read what a file holds (not its holes) into the page cache."""
    with path.open("rb", buffering=0) as file:
        at, end = 0, path.stat().st_size
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            except OSError:
                return  # nothing but a hole is left
            while at < hole:
                at += len(os.pread(file.fileno(), min(_BLOCK_BYTES, hole - at), at)) or hole


def run_case(case: Case, corpus: Path, work: Path, repeat: int, progress: Callable[[str], None]) -> list[Result]:
    """Let all contenders of a case take turns (A B C, A B C, ...), ``repeat`` times.

    Each source is read into the page cache before each run, outputs are deleted after it. A contender that lacks a
    program or fails is out of the case; its ``Result`` says why.
    """
    results = {contender.name: Result(contender.name) for contender in case.contenders}
    corpus, work = corpus.absolute(), work.absolute()  # a backing file is found from where its overlay is
    prepared = work / "prepared"
    prepared.mkdir(parents=True)
    try:
        for contender in case.prepare:
            progress(f"{case.name}: preparing {contender.name}")
            _prepare(contender, corpus, prepared, case, results)
        for turn in range(repeat):
            for contender in case.contenders:
                result = results[contender.name]
                if result.failure is None:
                    progress(f"{case.name}: {contender.name}, {turn + 1} of {repeat}")
                    if (place := _place(contender.source, corpus, prepared)).is_file():
                        warm(place)  # each time: a machine may take its memory back between two runs
                    _run_once(contender, result, corpus, prepared, work / "out")
    finally:
        shutil.rmtree(prepared)
    return list(results.values())


def _place(name: str, corpus: Path, prepared: Path) -> Path:
    made = prepared / name
    return made if name and made.exists() else corpus / name


def _prepare(contender: Contender, corpus: Path, prepared: Path, case: Case, results: dict[str, Result]) -> None:
    failed = Result(contender.name)
    _run_once(contender, failed, corpus, prepared, prepared / ".out", keep_as=prepared / contender.name)
    if failed.failure:
        for other in case.contenders:
            if contender.name in (other.source, other.start):
                results[other.name].failure = f"{contender.name} could not be made: {failed.failure}"


def _run_once(
    contender: Contender, result: Result, corpus: Path, prepared: Path, out: Path, keep_as: Path | None = None
) -> None:
    source, start = _place(contender.source, corpus, prepared), prepared / contender.start
    result.failure = _lacking(contender, source, start)
    if result.failure:
        return
    out.mkdir()
    places = {"source": source, "out": out / "out", "start": out / contender.start}
    try:
        if contender.start:
            subprocess.run(["cp", "--archive", start, places["start"]], check=True)
            os.sync()  # the copy shall not be written to the disk while the contender works
        result.rounds.append(measure(filled(contender.argv, places), out))
        if keep_as:
            places["out"].rename(keep_as)
    except CommandFailed as problem:
        result.failure = str(problem)
    finally:
        shutil.rmtree(out)


def _lacking(contender: Contender, source: Path, start: Path) -> str | None:
    """Why a contender cannot even be started."""
    missing = [program for program in contender.needs if not shutil.which(program)]
    if missing:
        return f"{' '.join(missing)}: not installed"
    if contender.source and not source.is_file():
        return f"{source}: no such volume"
    return None if start.exists() else f"{contender.start} was not prepared"


def ratio(subject: Result, other: Result, what: str = "wall_seconds") -> float | None:
    """The median over the rounds of subject / other, each round's two runs being neighbours in time; None where
    either was not measured, or the other's figure is never above 0, as where a file shrank."""
    if not (subject.measured and other.measured):
        return None
    found = [a / b for a, b in zip(subject.of(what), other.of(what), strict=True) if b > 0]
    return median(found) if found else None
