"""Journals written by debugfs, transaction by transaction."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import run


@dataclass
class Transaction:
    blocks: dict[int, bytes] = field(default_factory=dict)
    revoked: tuple[int, ...] = ()
    is_committed: bool = True


def write_journal(image: Path, transactions: list[Transaction], checksum: int = 0) -> None:
    """Leave a volume with these in its journal, to be recovered; with checksums of version 2 or 3, or with none."""
    commands = [f"jo -c -v {checksum}" if checksum else "jo"]
    sources = []
    for number, one in enumerate(transactions):
        source = image.with_name(f"transaction {number}".replace(" ", "-"))
        source.write_bytes(b"".join(one.blocks.values()))
        sources.append(source)
        parts = ["jw"]
        if one.blocks:
            parts += ["-b", ",".join(map(str, one.blocks))]
        if one.revoked:
            parts += ["-r", ",".join(map(str, one.revoked))]
        if not one.is_committed:
            parts.append("-c")
        if one.blocks:
            parts.append(str(source))
        commands.append(" ".join(parts))
    script = image.with_name("journal-commands")
    script.write_text("\n".join([*commands, "jc", ""]))
    run("debugfs", "-w", "-f", script, image)
    for source in (*sources, script):
        source.unlink()


def journal_dump(image: Path) -> str:
    """The log as debugfs reads it."""
    return run("debugfs", "-c", "-R", "logdump -a", image).stdout.decode("ascii", "replace")


def blocks_of(image: Path, file: str) -> list[int]:
    """Every block of a file, its metadata blocks among them."""
    return [int(block) for block in run("debugfs", "-R", f"blocks {file}", image).stdout.split()]


def journal_block(image: Path, number: int) -> int:
    """Where a block of the journal lies, in blocks of the volume: those that are not in an extent tree or map."""
    text = run("debugfs", "-R", "stat <8>", image).stdout.decode()
    for low, start in re.findall(r"\((\d+)(?:-\d+)?\):(\d+)", text):
        if int(low) <= number:
            found = int(start) + number - int(low)
    return found


def differing(old: bytes, new: bytes, block: int) -> dict[int, bytes]:
    """The blocks of ``new`` that differ from those of ``old``."""
    return {
        at // block: new[at : at + block]
        for at in range(0, len(old), block)
        if old[at : at + block] != new[at : at + block]
    }
