"""Every kind of ext volume at other sizes, full and fragmented ones, damaged ones, and what is read off two scans."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, RefusedError, SqlimageError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, Contents, Entries, EntryKind, Scan
from sqlimage.journey import ext_resize
from sqlimage.journey.ext_moves import follow, steps_down, steps_up
from sqlimage.journey.ext_resize import resized, smallest_bytes
from sqlimage.media.file import FileDevice
from sqlimage.units import KIB, MIB
from tests.make.ext import fill, in_memory, make_volume, mounted, needs_mount, work
from tests.make.ext_resized import KINDS, brought_to, filled, filled_at_its_end, make_tree, seen


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with in_memory() as name:
        make_tree(name / "tree", 3 * MIB)
        yield name


@pytest.fixture(scope="module")
def large_tree(place: Path) -> Path:
    return make_tree(place / "large tree", 20 * MIB, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_volume_is_brought_to_other_sizes(place: Path, large_tree: Path, kind: str) -> None:
    size = 64 * MIB
    volume = filled(place / "volume.img", size, kind, large_tree)
    device = FileDevice(volume)
    least = smallest_bytes(device)
    device.close()
    assert least < size
    for wanted in (least, (least + size) // 2 + 5 * KIB, size + 1, 9 * size):
        brought_to(volume, wanted, place / "target.img")
        assert seen(place / "target.img") == seen(volume)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext2 1K", "ext3 4K", "ext4 1K", "ext4 4K", "bigalloc", "sparse_super2", "meta_bg"])
def test_a_volume_comes_back_from_small_and_large(place: Path, large_tree: Path, kind: str) -> None:
    volume = filled(place / "volume.img", 64 * MIB, kind, large_tree)
    before = seen(volume)
    for n, wanted in enumerate((50, 150, 56, 300, 64)):
        brought_to(volume, wanted * MIB, other := place / f"{n % 2}.img")
        assert seen(other) == before
        volume = other


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_data_at_the_end_of_every_kind_come_down_in_steps(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext_resize, "_STEP_BYTES", MIB)
    volume = filled_at_its_end(place / "high.img", 64 * MIB, kind, files=12)
    for wanted in (34 * MIB, 128 * MIB):
        brought_to(volume, wanted, place / "target.img")
        assert seen(place / "target.img") == seen(volume)


@pytest.mark.slow
@needs_mount
@pytest.mark.parametrize("kind", ["ext2 1K", "ext3 4K", "ext4 1K", "ext4 4K", "no flex_bg", "no extents", "few inodes"])
def test_full_and_fragmented_volumes_lose_nothing(place: Path, kind: str) -> None:
    for seed in range(2):
        chance = random.Random(f"{kind} {seed}")
        size = chance.choice((24, 40, 64)) * MIB
        volume = make_volume(place / "volume.img", size, *KINDS[kind])
        with mounted(volume) as root:
            largest = chance.choice((3000, 20_000, 200_000))
            with suppress(OSError):
                for n in range(1500):
                    (root / f"d{n % 17}").mkdir(exist_ok=True)
                    (root / f"d{n % 17}" / f"{n}").write_bytes(chance.randbytes(chance.randrange(largest)))
            files = sorted(path for path in root.rglob("*") if path.is_file())
            for path in chance.sample(files, int(len(files) * chance.choice((0.3, 0.6, 0.9)))):
                path.unlink()
            with suppress(OSError, AssertionError):
                fill(root, names=100, holes=300)
            with suppress(OSError):
                work(root, seed)
        device = FileDevice(volume)
        least = smallest_bytes(device)
        device.close()
        for wanted in (least, chance.randrange(least, size + 1), chance.randrange(size, 4 * size)):
            brought_to(volume, wanted, place / "target.img")
            assert seen(place / "target.img") == seen(volume)


def _damage(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    kind = chance.choice(["ext2 1K", "ext3 1K", "ext4 1K", "ext4 4K", "uninit_bg"])
    volume = filled(place / "damaged.img", 24 * MIB, kind, place / "tree")
    with volume.open("r+b") as file:
        used = chance.choice((4 * KIB, 64 * KIB, 2 * MIB))
        for _ in range(chance.choice((1, 3, 30))):
            at = chance.randrange(1024, used)
            file.seek(at)
            file.write(bytes([chance.randrange(256)]))
    device = FileDevice(volume)
    with suppress(SqlimageError):
        before = seen(volume)
        for wanted in (20 * MIB, 48 * MIB):
            with suppress(RefusedError):
                brought_to(volume, wanted, place / "target.img")
                after = seen(place / "target.img")
                assert {name: told for name, told in after.items() if name in before} == before
    device.close()


@pytest.mark.parametrize("seed", [1])
def test_a_damaged_volume_is_refused_or_keeps_what_it_shows(place: Path, seed: int) -> None:
    _damage(place, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_damaged_volumes_are_refused_or_keep_what_they_show(place: Path, seed: int) -> None:
    _damage(place, seed)


def test_a_tool_that_is_killed_by_the_volume_is_told(place: Path, tmp_path: Path) -> None:
    (tmp_path / "resize2fs").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "resize2fs").chmod(0o755)
    volume = make_volume(place / "volume.img", 16 * MIB, "-t", "ext4")
    code = (
        "from sqlimage.journey.ext_resize import resized; from sqlimage.media.file import FileDevice; import sys\n"
        "resized(FileDevice(sys.argv[1]), 1 << 25)"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code, volume], env=environment, capture_output=True, text=True, check=False
    )
    assert "cannot be resized (resize2fs: ended by signal 11)" in done.stderr


def _scan(files: list[list[tuple[int, int]]], kinds: list[EntryKind] | None = None) -> Scan:
    """One with these files; each has runs of place and length."""
    runs = [run for file in files for run in file]
    count = len(files)
    sizes = np.array([sum(length for _, length in file) for file in files], dtype=np.int64)
    contents = Contents(
        record=np.arange(count, dtype=np.int64),
        stream=[""] * count,
        size_bytes=sizes,
        valid_bytes=sizes,
        flags=np.zeros(count, dtype=np.uint8),
        first_run=np.cumsum([0, *(len(file) for file in files)]),
        run_offset=np.array([offset for offset, _ in runs], dtype=np.int64),
        run_length=np.array([length for _, length in runs], dtype=np.int64),
        inline_digest={},
    )
    entries = Entries(
        path=[f"/{n}" for n in range(count)],
        kind=np.array(kinds or [EntryKind.FILE] * count, dtype=np.uint8),
        content=np.arange(count, dtype=np.int64),
        record=np.arange(count, dtype=np.int64),
        modified_ns=np.zeros(count, dtype=np.int64),
        attributes=np.zeros(count, dtype=np.uint32),
    )
    return Scan(entries, contents)


@st.composite
def _laid_twice(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Files as places of their blocks, before and after; holes in both at the same blocks."""
    shapes = draw(st.lists(st.lists(st.booleans(), max_size=6), max_size=5))
    count = sum(map(sum, shapes))
    was = iter(draw(st.permutations(range(count + 3))))
    now = iter(draw(st.permutations(range(count + 3))))
    return (
        [[next(was) if there else HOLE for there in shape] for shape in shapes],
        [[next(now) if there else HOLE for there in shape] for shape in shapes],
    )


