"""Which format a file is in is decided from its own bytes, and what a file names is not opened."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import DeviceError, FormatError, RefusedError, UsageError
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign import formats
from sqlimage.media.foreign.probe import look, probe
from sqlimage.media.foreign.source import open_source
from tests.conftest import run
from tests.media.foreign import SIZED, WRITABLE, bochs, cloop, convert, disk, dmg


def format_of(path: Path) -> str | None:
    file = FileDevice(path)
    try:
        found = probe(file)
        if found is not None:
            look(file, found).close()
        return found.name if found else None
    finally:
        file.close()


def made(tmp_path: Path, name: str, *options: str) -> Path:
    raw = tmp_path / "raw"
    raw.write_bytes(disk())
    return convert(raw, tmp_path / "disk", WRITABLE[name], *SIZED.get(name, []), *options)


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        file.write(data)
    return path


@pytest.mark.parametrize("name", WRITABLE)
def test_what_qemu_writes_is_recognised(name: str, tmp_path: Path) -> None:
    assert format_of(made(tmp_path, name)) == name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qcow2", ["-o", "compat=0.10"]),
        ("qcow2", ["-c", "-o", "compression_type=zstd"]),
        ("qcow2", ["-o", "extended_l2=on,cluster_size=128k"]),
        ("vhd", ["-o", "subformat=fixed"]),
        ("vhdx", ["-o", "subformat=fixed"]),
        ("vmdk", ["-o", "subformat=streamOptimized"]),
        ("vmdk", ["-o", "subformat=monolithicFlat"]),
        ("vmdk", ["-o", "subformat=twoGbMaxExtentSparse"]),
        ("vdi", ["-o", "static=on"]),
    ],
)
def test_their_variants_are_recognised(name: str, options: list[str], tmp_path: Path) -> None:
    assert format_of(made(tmp_path, name, *options)) == name


def test_what_qemu_only_reads_is_recognised(tmp_path: Path) -> None:
    for name, make in (("bochs", bochs), ("cloop", cloop), ("dmg", dmg)):
        (tmp_path / name).write_bytes(make(disk()))
        assert format_of(tmp_path / name) == name


@pytest.mark.parametrize("name", WRITABLE)
def test_the_name_of_a_file_says_nothing_about_its_format(name: str, tmp_path: Path) -> None:
    (tmp_path / f"disk.{name}").write_bytes(disk())
    assert format_of(tmp_path / f"disk.{name}") is None


@given(st.binary(max_size=600))
@settings(max_examples=100, deadline=None)
def test_noise_is_a_raw_disk(noise: bytes) -> None:
    fd = os.memfd_create("noise")
    try:
        os.write(fd, b"\0" + noise)  # no signature begins so, and hypothesis knows them all
        file = FileDevice(f"/proc/self/fd/{fd}")
        assert probe(file) is None
        file.close()
    finally:
        os.close(fd)


def test_a_footer_of_a_fixed_vhd_in_the_last_sector_of_a_disk_counts_only_where_it_tells_the_size(
    tmp_path: Path,
) -> None:
    path = made(tmp_path, "vhd", "-o", "subformat=fixed,force_size=on")
    footer = path.read_bytes()[-512:]
    assert footer.startswith(b"conectix")
    (tmp_path / "other").write_bytes(bytes(1 << 20) + footer)
    assert format_of(tmp_path / "other") is None
    assert format_of(patched(path, -1, b"\1")) is None


@pytest.mark.parametrize(
    ("signature", "tool"),
    [
        (b"EVF\x09\r\n\xff\x00", "ewfexport"),
        (b"EVF2\r\n\x81\x00", "ewfexport"),
        (b"LVF\x09\r\n\xff\x00", "ewfexport"),
        (b"AFF10\r\n\0", "affconvert"),
    ],
)
def test_evidence_files_are_refused_by_name_unless_they_are_to_be_taken_as_they_are(
    signature: bytes, tool: str, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(signature + bytes(4096))
    with pytest.raises(RefusedError, match=f"{tool}.*--format raw"):
        open_source(tmp_path / "disk")
    device = open_source(tmp_path / "disk", "raw")
    assert device.read(0, 8) == signature
    device.close()


def test_raw_takes_a_container_as_it_is(tmp_path: Path) -> None:
    path = made(tmp_path, "qcow2")
    device = open_source(path, "raw")
    assert device.read(0, device.size_bytes) == path.read_bytes()
    device.close()


def test_a_format_that_is_told_is_not_guessed(tmp_path: Path) -> None:
    path = made(tmp_path, "qcow2")
    for name in {*WRITABLE, "bochs", "cloop", "dmg"} - {"qcow2"}:
        with pytest.raises(FormatError, match="is not a sound") as caught:
            open_source(path, name)
        assert "--format" not in str(caught.value)
    with pytest.raises(UsageError, match="qcow3: no such format; there are: raw, qcow2, "):
        open_source(path, "qcow3")


def test_the_names_of_qemu_will_do() -> None:
    assert formats.by_name("vpc") is formats.by_name("VHD")
    assert formats.by_name("raw") is None


def test_a_file_that_is_to_be_made_gets_the_format_of_its_name_or_the_one_that_is_told() -> None:
    assert formats.for_destination("x.VHDX", None) is formats.by_name("vhdx")
    assert formats.for_destination("x.img", None) is None
    assert formats.for_destination("vhdx", None) is None
    assert formats.for_destination("x.vhdx", "raw") is None
    for name in WRITABLE:
        assert getattr(formats.for_destination("x", name), "name", None) == name
    with pytest.raises(UsageError, match="dmg can only be read"):
        formats.for_destination("x", "dmg")


# Files that need others

SECRET = b"nobody may read this\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET.ljust(1 << 20, b"."))
    return tmp_path / "secret"


@pytest.mark.parametrize("name", ["qcow2", "qcow", "qed", "vmdk"])
@pytest.mark.parametrize("told", [False, True])
def test_a_child_is_refused_and_its_parent_is_not_opened(name: str, told: bool, tmp_path: Path) -> None:
    parent = made(tmp_path, name).rename(tmp_path / "parent")
    child = tmp_path / "child"
    run("qemu-img", "create", "-q", "-f", WRITABLE[name], "-b", parent, "-F", WRITABLE[name], child)
    with pytest.raises(RefusedError, match=r"needs its parent.*flatten it first with `qemu-img convert`"):
        open_source(child, name if told else None)


@pytest.mark.parametrize(
    "named", ["/etc/passwd", "json:{'driver':'file','filename':'/etc/passwd'}", "nbd:127.0.0.1:10809", "fat:rw:/etc"]
)
def test_a_qcow2_that_names_any_backing_file_is_refused_with_the_name(named: str, tmp_path: Path) -> None:
    path = made(tmp_path, "qcow2")
    # the header's own extensions end where the name begins
    patched(path, 512, named.encode())
    patched(path, 8, struct.pack(">QI", 512, len(named)))
    with pytest.raises(RefusedError) as caught:
        open_source(path)
    assert f"({named})" in str(caught.value)


def test_a_qcow2_that_keeps_its_data_in_another_file_is_refused(secret: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", path, "1M")
    os.replace(secret, tmp_path / "data")
    with pytest.raises(RefusedError, match="keeps its data in another one"):
        open_source(path)


def test_without_our_own_look_qemu_would_show_the_other_file(secret: Path, tmp_path: Path) -> None:
    """What the refusals above are for."""
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes().startswith(SECRET)


@pytest.mark.parametrize(
    ("name", "offset", "data"),
    [
        pytest.param("vhd", 60, struct.pack(">I", 4), id="a differencing VHD"),
        pytest.param("vdi", 76, struct.pack("<I", 4), id="a differencing VDI"),
        pytest.param("vdi", 424, b"\1" * 16, id="a VDI that names a parent"),
    ],
)
def test_a_differencing_disk_is_refused(name: str, offset: int, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="needs its parent"):
        open_source(patched(made(tmp_path, name), offset, data))


def test_a_differencing_vhdx_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "vhdx")
    content = path.read_bytes()
    table = content.index(b"metadata")
    entry = content.index(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"))
    place = table + int.from_bytes(content[entry + 16 : entry + 20], "little")
    with pytest.raises(RefusedError, match="needs its parent"):
        open_source(patched(path, place + 4, b"\2"))


def test_an_undoable_bochs_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bochs(disk()).replace(b"Growing\0", b"Undoable", 1))
    with pytest.raises(RefusedError, match="needs its parent"):
        open_source(tmp_path / "disk")


@pytest.mark.parametrize("method", [1, 2])
def test_an_encrypted_qcow2_is_refused(method: int, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is encrypted"):
        open_source(patched(made(tmp_path, "qcow2"), 32, struct.pack(">I", method)))


def test_an_encrypted_qcow_is_refused(tmp_path: Path) -> None:
    path, secret = tmp_path / "disk", ["--object", "secret,id=key,data=secret"]
    run(
        "qemu-img", "create", "-q", *secret, "-f", "qcow", "-o", "encrypt.format=aes,encrypt.key-secret=key", path, "1M"
    )
    with pytest.raises(RefusedError, match="is encrypted"):
        open_source(path)


# Files that were cut


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, []) for name in WRITABLE if name not in ("qed", "vhd")),
        ("qcow2", ["-c"]),
        ("qcow", ["-c"]),
        ("vdi", ["-o", "static=on"]),
        ("vmdk", ["-o", "subformat=streamOptimized"]),
    ],
)
def test_a_file_that_was_cut_does_not_read_as_if_it_held_zeros(name: str, options: list[str], tmp_path: Path) -> None:
    path = made(tmp_path, name, *options)
    size, refused = path.stat().st_size, 0
    for cut in (1000, size // 3, size // 2, size - 5000):
        os.truncate(path, size - cut)
        try:
            device = open_source(path)
        except FormatError:
            refused += 1
            continue
        try:
            assert device.read(0, device.size_bytes) == disk()  # what was cut is not the disk's
        except DeviceError:
            refused += 1
        device.close()
    assert refused >= 3


def test_a_qcow2_of_a_disk_that_ends_within_a_cluster_may_end_there_too(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(disk()[: (9 << 16) + 1024])
    path = convert(tmp_path / "raw", tmp_path / "disk", "qcow2")
    end = path.stat().st_size // 65536 * 65536 + 1024
    os.truncate(path, end)
    assert format_of(path) == "qcow2"


def test_vhdx_tables_that_contradict_themselves_are_told_by_name(tmp_path: Path) -> None:
    path = made(tmp_path, "vhdx")
    for offset, data, said in (
        (192 << 10, b"XXXX", "region table: is missing"),
        ((192 << 10) + 8, b"\xff\xff\xff\xff", "region table: is missing"),
        ((192 << 10) + 16 + 16, b"\xff" * 8, "beyond the file"),
    ):
        before = path.read_bytes()
        with pytest.raises(FormatError, match=said):
            open_source(patched(path, offset, data))
        path.write_bytes(before)
