"""What a file system calls free, unwritten or swap is kept all the same where something else may need it; and what a
capture says of such files is the same on top of a parent as by itself."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import sqlimage
from tests.images import noise, tool

MIB = 1 << 20


def run(*command: object) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, errors="surrogateescape").stdout


def ext4(path: Path, tree: Path, *options: str) -> Path:
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", *options, "-d", tree, path)
    return path


def test_a_page_file_of_windows_on_a_disc_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "pagefile.sys").write_bytes(noise("evidence", 100_000))
    disc = tmp_path / "disc.iso"
    run("genisoimage", "-quiet", "-R", "-o", disc, tmp_path / "tree")
    report = sqlimage.capture(disc, tmp_path / "i.sqlimage")
    assert report.volumes[0].left_out == ()
    tool("restore", tmp_path / "i.sqlimage", tmp_path / "out.iso")
    assert (tmp_path / "out.iso").read_bytes() == disc.read_bytes()


def test_a_swap_file_whose_name_is_no_unicode_is_told_and_left_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "fstab").write_bytes(b"/sw\xffap none swap sw 0 0\n")
    name = os.fsencode(tree) + b"/sw\xffap"
    Path(os.fsdecode(name)).write_bytes(noise("swap", MIB))
    run("mkswap", "-q", os.fsdecode(name))
    report = sqlimage.capture(ext4(tmp_path / "v.img", tree), tmp_path / "i.sqlimage")
    assert report.volumes[0].left_out == ("/sw\ufffdap",)
    tool("verify", tmp_path / "i.sqlimage", "--files")


def test_what_one_file_never_wrote_is_kept_where_files_share_blocks(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "written").write_bytes(noise("written", 40960))
    (tree / "reserved").write_bytes(noise("reserved", 40960))
    volume = ext4(tmp_path / "v.img", tree, "-b", "4096", "-O", "^metadata_csum,^has_journal")

    def inode_at(path: str) -> int:
        place = re.search(r"block (\d+), offset 0x([0-9a-f]+)", run("debugfs", "-R", f"imap {path}", volume))
        assert place
        return int(place[1]) * 4096 + int(place[2], 16)

    raw = bytearray(volume.read_bytes())
    first_extent = 40 + 12
    block = struct.unpack_from("<I", raw, inode_at("/written") + first_extent + 8)[0]
    struct.pack_into("<I", raw, inode_at("/reserved") + first_extent + 8, block)
    struct.pack_into("<H", raw, inode_at("/reserved") + first_extent + 4, 32768 + 10)  # never written
    struct.pack_into("<I", raw, 1024 + 100, struct.unpack_from("<I", raw, 1024 + 100)[0] | 0x4000)  # shared_blocks
    volume.write_bytes(raw)
    report = sqlimage.capture(volume, tmp_path / "i.sqlimage")
    assert (report.volumes[0].captured_as, report.volumes[0].left_out) == ("files", ())
    with sqlimage.open(str(tmp_path / "i.sqlimage")) as opened, opened.version().content("/written") as content:
        assert content.read(0, 40960) == noise("written", 40960)


def test_behind_the_superblock_of_an_older_file_system_nothing_of_a_pool_is_lost(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "old").write_bytes(b"old")
    volume = ext4(tmp_path / "v.img", tree)
    with volume.open("r+b") as file:
        file.seek(128 * 1024 - 40)
        file.write(bytes.fromhex("117a0cb17ada1002"))  # the end of what a vdev label of ZFS begins with
        file.seek(24 * MIB)
        file.write(noise("pool", MIB))
    report = sqlimage.capture(volume, tmp_path / "i.sqlimage")
    assert any("zfs_member" in warning for warning in report.warnings)
    tool("restore", tmp_path / "i.sqlimage", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == volume.read_bytes()


def test_a_swap_area_whose_pages_are_kept_does_not_say_that_they_are_left_out(tmp_path: Path) -> None:
    area = tmp_path / "swap"
    area.write_bytes(noise("swap", 4 * MIB))
    run("mkswap", "-q", area)
    report = sqlimage.capture(area, tmp_path / "i.sqlimage", keep_page_files=True)
    assert report.volumes[0].raw_reason == "swap area, kept whole"
    tool("restore", tmp_path / "i.sqlimage", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == area.read_bytes()


def test_digests_are_the_same_on_top_of_a_parent_as_by_itself(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    parent = ext4(tmp_path / "parent.img", tree)
    for name, size in (("ends-in-a-hole", 900_000), ("swapfile", MIB)):
        (tree / name).write_bytes(noise(name, 3))
        os.truncate(tree / name, size)
    (tree / "swapfile").chmod(0o600)
    run("mkswap", "-q", tree / "swapfile")
    volume = ext4(tmp_path / "v.img", tree)
    sqlimage.capture(parent, tmp_path / "parent.sqlimage")
    sqlimage.capture(volume, tmp_path / "child.sqlimage", parent=tmp_path / "parent.sqlimage")
    sqlimage.capture(volume, tmp_path / "alone.sqlimage")
    told = []
    for name in ("child", "alone"):
        tool("verify", tmp_path / f"{name}.sqlimage", "--files")
        with sqlimage.open(str(tmp_path / f"{name}.sqlimage")) as opened:
            told.append({row.path: row.digest for row in opened.version().below("/")})
    assert told[0] == told[1]
    assert told[1]["/ends-in-a-hole"] is not None
