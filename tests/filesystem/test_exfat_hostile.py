"""Volumes that contradict themselves: refused by name or read in bounded time, never anything else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.exfat import ExfatVolume
from sqlimage.filesystem.exfat import tree as tree_module
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import MIB
from tests.make.cost import PATIENCE
from tests.make.exfat import (
    CHAINED,
    CONTIGUOUS,
    END,
    BareVolume,
    SparseVolume,
    directory,
    file_set,
)

SECONDS_MAX = 10
MEBIBYTES_MAX = 700


def scan_fails(volume: BareVolume, match: str) -> None:
    with pytest.raises(InconsistentVolume, match=match):
        ExfatVolume(MemoryDevice(volume.content)).scan()


def test_a_directory_that_holds_itself_is_refused() -> None:
    volume = BareVolume(100)
    volume.write_root(directory("A", 50))
    volume.write(50, directory("A", 50))
    scan_fails(volume, r"'/A/A'.*shares clusters from 50")


def test_a_directory_that_holds_the_root_is_refused() -> None:
    volume = BareVolume(100)
    volume.write_root(directory("A", volume.root))
    scan_fails(volume, "'/A'.*shares clusters")


def test_two_directories_in_one_place_are_refused() -> None:
    volume = BareVolume(100)
    volume.write_root(directory("A", 50), directory("B", 50))
    scan_fails(volume, "'/B'.*shares clusters")


def test_directories_that_share_only_a_part_are_refused() -> None:
    volume = BareVolume(100)
    volume.chain(60, 51)
    volume.write_root(directory("A", 50, 1024), directory("B", 60, 1024, CHAINED))
    scan_fails(volume, "shares clusters from 50 on with|shares clusters from 51 on with")


def test_a_directory_whose_chain_passes_a_cluster_twice_is_refused() -> None:
    volume = BareVolume(100)
    volume.link(50, 51)
    volume.link(51, 50)
    volume.write_root(directory("A", 50, 512 * 9, CHAINED))
    scan_fails(volume, "'/A'.*leads back into itself")


@pytest.mark.parametrize("links", [1, 2, 70, 200])
def test_a_file_whose_chain_passes_a_cluster_twice_is_refused(links: int) -> None:
    volume = BareVolume(1000)
    clusters = [50 + 2 * k for k in range(links)]
    volume.chain(*clusters)
    volume.link(clusters[-1], clusters[links // 3])
    volume.write_root(file_set("a", 50, 512 * 900))
    scan_fails(volume, "'/a'.*leads back into itself")
    with pytest.raises(InconsistentVolume, match="leads back into itself"):
        ExfatVolume(MemoryDevice(volume.content)).open((volume.offset_of(volume.root) + 64) // 32)


@pytest.mark.parametrize(("value", "words"), [(0, "empty"), (1, "out of"), (END - 8, "bad"), (102, "out of")])
def test_a_chain_that_ends_before_its_file_is_refused(value: int, words: str) -> None:
    volume = BareVolume(100)
    volume.link(50, 60)
    volume.link(60, value)
    volume.write_root(file_set("a", 50, 1024), file_set("b", 50, 1025))
    scan_fails(volume, rf"'/b'.*{words}.*2 clusters after its beginning")
    found = ExfatVolume(MemoryDevice(volume.content))
    first = (volume.offset_of(volume.root) + 64) // 32
    assert found.open(first).size_bytes == 1024  # what a chain does behind its file is not looked at
    with pytest.raises(InconsistentVolume, match=words):
        found.open(first + 3)


def test_files_that_share_clusters_are_listed_both() -> None:
    volume = BareVolume(100)
    volume.write_root(file_set("a", 50, 512, flags=CONTIGUOUS), file_set("b", 50, 512, flags=CONTIGUOUS))
    scan = ExfatVolume(MemoryDevice(volume.content)).scan()
    assert scan.contents.run_offset.tolist()[1:3] == [volume.offset_of(50)] * 2


def test_a_root_directory_of_too_many_entries_is_refused() -> None:
    clusters = 9000
    volume = BareVolume(clusters, cluster_shift=6)
    for cluster in range(volume.root, clusters):
        volume.link(cluster, cluster + 1)
    volume.link(clusters, END)
    with pytest.raises(InconsistentVolume, match="takes more than 268435456 bytes"):
        _ = ExfatVolume(MemoryDevice(volume.content)).facts


def test_a_directory_of_more_than_its_most_bytes_is_refused() -> None:
    volume = BareVolume(9000, cluster_shift=6)
    volume.write_root(directory("A", 50, (256 << 20) + 1))
    scan_fails(volume, "DataLength of a directory exceeds")


@pytest.mark.parametrize("batch", [32, 96, 128, 512, 1024])
def test_sets_are_read_whole_wherever_a_batch_ends(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "BATCH_BYTES", batch)
    volume = BareVolume(400)
    clusters = list(range(50, 250, 5))
    volume.chain(*clusters)
    sets = [file_set(f"{k}{'x' * (k * 7 % 200)}", extra=b"\xe0" + bytes(31)) for k in range(45)]
    data = b"".join(sets).ljust(512 * len(clusters), b"\0")
    assert len(data) == 512 * len(clusters)
    for at, cluster in enumerate(clusters):
        volume.write(cluster, data[at * 512 : at * 512 + 512])
    volume.write_root(directory("d", 50, len(data), CHAINED), file_set("last"))
    paths = ExfatVolume(MemoryDevice(volume.content)).scan().entries.path
    assert paths[1:3] == ["/d", "/last"]
    assert [path.removeprefix("/d/").rstrip("x") for path in paths[3:-2]] == [str(k) for k in range(45)]


@dataclass(frozen=True)
class Cost:
    seconds: float
    mebibytes: float
    said: str


def cost_of(path: Path) -> Cost:
    """What reading a volume takes, in a process of its own, and what it comes to."""
    program = """if True:
        import resource, sys, time
        from sqlimage.errors import InconsistentVolume
        from sqlimage.filesystem.exfat import ExfatVolume
        from sqlimage.media.file import FileDevice
        from tests.make.cost import peak_bytes
        said = []
        for what in ("allocated", "scan"):
            try:
                found = getattr(ExfatVolume(FileDevice(sys.argv[1])), what)()
                said.append(f"{len(found.entries) if what == 'scan' else len(found)}")
            except InconsistentVolume as refused:
                said.append(str(refused))
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, peak_bytes() / (1 << 20), "; ".join(said))
    """
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, text=True)
    seconds, mebibytes, said = done.stdout.strip().split(" ", 2)
    return Cost(float(seconds), float(mebibytes), said)


def check_cost(volume: SparseVolume, said: str) -> None:
    volume.close()
    cost = cost_of(volume.path)
    assert said in cost.said
    assert cost.seconds < SECONDS_MAX * PATIENCE
    assert cost.mebibytes < MEBIBYTES_MAX


@pytest.mark.parametrize(
    ("name", "levels", "said"),
    [("D" * 8, 3700, "a path is longer than"), pytest.param("D", 9500, "paths have", marks=pytest.mark.slow)],
)
def test_a_bottomless_tree_is_refused(name: str, levels: int, said: str, tmp_path: Path) -> None:
    volume = SparseVolume(tmp_path / "v", levels + 10)
    volume.write_root(directory(name, volume.free))
    for cluster in range(volume.free, levels):
        volume.write(cluster, directory(name, cluster + 1))
    check_cost(volume, said)


def test_long_paths_do_not_outgrow_the_volume_that_names_them(tmp_path: Path) -> None:
    volume = SparseVolume(tmp_path / "v", 20_000, cluster_shift=1)
    at = volume.free
    volume.write_root(directory("x" * 200, at, 1024))
    for _ in range(120):
        volume.write(at, directory("x" * 200, at + 1, 1024))
        at += 1
    files = b"".join(file_set(f"{k}") for k in range(5000))
    volume.write(at - 1, directory("x" * 200, at, len(files)) + bytes(512))
    volume.write(at, files)
    check_cost(volume, "paths have")


def test_a_chain_that_jumps_across_a_huge_table_is_refused(tmp_path: Path) -> None:
    pages, jumps = 4096, 9
    volume = SparseVolume(tmp_path / "v", pages * 16_384)
    chain = np.array([[p * 16_384 + 2 * k for p in range(2, pages)] for k in range(jumps)]).reshape(-1)
    links = np.append(chain[1:], END).astype("<u4")
    table = np.zeros((pages, 2 * jumps), dtype="<u4")
    table[chain // 16_384, chain % 16_384] = links
    for p in range(2, pages):
        volume.put(volume.fat_offset + p * 65_536, table[p].tobytes())
    volume.write_root(file_set("a", int(chain[0]), len(chain) * 512))
    check_cost(volume, "jump to and fro")


def test_a_chain_of_millions_of_pieces_is_refused(tmp_path: Path) -> None:
    clusters = 2_200_000
    volume = SparseVolume(tmp_path / "v", clusters * 2 + 10_000)
    first = volume.free + 10
    table = np.zeros(clusters * 2, dtype="<u4")
    table[::2] = np.arange(first + 2, first + 2 + clusters * 2, 2)
    volume.put(volume.fat_offset + first * 4, table.tobytes())
    volume.write_root(file_set("a", first, clusters * 512))
    check_cost(volume, "chains have more than 2097152 pieces")


def test_a_bitmap_of_millions_of_runs_is_refused(tmp_path: Path) -> None:
    volume = SparseVolume(tmp_path / "v", 80 << 20, cluster_shift=3)
    volume.write(volume.bitmap, b"\x55" * (10 << 20))
    check_cost(volume, "more than 8388608 runs")


def test_a_volume_of_as_many_clusters_as_there_can_be_is_read(tmp_path: Path) -> None:
    volume = SparseVolume.__new__(SparseVolume)
    volume.chain = lambda *_, **__: 0  # type: ignore[method-assign]  # a hundred thousand links would take long
    volume.__init__(tmp_path / "v", 2**32 - 11)  # type: ignore[misc]
    links = np.arange(volume.bitmap + 1, volume.up_case_at + 1, dtype="<u4")
    links[-1] = END
    volume.put(volume.fat_offset + volume.bitmap * 4, links.tobytes())
    for cluster in (volume.up_case_at, volume.root):
        volume.link(cluster, END)
    volume.write(volume.bitmap, b"\xff" * (volume.free // 8))
    last = volume.clusters + 1
    volume.use(last)
    volume.write_root(file_set("last", last, 512, flags=CONTIGUOUS), file_set("chained", last - 1, 512))
    check_cost(volume, "2; 5")


FILLERS = [b"\x05" + bytes(31), file_set("a"), file_set("a", extra=(b"\xe0" + bytes(31)) * 253)]


@pytest.mark.parametrize("filler", FILLERS, ids=["unused", "small", "large"])
def test_a_directory_of_millions_of_bytes_takes_little_time(filler: bytes, tmp_path: Path) -> None:
    volume = SparseVolume(tmp_path / "v", 300_000)
    data = filler * ((32 * MIB if filler[0] == 5 else 8 * MIB) // len(filler))
    data = data[: len(data) // 512 * 512] if filler[0] == 5 else data
    volume.write_root(directory("d", 5000, len(data)))
    volume.write(5000, data)
    entries = 4 if filler[0] == 5 else 4 + len(data) // len(filler)
    check_cost(volume, f"; {entries}")
