"""How commands speak: tables and JSON on stdout, messages and progress on stderr, names that cannot harm a terminal."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import sqlimage

_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_HARMFUL_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What JSON lets stand as it is."""
_SHOWN = 12
"""Bytes that are shown of what is replaced; --json has all."""
_LOOKED_AT = 500
"""Rows that decide how wide the columns of a table are; later, wider ones stand out."""


UNCOVERED = "note: the version is signed, and its signature does not cover this change; `sqlimage sign` signs it again"
"""Said where a version that is signed was changed."""


def printable(text: str) -> str:
    """Text with control characters and direction marks shown as escapes, so that no name can move the cursor."""
    return _HARMFUL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


CAME_WHOLE = "segments that came whole stay; the same command goes on"
ARE_WHOLE = "segments that are there whole stay; the same command goes on"
"""Said where what travels was interrupted, by who takes it and by who brings it."""
_left = ["a file or tree that was being made is not there"]


def on_interruption(left: str) -> None:
    """What is to be said where the command that runs is interrupted."""
    _left[:] = [left]


def what_is_left() -> str:
    """What an interruption has left, and how to go on."""
    return _left[0]


_stand_in: dict[str, str] = {}


def stands_for(path: str, url: str) -> None:
    """From now on messages say the URL where they would name the file that stands for it."""
    _stand_in[path] = url


def message(text: str) -> None:
    """One line for the person, on stderr."""
    for path, url in _stand_in.items():
        text = text.replace(path, url)
    print(printable(text), file=sys.stderr)


def print_json(value: object) -> None:
    """One JSON document on stdout: what has named fields as objects, bytes as hexadecimal text."""
    text = json.dumps(_plain(value), ensure_ascii=False, indent=2)
    print(_HARMFUL_IN_JSON.sub(lambda m: f"\\u{ord(m[0]):04x}", text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """Rows under aligned headings, streamed; how many there were. Nothing is cut off."""
    source = iter(rows)
    first = [[cell(value) for value in row] for row in itertools.islice(source, _LOOKED_AT)]
    widths = [max(map(len, column)) for column in zip(columns, *first, strict=True)] if first else [*map(len, columns)]
    # Numbers stand at the right, by what most of the first rows hold.
    right = [bool(first) and all(_is_number(row[n]) for row in first) for n in range(len(columns))]
    _line(columns, widths, right)
    count = 0
    for line in itertools.chain(first, ([cell(value) for value in row] for row in source)):
        _line(line, widths, right)
        count += 1
    return count


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; pairs without a value are left out."""
    shown = [(printable(name), cell(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {value}")


def cell(value: object) -> str:
    """A value as a table shows it: NULL empty, bytes as text where they are text, else hexadecimal."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 64 else f"{value[:32].hex()}... ({len(value)} bytes)"
    return printable(str(value))


def print_changes(report: sqlimage.EditReport) -> None:
    """What an edit did, file by file, and what it came to."""
    for note in report.notes:
        message(f"note: {note}")
    if report.version is None:
        print("nothing was written; no version was made")
        return
    if report.changes:
        rows = (
            (
                change.action,
                "" if change.bytes_before is None else change.bytes_before,
                "" if change.bytes_after is None else change.bytes_after,
                change.path if change.old_path is None else f"{change.old_path} -> {change.path}",
            )
            for change in report.changes
        )
        print_table(["action", "bytes before", "after", "path"], rows)
    print_pairs(
        [
            ("version", report.version),
            ("uuid", report.uuid),
            ("written", sqlimage.format_size(report.written_bytes)),
            ("stored", sqlimage.format_size(report.stored_bytes)),
        ]
    )


def print_changed(changes: sqlimage.Changes, as_json: bool) -> None:
    """What a command that changes single files did."""
    for note in changes.notes:
        message(f"note: {note}")
    if as_json:
        print_json(changes.report)
    elif changes.report is not None:
        print_changes(changes.report)


def print_outcome(outcome: sqlimage.Outcome) -> None:
    """How work on an image ended, and what the user can do next."""
    if outcome.report is not None:
        print_changes(outcome.report)
    elif outcome.state == "discarded":
        print("what was written is gone")
    elif outcome.state == "unchanged":
        print("nothing was written; no version was made")
    elif outcome.advice:
        print(outcome.advice)


def print_explanation(explained: sqlimage.Explanation, as_json: bool) -> None:
    """What would be done to volumes, and every change of their control information."""
    for note in explained.notes:
        message(f"note: {note}")
    if as_json:
        print_json(explained)
        return
    for volume in explained.volumes:
        where = f"{sqlimage.format_size(volume.length_before)} at byte {volume.offset_before}"
        if (volume.offset_bytes, volume.length_bytes) != (volume.offset_before, volume.length_before):
            where += f" -> {sqlimage.format_size(volume.length_bytes)} at byte {volume.offset_bytes}"
        moved = f"{sqlimage.format_size(volume.moved_bytes)} to be moved, {volume.fixups} fix-ups"
        print(f"volume {volume.number}: {printable(volume.file_system or 'unknown')}, {where}: {moved}")
    if explained.fixups:
        rows = (
            (at, len(original), _beginning(original), _beginning(replacement), reason)
            for at, original, replacement, reason in explained.fixups
        )
        print_table(["offset", "bytes", "original", "replacement", "reason"], rows)
    print_pairs([("size", _from_to(explained.size_before, explained.size_bytes))])


def _beginning(content: bytes) -> str:
    return content.hex() if len(content) <= _SHOWN else f"{content[:_SHOWN].hex()}..."


def _from_to(before: int, after: int) -> str:
    told = f"{sqlimage.format_size(after)} ({after} bytes)"
    return told if before == after else f"{sqlimage.format_size(before)} ({before} bytes) -> {told}"


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr while the block runs, where stderr is a terminal; None where it is not."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    shape = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    bar = Progress(*shape, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinity
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _is_number(text: str) -> bool:
    return text == "" or bool(re.fullmatch(r"-?\d+(\.\d+)?( ([KMGTP]i)?B)?", text))


def _line(values: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> None:
    cells = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
    print("  ".join(cells).rstrip())
