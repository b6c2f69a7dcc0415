"""Volumes that were in use when they were cut off: we see them as they are after the journal's recovery."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import ContentFlag
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.file import FileDevice
from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise
from tests.make.ext import commit, crash, fill, in_memory, make_volume, mounted, needs_mount, recovered, settle, work
from tests.make.ext_journal import Transaction, blocks_of, differing, journal_dump, write_journal
from tests.make.ext_oracle import allocated_by_dumpe2fs, keep_only, seen_by_kernel, seen_by_us, told_by_dumpe2fs

pytestmark = needs_mount
MAGIC = bytes.fromhex("c03b3998")
CRASHES = {
    "checksums": ("-O metadata_csum", ""),
    "checksums, data in the journal": ("-O metadata_csum", "data=journal"),
    "no checksums": ("-O ^metadata_csum", ""),
    "no checksums, 32 bits": ("-O ^metadata_csum,^64bit", ""),
    "checksums of transactions": ("-O ^metadata_csum", "journal_checksum"),
    "checksums of transactions, data in the journal": ("-O ^metadata_csum,^64bit", "journal_checksum,data=journal"),
    "commits not waited for": ("-O ^metadata_csum", "data=writeback,journal_async_commit"),
    "block maps": ("-O ^extent,^64bit,^metadata_csum,^flex_bg", ""),
    "block maps, data in the journal": ("-b 4096 -O ^extent,^64bit,^metadata_csum,^flex_bg", "data=journal"),
    "small journal": ("-J size=1", "data=journal"),
    "fast_commit": ("-O fast_commit", ""),
    "inline_data, bigalloc": ("-O inline_data,bigalloc -C 4096", ""),
    "meta_bg, orphan_file": ("-O meta_bg,^resize_inode,orphan_file", ""),
    "uninit_bg": ("-O ^metadata_csum,uninit_bg", ""),
}
RARE = {"uninit_bg", "no checksums, 32 bits", "block maps, data in the journal", "meta_bg, orphan_file"}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in RARE else ()) for case in CRASHES]
)
def test_a_volume_cut_off_in_use_is_seen_as_after_its_recovery(case: str, seed: int) -> None:
    options, mount_options = CRASHES[case]
    with in_memory() as place:
        image = make_volume(place / "v.img", 32 * MIB, "-t", "ext4", "-b", "1024", *options.split())
        with mounted(image, mount_options) as root:
            fill(root, names=50, holes=50)
            settle(root)
            for turn in range(4):
                work(root, 10 * seed + turn)
                commit(root)
            held = os.open(root / "held open", os.O_CREAT | os.O_WRONLY)
            os.write(held, b"deleted, but open")
            commit(root)
            work(root, 10 * seed + 5)
            (root / "held open").unlink()
            (root / "last").write_bytes(b"last")
            if seed != 2:
                commit(root)
            work(root, 10 * seed + 6)
            crash(root)
            with suppress(OSError):
                os.close(held)
        device = FileDevice(image)
        volume = ExtVolume(device)
        kept = keep_only(image, volume, place / "kept.img")
        after = recovered(kept, place / "after.img")
        with mounted(after, "ro") as root:
            wanted = seen_by_kernel(root)
        assert seed == 2 or b"/last" in wanted
        assert volume.facts.dirty
        assert any("needs recovery" in note for note in volume.facts.notes)
        assert seen_by_us(volume) == wanted
        allocated = volume.allocated()
        assert allocated.covers(allocated_by_dumpe2fs(after))
        if (before := told_by_dumpe2fs(image)) is not None:
            assert allocated.covers(before)
        assert allocated.total < 30 * MIB
        if "data=journal" not in mount_options:
            assert "Revoke FS block" in journal_dump(image)
        if case == "small journal":
            places = [int(block) for block in re.findall(r"at block (\d+):", journal_dump(image))]
            assert places != sorted(places), "the log does not wrap"
        device.close()


def test_a_file_whose_blocks_begin_as_those_of_the_journal_is_read_from_it() -> None:
    content = b"".join(MAGIC + noise(n, 1020) for n in range(20))
    with in_memory() as place:
        image = make_volume(place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024")
        with mounted(image, "data=journal") as root:
            (root / "file").write_bytes(content)
            settle(root)
            crash(root)
        assert "flags 0x3" in journal_dump(image)
        device = FileDevice(image)
        volume = ExtVolume(device)
        entries = volume.scan().entries
        opened = volume.open(int(entries.record[entries.path.index("/file")]))
        assert opened.read(0, len(content)) == content
        assert opened.read(1000, 3000) == content[1000:4000]
        device.close()


def test_fast_commits_are_told_and_everything_is_kept() -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024", "-O", "fast_commit")
        with mounted(image) as root:
            (root / "before").write_bytes(b"before")
            settle(root)
            for name in ("first", "second"):
                with (root / name).open("wb") as file:
                    file.write(noise(name, 5000))
                    file.flush()
                    os.fsync(file.fileno())
            crash(root)
        assert "tag CREAT_DENTRY" in journal_dump(image)
        after = recovered(image, place / "after.img")
        with mounted(after, "ro") as root:
            assert (root / "second").stat().st_size == 5000
        device = FileDevice(image)
        volume = ExtVolume(device)
        assert any("fast commits" in note for note in volume.facts.notes)
        assert "/before" in volume.scan().entries.path
        assert volume.allocated().total == volume.facts.size_bytes == 16 * MIB
        device.close()


@pytest.mark.parametrize("is_64", [True, False])
@pytest.mark.parametrize("checksum", [0, 2, 3])
def test_every_kind_of_log_is_followed(checksum: int, is_64: bool) -> None:
    features = f"{'' if checksum else '^'}metadata_csum,{'' if is_64 else '^'}64bit"
    with in_memory() as place:
        (place / "tree").mkdir()
        (place / "tree" / "file").write_bytes(noise("old", 12 * 1024))
        image = make_volume(place / "v.img", 16 * MIB, "-t", "ext4", "-b", "1024", "-O", features, "-d", place / "tree")
        at = blocks_of(image, "file")
        assert len(at) == 12
        new = {block: noise(("new", block), 1024) for block in at}
        write_journal(
            image,
            [
                Transaction({at[0]: noise("never", 1024), at[1]: new[at[1]], at[2]: new[at[2]]}),
                Transaction({at[0]: new[at[0]], at[3]: MAGIC + new[at[3]][4:]}),
                Transaction(revoked=(at[2],)),
                Transaction({at[4]: new[at[4]], at[5]: new[at[5]], at[6]: new[at[6]]}),
                Transaction(revoked=(at[4], at[5], at[6])),
                Transaction({at[5]: new[at[5]], at[6]: new[at[6]], at[7]: new[at[7]]}),
                Transaction(revoked=(at[7],), is_committed=False),
            ],
            checksum,
        )
        after = recovered(image, place / "after.img")
        wanted = after.read_bytes()
        device = FileDevice(image)
        volume = ExtVolume(device)
        contents = volume.scan().contents
        assert contents.flags[contents.record == 12] == ContentFlag.COMPRESSED  # no digest of what lies there is right
        opened = volume.open(12)
        changed = []
        for n, block in enumerate(at):
            data = opened.read(n * 1024, 1024)
            assert data == wanted[block * 1024 : (block + 1) * 1024], n
            changed.append(data != noise("old", 12 * 1024)[n * 1024 : (n + 1) * 1024])
        assert changed == [n in (0, 1, 3, 5, 6, 7) for n in range(12)]
        assert volume.allocated().covers(Runs.of([(block * 1024, 1024) for block in at]))
        device.close()


def test_a_volume_grown_when_it_was_cut_off_has_its_new_size() -> None:
    with in_memory() as place:
        image = place / "v.img"
        with image.open("wb") as file:
            file.truncate(32 * MIB)
        run("mke2fs", "-qF", "-t", "ext4", "-b", "1024", image, "20M")
        before = image.read_bytes()
        run("resize2fs", image)
        with mounted(image) as root:
            (root / "file").write_bytes(noise("file", 50_000))
            wanted = seen_by_kernel(root)
        grown = image.read_bytes()
        image.write_bytes(before[: 20 * MIB] + grown[20 * MIB :])
        write_journal(image, [Transaction(differing(before[: 20 * MIB], grown, 1024))], checksum=3)
        device = FileDevice(image)
        volume = ExtVolume(device)
        assert volume.facts.size_bytes == 32 * MIB
        assert seen_by_us(volume) == wanted
        assert volume.allocated().covers(allocated_by_dumpe2fs(recovered(image, place / "after.img")))
        device.close()


def test_a_journal_on_another_device_is_told_and_everything_is_kept() -> None:
    with in_memory() as place:
        for name in ("journal", "v.img"):
            with (place / name).open("wb") as file:
                file.truncate(16 * MIB)
        run("mke2fs", "-qF", "-b", "1024", "-O", "journal_dev", place / "journal")
        loop = run("losetup", "-f", "--show", place / "journal").stdout.decode().strip()
        try:
            run("mke2fs", "-qF", "-t", "ext4", "-b", "1024", "-J", f"device={loop}", place / "v.img")
            with mounted(place / "v.img") as root:
                fill(root, names=10, holes=10)
                settle(root)
                device = FileDevice(place / "v.img")
                volume = ExtVolume(device)
                assert volume.facts.dirty
                assert any("another device" in note for note in volume.facts.notes)
                assert volume.allocated().total == 16 * MIB
                device.close()
            with mounted(place / "v.img") as root:
                wanted = seen_by_kernel(root)
        finally:
            run("losetup", "-d", loop)
        device = FileDevice(place / "v.img")
        volume = ExtVolume(device)
        assert seen_by_us(volume) == wanted
        assert not volume.facts.notes
        assert volume.allocated() == allocated_by_dumpe2fs(place / "v.img")
        device.close()


def test_a_volume_copied_while_it_is_written_is_read_or_refused_by_name() -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 32 * MIB, "-t", "ext4", "-b", "1024")
        with mounted(image) as root, ThreadPoolExecutor(1) as pool:
            for turn in range(5):
                busy = pool.submit(work, root, turn)
                run("cp", "--sparse=always", image, place / f"copy {turn}")
                busy.result()
                commit(root)
        for turn in range(5):
            device = FileDevice(place / f"copy {turn}")
            volume = ExtVolume(device)
            try:
                assert volume.facts.dirty
                assert len(seen_by_us(volume)) >= 2
                assert volume.allocated().total > MIB
            except InconsistentVolume as refused:
                assert refused.structure and refused.problem
            device.close()
