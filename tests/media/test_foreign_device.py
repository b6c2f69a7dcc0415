"""Disks inside containers, read through ``qemu-nbd``: what QEMU reads, with holes, until the last of us is gone."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.device import BlockDevice
from sqlimage.errors import DeviceError, FormatError, RefusedError, SqlimageError, UsageError
from sqlimage.media.foreign import device, program
from sqlimage.media.foreign.device import ForeignDevice
from sqlimage.media.foreign.source import open_source
from tests.conftest import run
from tests.media.foreign import DATA_CELLS, SIZED, WRITABLE, bochs, cloop, convert, disk, dmg, opened
from tests.media.kinds import loop_device

CELL = 64 << 10


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "raw"
    path.write_bytes(disk())
    return path


def data_cells(foreign: BlockDevice) -> set[int]:
    """Cells of 64 KiB that hold something that is not called a hole."""
    found: set[int] = set()
    for extent in foreign.extents(0, foreign.size_bytes):
        if extent.is_data:
            found.update(range(extent.offset_bytes // CELL, -(-(extent.offset_bytes + extent.length_bytes) // CELL)))
    return found


@pytest.mark.parametrize("name", WRITABLE)
def test_a_disk_is_what_qemu_made_of_it(name: str, raw: Path, tmp_path: Path) -> None:
    path = convert(raw, tmp_path / "disk", WRITABLE[name], *SIZED.get(name, []))
    with opened(path) as foreign:
        assert foreign.format.name == name
        assert (foreign.size_bytes, foreign.bytes_per_sector) == (len(disk()), 512)
        assert foreign.read(0, foreign.size_bytes) == disk()


FINE = {"qcow2": [], "qcow": [], "qed": [], "vmdk": [], "vdi": [], "vhdx": ["-o", "block_size=1M"], "parallels": []}


@pytest.mark.parametrize(("name", "options"), FINE.items())
def test_holes_are_told(name: str, options: list[str], raw: Path, tmp_path: Path) -> None:
    """In cells of 64 KiB, or where the format's blocks are larger, in those."""
    with opened(convert(raw, tmp_path / "disk", WRITABLE[name], *options)) as foreign:
        found = data_cells(foreign)
    blocks = {cell // 16 for cell in DATA_CELLS}
    coarse = {cell for cell in range(48) if cell // 16 in blocks}
    if name in ("vdi", "vhdx", "parallels"):
        assert set(DATA_CELLS) <= found <= coarse
    else:
        assert found == set(DATA_CELLS)


@pytest.mark.parametrize("name", WRITABLE)
def test_an_empty_disk_is_one_hole(name: str, tmp_path: Path) -> None:
    run("qemu-img", "create", "-q", "-f", WRITABLE[name], *SIZED.get(name, []), tmp_path / "disk", str(40 << 30))
    with opened(tmp_path / "disk") as foreign:
        extents = list(foreign.extents(0, foreign.size_bytes))
        assert [(e.offset_bytes, e.length_bytes, e.is_data) for e in extents] == [(0, 40 << 30, False)]
        assert foreign.read((40 << 30) - 4096, 4096) == bytes(4096)


@pytest.mark.parametrize(("name", "make"), [("bochs", bochs), ("cloop", cloop), ("dmg", dmg)])
def test_formats_that_qemu_only_reads_are_read(name: str, make: object, tmp_path: Path) -> None:
    assert callable(make)
    (tmp_path / "disk").write_bytes(make(disk()))
    with opened(tmp_path / "disk") as foreign:
        assert foreign.format.name == name
        assert foreign.read(0, foreign.size_bytes) == disk()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qcow2", ["-c"]),
        ("qcow2", ["-c", "-o", "compression_type=zstd"]),
        ("qcow2", ["-o", "compat=0.10,cluster_size=512"]),
        ("qcow2", ["-o", "extended_l2=on,cluster_size=128k"]),
        ("vhd", ["-o", "subformat=fixed,force_size=on"]),
        ("vhdx", ["-o", "subformat=fixed"]),
        ("vdi", ["-o", "static=on"]),
        ("vmdk", ["-o", "subformat=streamOptimized"]),
        ("vmdk", ["-o", "zeroed_grain=on"]),
    ],
)
def test_variants_are_read(name: str, options: list[str], raw: Path, tmp_path: Path) -> None:
    with opened(convert(raw, tmp_path / "disk", WRITABLE[name], *options)) as foreign:
        assert foreign.read(0, foreign.size_bytes) == disk()


