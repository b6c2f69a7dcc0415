"""Volumes that somebody changed: whatever they hold, the promises of a recognised volume are kept, in bounded time."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.recognised import recognise, recognise_member, swap_header
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.filesystem.test_recognised_signatures import END, MADE, SYNTHETIC
from tests.make.cost import PATIENCE
from tests.make.ext import in_memory, needs_mount
from tests.make.recognised import Patched, fill, make_btrfs, make_holes, make_xfs, mounted, sparse

ALL = 0xFFFFFFFF
READ_DEEPLY = ("xfs", "xfs_deep", "xfs_v4", "btrfs", "swap")


@dataclass(frozen=True)
class Volume:
    content: bytes
    structures: list[tuple[int, int, int | None]]
    """Place, size, and where the CRC-32C stands."""
    patches: dict[int, bytes] = field(default_factory=dict)
    """What is on it beside its content."""


def make_all(place: Path) -> dict[str, Volume]:
    nothing = bytes(END)
    made = {
        "xfs": xfs(place / "xfs", "-d", "agcount=2"),
        "xfs_deep": xfs(place / "deep", "-b", "size=1024", "-d", "agcount=1"),
        "xfs_v4": xfs(place / "v4", "-m", "crc=0", "-d", "agcount=2"),
        "btrfs": btrfs(place / "btrfs"),
        "swap": swap(place / "swap"),
    }
    for name, (patches, _) in SYNTHETIC.items():
        made[name] = Volume(nothing, [(at, max(len(data), 16), None) for at, data in patches.items()], patches)
    for name in ("udf", "nilfs2", "f2fs"):
        made[name] = formatted(place / name, *MADE[name])
    return made


def formatted(path: Path, size_mib: int, command: str) -> Volume:
    argv = [part.format(image=path) for part in command.split()]
    if not shutil.which(argv[0]):
        return Volume(bytes(MIB), [(1024, 512, None)])
    sparse(path, size_mib * MIB)
    run(*argv)
    places = [1024, 32 * KIB, 34 * KIB, 36 * KIB, 256 * 512, 257 * 512, 96 * 512, 97 * 512, 98 * 512]
    return Volume(path.read_bytes(), [(at, 512, None) for at in places])


def xfs(path: Path, *options: str) -> Volume:
    make_xfs(path, 40 * MIB, *options)
    has_checksums = "crc=0" not in options
    if os.geteuid() == 0 and has_checksums:
        with mounted(path, "xfs") as root:
            fill(root, path.name, files=40)
            make_holes(root / "holes", 4000 if "size=1024" in options else 60, int(os.statvfs(root).f_bsize))
    source = path.read_bytes()
    block, group_bytes = (int.from_bytes(source[at : at + 4], "big") for at in (4, 84))
    group_bytes *= block
    structures: list[tuple[int, int, int | None]] = []
    for at in range(0, len(source), group_bytes):
        structures += [(at, 512, 224 if has_checksums else None), (at + 512, 512, 216 if has_checksums else None)]
    tree = (b"AB3B", b"ABTB")
    for at in range(0, len(source), block):
        if source[at : at + 4] in tree:
            structures.append((at, block, 52 if has_checksums else None))
    start, bits = int.from_bytes(source[48:56], "big"), source[124]
    log = (start >> bits) * group_bytes + (start & (1 << bits) - 1) * block
    return Volume(source, [*structures, (log, 4096, None)])


def btrfs(path: Path) -> Volume:
    source = make_btrfs(path, 120 * MIB).read_bytes()
    superblock = 64 * KIB
    root = source[superblock + 0x58 : superblock + 0x60]
    nodes = [at for at in range(MIB, len(source), 4096) if source[at + 0x30 : at + 0x38] == root]
    return Volume(source, [(superblock, 4096, 0), *((at, 16 * KIB, 0) for at in nodes)])


def swap(path: Path) -> Volume:
    run("mkswap", sparse(path, 2 * MIB))
    return Volume(path.read_bytes(), [(1024, 600, None), (4080, 16, None)])


@pytest.fixture(scope="module")
def volumes() -> Iterator[dict[str, Volume]]:
    with in_memory() as place:
        yield make_all(place)


def flip_bits(chance: random.Random, raw: bytearray) -> None:
    for _ in range(chance.randint(1, 4)):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def put_extremes(chance: random.Random, raw: bytearray) -> None:
    """Integers at the ends of their ranges, near the beginning, where the fields are."""
    size = chance.choice([1, 2, 4, 8])
    value = chance.choice([0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1])
    at = chance.randrange(min(len(raw), 320) - 8)
    raw[at : at + size] = value.to_bytes(size, chance.choice(["little", "big"]))


def change_number(chance: random.Random, raw: bytearray) -> None:
    """A number that is nearly right."""
    at = chance.randrange(min(len(raw), 320) - 8) & ~3
    order = chance.choice(["little", "big"])
    value = int.from_bytes(raw[at : at + 4], order)  # type: ignore[arg-type]
    raw[at : at + 4] = (value + chance.choice([-2, -1, 1, 2, 64]) & ALL).to_bytes(4, order)  # type: ignore[arg-type]


def move(chance: random.Random, raw: bytearray) -> None:
    size = chance.choice([4, 8, 16, 64])
    source, target = (chance.randrange(len(raw) - size) & ~3 for _ in range(2)) if len(raw) > size else (0, 0)
    raw[target : target + size] = raw[source : source + size]


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (flip_bits, put_extremes, change_number, move)


def mutated(chance: random.Random, volume: Volume) -> Patched:
    """One or two structures changed; most of the time their checksums are right."""
    patches = dict(volume.patches)
    for _ in range(chance.choice([1, 1, 2])):
        at, size, checksum = chance.choice(volume.structures)
        raw = bytearray(Patched(volume.content, patches).read(at, size))
        chance.choice(MUTATIONS)(chance, raw)
        if checksum is not None and chance.random() < 0.9:
            covered = raw[32:] if checksum == 0 else raw[:checksum] + bytes(4) + raw[checksum + 4 :]
            raw[checksum : checksum + 4] = (crc32c(ALL, bytes(covered)) ^ ALL).to_bytes(4, "little")
        patches[at] = bytes(raw)
    size_bytes = len(volume.content)
    return Patched(volume.content, patches, size_bytes if chance.random() < 0.95 else chance.randrange(size_bytes))


def check_promises(device: Patched) -> str:
    """What the contract says of every volume, whatever it holds; which way it went."""
    whole = Runs.of([(0, device.size_bytes)])
    swap_header(device.read(0, min(device.size_bytes, 70_000)), device.size_bytes)
    try:
        recognise_member(device)
        seen = recognise(device)
    except InconsistentVolume:
        return "refused"
    if seen is None:
        return "unknown"
    facts = seen.facts
    assert 0 < facts.size_bytes <= device.size_bytes
    assert facts.alignment_bytes >= 512 and facts.alignment_bytes & (facts.alignment_bytes - 1) == 0
    assert facts.size_bytes % facts.alignment_bytes == 0
    assert facts.total_clusters * facts.bytes_per_cluster <= facts.size_bytes
    for runs in (seen.allocated(), seen.left_out()):
        if runs is not None:
            assert whole.clip(0, facts.size_bytes).covers(runs)
            assert ((runs.start | runs.length) % facts.alignment_bytes == 0).all()
    assert (seen.allocated() is None) or len(seen.left_out()) == 0
    return "kept whole" if seen.allocated() is None and len(seen.left_out()) == 0 else "narrowed"


def hunt(volumes: dict[str, Volume], rounds: int) -> dict[str, int]:
    ways: dict[str, int] = {}
    for name, volume in volumes.items():
        check_promises(Patched(volume.content, volume.patches))
        for seed in range(rounds * (8 if name in READ_DEEPLY else 1)):
            began = time.monotonic()
            try:
                way = check_promises(mutated(random.Random(f"{name} {seed}"), volume))
            except Exception as error:
                raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
            assert time.monotonic() - began < 10 * PATIENCE, f"{name}, seed {seed}"
            ways[way] = ways.get(way, 0) + 1
    return ways


def test_no_change_to_a_volume_breaks_a_promise(volumes: dict[str, Volume]) -> None:
    ways = hunt(volumes, int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "40")))
    assert {"refused", "unknown", "kept whole", "narrowed"} <= set(ways)


@needs_mount
@pytest.mark.parametrize(
    ("kind", "limit", "value", "note"),
    [
        ("xfs", "xfs.space._GROUPS_MAX", 1, "up to 1 are read"),
        ("xfs_deep", "xfs.tree._BLOCKS_MAX", 3, "more than 3 blocks"),
        ("xfs_deep", "xfs.tree._RECORDS_MAX", 100, "more than 100 records"),
        ("btrfs", "btrfs.chunks._NODES_MAX", 0, "more than 0 nodes"),
        ("btrfs", "btrfs.chunks._STRIPES_MAX", 2, "or 2 stripes"),
    ],
)
def test_what_would_take_too_long_is_not_read(
    volumes: dict[str, Volume], monkeypatch: pytest.MonkeyPatch, kind: str, limit: str, value: int, note: str
) -> None:
    monkeypatch.setattr(f"sqlimage.filesystem.recognised.{limit}", value)
    seen = recognise(Patched(volumes[kind].content, {}))
    assert seen is not None and seen.allocated() is None
    assert note in seen.facts.notes[0]


@pytest.mark.slow
def test_ten_thousand_changes_break_no_promise(volumes: dict[str, Volume]) -> None:
    assert sum(hunt(volumes, 250).values()) >= 10_000
