"""Volumes made by mkntfs and filled by ntfs-3g: every name, every byte and every cluster is found again."""

from __future__ import annotations

import os
import random
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sqlimage.errors import NotFoundError
from sqlimage.extent import Runs, first_overlap
from sqlimage.filesystem.contract import HOLE, ContentFlag, Entries, EntryKind, FileSystem, Scan, read_all
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.media.file import FileDevice
from tests.conftest import run
from tests.make.ntfs import make_volume, mounted, scatter_free_space, write_tree

MIB = 1 << 20


@dataclass(frozen=True)
class Made:
    """A volume with the files that were written to it."""

    image: Path
    files: dict[str, bytes]
    volume: NtfsVolume
    scan: Scan


def opened(image: Path, files: dict[str, bytes]) -> Made:
    volume = NtfsVolume(FileDevice(image))
    return Made(image, files, volume, volume.scan())


def a_bit_of_everything() -> dict[str, bytes]:
    chance = random.Random(1)
    files = {f"many/{i % 40:02}/file {i:04}.txt": chance.randbytes(i % 900) for i in range(2000)}
    files |= {f"sizes/{size}": chance.randbytes(size) for size in (0, 1, 511, 512, 513, 4096, 65536, 65537, MIB + 7)}
    files["/".join(f"level {i}" for i in range(60)) + "/deep"] = b"deep"
    names = ("Grüße", "日本語の名前", "emoji 🎵", "x" * 255, "trailing.dots", "a'b\"c", "UPPER", "upper2")
    files |= {f"names/{name}": name.encode() for name in names}
    return files


@pytest.fixture(scope="module", params=[512, 1024, 4096, 65536])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    image = tmp_path_factory.mktemp("ntfs") / f"{request.param}.img"
    make_volume(image, 256 * MIB if request.param == 65536 else 32 * MIB, cluster_bytes=request.param, label="Übung")
    files = a_bit_of_everything()
    with mounted(image) as root:
        write_tree(root, files)
        write_tree(root, {f"many/deleted {i}": b"gone" * i for i in range(300)})
        for i in range(300):
            (root / f"many/deleted {i}").unlink()
    return opened(image, files)


def kinds_of(entries: Entries) -> dict[str, EntryKind]:
    return {path: EntryKind(kind) for path, kind in zip(entries.path, entries.kind.tolist(), strict=True)}


def row_of(scan: Scan, path: str) -> int:
    """The content's row of an entry."""
    return int(scan.entries.content[scan.entries.path.index(path)])


def flags_of(scan: Scan, path: str) -> ContentFlag:
    return ContentFlag(int(scan.contents.flags[row_of(scan, path)]))


def read_path(volume: FileSystem, scan: Scan, path: str) -> bytes:
    row = row_of(scan, path)
    return b"".join(read_all(volume.open(int(scan.contents.record[row]), scan.contents.stream[row])))


def read_runs(image: Path, scan: Scan, row: int) -> bytes:
    """A content's bytes as its runs say, without the reader."""
    contents, out = scan.contents, bytearray()
    with image.open("rb") as file:
        for run_row in range(int(contents.first_run[row]), int(contents.first_run[row + 1])):
            offset, length = int(contents.run_offset[run_row]), int(contents.run_length[run_row])
            out += bytes(length) if offset == HOLE else os.pread(file.fileno(), length, offset)
    valid = int(contents.valid_bytes[row])
    return bytes(out[:valid]).ljust(int(contents.size_bytes[row]), b"\0")


def owned(scan: Scan) -> Runs:
    backed = scan.contents.run_offset != HOLE
    return Runs.from_arrays(scan.contents.run_offset[backed], scan.contents.run_length[backed])


def test_every_file_that_was_written_is_found_and_no_other(made: Made) -> None:
    files = {path for path, kind in kinds_of(made.scan.entries).items() if kind == EntryKind.FILE}
    assert files == {f"/{path}" for path in made.files}


def test_every_directory_is_found(made: Made) -> None:
    wanted = {"/"} | {f"/{parent}" for path in made.files for parent in Path(path).parents if parent.name}
    assert {p for p, kind in kinds_of(made.scan.entries).items() if kind == EntryKind.DIRECTORY} == wanted


def test_every_byte_that_was_written_is_read(made: Made) -> None:
    for path, content in made.files.items():
        assert read_path(made.volume, made.scan, f"/{path}") == content, path


def test_the_runs_alone_lead_to_the_bytes(made: Made) -> None:
    for path, content in made.files.items():
        row = row_of(made.scan, f"/{path}")
        if row not in made.scan.contents.inline_digest:
            assert read_runs(made.image, made.scan, row) == content, path


def test_inline_contents_are_told_by_their_digest(made: Made) -> None:
    from hashlib import sha256

    inline = {row for row, flags in enumerate(made.scan.contents.flags.tolist()) if flags & ContentFlag.INLINE}
    assert inline == set(made.scan.contents.inline_digest)
    for path, content in made.files.items():
        if (row := row_of(made.scan, f"/{path}")) in inline:
            assert made.scan.contents.inline_digest[row] == sha256(content).digest()


