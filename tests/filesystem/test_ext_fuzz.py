"""Random changes to a volume: it is inconsistent, or every promise of the contract holds. A failure names its seed.

``SQLIMAGE_FUZZ_ROUNDS`` and ``SQLIMAGE_FUZZ_SEED`` make the run longer or another one.
"""

from __future__ import annotations

import os
import random
import struct
import time
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pytest

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import GIB, MIB
from tests.make.cost import PATIENCE, peak_bytes
from tests.make.ext import commit, crash, fill, in_memory, make_volume, mounted, needs_mount, settle, work
from tests.make.ext_bytes import ExtBytes, Place, structures

pytestmark = needs_mount
VOLUMES = {
    "checksums": "-t ext4 -b 1024 -O metadata_csum",
    "no checksums": "-t ext4 -b 1024 -O ^metadata_csum",
    "32 bits, uninit_bg, blocks of 4 KiB": "-t ext4 -b 4096 -O ^metadata_csum,^64bit,uninit_bg",
    "block maps": "-t ext3 -b 1024 -I 128",
    "inline_data": "-t ext4 -b 1024 -O inline_data,ea_inode,^metadata_csum",
    "bigalloc, checksums": "-t ext4 -b 1024 -O bigalloc,inline_data,metadata_csum -C 4096",
    "in use": "-t ext4 -b 1024 -O ^metadata_csum",
    "in use, checksums": "-t ext4 -b 1024 -O metadata_csum",
}


class Pristine(NamedTuple):
    content: bytes
    places: dict[str, list[Place]]


@pytest.fixture(scope="module", params=VOLUMES)
def pristine(request: pytest.FixtureRequest) -> Pristine:
    with in_memory() as place:
        image = make_volume(place / "v.img", 8 * MIB, *VOLUMES[request.param].split(), "-N", "512")
        with mounted(image) as root:
            fill(root, names=120, holes=100)
            if "in use" in request.param:
                settle(root)
                for turn in range(4):
                    work(root, turn, steps=60)
                    commit(root)
                crash(root)
        content = image.read_bytes()
    places = structures(content)
    if "in use" in request.param:
        scan = ExtVolume(MemoryDevice(content)).scan()
        row = scan.entries.content[scan.entries.path.index("/$Journal")]
        first = int(scan.contents.run_offset[scan.contents.first_run[row]])
        places["journal"] = [(first + n * 1024, 1024 if n else 0x100, lambda _: None) for n in range(40)]
    return Pristine(content, places)


def change(chance: random.Random, made: ExtBytes, at: int, length: int) -> None:
    """Something somewhere in a structure: bits, an integer at an end of its range, a piece of elsewhere."""
    match chance.randrange(5):
        case 0:
            made.content[at + chance.randrange(length)] ^= 1 << chance.randrange(8)
        case 1:
            for _ in range(chance.randint(1, 12)):
                made.content[at + chance.randrange(length)] = chance.randrange(256)
        case 2 | 3:
            size = chance.choice([1, 2, 2, 4, 4, 4])
            ends = [0, 1, 2, 3, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1, 1 << 4 * size]
            place = at + chance.randrange(0, max(length - size, 1), min(size, 4))
            made.content[place : place + size] = chance.choice(ends).to_bytes(size, "little")
        case _:
            size = chance.choice([4, 8, 12, 60, 128])
            size = min(size, length)
            place = at + chance.randrange(0, length - size + 1, 4)
            source = at + chance.randrange(0, length - size + 1, 4)
            if chance.random() < 0.3:
                source = chance.randrange(0, len(made.content) - size, 4)
            made.content[place : place + size] = made.content[source : source + size]


def check_promises(content: bytearray, chance: random.Random) -> None:
    """What the contract says of every volume, whatever it holds."""
    volume = ExtVolume(MemoryDevice(content))
    facts = volume.facts
    assert 0 < facts.size_bytes <= len(content)
    with suppress(InconsistentVolume):
        allocated = volume.allocated()
        assert allocated.clip(0, facts.size_bytes) == allocated
        assert allocated.widen(facts.alignment_bytes) == allocated
    found = volume.scan()
    entries, contents = found.entries, found.contents
    assert len(set(entries.path)) == len(entries) == len(entries.kind) == len(entries.content)
    assert all(path.startswith("/") and "\0" not in path for path in entries.path)
    assert not any(part in ("", ".", "..") for path in entries.path[1:] for part in path[1:].split("/"))
    assert ((entries.content >= -1) & (entries.content < len(contents))).all()
    backed = contents.run_offset != HOLE
    assert (contents.run_offset[backed] >= 0).all() and (contents.run_length > 0).all()
    assert (contents.run_offset[backed] + contents.run_length[backed] <= facts.size_bytes).all()
    assert Runs.from_arrays(contents.run_offset[backed], contents.run_length[backed]).total <= facts.size_bytes
    assert (contents.valid_bytes == contents.size_bytes).all() and (contents.size_bytes >= 0).all()
    covered = np.append(0, contents.run_length.cumsum())[contents.first_run]
    inline = np.isin(np.arange(len(contents)), list(contents.inline_digest))
    assert ((covered[1:] - covered[:-1] >= contents.size_bytes) | inline).all()
    for row in chance.sample(range(len(contents)), min(len(contents), 15)):
        with suppress(InconsistentVolume):
            stream = volume.open(int(contents.record[row]))
            assert stream.size_bytes == contents.size_bytes[row]
            assert len(stream.read(0, 9000)) == min(stream.size_bytes, 9000)
            assert len(stream.read(max(stream.size_bytes - 100, 0), 9000)) == min(stream.size_bytes, 100)
    for number in (0, 1, 5, 11, chance.randrange(600), 1 << 32):
        with suppress(InconsistentVolume, NotFoundError):
            volume.open(number)


def mutate_and_check(pristine: Pristine, rounds: int, name: str) -> int:
    first = int(os.environ.get("SQLIMAGE_FUZZ_SEED", "0"))
    survived = 0
    for seed in range(first, first + rounds):
        chance = random.Random(f"{name} {seed}")
        made = ExtBytes(pristine.content)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at, length, fix = chance.choice(pristine.places[chance.choice(list(pristine.places))])
            change(chance, made, at, length)
            if made.has_checksums and chance.random() < 0.9:
                with suppress(struct.error):  # an earlier change took away where it belongs
                    fix(made)
        started = time.monotonic()
        try:
            check_promises(made.content, chance)
            survived += 1
        except InconsistentVolume:
            pass
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
        assert time.monotonic() - started < 10 * PATIENCE, f"{name}, seed {seed}"
    return survived


def test_the_checksums_made_right_here_are_those_of_the_file_system(pristine: Pristine) -> None:
    made = ExtBytes(pristine.content)
    if made.has_checksums:
        for places in pristine.places.values():
            for _, _, fix in places:
                fix(made)
    assert made.content == pristine.content


def test_no_change_to_a_volume_breaks_a_promise(pristine: Pristine, request: pytest.FixtureRequest) -> None:
    rounds = int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "40"))
    name = request.node.callspec.params["pristine"]
    assert mutate_and_check(pristine, rounds, name) > rounds // 10


@pytest.mark.slow
def test_ten_thousand_changes_break_no_promise(pristine: Pristine, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["pristine"]
    before = peak_bytes()
    assert mutate_and_check(pristine, 10_000 // len(VOLUMES), f"{name}, long") > 100
    assert peak_bytes() < max(before, GIB)
