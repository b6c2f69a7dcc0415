"""Volumes by mkfs.fat and mtools: names, bytes and places agree with their sources and with other readers."""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs, first_overlap
from sqlimage.filesystem.contract import ContentFlag, EntryKind, FileSystem, Scan, read_all
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.fat.boot import geometry_of, parse
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.window import Window
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.make import fat as make
from tests.make.fat import BareVolume, short_entry


@dataclass(frozen=True)
class Shape:
    bits: int
    size_bytes: int
    sectors_per_cluster: int
    bytes_per_sector: int = 512
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"fat{self.bits}-{self.size_bytes // KIB}K-{self.sectors_per_cluster}x{self.bytes_per_sector}"


SHAPES = [
    Shape(12, 1440 * KIB, 1),
    Shape(12, 8 * MIB, 8),
    Shape(12, 15 * MIB, 1, 4096),
    Shape(12, 4 * MIB, 2, 1024, ("-f", "1")),
    Shape(16, 9 * MIB, 1, 512, ("-f", "3")),
    Shape(16, 300 * MIB, 64),
    Shape(16, 40 * MIB, 1, 4096),
    Shape(32, 40 * MIB, 1),
    Shape(32, 520 * MIB, 16),
    Shape(32, 300 * MIB, 1, 4096),
]


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def everyday(cluster: int) -> dict[str, bytes]:
    """Sizes around the borders of clusters, names of all sorts, a deep tree."""
    sizes = sorted({0, 1, 511, 512, 513, cluster - 1, cluster, cluster + 1, 3 * cluster + 7})
    tree = {f"size {size}.bin": noise(size) for size in sizes}
    tree |= {f"{name}": name.encode() for name in ("UPPER.TXT", "lower.txt", "MIXED.txt", "Camel Case.Text", ".dot")}
    tree |= {f"日本/ünïcødé {k} {'x' * k}.txt": noise(k) for k in (0, 1, 200)}
    deep = "/".join(f"level {k}" for k in range(12))
    return tree | {f"{deep}/bottom": b"found", f"{deep}/other": noise(2 * cluster)}


def contents_of(volume: FileSystem, scan: Scan) -> dict[str, bytes]:
    """Every file by path, as ``open`` reads it."""
    entries = scan.entries
    return {
        path: b"".join(read_all(volume.open(int(record)), 1000))
        for path, kind, record in zip(entries.path, entries.kind, entries.record, strict=True)
        if kind == EntryKind.FILE
    }


def by_runs(device: BlockDevice, scan: Scan, row: int) -> bytes:
    """A content as its runs hold it."""
    part = slice(scan.contents.first_run[row], scan.contents.first_run[row + 1])
    data = b"".join(
        device.read(int(offset), int(length))
        for offset, length in zip(scan.contents.run_offset[part], scan.contents.run_length[part], strict=True)
    )
    assert len(data) >= scan.contents.size_bytes[row]
    return data[: scan.contents.size_bytes[row]]


def used_clusters(path: Path) -> int:
    """What fsck.fat counts on a volume in which it finds no fault."""
    found = re.search(rb"(\d+)/\d+ clusters", run("fsck.fat", "-n", path).stdout)
    assert found
    return int(found[1])