def test_a_part_of_a_file_is_the_same_as_that_part_of_the_whole(made: Made) -> None:
    path = f"sizes/{MIB + 7}"
    content = made.files[path]
    stream = made.volume.open(int(made.scan.contents.record[row_of(made.scan, f"/{path}")]))
    for offset, length in [(0, 1), (511, 2), (4095, 4098), (MIB, 100), (MIB + 7, 1), (MIB * 9, 5), (3, 0)]:
        assert stream.read(offset, length) == content[offset : offset + length]


def test_every_allocated_cluster_has_an_owner_and_no_cluster_two(made: Made) -> None:
    contents = made.scan.contents
    backed = contents.run_offset != HOLE
    assert first_overlap(contents.run_offset[backed], contents.run_length[backed]) is None
    heap = made.volume.facts.total_clusters * made.volume.facts.bytes_per_cluster
    assert made.volume.allocated().clip(0, heap) == owned(made.scan)


def test_the_backup_boot_sector_belongs_to_what_is_allocated(made: Made) -> None:
    size = made.volume.facts.size_bytes
    assert size == made.image.stat().st_size
    assert made.volume.allocated().covers(Runs.of([(0, 512), (size - 512, 512)]))


def test_runs_are_gapless_and_cover_what_is_valid(made: Made) -> None:
    contents = made.scan.contents
    for row in range(len(contents)):
        runs = contents.run_length[contents.first_run[row] : contents.first_run[row + 1]]
        assert (runs > 0).all()
        assert contents.valid_bytes[row] <= contents.size_bytes[row]
        assert row in contents.inline_digest or runs.sum() >= contents.size_bytes[row]


def test_times_are_those_the_driver_wrote(made: Made) -> None:
    ages = time.time_ns() - made.scan.entries.modified_ns[made.scan.entries.kind == EntryKind.FILE]
    assert ages.min() >= -2_000_000_000
    assert ages.max() < 600_000_000_000


def test_directories_have_the_directory_attribute(made: Made) -> None:
    for kind, bits in zip(made.scan.entries.kind.tolist(), made.scan.entries.attributes.tolist(), strict=True):
        if kind in (EntryKind.FILE, EntryKind.DIRECTORY):
            assert bool(bits & 0x10) == (kind == EntryKind.DIRECTORY)


def test_names_and_records_are_those_sleuthkit_sees(made: Made) -> None:
    theirs, ours = sleuthkit_entries(made.image), reader_entries(made.scan)
    assert ours <= theirs
    # it does not ask a directory's bitmap which blocks are in use, and so meets names that are gone
    assert all(path.startswith("/many/deleted ") for _, path in theirs - ours)


def sleuthkit_entries(image: Path) -> set[tuple[int, str]]:
    listing = run("fls", "-r", "-p", "-u", image).stdout.decode("utf-8")
    found = re.findall(r"^\S+ (\d+)(?:-(\d+)-\d+)?:\t(.*)$", listing, re.MULTILINE)
    # it lists indexes of metadata files as if they were streams, and a directory for orphans
    return {(int(r), f"/{path}") for r, kind, path in found if not (kind == "144" and ":" in path) and kind}


def reader_entries(scan: Scan) -> set[tuple[int, str]]:
    pairs = zip(scan.entries.record.tolist(), scan.entries.path, strict=True)
    return {(r, path) for r, path in pairs if path not in {"/", "/$Secure"} and not re.match(r"/\$Extend/", path)}


def test_facts_are_those_ntfsinfo_sees(made: Made) -> None:
    text = run("ntfsinfo", "-m", made.image).stdout.decode()
    facts = made.volume.facts
    assert facts.label == "Übung" and f"Volume Name: {facts.label}" in text
    assert f"Volume Version: {facts.format_version}" in text
    assert f"Cluster Size: {facts.bytes_per_cluster}\n" in text
    assert f"Volume Size in Clusters: {facts.total_clusters}\n" in text
    serial = run("blkid", "-p", "-s", "UUID", "-o", "value", made.image).stdout.decode().strip()
    assert facts.serial == serial
    assert not facts.dirty and not facts.hibernated
    assert facts.alignment_bytes == facts.bytes_per_cluster


def test_what_does_not_exist_cannot_be_opened(made: Made) -> None:
    count = made.volume.open(0).size_bytes
    for record in (-1, count, 1 << 48, 17):
        with pytest.raises(NotFoundError):
            made.volume.open(record)
    with pytest.raises(NotFoundError):
        made.volume.open(int(made.scan.contents.record[row_of(made.scan, "/sizes/0")]), "no such stream")


def test_the_mft_itself_can_be_read(made: Made) -> None:
    assert read_path(made.volume, made.scan, "/$MFT") == run("icat", made.image, "0").stdout
    assert kinds_of(made.scan.entries)["/$MFT"] == EntryKind.METADATA