STRANGE = ["a,b=c.qcow2", "nbd:x:1", "json:{}", "fat:rw:x", "-o", " ", "%s", "a'b\"c", "\n", "ü", "\udcff", "x" * 255]


@pytest.mark.parametrize("name", STRANGE, ids=repr)
def test_no_name_of_a_file_means_anything_to_qemu(
    name: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(raw, tmp_path / "disk", "qcow2").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with opened(name) as foreign:
        assert foreign.read(0, foreign.size_bytes) == disk()


def test_a_qcow2_on_a_block_device_is_read_where_it_is_told(raw: Path, tmp_path: Path) -> None:
    path = convert(raw, tmp_path / "disk", "qcow2")
    os.truncate(path, 4 << 20)
    with loop_device(path) as name:
        plain = open_source(name)
        assert not isinstance(plain, ForeignDevice)
        plain.close()
        with opened(name, "qcow2") as foreign:
            assert foreign.read(0, foreign.size_bytes) == disk()


def test_more_threads_than_connections_read_at_once(raw: Path, tmp_path: Path) -> None:
    content = disk()
    with opened(convert(raw, tmp_path / "disk", "qcow2", "-c")) as foreign, ThreadPoolExecutor(12) as pool:

        def read(seed: int) -> bool:
            chance = random.Random(seed)
            for _ in range(40):
                at = chance.randrange(len(content))
                length = min(chance.randrange(300_000), len(content) - at)
                assert foreign.read(at, length) == content[at : at + length]
                assert sum(extent.length_bytes for extent in foreign.extents(at, length)) == length
            return True

        assert all(pool.map(read, range(12)))


def test_a_read_longer_than_one_request_is_whole(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "LARGEST_TRANSFER", 100_000)
    with opened(convert(raw, tmp_path / "disk", "vmdk")) as foreign:
        assert foreign.read(1, foreign.size_bytes - 1) == disk()[1:]


def test_of_very_many_extents_the_short_holes_are_called_data(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_FINE_EXTENTS", 2)
    path = tmp_path / "disk"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "1M")
    writes = [argument for n in range(0, 256, 2) for argument in ("-c", f"write {n * 4096} 4096")]
    run("qemu-io", "-f", "qcow2", *writes, path)
    with opened(path) as foreign:
        extents = list(foreign.extents(0, foreign.size_bytes))
    assert sum(extent.length_bytes for extent in extents) == 1 << 20
    assert [extent.is_data for extent in extents] == [True, False, True]


# What is wrong with a container


def test_what_qemu_says_is_told_in_one_line(raw: Path, tmp_path: Path) -> None:
    path = convert(raw, tmp_path / "disk.qcow2", "qcow2")
    with path.open("r+b") as file:
        file.seek(72)
        file.write(b"\x80")
    with pytest.raises(FormatError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path}: cannot be opened as qcow2: Unsupported qcow2 feature(s): Unknown incompatible feature: "
        "8000000000000000; `--format raw` takes the file as it is"
    )


def test_a_cluster_that_cannot_be_read_is_an_error_and_the_others_are_read(raw: Path, tmp_path: Path) -> None:
    path = convert(raw, tmp_path / "disk.qcow2", "qcow2")
    content = bytearray(path.read_bytes())
    table = int.from_bytes(content[40:48], "big")
    clusters = int.from_bytes(content[table : table + 8], "big") & ((1 << 56) - 1)
    content[clusters : clusters + 8] = ((1 << 63) | 0x30200).to_bytes(8, "big")
    path.write_bytes(content)
    with opened(path) as foreign:
        for _ in range(2):
            with pytest.raises(DeviceError, match=r"reading at byte 0 failed .*Image is corrupt: Cluster "):
                foreign.read(0, 4096)
        assert foreign.read(3 * CELL, CELL) == disk()[3 * CELL : 4 * CELL]


