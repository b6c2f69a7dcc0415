"""Volumes known by their signature alone: as blkid sees them, whoever made them; and nothing else is taken for one."""

from __future__ import annotations

import csv
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import Recognised
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.recognised import recognise, recognise_member
from sqlimage.filesystem.recognised.probe import _DETECTORS
from sqlimage.filesystem.recognised.signature import Signature
from sqlimage.media.file import FileDevice
from sqlimage.units import KIB, MIB
from tests.conftest import images_directory, run
from tests.images import noise, sample_volume
from tests.make.recognised import Patched, blkid, found, make_btrfs, make_xfs, sparse

IMAGES = images_directory()
NAMES = {"crypto_LUKS": "luks"}
"""What blkid calls by another name."""
READ = ("ntfs", "fat12", "fat16", "fat32", "vfat", "exfat", "ext2", "ext3", "ext4", "iso9660")


def check_with_blkid(image: Path, *, label: bool = True) -> Recognised:
    seen, printed = found(image), blkid(image)
    facts = seen.facts
    assert facts.file_system == NAMES.get(printed["TYPE"], printed["TYPE"].lower())
    assert facts.serial == printed.get("UUID", facts.serial)
    assert not label or facts.label == printed.get("LABEL")
    if "BLOCK_SIZE" in printed and facts.file_system not in ("romfs", "zfs_member"):
        assert int(printed["BLOCK_SIZE"]) in (facts.bytes_per_cluster, facts.bytes_per_sector)
    assert 0 < facts.size_bytes <= image.stat().st_size
    assert facts.total_clusters == facts.size_bytes // facts.bytes_per_cluster
    assert facts.alignment_bytes >= 512 and facts.size_bytes % facts.alignment_bytes == 0
    assert seen.reason
    return seen


MADE: dict[str, tuple[int, str]] = {
    "luks1": (16, "cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 {image} {key}"),
    "luks2": (
        20,
        "cryptsetup -q luksFormat --type luks2 --label sealed --pbkdf pbkdf2 --pbkdf-force-iterations 1000"
        " {image} {key}",
    ),
    "f2fs": (64, "mkfs.f2fs -q -l étiquette {image}"),
    "nilfs2": (140, "mkfs.nilfs2 -q -L étiquette {image}"),
    "jfs": (20, "mkfs.jfs -q -L label {image}"),
    "reiserfs": (40, "mkreiserfs -q -f -l label {image}"),
    "hfs": (4, "hformat -l label {image}"),
    "romfs": (0, "genromfs -f {image} -d {tree} -V label"),
    "erofs": (0, "mkfs.erofs {image} {tree}"),
    "squashfs": (0, "mksquashfs {tree} {image} -quiet -no-progress -noappend"),
    "cramfs": (0, "mkfs.cramfs -n label {tree} {image}"),
    "cramfs_big_endian": (0, "mkfs.cramfs -N big -n label {tree} {image}"),
    "minix1": (8, "mkfs.minix -1 {image}"),
    "minix1_short_names": (8, "mkfs.minix -1 -n 14 {image}"),
    "minix2": (8, "mkfs.minix -2 {image}"),
    "minix3": (8, "mkfs.minix -3 {image}"),
    "udf": (8, "mkudffs -l étiquette {image}"),
    "udf_wide_label": (8, "mkudffs -l Šuma {image}"),
    "udf_cd": (8, "mkudffs -m cdr -l label {image}"),
    "udf_4096": (8, "mkudffs -b 4096 -r 1.50 {image}"),
}


@pytest.mark.parametrize("name", MADE)
def test_what_its_own_formatter_makes_is_told_as_blkid_tells_it(tmp_path: Path, name: str) -> None:
    size_mib, command = MADE[name]
    image, tree, key = tmp_path / "image", tmp_path / "tree", tmp_path / "key"
    tree.mkdir()
    (tree / "file").write_bytes(noise(name, 9000))
    key.write_bytes(b"a pass phrase")
    if size_mib:
        sparse(image, size_mib * MIB)
    argv = [part.format(image=image, tree=tree, key=key) for part in command.split()]
    run(*argv)
    seen = check_with_blkid(image)
    assert seen.allocated() is None and len(seen.left_out()) == 0
    assert seen.facts.format_version == {"luks1": "1", "luks2": "2", "minix3": "3"}.get(name, seen.facts.format_version)


