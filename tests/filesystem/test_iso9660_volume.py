"""Volumes by genisoimage and xorriso: names, bytes, links and places agree with their sources and other readers."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlimage.errors import NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import ContentFlag, EntryKind, FileSystem, Scan, read_all
from sqlimage.filesystem.iso9660 import IsoVolume, is_iso9660
from sqlimage.media.file import FileDevice
from sqlimage.units import NO_TIME
from tests.conftest import run
from tests.make.iso import genisoimage, make_tree, mkisofs, xorriso

Recipe = Callable[[Path, Path], Path]
REACHES = ("one/two/three/four/five/six/seven", "one/two/three/four/five/six/seven/eight")

ROCK_RIDGE: dict[str, Recipe] = {
    "genisoimage -R": lambda target, tree: genisoimage(target, tree, "-R"),
    "genisoimage -R -J": lambda target, tree: genisoimage(target, tree, "-R", "-J", "-joliet-long"),
    "genisoimage -R -D": lambda target, tree: genisoimage(target, tree, "-R", "-D", "-iso-level", "3"),
    "genisoimage -hide-rr-moved": lambda target, tree: genisoimage(target, tree, "-R", "-hide-rr-moved"),
    "genisoimage -R -iso-level 4": lambda target, tree: genisoimage(target, tree, "-R", "-iso-level", "4"),
    "xorriso -as mkisofs": lambda target, tree: mkisofs(target, tree),
    "xorriso with everything": lambda target, tree: mkisofs(
        target, tree, "-J", "-joliet-long", "-iso-level", "4", "--for_backup"
    ),
    "xorriso, deep paths moved": lambda target, tree: xorriso(
        target, "-compliance", "iso_9660_level=2:deep_paths_off:long_paths_off", "-map", tree, "/"
    ),
    "xorriso, zisofs": lambda target, tree: xorriso(target, "-map", tree, "/", "-set_filter_r", "--zisofs", "/", "--"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree") / "tree")


def opened(path: Path) -> tuple[IsoVolume, Scan]:
    device = FileDevice(path)
    assert is_iso9660(device)
    volume: FileSystem = IsoVolume(device)
    assert isinstance(volume, IsoVolume)
    return volume, volume.scan()


def content(volume: FileSystem, record: int, stream: str = "") -> bytes:
    return b"".join(read_all(volume.open(record, stream)))


def listing(volume: IsoVolume, scan: Scan) -> dict[str, tuple[EntryKind, bytes]]:
    """Kind and bytes of everything but directories and what the boot catalog names, by path."""
    entries = scan.entries
    found = {}
    for path, kind, record in zip(entries.path, entries.kind.tolist(), entries.record.tolist(), strict=True):
        if kind not in (EntryKind.DIRECTORY, EntryKind.METADATA):
            found[path] = EntryKind(kind), b"" if kind == EntryKind.SPECIAL else content(volume, record)
    return found


def names(scan: Scan, kind: EntryKind = EntryKind.FILE) -> set[str]:
    return {path for path, one in zip(scan.entries.path, scan.entries.kind, strict=True) if one == kind}


def row(scan: Scan, path: str) -> int:
    return scan.entries.path.index(path)


def record_of(scan: Scan, path: str) -> int:
    return int(scan.entries.record[row(scan, path)])


def runs_of(scan: Scan, path: str) -> list[tuple[int, int]]:
    contents, n = scan.contents, int(scan.entries.content[row(scan, path)])
    low, high = int(contents.first_run[n]), int(contents.first_run[n + 1])
    return list(zip(contents.run_offset[low:high].tolist(), contents.run_length[low:high].tolist(), strict=True))


def source_kind(mode: int) -> EntryKind:
    kinds = {stat.S_IFREG: EntryKind.FILE, stat.S_IFDIR: EntryKind.DIRECTORY, stat.S_IFLNK: EntryKind.SYMLINK}
    return kinds.get(stat.S_IFMT(mode), EntryKind.SPECIAL)


@pytest.mark.parametrize("recipe", ROCK_RIDGE)
def test_rock_ridge_tells_every_name_mode_time_and_byte_of_the_source(recipe: str, tree: Path, tmp_path: Path) -> None:
    volume, scan = opened(ROCK_RIDGE[recipe](tmp_path / "v.iso", tree))
    entries = scan.entries
    seen = {"/"}
    for source in sorted(tree.rglob("*")):
        path = "/" + str(source.relative_to(tree))
        seen.add(path)
        at, told = row(scan, path), source.lstat()
        kind, record = EntryKind(entries.kind[at]), int(entries.record[at])
        assert kind == source_kind(told.st_mode), path
        assert int(entries.attributes[at]) == told.st_mode, path
        if kind != EntryKind.DIRECTORY:  # xorriso's own directories have its own times
            assert int(entries.modified_ns[at]) // 10**9 == int(told.st_mtime), path
        if kind == EntryKind.FILE:
            assert content(volume, record) == source.read_bytes(), path
        elif kind == EntryKind.SYMLINK:
            target = os.readlink(os.fsencode(source))
            assert content(volume, record) == target, path
            assert scan.contents.flags[entries.content[at]] == ContentFlag.INLINE
            assert scan.contents.inline_digest[int(entries.content[at])] == hashlib.sha256(target).digest()
        elif kind == EntryKind.SPECIAL:
            assert entries.content[at] == -1
            with pytest.raises(NotFoundError):
                volume.open(record)
    assert set(entries.path) - seen <= {"/rr_moved", "/.rr_moved"}  # empty: what was there is where it belongs
    assert row(scan, "/hard link") != row(scan, "/README.TXT")
    assert record_of(scan, "/hard link") == record_of(scan, "/README.TXT")
    assert len(runs_of(scan, "/README.TXT")) == 1


def test_moved_directories_lie_where_they_came_from(tree: Path, tmp_path: Path) -> None:
    for recipe in ("genisoimage -R", "xorriso, deep paths moved"):
        image = ROCK_RIDGE[recipe](tmp_path / "v.iso", tree)
        plain = run("isoinfo", "-f", "-i", image).stdout.decode("latin-1")
        assert re.search(r"^/(RR_MOVED/)?EIGHT\b", plain, re.MULTILINE)  # they were moved indeed
        volume, scan = opened(image)
        assert "/rr_moved/eight" not in scan.entries.path
        for path in REACHES:
            assert content(volume, record_of(scan, "/" + path))
        image.unlink()


def test_without_rock_ridge_joliet_tells_the_names(tree: Path, tmp_path: Path) -> None:
    genisoimage(tmp_path / "g.iso", tree, "-D", "-J", "-joliet-long", "-input-charset", "utf-8")
    mkisofs(tmp_path / "x.iso", tree, "--norock", "-J", "-joliet-long")
    files = {"/" + str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and not path.is_symlink()}
    cut = {path[:60] for path in files}
    for name in ("g.iso", "x.iso"):
        volume, scan = opened(tmp_path / name)
        found = names(scan) - {"/null", "/fifo"}
        assert {path[:60] for path in found} == cut
        assert "/naïve ☃.txt" in found
        for path in found & files:
            assert content(volume, record_of(scan, path)) == (tree / path[1:]).read_bytes()
        assert not scan.entries.attributes.any()  # nothing tells a mode
        at = row(scan, "/text")
        assert int(scan.entries.modified_ns[at]) == 1_234_567_890 * 10**9


@pytest.mark.parametrize("level", ["1", "2", "3"])
def test_plain_names_are_as_recorded_without_the_version(level: str, tree: Path, tmp_path: Path) -> None:
    image = genisoimage(tmp_path / "v.iso", tree, "-iso-level", level, "-D", "-input-charset", "utf-8")
    listed = run("isoinfo", "-f", "-i", image).stdout.decode().splitlines()
    _, scan = opened(image)
    expected = {path.removesuffix(";1").removesuffix(".") for path in listed}
    assert set(scan.entries.path) == {"/"} | expected
    assert "/README.TXT" in expected and "/TEXT" in expected


def test_the_enhanced_tree_tells_long_names(tree: Path, tmp_path: Path) -> None:
    genisoimage(tmp_path / "g.iso", tree, "-iso-level", "4")
    xorriso(
        tmp_path / "x.iso", "-compliance", "iso_9660_1999", "-joliet", "off", "-rockridge", "off", "-map", tree, "/"
    )
    for name in ("g.iso", "x.iso"):
        volume, scan = opened(tmp_path / name)
        assert volume.facts.format_version == "1999"
        found = names(scan)
        assert {"/two.dots.x", "/naïve ☃.txt", "/README.TXT", "/hard link"} <= found
        assert any(path.startswith("/" + "n" * 190) for path in found)
        assert content(volume, record_of(scan, "/text")) == (tree / "text").read_bytes()


@pytest.mark.parametrize("recipe", ["genisoimage -R -J", "xorriso with everything"])
def test_every_run_is_where_xorriso_finds_it(recipe: str, tree: Path, tmp_path: Path) -> None:
    image = ROCK_RIDGE[recipe](tmp_path / "v.iso", tree)
    _, scan = opened(image)
    text = run("xorriso", "-indev", image, "-find", "/", "-type", "f", "-exec", "report_lba", "--").stdout.decode()
    compared = 0
    for start, blocks, size, path in re.findall(r"lba: *\d+ , *(\d+) , *(\d+) , *(\d+) , '(.*)'", text):
        place = [(int(start) * 2048, int(blocks) * 2048)] if int(size) else []
        assert runs_of(scan, path) == place, path
        assert scan.contents.size_bytes[scan.entries.content[row(scan, path)]] == int(size)
        compared += 1
    assert compared == len(names(scan)) > 5


def test_7zip_extracts_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    image = ROCK_RIDGE["xorriso -as mkisofs"](tmp_path / "v.iso", tree)
    run("7zz", "x", "-y", "-x!one/up", f"-o{tmp_path / 'out'}", image)
    volume, scan = opened(image)
    for path in names(scan) - {"/" + "n" * 240}:  # it does not read Continuation Areas
        assert (tmp_path / "out" / path[1:]).read_bytes() == content(volume, record_of(scan, path)), path


def test_facts_tell_what_the_descriptor_has(tree: Path, tmp_path: Path) -> None:
    image = mkisofs(tmp_path / "v.iso", tree, "-V", "A_LABEL", "--modification-date=2024010203040506")
    volume, scan = opened(image)
    facts = volume.facts
    assert (facts.file_system, facts.label, facts.serial) == ("iso9660", "A_LABEL", "2024-01-02-03-04-05-06")
    assert facts.size_bytes == image.stat().st_size == facts.total_clusters * facts.bytes_per_cluster
    assert facts.alignment_bytes == facts.bytes_per_cluster == 2048
    assert (facts.format_version, facts.may_share, facts.notes) == ("1", True, ())
    assert volume.allocated() == Runs.of([(0, facts.size_bytes)])
    assert not (scan.contents.run_offset % 2048).any() and not (scan.contents.run_length % 2048).any()
    assert (scan.entries.modified_ns != NO_TIME).all()


def test_a_resource_fork_is_a_stream_beside_its_file(tmp_path: Path) -> None:
    fork = b"a fork " * 30
    double = bytes.fromhex("0005160700020000") + bytes(16) + bytes.fromhex("0002 00000009 00000032 00000020")
    double += bytes.fromhex("00000002 00000052") + len(fork).to_bytes(4, "big") + bytes(32) + fork
    tree = tmp_path / "tree"
    (tree / ".AppleDouble").mkdir(parents=True)
    (tree / "file").write_text("data")
    (tree / ".AppleDouble" / "file").write_bytes(double)
    volume, scan = opened(genisoimage(tmp_path / "v.iso", tree, "-R", "-apple", "--netatalk"))
    at = row(scan, "/file:associated")
    assert scan.entries.kind[at] == EntryKind.STREAM
    assert content(volume, int(scan.entries.record[at]), "associated") == fork
    assert content(volume, record_of(scan, "/file")) == b"data"
    for record, stream in ((int(scan.entries.record[at]), ""), (record_of(scan, "/file"), "associated")):
        with pytest.raises(NotFoundError):
            volume.open(record, stream)


def test_the_first_session_of_a_file_counts_and_a_note_tells_of_another(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(str(number))
    first = genisoimage(tmp_path / "1.iso", tmp_path / "first", "-R")
    blocks = first.stat().st_size // 2048
    second = genisoimage(tmp_path / "2.iso", tmp_path / "second", "-R", "-C", f"0,{blocks}", "-M", first)
    both = tmp_path / "both.iso"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    volume, scan = opened(both)
    assert names(scan) == {"/first"}
    assert volume.facts.size_bytes == first.stat().st_size
    assert volume.facts.notes == (f"another session follows at byte {blocks * 2048}; its files are not listed",)


def test_a_volume_that_xorriso_added_to_shows_its_present(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    image = xorriso(tmp_path / "v.iso", "-map", tmp_path / "first", "/first")
    xorriso(image, "-map", tmp_path / "second", "/second", "-rm", "/first", "--")
    volume, scan = opened(image)
    assert names(scan) == {"/second"}
    assert content(volume, record_of(scan, "/second")) == b"second"
    assert volume.facts.notes == ()


def test_a_note_tells_that_a_volume_is_one_of_udf_too(tree: Path, tmp_path: Path) -> None:
    volume, scan = opened(genisoimage(tmp_path / "v.iso", tree, "-R", "-udf"))
    assert volume.facts.notes == ("it is a UDF volume too, whose files are not listed and may be others",)
    assert "/README.TXT" in names(scan)


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["genisoimage", "xorriso"])
def test_a_file_of_more_than_4_gib_is_one_content(writer: str, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    size = (4 << 30) + 12345
    with (tmp_path / "tree" / "large").open("wb") as file:
        for at in (0, (4 << 30) - 2048, (4 << 30) - 1, size - 7):
            file.seek(at)
            file.write(b"%d" % at)
        file.truncate(size)
    make = (
        f"genisoimage -quiet -R -iso-level 3 -allow-limited-size {tmp_path}/tree"
        if writer == "genisoimage"
        else f"xorriso -report_about FAILURE -as mkisofs -iso-level 3 -o - {tmp_path}/tree"
    )
    image = tmp_path / "v.iso"
    run("sh", "-c", f"{make} | cp --sparse=always /dev/stdin {image}")
    volume, scan = opened(image)
    large = volume.open(record_of(scan, "/large"))
    if writer == "genisoimage":  # it writes one section of the size modulo 4 GiB, and leaves the rest to UDF
        assert large.size_bytes == size % (1 << 32)
        return
    assert large.size_bytes == size
    assert sum(length for _, length in runs_of(scan, "/large")) == -(-size // 2048) * 2048
    with (tmp_path / "tree" / "large").open("rb") as file:
        for at in (0, (4 << 30) - 4096, size - 100):
            file.seek(at)
            assert large.read(at, 5000) == file.read(5000)