def test_a_container_that_tells_of_more_data_than_it_holds_is_a_bomb(tmp_path: Path) -> None:
    """A VHD of 40 GiB all of whose blocks are the same."""
    path = tmp_path / "disk.vhd"
    run("qemu-img", "create", "-q", "-f", "vpc", path, str(40 << 30))
    run("qemu-io", "-f", "vpc", "-c", "write 0 4096", path)
    content = bytearray(path.read_bytes())
    table = int.from_bytes(content[512 + 16 : 512 + 24], "big")
    entries = int.from_bytes(content[512 + 28 : 512 + 32], "big")
    content[table : table + 4 * entries] = content[table : table + 4] * entries
    path.write_bytes(content)
    with opened(path) as foreign, pytest.raises(FormatError, match=r"tells of more than .* of data"):
        list(foreign.extents(0, foreign.size_bytes))


def test_a_disk_too_large_to_be_looked_through_is_refused(tmp_path: Path) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", tmp_path / "disk", str(1 << 50))
    with pytest.raises(FormatError, match=r"larger than 256\.0 TiB"):
        open_source(tmp_path / "disk")


def test_a_disk_that_a_machine_writes_to_is_refused(raw: Path, tmp_path: Path) -> None:
    path = convert(raw, tmp_path / "disk", "qcow2")
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin and writer.stdout
        writer.stdin.write(b"length\n")
        writer.stdin.flush()
        writer.stdout.readline()
        with pytest.raises(RefusedError, match="is in use; shut down what writes to it first"):
            open_source(path)
        writer.stdin.close()


def test_without_qemu_the_package_to_install_is_named(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = convert(raw, tmp_path / "disk", "qcow2")
    monkeypatch.setattr(program, "_environment", lambda: {"PATH": "/nowhere"})
    with pytest.raises(UsageError, match=r"qemu-nbd is missing.*; install qemu-utils"):
        open_source(path)


def _sample(name: str, options: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "raw").write_bytes(disk())
        return convert(Path(directory) / "raw", Path(directory) / "disk", WRITABLE[name], *options).read_bytes()


HOSTILE = {
    "qcow2": ["-c"],
    "qcow": [],
    "qed": [],
    "vhd": ["-o", "force_size=on"],
    "vhdx": ["-o", "block_size=1M"],
    "vmdk": [],
    "vdi": [],
    "parallels": [],
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("examples", [6, pytest.param(400, marks=pytest.mark.slow)])
def test_a_damaged_container_is_read_or_refused_but_soon(name: str, examples: int, tmp_path: Path) -> None:
    sound = _sample(name, HOSTILE[name])
    used = [at for at in range(0, len(sound), 512) if any(sound[at : at + 512])][:40]
    values = st.one_of(
        st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff"])
    )
    changes = st.lists(st.tuples(st.sampled_from(used), st.integers(0, 511), values), min_size=1, max_size=6)

    @given(changes=changes, cut=st.one_of(st.none(), st.integers(0, len(sound))))
    @settings(max_examples=examples, deadline=10_000, suppress_health_check=list(HealthCheck), derandomize=True)
    def check(changes: list[tuple[int, int, bytes]], cut: int | None) -> None:
        content = bytearray(sound)
        for sector, offset, value in changes:
            content[sector + offset : sector + offset + len(value)] = value
        (tmp_path / "disk").write_bytes(content[:cut])
        try:
            with contextlib.closing(open_source(tmp_path / "disk")) as found:
                for extent in found.extents(0, found.size_bytes):
                    if extent.is_data:
                        found.read(extent.offset_bytes, min(extent.length_bytes, 16 << 20))
        except SqlimageError as problem:
            assert "\n" not in str(problem)

    check()
