"""Volumes that contradict themselves: refused by name or read in bounded time, never anything else."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, NotFoundError, SqlimageError
from sqlimage.extent import Runs
from sqlimage.filesystem.exfat import ExfatVolume, is_exfat
from sqlimage.filesystem.exfat import tree as tree_module
from sqlimage.filesystem.exfat.boot import read_boot
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import MIB
from tests.make.exfat import (
    CHAINED,
    CONTIGUOUS,
    DIRECTORY,
    END,
    BareVolume,
    SparseVolume,
    file_set,
    label_entry,
    rotated_sum,
)

SECONDS_MAX = 10
MEBIBYTES_MAX = 700


def directory(name: str, cluster: int, size: int = 512, flags: int = CONTIGUOUS) -> bytes:
    return file_set(name, cluster, size, attributes=DIRECTORY, flags=flags)


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
        said = []
        for what in ("allocated", "scan"):
            try:
                found = getattr(ExfatVolume(FileDevice(sys.argv[1])), what)()
                said.append(f"{len(found.entries) if what == 'scan' else len(found)}")
            except InconsistentVolume as refused:
                said.append(str(refused))
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, "; ".join(said))
    """
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, text=True)
    seconds, mebibytes, said = done.stdout.strip().split(" ", 2)
    return Cost(float(seconds), float(mebibytes), said)


def check_cost(volume: SparseVolume, said: str) -> None:
    volume.close()
    cost = cost_of(volume.path)
    assert said in cost.said
    assert cost.seconds < SECONDS_MAX
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


def sample() -> BareVolume:
    """A small good volume with files and directories of all sorts."""
    volume = BareVolume(240, cluster_shift=1)
    volume.use(*range(20, 240))
    vendor = b"\xe1\x01" + bytes(30)
    volume.write_root(
        label_entry("HOSTILE"),
        b"\xa0" + bytes(31),
        directory("A", 20, 3072, CHAINED),
        file_set("A Long Name Of A File.txt", 40, 5000, extra=vendor),
        b"\x05" + bytes(31),
        directory("Bä𝄞", 60, 1024),
        file_set("empty"),
    )
    volume.chain(20, 24, 22)
    volume.chain(40, 41, 45, 44, 50)
    inside = b"".join(file_set(f"file {k} {'n' * (k * 11 % 60)}", 70 + k, 700, valid=600, flags=3) for k in range(14))
    for at, cluster in enumerate((20, 24, 22)):
        volume.write(cluster, inside.ljust(3072, b"\0")[at * 1024 : at * 1024 + 1024])
    assert len(inside) <= 3072
    volume.write(60, directory("C", 100, 2048) + file_set("D", 110, 1500))
    volume.chain(110, 112)
    volume.write(100, directory("E", 120, 1024) + file_set("x" * 255, 130, 1024, flags=CONTIGUOUS))
    return volume


SAMPLE = sample()
SETS = [
    at
    for at in range(SAMPLE.heap_offset, len(SAMPLE.content), 32)
    if SAMPLE.content[at] == 0x85 and SAMPLE.content[at + 32] == 0xC0
]
ENTRIES = [at for at in range(SAMPLE.heap_offset, len(SAMPLE.content), 32) if any(SAMPLE.content[at : at + 32])]