def _runs(blocks: list[int], data: st.DataObject) -> list[tuple[int, int]]:
    """Blocks made runs, neighbours joined or not."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        is_joined: bool = data.draw(st.booleans())
        if runs and is_joined:
            offset, length = runs[-1]
            if offset == block == HOLE or (HOLE not in (offset, block) and offset + length == block):
                runs[-1] = (offset, length + 1)
                continue
        runs.append((block, 1))
    return runs


@given(st.data())
def test_every_block_of_every_file_is_followed_to_where_it_went(data: st.DataObject) -> None:
    was, now = data.draw(_laid_twice())
    before, after = _scan([_runs(file, data) for file in was]), _scan([_runs(file, data) for file in now])
    followed = Runs.of([(block, 1) for block in data.draw(st.sets(st.integers(0, 30)))])
    expected = {
        old: new
        for files in zip(was, now, strict=True)
        for old, new in zip(*files, strict=True)
        if old != HOLE and len(followed.intersect(Runs.of([(old, 1)])))
    }
    moves = follow(before, after, followed)
    found: dict[int, int] = {}
    for old, new, length in zip(moves.old.tolist(), moves.new.tolist(), moves.length.tolist(), strict=True):
        found |= {old + n: new + n for n in range(length)}
    assert found == expected


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ([[(0, 4)]], "'/1' is there in one of them only"),
        ([[(0, 4)], [(10, 3)]], "'/1': it is gone, or of another size than before"),
        ([[(0, 4)], [(10, 1), (HOLE, 1), (12, 2)]], "one of them has its holes elsewhere"),
        ([[(0, 4)], [(2, 4)]], "two of them lie at byte 2 after"),
    ],
)
def test_a_file_that_is_not_what_it_was_is_told(after: list[list[tuple[int, int]]], told: str) -> None:
    before = _scan([[(0, 4)], [(10, 4)]])
    with pytest.raises(InconsistentVolume, match=told):
        follow(before, _scan(after), Runs.of([(0, 100)]))


def test_data_that_two_files_share_are_told() -> None:
    both = _scan([[(0, 4)], [(3, 4)]])
    with pytest.raises(InconsistentVolume, match="two of them lie at byte 3 before"):
        follow(both, _scan([[(0, 4)], [(10, 4)]]), Runs.of([(0, 100)]))


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 50)), max_size=20), st.integers(1, 60))
def test_between_two_steps_down_lies_a_step(pairs: list[tuple[int, int]], step: int) -> None:
    above = Runs.of(pairs)
    sizes = steps_down(above, step, 1)
    assert sizes == sorted(set(sizes), reverse=True)
    for high, low in zip([1000, *sizes], [*sizes, 0], strict=True):
        assert above.clip(low, high).total <= step
    assert len(sizes) == max(-(-above.total // step) - 1, 0)


@given(st.integers(0, 1000), st.integers(0, 5000), st.integers(0, 50), st.sampled_from([0.0, 0.01, 0.5]))
def test_steps_up_lead_from_one_size_to_the_other(size: int, more: int, step: int, share: float) -> None:
    sizes = steps_up(size, size + more, step, share, 8)
    assert all(size < one < size + more and one % 8 == 0 for one in sizes)
    assert sizes == sorted(set(sizes))
    if share and step:
        ends = [size, *sizes, size + more]
        assert all((b - a) * share <= step + 8 for a, b in pairwise(ends))


def test_what_lies_behind_the_volume_on_its_device_does_not_count(place: Path) -> None:
    volume = filled(place / "volume.img", 32 * MIB, "ext4 4K", place / "tree")
    os.truncate(volume, 40 * MIB)
    brought_to(volume, 40 * MIB, place / "target.img")
    assert seen(place / "target.img") == seen(volume)
    device = FileDevice(volume)
    with resized(device, 24 * MIB) as plan:
        assert plan.facts.size_bytes == 24 * MIB
    device.close()
