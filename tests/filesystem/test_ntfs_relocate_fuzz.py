"""Random NTFS volumes and random changes to one, laid out anew in random ways: right, or refused before anything."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.filesystem.contract import Scan
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from tests.filesystem.test_ntfs_fuzz import MUTATIONS
from tests.make.ntfs import ATTRIBUTES, COMPRESSED_DIRECTORY, VolumeBytes, make_everything, make_volume, mounted
from tests.make.ntfs_relocated import check_by_others, check_scan, relocated, scattered
from tests.make.relocated import apply

MIB = 1 << 20
ROUNDS = int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "25"))
SEED = int(os.environ.get("SQLIMAGE_FUZZ_SEED", "0"))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "append", "write in packed", "skip and append", "delete", "stream", "many", "link"]),
        st.integers(0, 11),
        st.integers(0, 400_000) | st.integers(0, 5000),
    ),
    max_size=40,
)
WISHES = st.builds(
    lambda defragment, sized, part: (defragment, part if sized else None),
    st.booleans(),
    st.booleans(),
    st.floats(-0.05, 1.3) | st.sampled_from([0.0, 1.0, 40.0]),
)


def take_steps(root: Path, steps: list[tuple[str, int, int]]) -> None:
    """What users do to files, as far as there is room."""
    (root / "packed").mkdir()
    with suppress(OSError):
        os.setxattr(root / "packed", ATTRIBUTES, COMPRESSED_DIRECTORY)
    for number, (step, file, size) in enumerate(steps):
        path = root / f"file {file}"
        block = random.Random(number).randbytes(min(size, 999)) * (size // 999 + 1)
        with suppress(OSError):
            if step == "write":
                path.write_bytes(block)
            elif step == "append":
                with path.open("ab") as out:
                    out.write(block)
            elif step == "write in packed":
                (root / f"packed/{file}").write_bytes(block)
            elif step == "skip and append":
                with path.open("ab") as out:
                    out.truncate(out.tell() + size * 7)
                with path.open("ab") as out:
                    out.write(block[: size // 3])
            elif step == "delete":
                path.unlink()
            elif step == "stream":
                (root / f"file {file}:{number}").write_bytes(block[: size // 20])
            elif step == "link":
                os.link(path, root / f"link {number}")
            else:
                (root / f"directory {file}").mkdir(exist_ok=True)
                for i in range(size % 300):
                    (root / f"directory {file}/{i}").write_bytes(block[: size // 99])


def check_any(image: Path, steps: list[tuple[str, int, int]], cluster: int, wish: tuple[bool, float | None]) -> None:
    make_volume(image, (40 if cluster > 4096 else 5) * MIB, cluster_bytes=cluster)
    with mounted(image) as root:
        take_steps(root, steps)
    device = FileDevice(image)
    volume = NtfsVolume(device)
    scan = volume.scan()
    smallest, size = volume.smallest_bytes(scan), device.size_bytes
    defragment, part = wish
    wanted = None if part is None else max(int(smallest + (size - smallest) * part), 0)
    asked = Wish(defragment=defragment, size_bytes=wanted)
    if wanted is not None and wanted < smallest:
        with pytest.raises(RefusedError, match=f"needs {smallest} bytes, there are {wanted}"):
            volume.relocate(scan, asked)
        return
    target = image.with_name("new.img")
    relocation = relocated(device, asked, target)
    check_by_others(target)
    assert not defragment or scattered(relocation.scan) == []
    device.close()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.sampled_from([512, 1024, 2048, 4096, 65536]), WISHES)
def test_any_volume_becomes_any_size(
    tmp_path: Path, steps: list[tuple[str, int, int]], cluster: int, wish: tuple[bool, float | None]
) -> None:
    check_any(tmp_path / "v.img", steps, cluster, wish)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.sampled_from([512, 1024, 2048, 4096, 65536]), WISHES)
def test_many_volumes_become_any_size(
    tmp_path: Path, steps: list[tuple[str, int, int]], cluster: int, wish: tuple[bool, float | None]
) -> None:
    check_any(tmp_path / "v.img", steps, cluster, wish)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_everything(tmp_path_factory.mktemp("fuzz") / "v.img")


def random_wish(chance: random.Random, size: int, smallest: int) -> Wish:
    wanted = chance.choice([None, smallest, chance.randint(smallest, size), size + chance.randrange(1 << 24)])
    return Wish(defragment=chance.random() < 0.5, size_bytes=wanted)


def contents_of(volume: NtfsVolume, scan: Scan) -> list[bytes | None]:
    """The start of each content but those that tell places; None where it cannot be read."""
    out: list[bytes | None] = []
    for record, stream in zip(scan.contents.record.tolist(), scan.contents.stream, strict=True):
        if record in (0, 1, 6, 7, 8):
            continue
        try:
            out.append(volume.open(record, stream).read(0, 50_000))
        except (InconsistentVolume, FileNotFoundError):
            out.append(None)
    return out


def plan_and_check(content: bytes | bytearray, chance: random.Random, target: Path) -> Relocation | None:
    """A relocation that was planned has become what it says; None where it was refused."""
    device = MemoryDevice(bytearray(content))
    try:
        volume = NtfsVolume(device)
        scan = volume.scan()
        wish = random_wish(chance, volume.facts.size_bytes, volume.smallest_bytes(scan))
        relocation = volume.relocate(scan, wish)
    except (InconsistentVolume, RefusedError):
        return None
    apply(device, relocation, target)
    new = NtfsVolume(FileDevice(target))
    found = new.scan()
    assert new.allocated() == relocation.allocated
    assert new.facts == relocation.facts
    check_scan(found, relocation.scan)
    assert contents_of(new, found) == contents_of(volume, scan)
    return relocation


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_no_change_to_a_volume_breaks_a_promise(
    pristine: bytes, mutate: Callable[[random.Random, VolumeBytes, int], None], tmp_path: Path
) -> None:
    scan = NtfsVolume(MemoryDevice(pristine)).scan()
    numbers = sorted(set(scan.entries.record.tolist()))
    for seed in range(SEED, SEED + ROUNDS):
        chance = random.Random(f"relocate {mutate.__name__} {seed}")
        made = VolumeBytes(pristine)
        mutate(chance, made, chance.choice(numbers))
        try:
            plan_and_check(made.content, chance, tmp_path / "new.img")
        except BaseException as error:
            raise AssertionError(f"{mutate.__name__}, seed {seed}: {error!r}") from error


def test_records_without_room_are_never_overrun(pristine: bytes, tmp_path: Path) -> None:
    scan = NtfsVolume(MemoryDevice(pristine)).scan()
    numbers = sorted(set(scan.entries.record.tolist()))
    planned = 0
    for seed in range(SEED, SEED + ROUNDS):
        chance = random.Random(f"tight {seed}")
        made = VolumeBytes(pristine)
        for number in numbers:
            if chance.random() < 0.7:
                made.patch(number, 0x1C, bytes(made.record(number)[0x18:0x1C]))
        try:
            planned += plan_and_check(made.content, chance, tmp_path / "new.img") is not None
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert planned > ROUNDS / 2
