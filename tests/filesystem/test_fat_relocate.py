"""FAT volumes laid out anew: defragmented, smaller and larger, by real makers and checked by other readers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import RefusedError
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.fat.boot import geometry_of, parse
from sqlimage.filesystem.relocation import Relocatable, Relocation, Wish
from sqlimage.media.file import FileDevice
from sqlimage.units import KIB, MIB
from tests.make import fat as make
from tests.make.fat_oracle import by_place, carry_out, in_pieces, walked
from tests.make.fat_tree import ScatteredVolume


@dataclass(frozen=True)
class Shape:
    bits: int
    size_bytes: int
    sectors_per_cluster: int
    bytes_per_sector: int = 512
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"fat{self.bits}-{self.size_bytes // KIB}K-{self.sectors_per_cluster}x{self.bytes_per_sector}"

    def make(self, path: Path) -> Path:
        return make.make_volume(
            path,
            self.size_bytes,
            self.bits,
            sectors_per_cluster=self.sectors_per_cluster,
            bytes_per_sector=self.bytes_per_sector,
            options=self.options,
        )


SHAPES = [
    Shape(12, 1440 * KIB, 1),
    Shape(12, 8 * MIB, 8, 512, ("-a", "-R", "3", "-r", "48")),
    Shape(12, 15 * MIB, 1, 4096),
    Shape(16, 9 * MIB, 1),
    Shape(16, 300 * MIB, 64, 512, ("-a", "-R", "5")),
    Shape(16, 40 * MIB, 1, 4096),
    Shape(32, 40 * MIB, 1, 512, ("-a", "-R", "37")),
    Shape(32, 300 * MIB, 1, 4096),
]


def written(shape: Shape, path: Path, work: Path) -> Path:
    """A volume by mtools in pieces: files are deleted from among others and larger ones follow."""
    volume = shape.make(path)
    cluster = shape.sectors_per_cluster * shape.bytes_per_sector
    noise = random.Random(str(shape))
    room = shape.size_bytes // cluster // 40
    sizes = [noise.randint(0, min(room, 9)) * cluster + noise.randint(0, 300) for _ in range(36)]
    tree = {
        f"dir {k % 4}/{'deeper/' * (k % 3)}file number {k}.bin": noise.randbytes(size) for k, size in enumerate(sizes)
    }
    make.fill(volume, tree, work / "first")
    make.delete(volume, *(f"/{name}" for name in list(tree)[::3]))
    if shape.bits == 32:  # FSI_Nxt_Free: look for free clusters from the front again
        with volume.open("r+b") as file:
            file.seek(shape.bytes_per_sector + 492)
            file.write((2).to_bytes(4, "little"))
    make.fill(volume, {f"late {k}": noise.randbytes(7 * cluster + k) for k in range(4)} | {"empty": b""}, work / "then")
    return volume


def opened(path: Path) -> FatVolume:
    return FatVolume(FileDevice(path))


def smallest(path: Path) -> int:
    volume = opened(path)
    return volume.smallest_bytes(volume.scan())


def plan_of(path: Path, wish: Wish) -> Relocation:
    volume: Relocatable = opened(path)
    return volume.relocate(opened(path).scan(), wish)


def raw(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_defragmented_every_file_is_one_run_in_the_order_of_the_tree(shape: Shape, tmp_path: Path) -> None:
    source = written(shape, tmp_path / "v", tmp_path)
    assert in_pieces(opened(source).scan())
    plan = carry_out(source, Wish(defragment=True), tmp_path / "new")
    assert in_pieces(plan.scan) == []
    assert by_place(plan.scan) == walked(plan.scan)
    geometry = geometry_of(parse(raw(tmp_path / "new", 0, 512)))
    used = int(plan.scan.contents.run_length.sum()) - geometry.root_bytes
    assert plan.allocated.total - used == geometry.size_bytes - geometry.total_clusters * geometry.bytes_per_cluster
    assert len(plan.allocated.clip(0, geometry.heap_end)) == 1  # from the front, without gaps

    for row in np.flatnonzero(np.diff(plan.scan.contents.first_run)).tolist()[1:]:
        run = plan.scan.contents.first_run[row]
        cluster = (plan.scan.contents.run_offset[run] - geometry.heap_offset) // geometry.bytes_per_cluster + 2
        count = plan.scan.contents.run_length[run] // geometry.bytes_per_cluster
        assert make.cluster_runs(tmp_path / "new", plan.scan.entries.path[row]) == [(cluster, count)]


@pytest.mark.parametrize("defragment", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_smaller_as_far_as_what_is_allocated_goes_and_larger(shape: Shape, defragment: bool, tmp_path: Path) -> None:
    source = written(shape, tmp_path / "v", tmp_path)
    least = smallest(source)
    sector = shape.bytes_per_sector
    for size in (
        least,
        least + sector,
        (least + shape.size_bytes) // 2,
        shape.size_bytes + sector,
        shape.size_bytes * 2,
    ):
        plan = carry_out(source, Wish(defragment, size), tmp_path / "new", mtools=size == least)
        assert plan.facts.size_bytes <= size
        assert plan.facts.notes or size - plan.facts.size_bytes < sector
    for size in (least - 1, least - sector, sector, 0, -1):
        with pytest.raises(RefusedError, match=f"give it {least} bytes or more"):
            plan_of(source, Wish(defragment, size))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grown_and_shrunk_back_a_volume_is_as_it_was(shape: Shape, tmp_path: Path) -> None:
    source = written(shape, tmp_path / "v", tmp_path)
    carry_out(source, Wish(size_bytes=shape.size_bytes * 3 // 2), tmp_path / "large")
    grown = opened(tmp_path / "large").facts
    assert grown.total_clusters > opened(source).facts.total_clusters or shape.bits == 12
    if smallest(tmp_path / "large") > shape.size_bytes:  # its FATs have grown
        assert smallest(source) + (4 * MIB) > shape.size_bytes
        return
    plan = carry_out(tmp_path / "large", Wish(size_bytes=shape.size_bytes), tmp_path / "back")
    assert plan.facts.size_bytes == opened(source).facts.size_bytes
    if opened(source).facts.total_clusters == plan.facts.total_clusters:
        old, new = opened(source).scan(), plan.scan
        assert np.array_equal(old.contents.run_offset, new.contents.run_offset)


def test_nothing_asked_for_is_nothing_changed(tmp_path: Path) -> None:
    source = written(SHAPES[6], tmp_path / "v", tmp_path)
    plan = carry_out(source, Wish(), tmp_path / "new")
    assert plan.fixups == ()
    assert np.array_equal(plan.moved_from, plan.moved_to)
    size = opened(source).facts.size_bytes
    assert plan_of(source, Wish(size_bytes=size)).fixups == ()
    assert plan_of(source, Wish(size_bytes=size + 511)).fixups == ()


@pytest.mark.parametrize(("bits", "least"), [(16, 4085), (32, 65525)])
def test_a_volume_never_shrinks_out_of_its_type(bits: int, least: int, tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 50 * MIB, bits, sectors_per_cluster=2 if bits == 16 else 1)
    make.fill(source, {"file": b"x" * 5000}, tmp_path / "tree")
    size = smallest(source)
    plan = carry_out(source, Wish(defragment=True, size_bytes=size), tmp_path / "new")
    assert (plan.facts.file_system, plan.facts.total_clusters) == (f"fat{bits}", least)
    with pytest.raises(
        RefusedError, match=f"with fewer than {least} clusters it would be no FAT{bits}; give it {size} "
    ):
        plan_of(source, Wish(size_bytes=size - 1))


@pytest.mark.parametrize(
    ("bits", "most", "per_cluster", "size"),
    [(12, 4084, 1, 1440 * KIB), (12, 4084, 4, 6 * MIB), (16, 65524, 1, 20 * MIB)],
)
def test_a_volume_never_grows_out_of_its_type_and_says_so(
    bits: int, most: int, per_cluster: int, size: int, tmp_path: Path
) -> None:
    source = make.make_volume(tmp_path / "v", size, bits, sectors_per_cluster=per_cluster)
    make.fill(source, {"a/file": b"x" * 5000, "b": b"y" * 9000}, tmp_path / "tree")
    plan = carry_out(source, Wish(size_bytes=size * 4), tmp_path / "new")
    assert plan.facts.total_clusters == most
    spans = f"the file system spans {plan.facts.size_bytes} of {size * 4} bytes: FAT{bits} has at most {most} clusters"
    assert plan.facts.notes == (spans,)
    exact = plan.facts.size_bytes
    sector = 512
    for room in (exact, exact + per_cluster * sector - 1):
        assert carry_out(source, Wish(size_bytes=room), tmp_path / "new").facts.notes == ()
        assert opened(tmp_path / "new").facts.total_clusters == most
    fewer = carry_out(source, Wish(size_bytes=exact - 1), tmp_path / "new")
    assert fewer.facts.total_clusters == most - 1


def test_a_grown_fat_keeps_the_heap_on_the_borders_it_was_on(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 40 * MIB, 32, sectors_per_cluster=1, options=("-R", "64"))
    make.fill(source, {f"{k}": b"x" * 700 * k for k in range(20)}, tmp_path / "tree")
    before = geometry_of(parse(raw(source, 0, 512)))
    plan = carry_out(source, Wish(size_bytes=3 * 40 * MIB), tmp_path / "new")
    after = geometry_of(parse(raw(tmp_path / "new", 0, 512)))
    assert after.fat_bytes > before.fat_bytes
    assert (after.heap_offset - before.heap_offset) % (before.heap_offset & -before.heap_offset) == 0
    assert plan.facts.size_bytes == 3 * 40 * MIB
    chains = [fixup for fixup in plan.fixups if "chains" in fixup.reason or "directory" in fixup.reason]
    assert chains == []  # clusters keep their numbers: all of them move


def test_one_more_sector_than_the_fats_have_entries_for_leaves_them_as_they_are(tmp_path: Path) -> None:
    """A FAT that grows takes the place of clusters: it does so only where there are more of them afterwards."""
    source = make.make_volume(tmp_path / "v", 40 * MIB, 32, sectors_per_cluster=1, options=("-a",))
    geometry = geometry_of(parse(raw(source, 0, 512)))
    full = geometry.fat_bytes // 4 - 2
    before = 0
    for more in range(12):
        plan = carry_out(
            source, Wish(size_bytes=geometry.heap_offset + (full + more) * 512), tmp_path / "new", mtools=False
        )
        after = geometry_of(parse(raw(tmp_path / "new", 0, 512)))
        assert after.total_clusters >= max(before, full)
        assert (after.fat_bytes > geometry.fat_bytes) == (after.total_clusters > full)
        assert bool(plan.facts.notes) == (after.total_clusters < full + more and after.fat_bytes == geometry.fat_bytes)
        before = after.total_clusters
    assert before > full


def test_a_floppy_full_of_pieces_is_put_in_order(tmp_path: Path) -> None:
    source = SHAPES[0].make(tmp_path / "v")
    volume = ScatteredVolume(bytearray(source.read_bytes()), seed=3, longest=1)
    volume.add_directory("/sub")
    for k in range(40):
        volume.add_file(f"/sub/{k}", bytes([k]) * 30_000, deleted=k % 5 == 4)
    while volume.free > 2:
        volume.add_file(f"/last {volume.free}", b"z" * min(20 * KIB, (volume.free - 2) * 512))
    source.write_bytes(volume.finish())
    plan = carry_out(source, Wish(defragment=True), tmp_path / "new")
    assert in_pieces(plan.scan) == []
    assert by_place(plan.scan) == walked(plan.scan)