def test_a_directory_of_many_names_has_its_index_as_content(made: Made) -> None:
    row = row_of(made.scan, "/many/07")
    assert made.scan.contents.stream[row] == "$I30"
    assert flags_of(made.scan, "/many/07") == ContentFlag.INDEX
    assert read_path(made.volume, made.scan, "/many/07")[:4] == b"INDX"


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two files of which every other cluster was written, in turns."""
    image = make_volume(tmp_path_factory.mktemp("scattered") / "v.img", 12 * MIB, cluster_bytes=512)
    chance = random.Random(2)
    files = {path: b"".join(chance.randbytes(512) + bytes(512) for _ in range(3000)) for path in ("big", "also big")}
    with mounted(image) as root, ExitStack() as stack:
        handles = [(stack.enter_context((root / path).open("wb", buffering=0)), data) for path, data in files.items()]
        for at in range(0, 3000 * 1024, 1024):
            for handle, data in handles:
                os.pwrite(handle.fileno(), data[at : at + 512], at)
        for handle, data in handles:
            handle.truncate(len(data))
    return opened(image, files)


@pytest.fixture(scope="module")
def scattered_mft(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Free space in holes of two clusters, and an MFT that has no other place to grow into."""
    image = make_volume(tmp_path_factory.mktemp("scattered_mft") / "v.img", 24 * MIB, cluster_bytes=512)
    with mounted(image) as root:
        filled = scatter_free_space(root, 1024)
        for i in range(6000):
            (root / f"empty{i}").touch()
    return opened(image, filled | {f"empty{i}": b"" for i in range(6000)})


def test_a_file_in_thousands_of_pieces_is_put_together_from_several_records(scattered: Made) -> None:
    row = row_of(scattered.scan, "/big")
    contents = scattered.scan.contents
    assert contents.first_run[row + 1] - contents.first_run[row] > 1000
    assert "$ATTRIBUTE_LIST" in run("ntfsinfo", "-F", "/big", scattered.image).stdout.decode()
    for path, content in scattered.files.items():
        assert read_path(scattered.volume, scattered.scan, f"/{path}") == content
        assert read_runs(scattered.image, scattered.scan, row_of(scattered.scan, f"/{path}")) == content


def test_pieces_lie_where_ntfscluster_says(scattered: Made) -> None:
    text = run("ntfscluster", "-F", "/big", scattered.image).stdout.decode()
    data = "".join(text.split("    0x80 - non-resident")[1:])
    table = [tuple(map(int, line)) for line in re.findall(r"^ +(\d+) +(-?\d+) +(\d+)$", data, re.MULTILINE)]
    row, contents = row_of(scattered.scan, "/big"), scattered.scan.contents
    rows = slice(int(contents.first_run[row]), int(contents.first_run[row + 1]))
    place, length = contents.run_offset[rows], contents.run_length[rows] // 512
    lcn = [HOLE if offset == HOLE else offset // 512 for offset in place.tolist()]
    vcn = (length.cumsum() - length).tolist()
    mapped = [row for row in table if row[1] != -2]  # it tells of the end of each extent that it read another
    assert list(zip(vcn, lcn, length.tolist(), strict=True)) == mapped


def test_an_mft_in_pieces_finds_the_records_that_describe_it(scattered_mft: Made) -> None:
    assert "$ATTRIBUTE_LIST" in run("ntfsinfo", "-i", "0", scattered_mft.image).stdout.decode()
    found = {p for p, kind in kinds_of(scattered_mft.scan.entries).items() if kind == EntryKind.FILE}
    assert found == {f"/{path}" for path in scattered_mft.files}
    heap = scattered_mft.volume.facts.total_clusters * 512
    assert scattered_mft.volume.allocated().clip(0, heap) == owned(scattered_mft.scan)
    assert read_path(scattered_mft.volume, scattered_mft.scan, "/$MFT") == run("icat", scattered_mft.image, "0").stdout


def test_twenty_thousand_files_are_planned_completely(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "v.img", 128 * MIB)
    with mounted(image) as root:
        for i in range(20_000):
            if i % 200 == 0:
                (root / f"d{i // 200}").mkdir()
            (root / f"d{i // 200}/f{i}").write_bytes(b"%d" % i * (i % 300))
    made = opened(image, {})
    files = {p for p, kind in kinds_of(made.scan.entries).items() if kind == EntryKind.FILE}
    assert files == {f"/d{i // 200}/f{i}" for i in range(20_000)}
    assert made.volume.allocated().clip(0, made.volume.facts.total_clusters * 4096) == owned(made.scan)


def test_an_empty_volume_of_a_tebibyte_is_no_more_work_than_what_it_holds(tmp_path: Path) -> None:
    made = opened(make_volume(tmp_path / "v.img", 1 << 40), {})
    assert made.volume.facts.size_bytes == 1 << 40
    assert set(kinds_of(made.scan.entries).values()) == {EntryKind.METADATA, EntryKind.DIRECTORY}
    assert made.volume.allocated().clip(0, made.volume.facts.total_clusters * 4096) == owned(made.scan)
    assert row_of(made.scan, "/$BadClus:$Bad") >= 0
