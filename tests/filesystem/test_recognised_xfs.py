"""XFS: its facts, its log and its free space, as its own tools see them; what is kept of a volume is all it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.recognised import recognise
from sqlimage.filesystem.recognised.xfs import layout
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise
from tests.make.ext import in_memory, needs_mount
from tests.make.recognised import (
    Patched,
    blkid,
    digests,
    fill,
    found,
    keep_only,
    make_holes,
    make_xfs,
    mended,
    mounted,
    xfs_db,
    xfs_free_space,
    xfs_log_is_clean,
)


@dataclass(frozen=True)
class Kind:
    size_mib: int
    options: str
    block_bytes: int = 4096
    holes: int = 0
    """So many pieces of free space that the B-trees have several levels."""


KINDS = {
    "every_feature": Kind(128, "-m finobt=1,rmapbt=1,reflink=1,bigtime=1,inobtcount=1 -d agcount=8"),
    "deep": Kind(64, "-b size=1024 -d agcount=2", 1024, holes=12_000),
    "sectors_of_4096": Kind(96, "-s size=4096 -m reflink=0,finobt=0 -d agcount=3 -l su=64k"),
}
SLOW_KINDS = {
    "blocks_of_1024": Kind(160, "-b size=1024 -i size=512 -d agcount=4", 1024),
    "blocks_of_2048": Kind(200, "-b size=2048 -n size=8192 -l su=256k -m bigtime=0", 2048),
    "deeper": Kind(600, "-m rmapbt=1 -d agcount=2", holes=60_000),
    "many_groups": Kind(69 * 16, "-d agsize=16m"),
}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with in_memory() as directory:
        yield directory


def filled(path: Path, kind: Kind) -> Path:
    """A volume with a copy beside it that was taken while it was mounted."""
    make_xfs(path, kind.size_mib * MIB, "-L", "etiquette", *kind.options.split())
    with mounted(path, "xfs") as root:
        fill(root, path.name)
        if kind.holes:
            make_holes(root / "holes", kind.holes, kind.block_bytes)
        os.sync()
        run("cp", "--sparse=always", path, path.with_suffix(".mounted"))
    return path


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(kind, id=name) for name, kind in KINDS.items()),
        *(pytest.param(kind, id=name, marks=pytest.mark.slow) for name, kind in SLOW_KINDS.items()),
    ],
)
def volume(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    path = filled(place / "volume", request.param)
    yield path
    path.unlink()
    path.with_suffix(".mounted").unlink()


@needs_mount
def test_facts_and_free_space_are_those_of_its_own_tools(volume: Path) -> None:
    seen = found(volume)
    facts, printed = seen.facts, blkid(volume)
    assert (facts.file_system, facts.format_version, facts.label) == ("xfs", "5", "etiquette")
    assert facts.serial == printed["UUID"]
    assert (facts.size_bytes, facts.dirty, facts.notes) == (volume.stat().st_size, False, ())
    assert facts.bytes_per_sector == int(printed["BLOCK_SIZE"])
    fields = xfs_db(volume, "sb 0", "print blocksize dblocks").split()
    assert [facts.bytes_per_cluster, facts.total_clusters] == [int(fields[2]), int(fields[5])]

    allocated = seen.allocated()
    assert allocated is not None
    assert allocated.complement(facts.size_bytes) == xfs_free_space(volume)
    assert len(seen.left_out()) == 0


@needs_mount
def test_what_is_kept_is_all_that_the_volume_needs(volume: Path, tmp_path: Path) -> None:
    allocated = found(volume).allocated()
    assert allocated is not None
    kept = keep_only(volume, allocated, tmp_path / "kept")
    run("xfs_repair", "-n", kept)
    with mounted(volume, "xfs", "ro") as root:
        expected = digests(root)
    with mounted(kept, "xfs", "ro") as root:
        assert digests(root) == expected
    assert len(expected) > 100


@needs_mount
def test_a_volume_that_was_not_unmounted_is_kept_whole(volume: Path) -> None:
    seen = found(volume.with_suffix(".mounted"))
    assert seen.allocated() is None
    assert seen.facts.dirty
    assert "log is to be recovered" in seen.facts.notes[0]
    assert not xfs_log_is_clean(volume.with_suffix(".mounted"))


@needs_mount
@pytest.mark.parametrize(
    ("times", "options"),
    [
        (12, "-l size=1368b"),
        pytest.param(80, "-l size=1368b", marks=pytest.mark.slow),
        pytest.param(60, "-l size=2112b,su=64k -s size=4096", marks=pytest.mark.slow),
    ],
)
def test_the_log_is_clean_when_the_kernel_would_say_so(place: Path, times: int, options: str) -> None:
    """Looked at after every unmounting and in the midst of use, while the log goes round and round."""
    image = make_xfs(place / "log", 80 * MIB, *options.split())
    copy = place / "log.mounted"
    seen = {True: 0, False: 0}
    for turn in range(times):
        with mounted(image, "xfs", "wsync" if turn % 3 == 0 else "") as root:
            for n in range((0, 40, 700)[turn % 3]):
                (root / f"f{n % 100}").write_bytes(b"x" * (turn * n % 5000))
                (root / f"f{n * 7 % 100}").unlink(missing_ok=True)
            if turn % 2:
                os.sync()
            run("cp", "--sparse=always", image, copy)
        for path in (image, copy):
            clean = xfs_log_is_clean(path)
            seen[clean] += 1
            assert found(path).facts.dirty is not clean, f"turn {turn}"
    assert min(seen.values()) >= times // 4


def make_v4(place: Path) -> Path:
    """A volume of version 4, whose kernel is not at hand: files come from a prototype, and the checker frees half."""
    data = place / "data"
    data.write_bytes(b"q" * 900)
    names = [f"f{n} ---644 0 0 {data}" for n in range(1200)]
    prototype = place / "prototype"
    prototype.write_text("\n".join(["/dev/null", "0 0", "d--755 0 0", *names, "$", ""]))
    options = "-m crc=0 -b size=512 -i size=256 -d agcount=2 -L four"
    image = make_xfs(place / "v4", 96 * MIB, *options.split(), "-p", prototype)
    listed = xfs_db(image, "blockget -n", "ncheck").splitlines()
    inodes = [line.split()[0] for line in listed if line.split()[1:2] and line.split()[1].startswith("f")]
    script = "\n".join(f"inode {inode}\nwrite core.mode 0" for inode in inodes[::2])
    run("xfs_db", "-x", image, input=script.encode())
    run("xfs_repair", image)
    return image


def test_version_4_is_read_as_well(place: Path, tmp_path: Path) -> None:
    image = make_v4(place)
    seen = found(image)
    assert (seen.facts.format_version, seen.facts.label, seen.facts.notes) == ("4", "four", ())
    assert "bnolevel = 2" in xfs_db(image, "agf 0", "print bnolevel")
    allocated = seen.allocated()
    assert allocated is not None
    free = allocated.complement(seen.facts.size_bytes)
    assert len(free) > 100 and free == xfs_free_space(image)
    run("xfs_repair", "-n", keep_only(image, allocated, tmp_path / "kept"))


def test_version_4_which_has_no_checksums_is_held_against_its_second_tree(place: Path) -> None:
    source = make_xfs(place / "fresh", 40 * MIB, "-m", "crc=0", "-d", "agcount=2").read_bytes()
    pristine = recognise(Patched(source, {}))
    assert pristine is not None and pristine.allocated() is not None
    record = geometry(source)["root"] + layout.BTREE_HEADER_BYTES[4]
    moved = (int.from_bytes(source[record : record + 4], "big") - 1).to_bytes(4, "big")
    seen = recognise(Patched(source, {record: moved}))
    assert seen is not None and seen.allocated() is None
    assert "cntbt" in seen.facts.notes[0]


def test_a_group_without_free_space_is_read(place: Path) -> None:
    source = make_xfs(place / "full", 40 * MIB, "-m", "crc=0", "-d", "agcount=2").read_bytes()
    roots = [int.from_bytes(source[AGF + at : AGF + at + 4], "big") * 4096 for at in (16, 20)]
    free = int.from_bytes(source[AGF + 52 : AGF + 56], "big")
    in_all = int.from_bytes(source[144:152], "big") - free
    emptied = {root + 6: bytes(2) for root in roots} | {AGF + 52: bytes(4), 144: in_all.to_bytes(8, "big")}
    seen = recognise(Patched(source, emptied))
    assert seen is not None
    allocated = seen.allocated()
    assert allocated is not None and next(iter(allocated))[1] > 20 * MIB


@pytest.mark.parametrize(
    "options",
    [
        "-m crc=0 -l version=1,lazy-count=0 -i attr=1,projid32bit=0,sparse=0 -n ftype=0",
        "-m crc=0 -s size=4096 -b size=8192",
        "-b size=65536 -i size=2048 -s size=32768",
    ],
)
def test_fresh_volumes_of_every_geometry_are_read(tmp_path: Path, options: str) -> None:
    image = make_xfs(tmp_path / "fresh", 400 * MIB, *options.split())
    seen = found(image)
    allocated = seen.allocated()
    assert allocated is not None and not seen.facts.dirty
    assert allocated.complement(seen.facts.size_bytes) == xfs_free_space(image)


def test_a_changed_uuid_and_label_are_told_and_do_not_confuse(tmp_path: Path) -> None:
    image = make_xfs(tmp_path / "renamed", 64 * MIB)
    run("xfs_admin", "-U", "11111111-2222-3333-4444-555555555555", "-L", "new", image)
    seen = found(image)
    assert (seen.facts.serial, seen.facts.label) == ("11111111-2222-3333-4444-555555555555", "new")
    assert seen.allocated() is not None


def test_a_log_on_another_device_leaves_it_open_whether_the_volume_is_clean(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    os.truncate(tmp_path / "log", 64 * MIB)
    image = make_xfs(tmp_path / "volume", 400 * MIB, "-l", f"logdev={tmp_path / 'log'}")
    seen = found(image)
    assert seen.allocated() is None and seen.facts.dirty
    assert "another device" in seen.facts.notes[0]
    log = found(tmp_path / "log").facts
    assert (log.file_system, log.serial) == ("xfs_external_log", seen.facts.serial)


@pytest.fixture(scope="module")
def small(place: Path) -> bytes:
    """A volume of two groups with some pieces of free space each."""
    path = make_xfs(place / "small", 40 * MIB, "-d", "agcount=2", "-L", "small")
    if os.geteuid() == 0:
        with mounted(path, "xfs") as root:
            make_holes(root / "holes", 20, 4096)
    return path.read_bytes()


def geometry(small: bytes) -> dict[str, int]:
    fields = {name: int.from_bytes(small[at : at + 4], "big") for name, at in (("block", 4), ("ag_blocks", 84))}
    agf = small[layout.LOG_BLOCK_BYTES :]
    return {**fields, "root": int.from_bytes(agf[16:20], "big") * fields["block"]}


AGF = 512
IN_AGF: dict[str, tuple[int, bytes]] = {
    "agf_magicnum": (0, b"XAGG"),
    "agf_versionnum": (4, b"\0\0\0\2"),
    "agf_seqno": (8, b"\0\0\0\1"),
    "agf_length": (12, b"\0\0\1\0"),
    "agf_bno_root beyond the group": (16, b"\xff\xff\0\0"),
    "agf_bno_root 0": (16, b"\0\0\0\0"),
    "agf_bno_level 0": (28, b"\0\0\0\0"),
    "agf_bno_level 2": (28, b"\0\0\0\2"),
    "agf_bno_level many": (28, b"\0\0\1\0"),
    "agf_flcount": (48, b"\0\0\0\1"),
    "agf_freeblks": (52, b"\0\0\0\x10"),
    "agf_btreeblks": (60, b"\0\0\0\1"),
    "agf_uuid": (64, b"another uuid...!"),
}
IN_BLOCK: dict[str, tuple[int, bytes]] = {
    "bb_magic": (0, b"AB3C"),
    "bb_level": (4, b"\0\1"),
    "bb_numrecs 0": (6, b"\0\0"),
    "bb_numrecs too many": (6, b"\xff\xff"),
    "bb_leftsib": (8, b"\0\0\0\7"),
    "bb_rightsib": (12, b"\0\0\0\7"),
    "bb_blkno": (16, b"\0\0\0\0\0\0\0\0"),
    "bb_uuid": (32, b"another uuid...!"),
    "bb_owner": (48, b"\0\0\0\1"),
    "ar_startblock in the header": (56, b"\0\0\0\0"),
    "ar_startblock behind the next": (56, b"\0\0\x13\0"),
    "ar_blockcount 0": (60, b"\0\0\0\0"),
    "ar_blockcount beyond the group": (60, b"\xff\xff\xff\xff"),
}


@needs_mount
@pytest.mark.parametrize("what", [*IN_AGF, *IN_BLOCK])
def test_a_tree_that_contradicts_anything_is_not_believed(small: bytes, what: str) -> None:
    """With right checksums, so that the contradiction itself is found, and with wrong ones."""
    where = geometry(small)
    at, data = IN_AGF.get(what) or IN_BLOCK[what]
    begin, size, field = (AGF, 512, 216) if what in IN_AGF else (where["root"], where["block"], 52)
    assert small[begin + at : begin + at + len(data)] != data
    pristine = recognise(Patched(small, {}))
    assert pristine is not None and pristine.allocated() is not None
    for device in (
        mended(small, begin + at, data, begin=begin, size=size, field=field),
        Patched(small, {begin + at: data}),
    ):
        seen = recognise(device)
        assert seen is not None and seen.allocated() is None
        assert "free space cannot be told" in seen.facts.notes[0] and "counts as allocated" in seen.facts.notes[0]


def test_a_damaged_superblock_is_replaced_by_its_copy_and_the_volume_kept_whole(small: bytes) -> None:
    damages: list[Callable[[bytearray], None]] = [
        lambda raw: raw.__setitem__(slice(150, 158), b"damaged!"),
        lambda raw: raw.__setitem__(slice(84, 92), bytes(8)),  # where the copy lies is only to be guessed
        lambda raw: raw.__setitem__(slice(4, 512), bytes(508)),
    ]
    for damage in damages:
        content = bytearray(small)
        damage(content)
        seen = recognise(MemoryDevice(content))
        assert seen is not None and seen.allocated() is None
        assert (seen.facts.label, seen.facts.size_bytes) == ("small", len(small))
        assert "superblock is damaged" in seen.facts.notes[0] and "copy" in seen.facts.notes[0]


def test_a_superblock_without_a_right_copy_is_refused(small: bytes) -> None:
    content = bytearray(small)
    content[150:158] = b"damaged!"
    copy = geometry(small)["ag_blocks"] * 4096
    content[copy : copy + 4] = b"gone"
    with pytest.raises(InconsistentVolume, match="sb_crc"):
        recognise(MemoryDevice(content))


def test_a_volume_longer_than_its_medium_is_refused(small: bytes) -> None:
    with pytest.raises(InconsistentVolume, match=f"says the volume has {40 * MIB} bytes, the medium has"):
        recognise(Patched(small, {}, 39 * MIB))


@pytest.mark.parametrize(
    ("field", "at", "value", "note"),
    [
        ("incompat", 216, 0x80000000, "features that are not known"),
        ("ro_compat", 212, 0x80000000, "features that are not known"),
        ("needsrepair", 216, layout.INCOMPAT_NEEDSREPAIR, "needing repair"),
        ("zoned", 216, layout.INCOMPAT_ZONED, "zoned"),
    ],
)
def test_features_that_may_change_the_meaning_of_free_space_keep_the_volume_whole(
    small: bytes, field: str, at: int, value: int, note: str
) -> None:
    data = (int.from_bytes(small[at : at + 4], "big") | value).to_bytes(4, "big")
    seen = recognise(mended(small, at, data, begin=0, size=512, field=layout.SB_CRC_AT))
    assert seen is not None and seen.allocated() is None
    assert note in seen.facts.notes[0]


@pytest.mark.parametrize("damage", ["zeros", "noise", "no end", "a stray block", "not unmounted"])
def test_a_log_without_a_plain_end_is_not_clean(small: bytes, damage: str) -> None:
    start, blocks = int.from_bytes(small[48:56], "big"), int.from_bytes(small[96:100], "big")
    group, block = divmod(start, 1 << small[124])
    at = (group * geometry(small)["ag_blocks"] + block) * 4096
    log = bytearray(small[at : at + blocks * 4096])
    end = next(n for n in range(0, len(log), 512) if log[n : n + 4] == bytes(4))
    if damage == "zeros":
        log = bytearray(len(log))
    elif damage == "noise":
        log = bytearray(noise("log", len(log)))
    elif damage == "no end":
        log[-512:-508] = b"\0\0\0\7"
    elif damage == "a stray block":
        log[end + 5120 : end + 5124] = log[:4] if log[:4] != b"\xfe\xed\xba\xbe" else log[4:8]
    else:
        log[log.rindex(b"\xaa\x20") + 1] = 0  # oh_clientid, oh_flags
    assert recognise(Patched(small, {})).facts.dirty is False  # type: ignore[union-attr]
    seen = recognise(Patched(small, {at: bytes(log)}))
    assert seen is not None and seen.facts.dirty and seen.allocated() is None


def test_opening_reads_little_however_large_the_volume_is(tmp_path: Path) -> None:
    image = make_xfs(tmp_path / "huge", 8 << 40)
    read = 0

    class Counted(FileDevice):
        def read(self, offset_bytes: int, length_bytes: int) -> bytes:
            nonlocal read
            read += length_bytes
            return super().read(offset_bytes, length_bytes)

    seen = recognise(Counted(image))
    assert seen is not None
    allocated = seen.allocated()
    assert allocated is not None and allocated.total < 8 << 30
    assert read < 8 * MIB