def exercise(content: bytearray) -> bool:
    """Everything a caller can ask of a volume; only errors of ours may come out, and what comes out must hold. Whether
    it could be scanned."""
    is_exfat(bytes(content[:4096]))
    try:
        volume = ExfatVolume(MemoryDevice(content))
        facts = volume.facts
        inside = Runs.of([(0, facts.size_bytes)])
        allocated = volume.allocated()
        assert inside.covers(allocated)
        assert not ((allocated.start | allocated.length) % facts.alignment_bytes).any()
        scan = volume.scan()
    except SqlimageError as refused:
        assert isinstance(refused, InconsistentVolume)
        return False
    contents, entries = scan.contents, scan.entries
    assert inside.covers(Runs.from_arrays(contents.run_offset, contents.run_length))
    assert (contents.run_length > 0).all()
    assert not ((contents.run_offset | contents.run_length) % facts.alignment_bytes).any()
    assert len(set(entries.path)) == len(entries) == len(entries.record) == len(contents)
    assert entries.path[0] == "/"
    assert not any(part in ("", ".", "..") for path in entries.path[1:] for part in path[1:].split("/"))
    assert "\0" not in "".join(entries.path)
    "".join(entries.path).encode()
    assert (entries.content == np.arange(len(contents))).all()
    assert ((contents.valid_bytes >= 0) & (contents.valid_bytes <= contents.size_bytes)).all()
    held = np.append(0, contents.run_length.cumsum())[contents.first_run]
    assert (held[1:] - held[:-1] >= contents.size_bytes).all()
    for row, record in list(enumerate(contents.record.tolist()))[:20]:
        try:
            opened = volume.open(record)
        except SqlimageError:  # only where nothing says that the directory's cluster is in use
            assert not allocated.covers(Runs.of([(record * 32, 32)])) or crosses(content, record)
            continue
        assert opened.size_bytes == contents.size_bytes[row] or crosses(content, record)
        assert len(opened.read(max(0, opened.size_bytes - 700), 9000)) == min(opened.size_bytes, 700)
    for record in (1, facts.size_bytes // 64, facts.size_bytes // 32 - 1):
        with contextlib.suppress(SqlimageError):
            volume.open(record).read(0, 1000)
    return True


def crosses(content: bytearray, record: int) -> bool:
    """Whether the set at a record goes on in a cluster that ``open`` has to guess."""
    geometry = read_boot(MemoryDevice(content)).geometry
    within = (record * 32 - geometry.heap_offset) % geometry.bytes_per_cluster
    return within + (content[record * 32 + 1] + 1) * 32 > geometry.bytes_per_cluster


def seal_sets(content: bytearray) -> None:
    """Make the checksums of all sets right that lie in one piece."""
    for at in SETS:
        raw = bytes(content[at : at + (content[at + 1] + 1) * 32])
        if (at - SAMPLE.heap_offset) % 1024 + len(raw) <= 1024:
            content[at + 2 : at + 4] = rotated_sum(raw, 16, (2, 3)).to_bytes(2, "little")


def extremes(bits: int) -> st.SearchStrategy[int]:
    top = (1 << bits) - 1
    return st.one_of(
        st.sampled_from([0, 1, 2, top, top - 1, top >> 1, (top >> 1) + 1, top - 8]),
        st.integers(0, min(top, 600)),
        st.integers(0, top),
    )


WIDTHS = [64, 64, 32, 32, 32, 32, 32, 32, 16, 16, 8, 8, 8]


@st.composite
def hostile_volumes(draw: st.DrawFn) -> bytearray:
    """The sample with fields of its boot sector, entries and FAT changed; the checksums are right again, mostly."""
    volume = BareVolume.__new__(BareVolume)
    volume.__dict__.update(SAMPLE.__dict__)
    volume.content = bytearray(SAMPLE.content)
    volume.fields = dict(SAMPLE.fields)
    kinds = draw(st.sets(st.sampled_from(["boot", "entry", "link", "byte"]), min_size=1))
    if "boot" in kinds:
        for k in draw(st.sets(st.integers(0, len(WIDTHS) - 1), min_size=1, max_size=3)):
            name, width = list(volume.fields)[k], WIDTHS[k]
            near = volume.fields[name] + draw(st.integers(-3, 3)) & (1 << width) - 1
            volume.fields[name] = draw(st.one_of(extremes(width), st.just(near)))
        if volume.fields["BytesPerSectorShift"] == 9:
            volume.seal(backup=draw(st.booleans()))
    if "entry" in kinds:
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.sampled_from(ENTRIES))
            place, bits = draw(
                st.sampled_from(
                    [(0, 8), (1, 8), (3, 8), (4, 16), (6, 16), (8, 64), (8, 32), (20, 32), (24, 64), (12, 32)]
                )
            )
            volume.put(at + place, draw(extremes(bits)).to_bytes(bits // 8, "little"))
        if draw(st.integers(0, 4)):
            seal_sets(volume.content)
    if "link" in kinds:
        for _ in range(draw(st.integers(1, 4))):
            volume.link(draw(st.integers(0, 241)), draw(st.one_of(st.integers(0, 245), extremes(32))))
    if "byte" in kinds:
        for _ in range(draw(st.integers(1, 4))):
            volume.content[draw(st.integers(0, len(volume.content) - 1))] = draw(st.integers(0, 255))
    return volume.content


def test_the_sample_is_sound() -> None:
    assert exercise(bytearray(SAMPLE.content))
    assert len(ExfatVolume(MemoryDevice(SAMPLE.content)).scan().entries) == 1 + 4 + 14 + 2 + 2 + 2


@given(hostile_volumes())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_change_of_fields_brings_out_anything_but_our_errors(content: bytearray) -> None:
    exercise(content)


@pytest.mark.slow
@given(hostile_volumes())
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_changes_of_fields_bring_out_nothing_but_our_errors(content: bytearray) -> None:
    exercise(content)


def test_changes_of_bytes_are_survived_and_not_always_refused() -> None:
    chance = random.Random(7)
    scanned = 0
    for _ in range(150):
        content = bytearray(SAMPLE.content)
        for _ in range(chance.choice((1, 2, 5))):
            content[chance.choice(ENTRIES) + chance.randrange(32)] ^= 1 << chance.randrange(8)
        seal_sets(content)
        scanned += exercise(content)
    assert 25 < scanned < 149


def test_bytes_that_nobody_wrote_as_a_volume_are_refused() -> None:
    chance = random.Random(3)
    for _ in range(500):
        content = bytearray(chance.randbytes(700))
        content[3:11] = b"EXFAT   "
        assert not exercise(content)


def test_opening_any_record_of_a_volume_only_finds_or_does_not_find() -> None:
    volume = ExfatVolume(MemoryDevice(SAMPLE.content))
    listed = set(volume.scan().entries.record.tolist())
    found = set()
    for record in range(len(SAMPLE.content) // 32 + 2):
        with contextlib.suppress(NotFoundError, InconsistentVolume):
            volume.open(record)
            found.add(record)
    assert listed == found
