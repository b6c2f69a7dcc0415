"""Which control information of a FAT volume changes when it is laid out anew, and which stays byte for byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import RefusedError
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.fat.boot import geometry_of, parse
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.make import fat as make
from tests.make.fat import BareVolume, short_entry
from tests.make.fat_oracle import carry_out, fsck, in_pieces
from tests.make.fat_tree import ScatteredVolume

GEOMETRY = Wish(hidden_sectors=0x00345678, sectors_per_track=17, tracks_per_cylinder=9)


def scattered(path: Path, size_bytes: int, bits: int, *options: str, per_cluster: int = 1) -> ScatteredVolume:
    """A volume in many pieces whose directories lie behind one another's files."""
    make.make_volume(path, size_bytes, bits, sectors_per_cluster=per_cluster, options=options)
    volume = ScatteredVolume(bytearray(path.read_bytes()), seed=bits, longest=2)
    for name in ("/a", "/a/b", "/a/b/c", "/d"):
        volume.add_directory(name)
        for k in range(8):
            volume.add_file(f"{name}/{k} a longer name", name.encode() * 700 * k, deleted=k == 3)
    path.write_bytes(volume.finish())
    return volume


def relocate(volume: BareVolume | bytes | bytearray, wish: Wish) -> Relocation:
    opened = FatVolume(MemoryDevice(volume.content if isinstance(volume, BareVolume) else volume))
    return opened.relocate(opened.scan(), wish)


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_hidden_sectors_and_geometry_are_set_in_every_boot_sector_and_boot_code_stays(
    bits: int, tmp_path: Path
) -> None:
    source = make.make_volume(tmp_path / "v", 40 * MIB, bits, sectors_per_cluster={12: 32, 16: 8, 32: 1}[bits])
    make.fill(source, {"a/file": b"x" * 5000}, tmp_path / "tree")
    code = bytes(range(7, 7 + 128)) * 2
    with source.open("r+b") as file:
        for sector in (0, 6) if bits == 32 else (0,):
            file.seek(sector * 512 + 200)
            file.write(code)
    plan = carry_out(source, GEOMETRY, tmp_path / "new")
    old, new = bytearray(source.read_bytes()), (tmp_path / "new").read_bytes()
    for sector in (0, 6) if bits == 32 else (0,):
        struct.pack_into("<HHI", old, sector * 512 + 24, 17, 9, 0x00345678)
    assert new == old
    facts = plan.facts
    assert (facts.hidden_sectors, facts.sectors_per_track, facts.tracks_per_cylinder) == (0x00345678, 17, 9)
    assert [fixup.reason.partition(":")[0] for fixup in plan.fixups] == ["boot sector", "backup boot sector"][
        : 1 + bits // 32
    ]
    assert all("BPB_HiddSec" in fixup.reason for fixup in plan.fixups)


def test_a_backup_that_says_other_things_than_the_boot_sector_is_left_alone(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 40 * MIB, 32, sectors_per_cluster=1)
    content = bytearray(source.read_bytes())
    content[6 * 512 + 14] += 1  # BPB_RsvdSecCnt
    plan = relocate(content, GEOMETRY)
    assert [fixup.offset_bytes for fixup in plan.fixups] == [0]
    content[6 * 512 : 7 * 512] = bytes(512)
    assert [fixup.offset_bytes for fixup in relocate(content, GEOMETRY).fixups] == [0]


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (Wish(hidden_sectors=1 << 32), "BPB_HiddSec"),
        (Wish(hidden_sectors=-1), "BPB_HiddSec"),
        (Wish(sectors_per_track=1 << 16), "BPB_SecPerTrk"),
        (Wish(tracks_per_cylinder=1 << 16), "BPB_NumHeads"),
    ],
)
def test_what_a_field_cannot_hold_is_refused(wish: Wish, field: str) -> None:
    with pytest.raises(RefusedError, match=f"{field} cannot be"):
        relocate(BareVolume(12, 100), wish)


