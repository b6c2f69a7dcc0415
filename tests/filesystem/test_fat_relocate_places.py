"""Clusters of a FAT volume that are no file's, or that others know by their place, when it is laid out anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sqlimage.boot import boot, bootable
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.fat.boot import geometry_of, parse
from sqlimage.filesystem.relocation import Wish
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.units import KIB, MIB
from tests.boot.qemu import MACHINE
from tests.boot.test_command import Facts
from tests.conftest import run
from tests.make import bootable as media
from tests.make import fat as make
from tests.make.fat_oracle import by_place, carry_out, fsck, in_pieces
from tests.make.fat_tree import ScatteredVolume
from tests.make.relocated import moved


def test_bad_clusters_stay_where_they_are_and_files_go_around_them(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 1440 * KIB, 12, sectors_per_cluster=1)
    volume = ScatteredVolume(bytearray(source.read_bytes()), seed=5)
    volume.mark_bad(2, 40, 41, 300, 2500)
    volume.add_file("/large", b"l" * 400 * 512)  # fits in no gap before the fourth
    for k in range(60):
        volume.add_file(f"/{k}", bytes([k]) * 2000)
    source.write_bytes(volume.finish())
    plan = carry_out(source, Wish(defragment=True), tmp_path / "new")
    assert in_pieces(plan.scan) == []
    places = [volume.offset_of(cluster) for cluster in (2, 40, 41, 300, 2500)]
    for place in places:
        assert moved(plan, np.array([place])).tolist() == [place]
    assert fsck(tmp_path / "new")[1].count(b"bad") == fsck(source)[1].count(b"bad")
    first = dict(zip(by_place(plan.scan), np.sort(plan.scan.contents.run_offset).tolist(), strict=True))
    assert first["/0"] == volume.offset_of(3)
    assert first["/large"] == volume.offset_of(301)

    opened = FatVolume(FileDevice(source))
    full = opened.smallest_bytes(opened.scan())
    plan = carry_out(source, Wish(defragment=True, size_bytes=full), tmp_path / "full")
    assert plan.facts.total_clusters == plan.allocated.clip(volume.heap_offset, plan.facts.size_bytes).total // 512
    assert plan.scan.contents.first_run[-1] <= len(plan.scan.contents) + 4  # one cut for each bad place at most
    assert moved(plan, np.array([volume.offset_of(2500)])).tolist() == [-1]  # behind the end


def test_a_fat_does_not_grow_over_a_bad_cluster(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 40 * MIB, 32, sectors_per_cluster=1)
    clean = bytearray(source.read_bytes())
    for bad, grows in ((10, False), (5000, True)):
        volume = ScatteredVolume(bytearray(clean), seed=5, longest=0)
        volume.mark_bad(bad)
        volume.add_file("/file", b"l" * 6000 * 512)  # all around it
        source.write_bytes(volume.finish())
        plan = carry_out(source, Wish(size_bytes=80 * MIB), tmp_path / "new")
        geometry = geometry_of(parse((tmp_path / "new").read_bytes()[:512]))
        place = volume.offset_of(bad)
        assert moved(plan, np.array([place])).tolist() == [place]
        assert (geometry.fat_bytes > volume.fat_bytes) == grows
        assert plan.facts.notes == () if grows else "no room for larger ones" in plan.facts.notes[0]


def test_lost_chains_are_kept_as_they_are_behind_the_files(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 1440 * KIB, 12, sectors_per_cluster=1)
    volume = ScatteredVolume(bytearray(source.read_bytes()), seed=9)
    volume.add_file("/one", b"1" * 3000)
    lost = [volume.lose(3, b"lost %d " % k * 200) for k in range(2)]
    volume.add_file("/two", b"2" * 3000)
    source.write_bytes(volume.finish())
    plan = carry_out(source, Wish(defragment=True), tmp_path / "new", checker=False)
    content = (tmp_path / "new").read_bytes()
    at = volume.offset_of(2) + 12 * 512
    for k, chain in sorted(enumerate(lost), key=lambda pair: pair[1][0]):
        told = (b"lost %d " % k * 200)[: 3 * 512]
        assert content[at : at + 3 * 512] == told.ljust(3 * 512, b"\0")
        assert moved(plan, np.array([volume.offset_of(chain[0])])).tolist() == [at]
        at += 3 * 512
    code, text = fsck(tmp_path / "new")
    assert (code, text.count(b"chain")) == (fsck(source)[0], fsck(source)[1].count(b"chain"))


def test_what_the_boot_code_of_syslinux_knows_by_place_stays_there(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 24 * MIB, 16, sectors_per_cluster=2)
    make.fill(source, {f"{k}": b"x" * 3000 for k in range(50)}, tmp_path / "tree")
    run("syslinux", "--install", source)
    make.delete(source, *(f"/{k}" for k in range(0, 50, 2)))
    first = make.cluster_runs(source, "/ldlinux.sys")
    for size in (None, 20 * MIB, 60 * MIB):
        plan = carry_out(source, Wish(defragment=True, size_bytes=size), tmp_path / "new")
        old, new = (geometry_of(parse(path.read_bytes()[:512])) for path in (source, tmp_path / "new"))
        found = make.cluster_runs(tmp_path / "new", "/ldlinux.sys")
        assert [(new.offset_of(c), n) for c, n in found] == [(old.offset_of(c), n) for c, n in first]
        assert in_pieces(plan.scan) == []
        assert plan.facts.notes == ()


def test_syslinux_must_be_installed_anew_where_its_file_lay_behind_the_end(tmp_path: Path) -> None:
    source = make.make_volume(tmp_path / "v", 24 * MIB, 16, sectors_per_cluster=2)
    make.fill(source, {"large": b"x" * 14 * MIB}, tmp_path / "tree")
    run("syslinux", "--install", source)
    make.delete(source, "/large")
    plan = carry_out(source, Wish(size_bytes=10 * MIB), tmp_path / "new")
    assert plan.facts.notes == ("SYSLINUX will not start from it until it is installed anew: ldlinux.sys has moved",)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_a_volume_that_boots_still_does(bits: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "v"
    shutil.copyfile(media.fat_volume(bits), source)
    for size in (source.stat().st_size * 15 // 16, source.stat().st_size * 2):
        carry_out(
            source, Wish(True, size, sectors_per_track=63, tracks_per_cylinder=255), tmp_path / "new", mtools=False
        )
        device = WritableFileDevice(tmp_path / "new")
        problems: list[str] = []
        code = boot(bootable(device, [Facts(0, f"fat{bits}", 0)]).device, MACHINE, on_problem=problems.append)
        assert (code, problems) == (0, [])
        assert media.BOOT_DONE.decode() in "".join(capfd.readouterr())
        device.close()
        assert fsck(tmp_path / "new")[0] == 0
