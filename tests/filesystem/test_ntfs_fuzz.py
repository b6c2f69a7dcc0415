"""Random changes to a volume: it is inconsistent, or every promise of the contract holds. A failure names its seed.

``SQLIMAGE_FUZZ_ROUNDS`` and ``SQLIMAGE_FUZZ_SEED`` make the run longer or another one.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.media.memory import MemoryDevice
from tests.make.ntfs import VolumeBytes, make_everything


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_everything(tmp_path_factory.mktemp("fuzz") / "v.img")


@pytest.fixture(scope="module")
def record(pristine: bytes) -> dict[str, int]:
    """Record numbers by path."""
    entries = NtfsVolume(MemoryDevice(pristine)).scan().entries
    return dict(zip(entries.path, entries.record.tolist(), strict=True))


def flip_bits(chance: random.Random, made: VolumeBytes, number: int) -> None:
    for _ in range(chance.randint(1, 6)):
        made.content[made.record_at(number) + chance.randrange(1024)] ^= 1 << chance.randrange(8)


def put_extremes(chance: random.Random, made: VolumeBytes, number: int) -> None:
    """Integers at the ends of their ranges, where fields are likely to be."""
    size = chance.choice([1, 2, 4, 8])
    value = chance.choice([0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1])
    made.patch(number, chance.randrange(0, 560, 2), value.to_bytes(size, "little"))


def copy_record(chance: random.Random, made: VolumeBytes, number: int) -> None:
    made.put_record(number, bytes(made.record(chance.randrange(90))))


def mix_records(chance: random.Random, made: VolumeBytes, number: int) -> None:
    at = chance.randrange(48, 900, 8)
    length = chance.randrange(8, 200, 8)
    made.patch(number, at, bytes(made.record(chance.randrange(90))[at : at + length]))


def flip_boot_sector(chance: random.Random, made: VolumeBytes, number: int) -> None:
    made.content[chance.randrange(0x0B, 0x50)] ^= 1 << chance.randrange(8)


def flip_anywhere(chance: random.Random, made: VolumeBytes, number: int) -> None:
    for _ in range(200):
        made.content[chance.randrange(512, len(made.content))] ^= 1 << chance.randrange(8)


def flip_index(chance: random.Random, made: VolumeBytes, number: int) -> None:
    """The root directory's, mostly: what is hibernating is looked up there."""
    blocks = [found.start() for found in re.finditer(b"INDX", made.content)]
    for _ in range(chance.randint(1, 3)):
        made.content[chance.choice(blocks) + chance.randrange(0x10, 0x300)] ^= 1 << chance.randrange(8)


MUTATIONS = (flip_index, flip_bits, put_extremes, copy_record, mix_records, flip_boot_sector, flip_anywhere)


def check_promises(content: bytearray, record_count: int) -> None:
    """What the contract says of every volume, whatever it holds."""
    volume = NtfsVolume(MemoryDevice(content))
    facts = volume.facts
    assert volume.allocated().clip(0, facts.size_bytes) == volume.allocated()
    found = volume.scan()
    entries, contents = found.entries, found.contents
    assert len(set(entries.path)) == len(entries) == len(entries.kind) == len(entries.content)
    assert all(path.startswith("/") and "\0" not in path for path in entries.path)
    assert not any(part in ("", ".", "..") for path in entries.path[1:] for part in path[1:].split("/"))
    assert ((entries.content >= -1) & (entries.content < len(contents))).all()
    backed = contents.run_offset != HOLE
    assert (contents.run_offset[backed] >= 0).all() and (contents.run_length > 0).all()
    assert (contents.run_offset[backed] + contents.run_length[backed] <= facts.size_bytes).all()
    assert ((contents.valid_bytes >= 0) & (contents.valid_bytes <= contents.size_bytes)).all()
    covered = np.append(0, contents.run_length.cumsum())[contents.first_run]
    inline = np.isin(np.arange(len(contents)), list(contents.inline_digest))
    assert ((covered[1:] - covered[:-1] >= contents.size_bytes) | inline).all()
    for row in range(len(contents)):
        stream = volume.open(int(contents.record[row]), contents.stream[row])
        assert stream.size_bytes == contents.size_bytes[row]
        with suppress(InconsistentVolume):
            assert len(stream.read(0, 9000)) == min(stream.size_bytes, 9000)
            assert len(stream.read(max(stream.size_bytes - 100, 0), 9000)) == min(stream.size_bytes, 100)
    for number in range(record_count):
        with suppress(InconsistentVolume, FileNotFoundError):
            volume.open(number)


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_no_change_to_a_volume_breaks_a_promise(
    pristine: bytes, record: dict[str, int], mutate: Callable[[random.Random, VolumeBytes, int], None]
) -> None:
    rounds = int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "120"))
    first = int(os.environ.get("SQLIMAGE_FUZZ_SEED", "0"))
    numbers = sorted(set(record.values()))
    survived = 0
    for seed in range(first, first + rounds):
        chance = random.Random(f"{mutate.__name__} {seed}")
        made = VolumeBytes(pristine)
        mutate(chance, made, chance.choice(numbers))
        try:
            check_promises(made.content, 100)
            survived += 1
        except InconsistentVolume:
            pass
        except BaseException as error:
            raise AssertionError(f"{mutate.__name__}, seed {seed}: {error!r}") from error
    assert mutate in (copy_record, flip_boot_sector) or survived > 0