def test_boot_code_that_begins_within_the_bpb_is_not_written_over() -> None:
    volume = BareVolume(12, 100)
    volume.content[0:3] = b"\xeb\x1c\x90"  # DOS 3.0: BPB_HiddSec has 16 bits, the code begins at byte 30
    volume.content[30:62] = bytes(range(100, 132))
    plan = relocate(volume, Wish(hidden_sectors=63, size_bytes=volume.heap_offset + 90 * 512))
    (fixup,) = plan.fixups
    assert fixup.replacement[28:62] == b"\x3f\x00" + bytes(range(100, 132))
    assert fixup.replacement[19:21] == (volume.heap_offset // 512 + 90).to_bytes(2, "little")
    with pytest.raises(RefusedError, match="the boot code begins at byte 30"):
        relocate(volume, Wish(hidden_sectors=1 << 16))
    newer = BareVolume(32, 70000)
    newer.content[0:3] = b"\xeb\x1c\x90"  # FAT32 has all fields, whatever the jump
    assert relocate(newer, Wish(hidden_sectors=1 << 16)).facts.hidden_sectors == 1 << 16
    volume.content[0:3] = b"\xeb\x16\x90"  # DOS 2: no BPB_HiddSec
    with pytest.raises(RefusedError, match="the boot code begins at byte 24"):
        relocate(volume, Wish(hidden_sectors=1))


def test_the_total_moves_between_its_two_fields_at_65536_sectors(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 30 * MIB, 16, sectors_per_cluster=4)
    make.fill(source, {"a/file": b"x" * 5000}, tmp_path / "tree")
    total = {}
    for sectors in (65535, 65536):
        carry_out(source, Wish(size_bytes=sectors * 512), tmp_path / f"{sectors}")
        boot_sector = parse((tmp_path / f"{sectors}").read_bytes()[:512])
        total[sectors] = boot_sector.BPB_TotSec16, boot_sector.BPB_TotSec32
    assert total == {65535: (65535, 0), 65536: (0, 65536)}
    carry_out(tmp_path / "65536", Wish(size_bytes=30 * MIB), tmp_path / "back")
    assert parse((tmp_path / "back").read_bytes()[:512]).BPB_TotSec16 == 30 * MIB // 512


@pytest.mark.parametrize("size", [None, 60 * MIB])
def test_fsinfo_and_its_backup_count_what_is_free_and_name_the_first_of_it(size: int | None, tmp_path: Path) -> None:
    scattered(tmp_path / "v", 40 * MIB, 32)
    plan = carry_out(tmp_path / "v", Wish(defragment=True, size_bytes=size), tmp_path / "new")
    content = (tmp_path / "new").read_bytes()
    geometry = geometry_of(parse(content[:512]))
    used = int(plan.scan.contents.run_length.sum()) // 512
    for sector in (1, 7):
        assert struct.unpack_from("<II", content, sector * 512 + 488) == (geometry.total_clusters - used, used + 2)
    assert parse(content[:512]).BPB_RootClus == parse(content[6 * 512 :][:512]).BPB_RootClus == 2
    assert plan.scan.contents.run_offset[0] == geometry.heap_offset


def test_a_root_directory_in_the_middle_of_the_heap_comes_to_its_front(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 40 * MIB, 32, sectors_per_cluster=1)
    content = bytearray(source.read_bytes())
    for sector in (0, 6):
        struct.pack_into("<I", content, sector * 512 + 44, 500)
    volume = ScatteredVolume(content, seed=1)
    volume.link(2, 0)
    volume.add_directory("/below")
    for k in range(100):
        volume.add_file(f"/below/{k}", b"a" * 700)
        volume.add_file(f"/above {k}", b"a" * 700)
    source.write_bytes(volume.finish())
    assert fsck(source)[0] == 0
    plan = carry_out(source, Wish(defragment=True), tmp_path / "new")
    new = (tmp_path / "new").read_bytes()
    assert parse(new[:512]).BPB_RootClus == parse(new[6 * 512 :][:512]).BPB_RootClus == 2
    assert in_pieces(plan.scan) == []


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_dot_entries_name_the_directory_and_the_one_above(bits: int, tmp_path: Path) -> None:
    volume = scattered(tmp_path / "v", {12: 1440 * KIB, 16: 9 * MIB, 32: 40 * MIB}[bits], bits)
    plan = carry_out(tmp_path / "v", Wish(defragment=True), tmp_path / "new")
    content = (tmp_path / "new").read_bytes()
    heap = geometry_of(parse(content[:512])).heap_offset
    row = {path: row for row, path in enumerate(plan.scan.entries.path)}

    def place(path: str) -> int:
        return int(plan.scan.contents.run_offset[plan.scan.contents.first_run[row[path]]])

    def number(path: str) -> int:
        return 0 if path == "/" else (place(path) - heap) // volume.bytes_per_cluster + 2

    for path in ("/a", "/a/b", "/a/b/c", "/d"):
        above = path.rpartition("/")[0] or "/"
        head = content[place(path) :][:64]
        assert head == short_entry(b".", number(path), attributes=0x10) + short_entry(
            b"..", number(above), attributes=0x10
        )


def test_a_directory_that_lies_backwards_is_turned_round(tmp_path: Path) -> None:
    volume = BareVolume(12, 100)
    volume.write_root(short_entry(b"DIR", volume.chain(33, 32, 31), attributes=0x10))
    entries = [short_entry(b"F%d" % k, volume.chain(90 - k), 5) for k in range(48)]
    for k, cluster in enumerate((33, 32, 31)):
        volume.write(cluster, b"".join(entries[k * 16 : (k + 1) * 16]))
    (tmp_path / "v").write_bytes(volume.content)
    plan = carry_out(tmp_path / "v", Wish(defragment=True), tmp_path / "new", checker=False)
    assert plan.scan.contents.run_offset.tolist() == [volume.root_offset, *map(volume.offset_of, (2, *range(5, 53)))]


def test_first_clusters_beyond_65535_are_written_in_both_halves(tmp_path: Path) -> None:
    volume = BareVolume(32, 70000)
    large = volume.chain(*range(100, 66000))
    inner, below = volume.chain(5), volume.chain(6)
    file = volume.chain(7)
    volume.write_root(short_entry(b"LARGE", large, 65900 * 512), short_entry(b"OUTER", inner, attributes=0x10))
    dots = short_entry(b".", inner, attributes=0x10) + short_entry(b"..", 0, attributes=0x10)
    volume.write(inner, dots + short_entry(b"INNER", below, attributes=0x10))
    dots = short_entry(b".", below, attributes=0x10) + short_entry(b"..", inner, attributes=0x10)
    volume.write(below, dots + short_entry(b"FILE", file, 9))
    (tmp_path / "v").write_bytes(volume.content)
    carry_out(tmp_path / "v", Wish(defragment=True), tmp_path / "new", checker=False)
    content = (tmp_path / "new").read_bytes()
    first = 3 + 65900
    outer, inside = (content[volume.offset_of(cluster) :][:96] for cluster in (first, first + 1))
    numbers = [
        struct.unpack_from("<H", part, at + 20)[0] << 16 | struct.unpack_from("<H", part, at + 26)[0]
        for part in (outer, inside)
        for at in (0, 32, 64)
    ]
    assert numbers == [first, 0, first + 1, first + 1, first, first + 2]


def test_all_fats_are_written_or_the_one_that_is_kept(tmp_path: Path) -> None:
    volume = scattered(tmp_path / "v", 40 * MIB, 32, "-f", "3")
    plan = carry_out(tmp_path / "v", Wish(defragment=True, size_bytes=30 * MIB * 3), tmp_path / "new", checker=False)
    content = (tmp_path / "new").read_bytes()
    geometry = geometry_of(parse(content[:512]))
    fats = [content[volume.reserved_bytes + n * geometry.fat_bytes :][: geometry.fat_bytes] for n in range(3)]
    assert fats[0] == fats[1] == fats[2]
    chains = [fixup for fixup in plan.fixups if "chains" in fixup.reason]
    assert {fixup.reason for fixup in chains} == {"FAT 1: chains", "FAT 2: chains", "FAT 3: chains"}
    assert len({id(fixup.replacement) for fixup in chains}) == len(chains) // 3  # the same bytes are held once

    source = bytearray((tmp_path / "v").read_bytes())
    for sector in (0, 6):
        struct.pack_into("<H", source, sector * 512 + 40, 0x81)  # BPB_ExtFlags: the second only
    source[volume.reserved_bytes + 8 : volume.reserved_bytes + volume.fat_bytes] = b"\xaa" * (volume.fat_bytes - 8)
    (tmp_path / "v").write_bytes(source)
    plan = carry_out(tmp_path / "v", Wish(defragment=True), tmp_path / "one", mtools=False, checker=False)
    assert {fixup.reason for fixup in plan.fixups if "chains" in fixup.reason} == {"FAT 2: chains"}
    assert (tmp_path / "one").read_bytes()[volume.reserved_bytes + 8 :][:1000] == b"\xaa" * 1000


def test_reserved_bits_and_end_marks_stay_and_what_lies_behind_the_last_entry_is_made_free(tmp_path: Path) -> None:
    volume = BareVolume(32, 70000)
    volume.chain(2)
    volume.link(9, 0x0FFFFFF8)
    volume.write_root(short_entry(b"FILE", 9, 300))
    for cluster in (3, 9, 70010):
        volume.content[volume.fat_offset + cluster * 4 + 3] |= 0xA0
    behind = volume.fat_offset + 70005 * 4
    volume.content[behind : behind + 3] = b"\x12\x34\x56"  # no cluster yet
    (tmp_path / "v").write_bytes(volume.content)
    size = len(volume.content) + 40 * 512
    carry_out(tmp_path / "v", Wish(defragment=True, size_bytes=size), tmp_path / "new", mtools=False, checker=False)
    entries = np.frombuffer((tmp_path / "new").read_bytes(), "<u4")[volume.fat_offset // 4 :]
    assert entries[3] == 0xAFFFFFF8
    assert entries[9] == entries[70010] == 0xA0000000
    assert entries[70005] == 0


def test_entries_behind_the_new_end_are_made_free_and_what_is_no_entry_stays() -> None:
    volume = BareVolume(12, 101)  # the last entry shares its last byte with what is none
    half = volume.fat_offset + 103 * 12 // 8
    volume.content[half] |= 0x50
    volume.chain(3)
    volume.chain(60, 61)
    volume.write_root(short_entry(b"FILE", 60, 700), short_entry(b"OTHER", 3, 10))
    (table,) = [
        fixup
        for fixup in relocate(volume, Wish(size_bytes=volume.heap_offset + 40 * 512)).fixups
        if "chains" in fixup.reason
    ]
    assert table.replacement == short_table(volume, {3: 0xFFF, 4: 5, 5: 0xFFF})
    (table,) = [fixup for fixup in relocate(volume, Wish(defragment=True)).fixups if "chains" in fixup.reason]
    assert table.replacement == short_table(volume, {2: 3, 3: 0xFFF, 4: 0xFFF})


def short_table(volume: BareVolume, entries: dict[int, int]) -> bytes:
    """The FAT of a bare FAT12 volume with these entries only."""
    other = BareVolume(12, 101)
    for cluster, following in entries.items():
        other.link(cluster, following)
    other.content[volume.fat_offset + 103 * 12 // 8] |= 0x50
    return bytes(other.content[volume.fat_offset :][: -(-103 * 12 // 8)])


def test_what_lies_behind_the_last_cluster_stays_where_the_end_does(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 300 * KIB, 12, sectors_per_cluster=8, options=("-a",))
    make.fill(source, {"file": b"x" * 5000}, tmp_path / "tree")
    geometry = geometry_of(parse(source.read_bytes()[:512]))
    content = bytearray(source.read_bytes())
    tail = geometry.size_bytes - geometry.heap_end
    assert tail > 512
    content[geometry.heap_end :] = b"t" * tail
    source.write_bytes(content)
    for size, left in ((None, tail), (geometry.size_bytes - 512, tail - 512), (geometry.size_bytes + 512, tail)):
        carry_out(source, Wish(defragment=True, size_bytes=size), tmp_path / "new")
        assert (tmp_path / "new").read_bytes()[geometry.heap_end :][:left] == b"t" * left
    carry_out(source, Wish(size_bytes=2 * geometry.size_bytes), tmp_path / "new")
    assert not any((tmp_path / "new").read_bytes()[geometry.heap_end :])


def test_a_small_fat32_keeps_its_total_in_32_bits_and_says_when_nothing_is_free(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 1 * MIB, 32, sectors_per_cluster=1)
    volume = ScatteredVolume(bytearray(source.read_bytes()), seed=1)
    volume.add_file("/file", b"x" * 9000)
    source.write_bytes(volume.finish())
    opened = FatVolume(FileDevice(source))
    plan = carry_out(source, Wish(size_bytes=opened.smallest_bytes(opened.scan())), tmp_path / "new", mtools=False)
    content = (tmp_path / "new").read_bytes()
    boot_sector = parse(content[:512])
    assert (boot_sector.BPB_TotSec16, boot_sector.BPB_TotSec32) == (0, plan.facts.size_bytes // 512)
    assert struct.unpack_from("<II", content, 512 + 488) == (0, 0xFFFFFFFF)


def test_what_is_no_fsinfo_is_left_alone() -> None:
    volume = BareVolume(32, 70000)
    volume.chain(9)
    volume.write_root(short_entry(b"FILE", 9, 300))
    assert not any("FSINFO" in fixup.reason for fixup in relocate(volume, Wish(defragment=True)).fixups)
    volume.put(512, b"RRaA")
    volume.put(512 + 484, b"rrAa")
    assert not any("FSINFO" in fixup.reason for fixup in relocate(volume, Wish(defragment=True)).fixups)
    volume.put(512 + 510, b"\x55\xaa")
    assert any("FSINFO" in fixup.reason for fixup in relocate(volume, Wish(defragment=True)).fixups)
    volume.content[48] = 40  # BPB_FSInfo: not a reserved sector
    assert not any("FSINFO" in fixup.reason for fixup in relocate(volume, Wish(defragment=True)).fixups)