def check_places(device: BlockDevice, volume: FatVolume, scan: Scan) -> None:
    """What must hold for every sound volume: every run is allocated, aligned, somebody's only, and inside."""
    contents, facts, allocated = scan.contents, volume.facts, volume.allocated()
    assert first_overlap(contents.run_offset, contents.run_length) is None
    runs = Runs.from_arrays(contents.run_offset, contents.run_length)
    assert allocated.covers(runs)
    assert Runs.of([(0, facts.size_bytes)]).covers(allocated)
    for places in (contents.run_offset, contents.run_length, allocated.start, allocated.length):
        assert not (places % facts.alignment_bytes).any()
    assert (contents.valid_bytes == contents.size_bytes).all()
    for row in range(len(contents)):
        assert by_runs(device, scan, row) == b"".join(read_all(volume.open(int(contents.record[row]))))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_everything_written_is_found_where_other_readers_find_it(shape: Shape, tmp_path: Path) -> None:
    path = make.make_volume(
        tmp_path / "v",
        shape.size_bytes,
        shape.bits,
        sectors_per_cluster=shape.sectors_per_cluster,
        bytes_per_sector=shape.bytes_per_sector,
        options=shape.options,
    )
    cluster = shape.sectors_per_cluster * shape.bytes_per_sector
    tree = everyday(cluster)
    make.fill(path, tree, tmp_path / "tree")
    device = FileDevice(path)
    volume = FatVolume(device)
    facts, scan = volume.facts, volume.scan()
    assert (facts.file_system, facts.bytes_per_cluster) == (f"fat{shape.bits}", cluster)
    assert contents_of(volume, scan) == {f"/{name}": content for name, content in tree.items()}
    check_places(device, volume, scan)

    if "-f" not in shape.options:  # fsck.fat knows volumes of two FATs
        outside = facts.size_bytes - facts.total_clusters * cluster
        assert volume.allocated().total == outside + used_clusters(path) * cluster

    contents, heap = scan.contents, geometry_of(parse(device.read(0, 512))).heap_offset
    for name, row in list(zip(scan.entries.path, scan.entries.content.tolist(), strict=True))[1:]:
        part = slice(contents.first_run[row], contents.first_run[row + 1])
        clusters = (contents.run_offset[part] - heap) // cluster + 2
        got = list(zip(clusters.tolist(), (contents.run_length[part] // cluster).tolist(), strict=True))
        assert got == make.cluster_runs(path, name), name


@pytest.mark.parametrize("shape", [SHAPES[k] for k in (0, 5, 7)], ids=str)
def test_sleuthkit_lists_and_reads_the_same(shape: Shape, tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", shape.size_bytes, shape.bits, sectors_per_cluster=shape.sectors_per_cluster)
    tree = {name: content for name, content in everyday(512).items() if len(name) < 200}  # fls cuts longer names
    make.fill(path, tree, tmp_path / "tree")
    make.delete(path, "/UPPER.TXT", "/size 513.bin")
    volume = FatVolume(FileDevice(path))
    scan = volume.scan()
    ours = contents_of(volume, scan)
    theirs = {}
    for line in run("fls", "-f", f"fat{shape.bits}", "-r", "-p", "-u", path).stdout.decode().splitlines():
        kind, place, name = re.fullmatch(r"(\S+) (?:\* )?(\d+):\t(.*)", line).groups()  # type: ignore[union-attr]
        if kind == "r/r":
            theirs[f"/{name}"] = run("icat", "-f", f"fat{shape.bits}", path, place).stdout
    assert "/UPPER.TXT" not in ours
    assert ours == theirs


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fragmented_files_are_read_in_order(bits: int, tmp_path: Path) -> None:
    size = {12: 1440 * KIB, 16: 9 * MIB, 32: 36 * MIB}[bits]
    path = make.make_volume(tmp_path / "v", size, bits, sectors_per_cluster=1)
    small = {f"d/small{k:03}.bin": noise(100 + 512 * (k % 3)) for k in range(300)}
    make.fill(path, small, tmp_path / "small")
    make.delete(path, *(f"/{name}" for name in list(small)[::2]))
    free = FatVolume(FileDevice(path)).facts.total_clusters - used_clusters(path)
    big = {"Big Long Name.bin": noise((free - 200) * 512)}
    make.fill(path, big, tmp_path / "big")
    make.delete(path, *(f"/{name}" for name in list(small)[1::6]))
    last = {"last.bin": noise(60_000)}
    make.fill(path, last, tmp_path / "last")
    device = FileDevice(path)
    volume = FatVolume(device)
    scan = volume.scan()
    wanted = {name: small[name] for k, name in enumerate(small) if k % 2 and k % 6 != 1} | big | last
    assert contents_of(volume, scan) == {f"/{name}": content for name, content in wanted.items()}
    check_places(device, volume, scan)
    pieces = scan.contents.first_run[1:] - scan.contents.first_run[:-1]
    for name in ("/Big Long Name.bin", "/last.bin"):
        row = scan.entries.path.index(name)
        assert pieces[row] == len(make.cluster_runs(path, name)) >= 20


def test_two_thousand_files_are_found_in_one_directory_and_in_many(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 64 * MIB, 32, sectors_per_cluster=1)
    tree = {f"all in one directory/file number {k}.txt": b"%d" % k for k in range(200)}
    tree |= {f"dir{k % 50}/sub{k % 7}/f{k}.dat": noise(k) for k in range(1800)}
    make.fill(path, tree, tmp_path / "tree")
    volume = FatVolume(FileDevice(path))
    scan = volume.scan()
    assert contents_of(volume, scan) == {f"/{name}": content for name, content in tree.items()}
    directories = {f"/{name.rsplit('/', k)[0]}" for name in tree for k in (1, 2) if name.count("/") >= k}
    kinds = dict(zip(scan.entries.path, scan.entries.kind.tolist(), strict=True))
    assert {name for name, kind in kinds.items() if kind == EntryKind.DIRECTORY} == directories | {"/"}


def test_times_are_the_sources(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 1440 * KIB, 12)
    source = tmp_path / "file"
    source.write_bytes(b"x")
    os.utime(source, ns=(0, 1_700_000_000 * 10**9))
    make.copy_in(path, source)
    entries = FatVolume(FileDevice(path)).scan().entries
    assert entries.modified_ns[entries.path.index("/file")] == 1_700_000_000 * 10**9


def test_directories_are_contents_too(tmp_path: Path) -> None:
    for bits in (12, 32):
        path = make.make_volume(tmp_path / "v", 36 * MIB if bits == 32 else MIB, bits)
        make.make_directory(path, "/sub")
        device = FileDevice(path)
        volume = FatVolume(device)
        scan = volume.scan()
        assert scan.entries.path == ["/", "/sub"]
        assert scan.contents.flags.tolist() == [ContentFlag.INDEX, ContentFlag.INDEX]
        root, sub = by_runs(device, scan, 0), by_runs(device, scan, 1)
        assert root[:11] == b"SUB        "
        assert (sub[:11], sub[32:43]) == (b".          ", b"..         ")
        assert len(sub) == volume.facts.bytes_per_cluster
        assert b"".join(read_all(volume.open(0))) == root


def test_a_part_of_a_content_is_read_and_cut_at_its_end() -> None:
    volume = BareVolume(16, 5000)
    volume.chain(10, 20, 21, 5)
    for cluster in (10, 20, 21, 5):
        volume.write(cluster, noise(512 + cluster)[:512])
    volume.write_root(short_entry(b"FILE", 10, size=1900))
    whole = b"".join(noise(512 + cluster)[:512] for cluster in (10, 20, 21, 5))[:1900]
    content = FatVolume(MemoryDevice(volume.content)).open(volume.root_offset // 32)
    assert content.size_bytes == 1900
    for offset in (0, 1, 511, 512, 1024, 1899, 1900, 5000):
        for length in (0, 1, 512, 513, 1900, 10_000):
            assert content.read(offset, length) == whole[offset : offset + length]


def test_a_chain_longer_than_its_file_belongs_to_it_whole() -> None:
    volume = BareVolume(16, 5000)
    volume.write_root(short_entry(b"FILE", volume.chain(10, 11, 30), size=5), short_entry(b"EMPTY", volume.chain(40)))
    scan = FatVolume(MemoryDevice(volume.content)).scan()
    assert scan.contents.run_offset[1:].tolist() == [volume.offset_of(c) for c in (10, 30, 40)]
    assert scan.contents.run_length[1:].tolist() == [1024, 512, 512]
    assert scan.contents.size_bytes[1:].tolist() == [5, 0]


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_only_records_of_entries_are_opened(bits: int) -> None:
    volume = BareVolume(bits, 5000 if bits == 16 else 100)
    name = b"SHORT"
    entries = [short_entry(b"\xe5GONE"), make.long_entries("long name", name), short_entry(name, 5, size=3)]
    entries += [short_entry(b"LABEL", attributes=8), short_entry(b"SUB", 6, attributes=0x10)]
    volume.write_root(*entries)
    volume.chain(5)
    volume.chain(6)
    volume.write(5, b"abc")
    volume.write(6, short_entry(b".", 6, attributes=0x10) + short_entry(b"..", attributes=0x10) + short_entry(b"LOW"))
    volume.write(9, short_entry(b"FREE"))
    opened = FatVolume(MemoryDevice(volume.content))
    root = (volume.offset_of(2) if bits == 32 else volume.root_offset) // 32
    assert opened.open(root + 2).read(0, 10) == b"abc"
    assert opened.open(root + 4).size_bytes == 512
    assert opened.open(volume.offset_of(6) // 32 + 2).size_bytes == 0
    assert opened.open(0).read(64, 5) == b"SHORT"
    wrong = [root, root + 1, root + 3, root + 5, volume.offset_of(6) // 32, volume.offset_of(6) // 32 + 1]
    wrong += [volume.offset_of(9) // 32, 1, -1, volume.fat_offset // 32, len(volume.content) // 32, 1 << 62]
    for record in wrong:
        with pytest.raises(NotFoundError):
            opened.open(record)
    with pytest.raises(NotFoundError, match="stream"):
        opened.open(root + 2, "stream")


def test_the_upper_half_of_a_cluster_number_counts_in_fat32_only() -> None:
    for bits in (16, 32):
        volume = BareVolume(bits, 70_000 if bits == 32 else 5000)
        first = 0x10005 if bits == 32 else 5
        volume.chain(first)
        volume.write(first, b"here")
        volume.write_root(short_entry(b"FILE", 0x10005, size=4))
        opened = FatVolume(MemoryDevice(volume.content))
        assert contents_of(opened, opened.scan()) == {"/FILE": b"here"}


def test_a_volume_in_a_partition_is_read_from_its_own_start(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", MIB, 12)
    make.fill(path, {"a.txt": b"inside"}, tmp_path / "tree")
    disk = MemoryDevice(b"\xff" * 1536 + path.read_bytes() + b"\xff" * 512)
    volume = FatVolume(Window(disk, 1536, MIB))
    scan = volume.scan()
    assert contents_of(volume, scan) == {"/a.txt": b"inside"}
    assert volume.allocated().end[-1] <= MIB


def test_a_file_whose_chain_is_too_short_is_named() -> None:
    for size, chain in ((513, (5,)), (1, ()), (0xFFFFFFFF, (5, 6))):
        volume = BareVolume(12, 100)
        volume.write_root(short_entry(b"SHORT", volume.chain(*chain) if chain else 0, size=size))
        opened = FatVolume(MemoryDevice(volume.content))
        with pytest.raises(InconsistentVolume, match="/SHORT"):
            opened.scan()
        with pytest.raises(InconsistentVolume):
            opened.open(volume.root_offset // 32)


@pytest.mark.parametrize("beyond", [0, 0xFF7, 1, 3000, 5])
def test_what_a_chain_does_beyond_its_files_size_is_forgiven(beyond: int) -> None:
    volume = BareVolume(12, 100)
    volume.chain(5, 8, 9)
    volume.link(9, beyond)
    volume.write(5, b"a" * 512)
    volume.write(8, b"b" * 512)
    volume.write_root(short_entry(b"FILE", 5, size=600))
    opened = FatVolume(MemoryDevice(volume.content))
    scan = opened.scan()
    assert scan.contents.run_offset[1:].tolist() == [volume.offset_of(5), volume.offset_of(8)]
    assert scan.contents.run_length[1:].tolist() == [512, 512 if beyond in (0, 0xFF7) else 1024]
    assert contents_of(opened, scan) == {"/FILE": b"a" * 512 + b"b" * 88}