def real_images() -> list[Any]:
    """The images of kinds that no reader reads."""
    if IMAGES is None:
        return []
    with (IMAGES / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    wanted = re.compile(r"(corrupt/)?(xfs|btrfs|other|hfs|udf)/")
    return [pytest.param(row, id=row["path"]) for row in rows if wanted.match(row["path"])]


@pytest.mark.parametrize("row", real_images())
def test_real_images_are_told_as_blkid_tells_them(tmp_path: Path, row: dict[str, str]) -> None:
    assert IMAGES is not None
    image = tmp_path / "image"
    run("zstd", "-dqf", "--sparse", "--long=27", IMAGES / row["path"], "-o", image)
    if "lvm2" in row["path"]:  # cut to a fifth of its volume
        with pytest.raises(InconsistentVolume, match="says the volume has 10485760 bytes, the medium has 1951744"):
            recognise(FileDevice(image))
        return
    seen = check_with_blkid(image, label="hfsplus" not in row["path"])
    assert seen.facts.file_system == row["fs"].lower()
    allocated = seen.allocated()
    assert (allocated is not None) == (row["fs"] in ("xfs", "btrfs"))
    if allocated is not None:
        assert allocated.clip(0, seen.facts.size_bytes) == allocated


def others_images(most_bytes: int) -> list[dict[str, str]]:
    if IMAGES is None:
        return []
    with (IMAGES / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row for row in rows if row["fs"] in READ and int(row["size"]) <= most_bytes]


@pytest.mark.parametrize("most", [5 * MIB, pytest.param(1 << 40, marks=pytest.mark.slow)])
def test_volumes_that_have_a_reader_are_never_taken_for_another_kind(tmp_path: Path, most: int) -> None:
    rows = others_images(most)
    if IMAGES is None:
        pytest.skip("no real images at hand")
    assert len(rows) > 50
    for row in rows:
        run("zstd", "-dqf", "--sparse", "--long=27", IMAGES / row["path"], "-o", tmp_path / "image")
        assert recognise(FileDevice(tmp_path / "image")) is None, row["path"]
        assert recognise_member(FileDevice(tmp_path / "image")) is None, row["path"]


# What no formatter at hand makes, byte by byte; blkid says whether it is right.

UUID = bytes.fromhex("00112233445566778899aabbccddeeff")
ALL = 0xFFFFFFFF


def fields(size: int, table: dict[int, bytes]) -> bytes:
    content = bytearray(size)
    for at, data in table.items():
        content[at : at + len(data)] = data
    return bytes(content)


def raid_1(at: int, devices: int = 5) -> bytes:
    """struct mdp_superblock_1, for a superblock at a place."""
    content = bytearray(256 + 2 * devices)
    struct.pack_into("<II", content, 0, 0xA92B4EFC, 1)
    content[16:32], content[32:40] = UUID, b"host:set"
    struct.pack_into("<QIIQII", content, 64, 1, 1, 0, 2048, 0, 2)
    struct.pack_into("<QQQ", content, 128, 2048, 4096, at // 512)
    struct.pack_into("<I", content, 220, devices)
    content[256:] = struct.pack(f"<{devices}H", *range(devices))
    words = content.ljust(-(-len(content) // 4) * 4, b"\0")
    total = sum(struct.unpack(f"<{len(words) // 4}I", words))
    struct.pack_into("<I", content, 216, (total & ALL) + (total >> 32))
    return bytes(content)


def raid_0_90(order: str) -> bytes:
    words = [0] * 1024
    words[0:5] = 0xA92B4EFC, 0, 90, 0, 32
    words[5] = 0x00112233
    words[7:14] = 1, 960, 2, 2, 0, 0, 0x44556677
    words[14:16] = 0x8899AABB, 0xCCDDEEFF
    total = sum(words)
    words[38] = (total & ALL) + (total >> 32)
    return struct.pack(f"{order}1024I", *words)


def lvm2(metadata: str = "") -> dict[int, bytes]:
    """A label, a physical volume and its metadata area."""
    header = b"sUVx7kmCqwL2g1TzYpR0aBcDeFhJnKuM" + struct.pack("<Q6Q", 8 * MIB, MIB, 0, 0, 0, 4096, 1044480)
    label = bytearray(b"LABELONE" + struct.pack("<QII8s", 1, 0, 32, b"LVM2 001") + header).ljust(512, b"\0")
    struct.pack_into("<I", label, 16, zlib.crc32(bytes(label[20:]), 0xF597A6CF ^ ALL) ^ ALL)
    area = bytearray(512)
    area[4:20] = b" LVM2 x[5A%r0N*>"
    struct.pack_into("<IQQ", area, 20, 1, 4096, 1044480)
    struct.pack_into("<QQII", area, 40, 512, 400, 0, 0)
    struct.pack_into("<I", area, 0, zlib.crc32(bytes(area[4:]), 0xF597A6CF ^ ALL) ^ ALL)
    return {512: bytes(label), 4096: bytes(area), 4608: metadata.encode()}


def erofs(block_log: int) -> bytes:
    size = (1 << block_log) - 1024
    block = bytearray(noise("erofs", size))
    block[:128] = fields(
        128,
        {
            0: b"\xe2\xe1\xf5\xe0",
            8: struct.pack("<IB", 1, block_log),
            36: struct.pack("<I", 9),
            48: UUID,
            64: b"label",
        },
    )
    struct.pack_into("<I", block, 4, crc32c(ALL, bytes(block)))
    return bytes(block)


def bpb(jump: bytes, name: bytes, identity_at: int) -> bytes:
    identity = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    return fields(512, {0: jump + name, 11: struct.pack("<HB", 512, 8), identity_at: identity, 510: b"\x55\xaa"})


END = 8 * MIB
HFS_PLUS = {0: b"H+\0\4", 4: struct.pack(">I", 0x100), 40: struct.pack(">III", 4096, 2000, 1000)}
HFS_WRAPPER = {
    0: b"BD",
    10: b"\1\0",
    14: b"\0\3",
    18: struct.pack(">HI", 1000, 4096),
    28: b"\0\x10",
    36: b"\4Wrap",
    124: b"H+\0\0\3\0",
}
SYNTHETIC: dict[str, tuple[dict[int, bytes], dict[str, object]]] = {
    "raid_1_0": (
        {END - 8 * KIB: raid_1(END - 8 * KIB)},
        {"file_system": "linux_raid_member", "format_version": "1.0", "label": "host:set"},
    ),
    "raid_1_1": ({0: raid_1(0)}, {"file_system": "linux_raid_member", "format_version": "1.1"}),
    "raid_1_2": ({4096: raid_1(4096, 128)}, {"file_system": "linux_raid_member", "format_version": "1.2"}),
    "raid_0_90": ({END - 64 * KIB: raid_0_90("<")}, {"file_system": "linux_raid_member", "format_version": "0.90"}),
    "raid_0_90_big_endian": ({END - 64 * KIB: raid_0_90(">")}, {"file_system": "linux_raid_member"}),
    "lvm2": (lvm2("vg-1 {\n id = x"), {"file_system": "lvm2_member", "label": "vg-1", "size_bytes": 8 * MIB}),
    "lvm2_without_a_group": (lvm2("\0"), {"file_system": "lvm2_member", "label": None}),
    "bitlocker_vista": ({0: bpb(b"\xeb\x52\x90", b"-FVE-FS-", 160)}, {"file_system": "bitlocker"}),
    "bitlocker_to_go": ({0: bpb(b"\xeb\x58\x90", b"MSWIN4.1", 424)}, {"file_system": "bitlocker"}),
    "refs": (
        {0: b"\0\0\0ReFS\0\0\0\0", 16: b"FSRS\0\2", 24: struct.pack("<QII", 16384, 512, 128), 40: b"\3\x0e"},
        {"file_system": "refs", "format_version": "3.14", "bytes_per_cluster": 65536, "size_bytes": 8 * MIB},
    ),
    "hfs_plus": ({1024: fields(512, HFS_PLUS)}, {"file_system": "hfsplus", "format_version": "HFS+", "dirty": False}),
    "hfs_plus_in_use": ({1024: fields(512, HFS_PLUS | {4: bytes(4)})}, {"file_system": "hfsplus", "dirty": True}),
    "hfsx": ({1024: fields(512, HFS_PLUS | {0: b"HX\0\5"})}, {"file_system": "hfsplus", "format_version": "HFSX"}),
    "hfs_plus_wrapped": ({1024: fields(512, HFS_WRAPPER)}, {"file_system": "hfsplus", "label": "Wrap"}),
    "bcachefs": (
        {
            4096: fields(
                512,
                {
                    16: struct.pack("<HH", 13, 9),
                    24: bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef"),
                    56: UUID,
                    72: b"label",
                    104: struct.pack("<QQHBBI", 8, 1, 8, 0, 1, 0),
                },
            )
        },
        {"file_system": "bcachefs", "label": "label", "bytes_per_cluster": 4096},
    ),
    "bcache": (
        {4096: fields(512, {24: bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), 40: UUID})},
        {"file_system": "bcache"},
    ),
    "vmfs_volume_member": ({MIB: b"\x0d\xd0\x01\xc0\5\0\0\0"}, {"file_system": "vmfs_volume_member"}),
    "reiserfs_3_5": (
        {8192: fields(204, {0: struct.pack("<4I", 2000, 9, 7, 18), 44: b"\0\x10", 50: b"\2\0ReIsErFs"})},
        {"file_system": "reiserfs", "format_version": "3.5", "dirty": True},
    ),
    "reiser4": (
        {64 * KIB: fields(512, {0: b"ReIsEr4", 18: b"\0\x10", 20: UUID, 36: b"label"})},
        {"file_system": "reiser4", "label": "label", "serial": "00112233-4455-6677-8899-aabbccddeeff"},
    ),
    "apfs": (
        {
            0: fields(
                96, {24: struct.pack("<II", 0x80000001, 0), 32: b"NXSB" + struct.pack("<IQ", 4096, 2048), 72: UUID}
            )
        },
        {"file_system": "apfs", "bytes_per_cluster": 4096, "size_bytes": 8 * MIB},
    ),
    "erofs_of_large_blocks": (
        {1024: erofs(16)},
        {"file_system": "erofs", "label": "label", "bytes_per_cluster": 65536, "size_bytes": 9 * 65536},
    ),
    "squashfs_3": (
        {0: b"hsqs" + bytes(24) + struct.pack("<HH", 3, 1)},
        {"file_system": "squashfs", "format_version": "3.1"},
    ),
}
NOT_FOR_BLKID = (
    *("apfs", "bcache", "bcachefs", "bitlocker_to_go", "bitlocker_vista", "hfs_plus_wrapped", "refs", "squashfs_3"),
    "vmfs_volume_member",
)
"""It wants more of them than their superblock, or has no name for them in every version."""


@pytest.mark.parametrize("name", SYNTHETIC)
def test_what_no_formatter_at_hand_makes_is_told_by_its_header(tmp_path: Path, name: str) -> None:
    patches, expected = SYNTHETIC[name]
    image = sparse(tmp_path / "image", END)
    with image.open("r+b") as file:
        for at, data in patches.items():
            file.seek(at)
            file.write(data)
    facts = found(image).facts
    assert {key: getattr(facts, key) for key in expected} == expected
    if name not in NOT_FOR_BLKID:
        check_with_blkid(image, label=name != "lvm2")  # for which we give the name of the volume group


# What is none of them.


@settings(deadline=None)
@given(st.binary(max_size=4 * KIB), st.sampled_from([0, 1024, 4096, 32 * KIB, 64 * KIB, MIB - 4096, 2 * MIB]))
def test_no_bytes_are_recognised_by_chance(data: bytes, at: int) -> None:
    device = Patched(bytes(3 * MIB), {at: data})
    assert recognise(device) is None and recognise_member(device) is None


SIGNATURES = [detect for detect in _DETECTORS if isinstance(detect, Signature)]
ENOUGH_ALONE = ("bcache", "vmfs_volume_member", "zfs_member", "vmfs")
"""Their header has nothing else that could be checked, or their signature is of eight bytes and more."""


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: f"{s.name} {s.magic[:9]!r}")
@pytest.mark.parametrize("seed", range(3))
def test_a_signature_in_noise_is_not_enough(signature: Signature, seed: int) -> None:
    content, size = noise(seed, 3 * MIB), 3 * MIB
    for place in signature.places:
        at = place if isinstance(place, int) else place(size)
        device = Patched(content, {at + signature.magic_at: signature.magic})
        assert recognise(device) is None or signature.name in ENOUGH_ALONE
        empty = Patched(bytes(size), {at + signature.magic_at: signature.magic})
        assert recognise(empty) is None or signature.name in ENOUGH_ALONE


def test_the_smallest_devices_hold_nothing() -> None:
    for size in (0, 1, 511, 512, 1024, 4096, 64 * KIB):
        assert recognise(Patched(bytes(size), {})) is None
        assert recognise_member(Patched(bytes(size), {})) is None


# What an older file system left behind.


def test_where_two_kinds_are_recognised_nothing_is_left_out(tmp_path: Path) -> None:
    swap = sparse(tmp_path / "swap", 3 * MIB)
    run("mkswap", swap)
    with swap.open("r+b") as file:
        file.seek(64 * KIB + 52)
        file.write(b"ReIsEr2Fs")
        file.seek(64 * KIB)
        file.write(fields(52, {0: struct.pack("<4I", 100, 9, 7, 18), 44: b"\0\x10", 50: b"\2\0"}))
    for image in (swap, make_xfs(tmp_path / "xfs", 40 * MIB), make_btrfs(tmp_path / "btrfs", 120 * MIB)):
        with image.open("r+b") as file:
            file.seek(128 * KIB - 40)
            file.write(bytes.fromhex("117a0cb17ada1002"))
        seen = found(image)
        assert seen.facts.file_system == image.name
        assert seen.allocated() is None and len(seen.left_out()) == 0
        assert "zfs_member too: all of it is kept" in seen.reason


def test_members_are_found_before_what_their_formatter_left_behind(tmp_path: Path) -> None:
    """mdadm writes at 4 KiB and leaves the superblock of ext at 1 KiB, and that of swap before 4 KiB, as they were."""
    ext, swap = sparse(tmp_path / "ext", 4 * MIB), sparse(tmp_path / "swap", 4 * MIB)
    run("mke2fs", "-qF", ext)
    run("mkswap", swap)
    for image in (ext, swap):
        assert recognise_member(FileDevice(image)) is None
        with image.open("r+b") as file:
            file.seek(4096)
            file.write(raid_1(4096))
        for seen in (recognise_member(FileDevice(image)), recognise(FileDevice(image))):
            assert seen is not None and seen.facts.file_system == "linux_raid_member"
            assert seen.allocated() is None and len(seen.left_out()) == 0
    assert recognise_member(FileDevice(sample_volume(tmp_path / "ntfs"))) is None


def test_a_volume_longer_than_its_medium_is_refused(tmp_path: Path) -> None:
    patches = SYNTHETIC["refs"][0]
    with pytest.raises(InconsistentVolume, match=f"says the volume has {8 * MIB} bytes, the medium has {7 * MIB}"):
        recognise(Patched(bytes(7 * MIB), patches))
    with pytest.raises(InconsistentVolume, match="the medium has"):
        recognise_member(Patched(bytes(7 * MIB), lvm2()))
