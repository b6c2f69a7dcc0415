"""Random trees on small volumes, changed at random, captured with every file in one piece: right to everybody."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import sqlimage
from sqlimage.units import KIB, MIB
from tests.filesystem.test_ntfs_relocate_fuzz import STEPS, take_steps
from tests.image.edits import content_of
from tests.make import fat
from tests.make.defragmented import capture_both, check_at_rest, check_fat, check_ntfs, restored, torn
from tests.make.fat_tree import ScatteredVolume
from tests.make.ntfs import make_volume, mounted

many = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller volume tells no more, and takes minutes to find
)
few = settings(parent=many, max_examples=3)
CLUSTERS = st.sampled_from([512, 1024, 2048, 4096, 65536])
FAT_SHAPES = st.sampled_from(
    [(12, 160 * KIB, 1), (12, 1440 * KIB, 1), (12, 4 * MIB, 4), (16, 5 * MIB, 1), (16, 20 * MIB, 8), (32, 34 * MIB, 1)]
)


def read_by_driver(image: Path) -> dict[str, bytes]:
    """Digests of all files as ntfs-3g reads them, by path."""
    with mounted(image, "ro,streams_interface=windows") as root:
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).digest()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def check_ntfs_volume(
    place: Path, steps: list[tuple[str, int, int]], cluster: int, later: list[tuple[str, int, int]]
) -> None:
    source = place / "v.img"
    make_volume(source, (40 if cluster > 4096 else 5) * MIB, cluster_bytes=cluster)
    with mounted(source) as root:
        take_steps(root, steps)
    both = capture_both(source, place)
    assert torn(both.image) == []
    assert both.defragmented.stored_bytes <= both.plain.stored_bytes * 1.05 + 4096
    copy = restored(both.image, place / "copy.img")
    check_ntfs(copy)
    assert read_by_driver(copy) == read_by_driver(source)

    with mounted(source) as root:
        (root / "packed").rename(root / "packed before")
        take_steps(root, later)
    sqlimage.capture(source, both.image, append=True, defragment=True)
    alone = place / "alone.sqlimage"
    alone.unlink(missing_ok=True)
    sqlimage.capture(source, alone, defragment=True)
    assert content_of(both.image) == content_of(alone)
    check_at_rest(both.image)
    check_ntfs(restored(both.image, copy))


@few
@given(STEPS, CLUSTERS, STEPS)
def test_a_few_ntfs_volumes(
    tmp_path: Path, steps: list[tuple[str, int, int]], cluster: int, later: list[tuple[str, int, int]]
) -> None:
    check_ntfs_volume(tmp_path, steps, cluster, later)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@many
@given(STEPS, CLUSTERS, STEPS)
def test_many_ntfs_volumes(
    tmp_path: Path, steps: list[tuple[str, int, int]], cluster: int, later: list[tuple[str, int, int]]
) -> None:
    check_ntfs_volume(tmp_path, steps, cluster, later)


def check_fat_volume(place: Path, shape: tuple[int, int, int], seed: int, longest: int) -> None:
    bits, size, per_cluster = shape
    source = fat.make_volume(place / "v.img", size, bits, sectors_per_cluster=per_cluster)
    volume, chance = ScatteredVolume(bytearray(source.read_bytes()), seed, longest), random.Random(seed)
    directories = [""]
    for n in range(chance.randint(0, 40)):
        above, free = chance.choice(directories), volume.free - 12
        if free < 0 or len(volume.directories["/"].entries) > 400:
            break
        if chance.random() < 0.2:
            directories.append(f"{above}/directory {n}")
            volume.add_directory(directories[-1])
            continue
        count = chance.randint(0, min(free, chance.choice([1, 3, 60])))
        size_bytes = max(count * volume.bytes_per_cluster - chance.randint(0, 300), 0)
        content = bytes(size_bytes) if chance.random() < 0.1 else chance.randbytes(size_bytes)
        volume.add_file(f"{above}/file {n}", content, deleted=chance.random() < 0.2)
    if chance.random() < 0.3 and volume.free > 20:
        volume.lose(chance.randint(1, 5), b"lost" * 99)
        volume.mark_bad(*chance.sample(range(2, volume.clusters), 3))
    source.write_bytes(volume.finish())
    both = capture_both(source, place)
    assert {row[0] for row in torn(both.image)} <= {None}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in volume.files.items()}
    copy = restored(both.image, place / "copy.img")
    if b"lost" not in source.read_bytes():  # fsck.fat has something to say of lost clusters
        check_fat(copy, digests)


@few
@given(FAT_SHAPES, st.integers(0, 1 << 32), st.integers(0, 5))
def test_a_few_fat_volumes(tmp_path: Path, shape: tuple[int, int, int], seed: int, longest: int) -> None:
    check_fat_volume(tmp_path, shape, seed, longest)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@many
@given(FAT_SHAPES, st.integers(0, 1 << 32), st.integers(0, 5))
def test_many_fat_volumes(tmp_path: Path, shape: tuple[int, int, int], seed: int, longest: int) -> None:
    check_fat_volume(tmp_path, shape, seed, longest)
