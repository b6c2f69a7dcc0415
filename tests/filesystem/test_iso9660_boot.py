"""El Torito: the boot catalog and boot images of real and of built volumes, and hybrid images."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import EntryKind, Scan, read_all
from sqlimage.filesystem.iso9660 import IsoVolume
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from tests.conftest import run
from tests.make.iso import DIRECTORY, SECTOR, BareIso, genisoimage, mkisofs, record


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "isolinux.bin").write_bytes(os.urandom(9000))
    (tree / "boot" / "efi.img").write_bytes(os.urandom(70_000))
    (tree / "floppy.img").write_bytes(os.urandom(1440 << 10))
    return tree


def metadata(scan: Scan) -> dict[str, tuple[int, int, int]]:
    """Row of the content, its size and where it lies, of everything that El Torito names."""
    found = {}
    entries, contents = scan.entries, scan.contents
    for path, kind, row in zip(entries.path, entries.kind, entries.content.tolist(), strict=True):
        if kind == EntryKind.METADATA:
            found[path] = row, int(contents.size_bytes[row]), int(contents.run_offset[contents.first_run[row]])
    return found


def content_row(scan: Scan, path: str) -> int:
    return int(scan.entries.content[scan.entries.path.index(path)])


def told_by_xorriso(image: Path) -> dict[int, int]:
    """Sectors to be loaded, by where the image lies in bytes."""
    text = run("xorriso", "-indev", image, "-report_el_torito", "plain").stdout.decode()
    lines = re.findall(r"^El Torito boot img : .* (\d+) +(\d+)$", text, re.MULTILINE)
    return {int(place) * SECTOR: int(count) for count, place in lines}


@pytest.mark.parametrize("writer", ["genisoimage", "xorriso"])
def test_bios_and_efi_images_are_listed_and_share_the_content_of_their_files(
    writer: str, tree: Path, tmp_path: Path
) -> None:
    bios = ("-b", "isolinux.bin", "-c", "boot/boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    efi = ("-eltorito-alt-boot", "-e", "boot/efi.img", "-no-emul-boot")
    if writer == "genisoimage":
        image = genisoimage(tmp_path / "v.iso", tree, "-R", *bios, *efi)
    else:
        (tmp_path / "mbr.bin").write_bytes(os.urandom(432))
        hybrid = ("-isohybrid-mbr", tmp_path / "mbr.bin", "-isohybrid-gpt-basdat")
        image = mkisofs(tmp_path / "v.iso", tree, *bios, *efi, *hybrid)
        assert image.read_bytes()[510:512] == b"\x55\xaa"
    volume = IsoVolume(FileDevice(image))
    scan = volume.scan()
    found = metadata(scan)
    assert list(found) == ["/[BOOT]/catalog", "/[BOOT]/1-bios.img", "/[BOOT]/2-efi.img"]
    for path, file in zip(found, ("/boot/boot.cat", "/isolinux.bin", "/boot/efi.img"), strict=True):
        assert found[path][0] == content_row(scan, file)
    assert {place for _, _, place in list(found.values())[1:]} == set(told_by_xorriso(image))
    for path in found:
        record = int(scan.entries.record[scan.entries.path.index(path)])
        assert volume.open(record).size_bytes == found[path][1]
    assert volume.facts.notes == ()


def test_images_that_are_no_files_have_a_content_of_their_own(tree: Path, tmp_path: Path) -> None:
    image = genisoimage(
        tmp_path / "v.iso", tree, "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4",
        "-hide", "isolinux.bin", "-hide", "boot.cat",
    )  # fmt: skip
    volume = IsoVolume(FileDevice(image))
    scan = volume.scan()
    assert "/ISOLINUX.BIN" not in scan.entries.path and "/BOOT.CAT" not in scan.entries.path
    found = metadata(scan)
    assert found["/[BOOT]/1-bios.img"][1] == 4 * 512
    assert found["/[BOOT]/catalog"][1] == SECTOR
    at = scan.entries.path.index("/[BOOT]/1-bios.img")
    data = b"".join(read_all(volume.open(int(scan.entries.record[at]))))
    assert data == (tree / "isolinux.bin").read_bytes()[:2048]
    catalog = scan.entries.path.index("/[BOOT]/catalog")
    assert volume.open(int(scan.entries.record[catalog])).read(0, 1) == b"\1"


def test_a_floppy_s_size_is_that_of_its_kind(tree: Path, tmp_path: Path) -> None:
    image = genisoimage(tmp_path / "v.iso", tree, "-b", "floppy.img", "-c", "boot.cat", "-hide", "floppy.img")
    scan = IsoVolume(FileDevice(image)).scan()
    assert metadata(scan)["/[BOOT]/1-bios-floppy.img"][1] == 1440 << 10


def test_an_image_in_a_partition_behind_the_volume_is_not_listed(tree: Path, tmp_path: Path) -> None:
    efi = tree / "boot" / "efi.img"
    image = mkisofs(
        tmp_path / "v.iso", tree, "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot",
        "-append_partition", "2", "0xef", efi,
        "-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot",
    )  # fmt: skip
    volume = IsoVolume(FileDevice(image))
    assert max(told_by_xorriso(image)) >= volume.facts.size_bytes
    assert list(metadata(volume.scan())) == ["/[BOOT]/catalog", "/[BOOT]/1-bios.img"]
    assert volume.facts.notes == ()


def validation(platform: int = 0) -> bytes:
    entry = bytearray(struct.pack("<BBH24sHH", 1, platform, 0, b"", 0, 0xAA55))
    entry[28:30] = (-sum(struct.unpack("<16H", entry)) & 0xFFFF).to_bytes(2, "little")
    return bytes(entry)


def image_entry(load: int, count: int = 4, *, media: int = 0, indicator: int = 0x88) -> bytes:
    return struct.pack("<BBHBBHI20x", indicator, media, 0, 0, 0, count, load)


def section(platform: int, count: int, *, final: bool = True) -> bytes:
    return struct.pack("<BBH28x", 0x91 if final else 0x90, platform, count)


EXTENSION = struct.pack("<BB30x", 0x44, 0)


def with_catalog(*entries: bytes, sector: int = 40) -> BareIso:
    made = BareIso()
    made.put_sector(17, (b"\0CD001\1" + b"EL TORITO SPECIFICATION").ljust(71, b"\0") + struct.pack("<I", sector))
    made.put_sector(18, b"\xffCD001\1")
    made.patch(sector * SECTOR, b"".join(entries))
    return made


def listed(made: BareIso) -> list[tuple[str, int, int]]:
    scan = IsoVolume(MemoryDevice(made.content)).scan()
    return [(path.removeprefix("/[BOOT]/"), size, place) for path, (_, size, place) in metadata(scan).items()]


CATALOG = ("catalog", SECTOR, 40 * SECTOR)


def test_every_section_of_the_catalog_is_read() -> None:
    made = with_catalog(
        validation(),
        image_entry(41),
        section(0xEF, 2, final=False),
        image_entry(42, 5),
        EXTENSION,
        EXTENSION,
        image_entry(44, 8, indicator=0),
        section(0x01, 1),
        image_entry(46),
        section(0xEF, 1),
        image_entry(48),
    )
    assert listed(made) == [
        CATALOG,
        ("1-bios.img", 2048, 41 * SECTOR),
        ("2-efi.img", 5 * 512, 42 * SECTOR),
        ("3-efi.img", 8 * 512, 44 * SECTOR),
        ("4-powerpc.img", 2048, 46 * SECTOR),
    ]


def test_the_kind_of_medium_names_an_image() -> None:
    disk = bytearray(512)
    disk[454:462] = struct.pack("<II", 1, 9)
    disk[510:512] = b"\x55\xaa"
    made = with_catalog(validation(7), image_entry(41, 1, media=4), section(2, 1), image_entry(41, 1, media=4))
    made.put_sector(41, bytes(disk))
    assert listed(made) == [
        CATALOG,
        ("1-platform-7-hard-disk.img", 10 * 512, 41 * SECTOR),
        ("2-mac-hard-disk.img", 10 * 512, 41 * SECTOR),
    ]
    made.put_sector(41, bytes(512))
    assert [size for _, size, _ in listed(made)] == [SECTOR, 512, 512]


@pytest.mark.parametrize(("media", "size"), [(1, 1200 << 10), (2, 1440 << 10), (3, 2880 << 10), (0x11, 1200 << 10)])
def test_floppies_have_three_sizes(media: int, size: int) -> None:
    made = BareIso(1600)
    made.patch(16 * SECTOR, bytes(with_catalog(validation(), image_entry(42, 1, media=media)).content[16 * SECTOR :]))
    made.patch(16 * SECTOR, bytes(BareIso(1600).content[16 * SECTOR : 17 * SECTOR]))
    assert listed(made) == [CATALOG, ("1-bios-floppy.img", size, 42 * SECTOR)]


def test_only_a_hard_disk_has_a_partition_table_that_counts() -> None:
    made = with_catalog(validation(), image_entry(41, 1), section(0, 1), image_entry(64, 1, media=4))
    made.put_sector(41, bytes(454) + struct.pack("<II", 1, 9) + bytes(48) + b"\x55\xaa")
    assert listed(made) == [CATALOG, ("1-bios.img", 512, 41 * SECTOR)]


@pytest.mark.parametrize(
    ("made", "note"),
    [
        (with_catalog(b"\2" + validation()[1:], image_entry(41)), "right Validation Entry"),
        (with_catalog(validation()[:4] + b"x" + validation()[5:], image_entry(41)), "right Validation Entry"),
        (with_catalog(bytes(64)), "right Validation Entry"),
        (with_catalog(sector=64), "outside the volume"),
        (with_catalog(sector=0xFFFFFFFF), "outside the volume"),
    ],
)
def test_a_catalog_that_cannot_be_is_noted_and_the_files_are_read(made: BareIso, note: str) -> None:
    made.content = made.content[: 64 * SECTOR]
    made.put_root(record(b"FILE.;1"))
    volume = IsoVolume(MemoryDevice(made.content))
    assert volume.scan().entries.path == ["/", "/FILE"]
    assert len(volume.facts.notes) == 1 and note in volume.facts.notes[0]


@pytest.mark.parametrize(("load", "count"), [(63, 5), (64, 1), (0xFFFFFFFF, 0xFFFF)])
def test_an_image_beyond_the_medium_is_noted_and_left_out(load: int, count: int) -> None:
    made = with_catalog(validation(), image_entry(load, count))
    assert listed(made) == [CATALOG]
    (note,) = IsoVolume(MemoryDevice(made.content)).facts.notes
    assert note.startswith("its boot image 1 should end at byte")


def test_a_catalog_of_nothing_but_sections_ends() -> None:
    made = with_catalog(validation(), image_entry(41), section(0xEF, 0xFFFF, final=False), *[image_entry(41, 1)] * 400)
    assert len(listed(made)) == 1 + 253 + 1
    made = with_catalog(validation(), image_entry(41), *[section(0xEF, 0, final=False)] * 400)
    assert len(listed(made)) == 2


def test_a_name_that_the_tree_has_is_not_taken_twice() -> None:
    made = with_catalog(validation(), image_entry(41))
    made.put_root(record(b"[BOOT]"))
    paths = IsoVolume(MemoryDevice(made.content)).scan().entries.path
    assert paths == ["/", "/[BOOT]", "/[BOOT]~2/catalog", "/[BOOT]~2/1-bios.img"]


def test_a_directory_in_the_place_of_the_catalog_is_refused() -> None:
    many = [image_entry(50, indicator=0)] * 70  # the first byte of an entry in the second sector: no record follows
    made = with_catalog(validation(), image_entry(50), section(0, 70), *many)
    made.put_root(record(b"DIR", 41, SECTOR, DIRECTORY))
    with pytest.raises(InconsistentVolume, match="two of them lie in the same place"):
        IsoVolume(MemoryDevice(made.content)).scan()
    made.put_root(record(b"DIR", 42, SECTOR, DIRECTORY))
    assert len(listed(made)) == 72
