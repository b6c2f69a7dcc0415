"""Volumes by mkfs.exfat and exfat-fuse: names, bytes and places agree with their sources and with other readers."""

from __future__ import annotations

import os
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sqlimage.device import BlockDevice
from sqlimage.errors import NotFoundError
from sqlimage.extent import Runs, first_overlap
from sqlimage.filesystem.contract import ContentFlag, EntryKind, FileSystem, Scan, read_all
from sqlimage.filesystem.exfat import ExfatVolume, is_exfat
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import GIB, KIB, MIB, TIB
from tests.conftest import run
from tests.make import exfat as make
from tests.make.cost import PATIENCE
from tests.make.exfat import CHAINED, CONTIGUOUS, DIRECTORY, BareVolume, file_set


@dataclass(frozen=True)
class Shape:
    size_bytes: int
    label: str
    options: tuple[str, ...] = ()
    bytes_per_sector: int = 512
    fls: bool = True
    """The Sleuth Kit searches large volumes for long."""
    fsck: bool = True
    """Both hang where sets of entries take more than a cluster."""

    def __str__(self) -> str:
        return f"{self.size_bytes // KIB}K{''.join(self.options)}-{self.bytes_per_sector}"


SHAPES = [
    Shape(MIB, "smallest", ("-b", "64K")),
    Shape(16 * MIB, "Ω μέγα", ("-c", "512"), fls=False, fsck=False),
    Shape(64 * MIB, "packed", ("-c", "4096", "--pack-bitmap")),
    Shape(200 * MIB, "aligned", ("-c", "32K", "-b", "4M")),
    Shape(3 * GIB, "large", ("-c", "1M"), fls=False),
    Shape(300 * MIB, "largest", ("-c", "32M"), fls=False),
    Shape(64 * MIB, "sectors", ("-c", "4096"), 4096),
    Shape(100 * MIB, "elevenchars", ("-c", "16K", "-b", "16M"), 4096),
]


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def everyday(cluster: int) -> dict[str, bytes]:
    """Sizes around the borders of clusters, names of all sorts, a deep tree; nothing of over a MiB."""
    sizes = {0, 1, 511, 512, 513, cluster - 1, cluster, cluster + 1, 3 * cluster + 7}
    tree = {f"size {size}.bin": noise(size) for size in sorted(sizes) if size < MIB // 2}
    tree |= {f"{name}": name.encode() for name in ("UPPER.TXT", "lower.txt", "Camel Case.Text", ".dot", "$Bitmap")}
    tree |= {f"日本/ünïcødé {k} {'x' * k}.txt": noise(k) for k in (0, 1, 200)}
    tree |= {f"{'𝄞' * 7} {k}": b"surrogates" for k in range(2)}  # of pairs cut in two the Sleuth Kit dies
    tree |= {f"{'d' * 255}/{'f' * count}": noise(count) for count in (14, 15, 16, 254, 255)}
    deep = "/".join(f"level {k}" for k in range(40))
    return tree | {f"{deep}/bottom": b"found", f"{deep}/other": noise(min(2 * cluster, MIB // 2))}


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
    contents = scan.contents
    part = slice(contents.first_run[row], contents.first_run[row + 1])
    data = b"".join(
        device.read(int(offset), int(length))
        for offset, length in zip(contents.run_offset[part], contents.run_length[part], strict=True)
    )
    assert len(data) >= contents.size_bytes[row]
    size, valid = int(contents.size_bytes[row]), int(contents.valid_bytes[row])
    return data[:valid] + bytes(size - valid)


def used_clusters(path: Path) -> int:
    """What dump.exfat counts."""
    text = run("dump.exfat", path).stdout.decode()
    total, free = (int(re.findall(rf"{name} Clusters:\s*(\d+)", text)[0]) for name in ("Total", "Free"))
    return total - free


def listed_by_fls(path: Path) -> dict[str, tuple[int, int]]:
    """(size, modified in seconds) of files and directories, by path, as the Sleuth Kit finds them."""
    found = {}
    for line in run(
        "fls", "-f", "exfat", "-r", "-u", "-m", "", path, env={**os.environ, "TZ": "UTC"}
    ).stdout.splitlines():
        _, name, _, mode, _, _, size, _, modified, *_ = line.decode().split("|")
        if mode[0] in "rd" and not name.startswith("/$") and not name.endswith("(Volume Label Entry)"):
            found[name] = int(size), int(modified)
    return found


def check_with_fls(path: Path, scan: Scan) -> None:
    """The Sleuth Kit finds the same names, sizes and times."""
    entries = scan.entries
    sizes = scan.contents.size_bytes[entries.content].tolist()
    ours = {
        path: (size, modified // 1_000_000_000)
        for path, size, modified, kind in zip(
            entries.path, sizes, entries.modified_ns.tolist(), entries.kind, strict=True
        )
        if kind != EntryKind.METADATA and path != "/" and not path.startswith("/$")
    }
    theirs = listed_by_fls(path)
    assert ours.keys() == theirs.keys()
    for name, (size, modified) in theirs.items():
        assert ours[name][0] == size, name
        assert abs(ours[name][1] - modified) <= 1, name  # it knows no 10 ms increments


def check_places(device: BlockDevice, volume: ExfatVolume, scan: Scan) -> None:
    """What must hold for every sound volume: every run is allocated, aligned, somebody's only, and inside; and every
    cluster that is allocated is somebody's."""
    contents, facts, allocated = scan.contents, volume.facts, volume.allocated()
    assert first_overlap(contents.run_offset, contents.run_length) is None
    runs = Runs.from_arrays(contents.run_offset, contents.run_length)
    assert allocated.covers(runs)
    assert Runs.of([(0, facts.size_bytes)]).covers(allocated)
    for places in (contents.run_offset, contents.run_length, allocated.start, allocated.length):
        assert not (places % facts.alignment_bytes).any()
    outside = facts.size_bytes - facts.total_clusters * facts.bytes_per_cluster
    assert allocated.total == outside + runs.total
    for row in range(len(contents)):
        assert by_runs(device, scan, row) == b"".join(read_all(volume.open(int(contents.record[row]))))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_everything_written_is_found_where_other_readers_find_it(shape: Shape, tmp_path: Path) -> None:
    path = make.make_volume(
        tmp_path / "v",
        shape.size_bytes,
        "-L",
        shape.label,
        *shape.options,
        bytes_per_sector=shape.bytes_per_sector,
    )
    device = FileDevice(path)
    cluster = ExfatVolume(device).facts.bytes_per_cluster
    small = cluster < MIB
    tree = everyday(cluster) if small else {"a": noise(5000), "empty": b""}
    turns = {f"turn {k}": noise(cluster * (20 if k else 3) + k) for k in range(3)} if cluster < 64 * KIB else {}
    if shape.size_bytes == MIB:
        tree, turns = {"a/b": noise(5000), "c": b""}, {}
    with make.mounted(path, tmp_path / "at", bytes_per_sector=shape.bytes_per_sector, check=shape.fsck) as directory:
        make.fill(directory, tree)
        make.fill_in_turns(directory, turns, cluster)
        for name in list(tree)[::5]:  # what is deleted leaves entries that are not in use
            (directory / name).unlink()
            del tree[name]

    assert is_exfat(device.read(0, 4096))
    volume = ExfatVolume(device)
    facts, scan = volume.facts, volume.scan()
    assert (facts.file_system, facts.format_version, facts.dirty, facts.notes) == ("exfat", "1.0", False, ())
    assert facts.bytes_per_sector == shape.bytes_per_sector
    assert facts.label == shape.label
    assert facts.serial == run("blkid", "-p", "-s", "UUID", "-o", "value", path).stdout.decode().strip().replace(
        "-", ""
    )
    assert contents_of(volume, scan) == {f"/{name}": content for name, content in (tree | turns).items()}
    check_places(device, volume, scan)
    outside = facts.size_bytes - facts.total_clusters * cluster
    assert volume.allocated().total == outside + used_clusters(path) * cluster
    fragments = scan.contents.first_run[1:] - scan.contents.first_run[:-1]
    assert (fragments.max() > 10) == bool(turns)

    if shape.fls:
        check_with_fls(path, scan)


def test_names_of_any_characters_are_read_as_the_driver_wrote_them(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 4 * MIB)
    chance = random.Random(5)
    alphabet = [chr(k) for k in [*range(0xA1, 0x250), *range(0x370, 0x600), *range(0x1F300, 0x1F500), 0x10FFFF, 0xFFFF]]
    names = {"".join(chance.choices(alphabet, k=chance.randint(1, 60))) for _ in range(300)}
    names = {name for name in names if len(name.encode()) < 256}
    with make.mounted(path, tmp_path / "at") as directory:
        for name in names:
            (directory / name).touch()
        written = set(os.listdir(directory))
    assert {path[1:] for path in ExfatVolume(FileDevice(path)).scan().entries.path if "$" not in path} == written | {""}
    assert len(written) > 200


def test_modification_times_and_attributes_are_those_of_the_driver(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 4 * MIB)
    times = {f"f{k}": 1_000_000_001 + k * 86_400 * 200 for k in range(20)}
    with make.mounted(path, tmp_path / "at") as directory:
        for name, when in times.items():
            (directory / name).write_bytes(b"x")
            os.utime(directory / name, (when, when))
        (directory / "d").mkdir()
    entries = ExfatVolume(FileDevice(path)).scan().entries
    modified = dict(zip(entries.path, entries.modified_ns.tolist(), strict=True))
    attributes = dict(zip(entries.path, entries.attributes.tolist(), strict=True))
    assert {name: modified[f"/{name}"] // 1_000_000_000 for name in times} == times
    assert attributes["/d"] == 0x10
    assert attributes["/f0"] == 0x20
    assert attributes["/"] == 0x10


def test_the_root_comes_first_and_what_the_volume_keeps_itself_by_is_metadata(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 4 * MIB)
    with make.mounted(path, tmp_path / "at") as directory:
        (directory / "$UpCase").write_bytes(b"a user's file")
    volume = ExfatVolume(FileDevice(path))
    scan = volume.scan()
    entries, contents = scan.entries, scan.contents
    assert (entries.path[0], entries.kind[0], contents.flags[0]) == ("/", EntryKind.DIRECTORY, ContentFlag.INDEX)
    assert entries.path[1:3] == ["/$UpCase", "/$Bitmap"]
    assert entries.path[3].startswith("/$UpCase~")
    assert entries.kind.tolist()[1:] == [EntryKind.FILE, EntryKind.METADATA, EntryKind.METADATA]
    assert volume.open(int(entries.record[1])).read(0, 100) == b"a user's file"
    assert volume.open(int(entries.record[2])).size_bytes == -(-volume.facts.total_clusters // 8)
    assert contents.size_bytes[3] == volume.open(int(entries.record[3])).size_bytes > 128


@pytest.mark.parametrize("size", [TIB, 15 * TIB])
def test_a_huge_sparse_volume_is_opened_and_scanned_at_once(size: int, tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", size)
    if size == TIB:
        with make.mounted(path, tmp_path / "at") as directory:
            make.fill(directory, {"a/b": b"content"})
    started = time.monotonic()
    volume = ExfatVolume(FileDevice(path))
    scan = volume.scan()
    allocated = volume.allocated()
    assert time.monotonic() - started < 2 * PATIENCE
    assert len(scan.entries) == (5 if size == TIB else 3)
    facts = volume.facts
    assert facts.size_bytes == size
    outside = facts.size_bytes - facts.total_clusters * facts.bytes_per_cluster
    assert allocated.total == outside + scan.contents.run_length.sum()


def many_files(count: int, cluster_shift: int = 0) -> BareVolume:
    """Files of one cluster, every second one chained, in directories of a hundred."""
    per_directory = 100
    directories = -(-count // per_directory)
    held = 1 << cluster_shift + 9
    per = -(-per_directory * 96 // held)
    volume = BareVolume(count + directories * (per + 1) + directories * 96 // held + 600, cluster_shift=cluster_shift)
    root_more = directories * 96 // held + 1
    root = volume.chain(volume.root, *range(volume.free, volume.free + root_more))
    at = volume.free + root_more
    top = []
    for d in range(directories):
        top.append(file_set(f"directory {d}", at, per * held, attributes=DIRECTORY, flags=CONTIGUOUS))
        volume.use(*range(at, at + per))
        here, at = at, at + per
        sets = []
        for k in range(min(per_directory, count - d * per_directory)):
            sets.append(file_set(f"{k:03}", at, 100, flags=CHAINED if k % 2 else CONTIGUOUS))
            volume.link(at, make.END)
            volume.use(at)
            at += 1
        volume.write(here, b"".join(sets))
    assert root == volume.root
    data = volume.root_entries + b"".join(top)
    volume.write(volume.root, data[:held])
    volume.write(volume.free, data[held:])
    return volume


@pytest.mark.parametrize("shift", [0, 3])
def test_ten_thousand_files_are_scanned_in_a_second(shift: int) -> None:
    volume = many_files(10_000, shift)
    started = time.monotonic()
    opened = ExfatVolume(MemoryDevice(volume.content))
    scan = opened.scan()
    assert time.monotonic() - started < 1 * PATIENCE
    assert len(scan.entries) == 1 + 100 + 10_000 + 2
    assert scan.entries.path[-3] == "/directory 99/099"
    assert opened.allocated().covers(Runs.from_arrays(scan.contents.run_offset, scan.contents.run_length))


def test_what_has_no_record_is_not_found(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 4 * MIB)
    with make.mounted(path, tmp_path / "at") as directory:
        make.fill(directory, {"a": b"\x85" * 64, "b": b""})
    volume = ExfatVolume(FileDevice(path))
    entries = volume.scan().entries
    record = dict(zip(entries.path, entries.record.tolist(), strict=True))
    for nowhere in (-1, 1, record["/a"] + 1, volume.facts.size_bytes // 32 - 1, 1 << 60):
        with pytest.raises(NotFoundError):
            volume.open(nowhere)
    with pytest.raises(NotFoundError, match="no streams"):
        volume.open(record["/a"], "stream")


@pytest.mark.slow
def test_twenty_thousand_files_in_one_directory_that_the_driver_wrote(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 256 * MIB, "-c", "512")
    names = [f"file number {k}, {'long ' * (k % 9)}.txt" for k in range(20_000)]
    with make.mounted(path, tmp_path / "at") as directory:
        (directory / "d").mkdir()
        for k, name in enumerate(names):
            (directory / "d" / name).write_bytes(noise(k) if k % 100 == 0 else b"")
        for name in names[::3]:
            (directory / "d" / name).unlink()
    device = FileDevice(path)
    volume = ExfatVolume(device)
    started = time.monotonic()
    scan = volume.scan()
    assert time.monotonic() - started < 1 * PATIENCE
    left = [k for k in range(20_000) if k % 3]
    assert contents_of(volume, scan) == {f"/d/{names[k]}": noise(k) if k % 100 == 0 else b"" for k in left}
    check_places(device, volume, scan)


@pytest.mark.slow
def test_fifty_thousand_files_are_scanned_in_a_second() -> None:
    volume = many_files(50_000)
    device = MemoryDevice(volume.content)
    started = time.monotonic()
    scan = ExfatVolume(device).scan()
    assert time.monotonic() - started < 1 * PATIENCE
    assert len(scan.entries) == 50_503
