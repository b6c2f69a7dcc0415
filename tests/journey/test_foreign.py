"""Disks in other formats are captured and restored like raw ones: the same bytes and holes, whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sqlimage
from sqlimage.media.foreign.source import open_source
from tests.conftest import images_directory, run
from tests.images import kept_bytes, noise, run_tool, sample_volume, tool
from tests.media.foreign import SIZED, WRITABLE, children, convert, disk, gone

SUFFIXES = {
    "qcow2": "qcow2", "qcow": "qcow", "qed": "qed", "vhd": "vhd", "vhdx": "VHDX", "vmdk": "vmdk", "vdi": "vdi",
    "parallels": "hds",
}  # fmt: skip
IMAGES = images_directory()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_volume(tmp_path_factory.mktemp("sample") / "sample.ntfs")


@pytest.fixture(scope="module")
def image(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "i.sqlimage"
    sqlimage.capture(sample, path)
    return path


def restored(image: Path, target: Path, **options: object) -> sqlimage.RestoreReport:
    with sqlimage.open(str(image)) as opened:
        return sqlimage.restore(opened.version(), target, **options)  # type: ignore[arg-type]


def rows(image: Path) -> tuple[object, ...]:
    """What the image tells of the files, and where they lie."""
    with sqlimage.open(str(image)) as opened:
        query = opened.database.query
        return (
            list(query("SELECT path, kind, bytes, digest FROM file ORDER BY path")),
            list(query("SELECT path, start_cluster, end_cluster FROM owner ORDER BY 2")),
            [tuple(run) for run in opened.version().allocated()],
        )


# From a container into an image


@pytest.mark.parametrize("name", WRITABLE)
def test_a_volume_in_a_container_is_captured_as_from_a_raw_file(
    name: str, sample: Path, image: Path, tmp_path: Path
) -> None:
    source = convert(sample, tmp_path / "disk", WRITABLE[name], *SIZED.get(name, []))
    report = sqlimage.capture(source, tmp_path / "i.sqlimage")
    assert report.warnings == (f"{source} is read as {name}",)
    assert report.volumes[0].captured_as == "files"
    restored(tmp_path / "i.sqlimage", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == kept_bytes(image, sample.read_bytes())
    assert rows(tmp_path / "i.sqlimage") == rows(image)
    with sqlimage.open(str(tmp_path / "i.sqlimage")) as opened:
        assert opened.version().control.source == f"{source} ({name})"


def test_what_is_no_volume_is_captured_without_its_holes(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(disk())
    source = convert(tmp_path / "raw", tmp_path / "disk.qcow2", "qcow2")
    report = sqlimage.capture(source, tmp_path / "i.sqlimage")
    assert report.zero_bytes < 128 << 10, "holes are not read"
    restored(tmp_path / "i.sqlimage", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == disk()


def test_a_partition_of_a_disk_in_a_container_is_captured(sample: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(1 << 20) + sample.read_bytes() + bytes(1 << 20))
    subprocess.run(["sfdisk", "-q", raw], input=b"label: dos\nstart=2048, size=16384, type=7\n", check=True)
    source = convert(raw, tmp_path / "disk.vmdk", "vmdk", "-o", "subformat=streamOptimized")
    whole = sqlimage.capture(source, tmp_path / "whole.sqlimage")
    assert [volume.file_system for volume in whole.volumes] == ["ntfs"]
    sqlimage.capture(source, tmp_path / "part.sqlimage", partition=1)
    restored(tmp_path / "part.sqlimage", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == kept_bytes(tmp_path / "part.sqlimage", sample.read_bytes())


def test_a_second_capture_holds_only_what_differs_whatever_the_format(
    sample: Path, image: Path, tmp_path: Path
) -> None:
    source = convert(sample, tmp_path / "disk.vhdx", "vhdx")
    child = sqlimage.capture(source, tmp_path / "child.sqlimage", parent=image)
    assert child.stored_bytes == 0
    assert not any((child.files or {}).values())


def test_the_format_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(disk())
    source = convert(tmp_path / "raw", tmp_path / "disk", "qcow2")
    for name, wanted in (("raw", source.read_bytes()), ("qcow2", disk())):
        said = run_tool("capture", source, tmp_path / f"{name}.sqlimage", "--format", name)
        assert ("is read as" in said.stderr) == (name == "qcow2")
        restored(tmp_path / f"{name}.sqlimage", tmp_path / "copy", force=True)
        assert (tmp_path / "copy").read_bytes() == wanted
    assert "there are: raw, qcow2, " in run_tool("capture", source, tmp_path / "x", "--format", "iso").stderr
    assert "is not a sound vdi file" in run_tool("capture", source, tmp_path / "x", "--format", "vdi").stderr
    assert not (tmp_path / "x").exists()


def test_a_device_has_no_format() -> None:
    with pytest.raises(sqlimage.UsageError, match="a device has no format"):
        sqlimage.capture(sqlimage.MemoryDevice(bytes(4096)), "/nowhere", source_format="qcow2")


def test_a_raw_disk_whose_guest_wrote_a_container_to_its_beginning_shows_no_other_file(tmp_path: Path) -> None:
    """What the guest wrote names a file of the host."""
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "secret", "-F", "raw", tmp_path / "header")
    (tmp_path / "disk").write_bytes((tmp_path / "header").read_bytes().ljust(1 << 20, b"\0"))
    assert "needs its parent" in run_tool("capture", tmp_path / "disk", tmp_path / "i.sqlimage").stderr
    tool("capture", tmp_path / "disk", tmp_path / "i.sqlimage", "--format", "raw")
    assert b"secretsecret" not in (tmp_path / "i.sqlimage").read_bytes()


def container_rows() -> list[dict[str, str]]:
    if IMAGES is None:
        return []
    with (IMAGES / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if "container/" in row["path"]]


REFUSED = {
    "EWF: not a supported container; raw fallback or clear error": "is an EnCase (EWF) file",
    "child without its parent: must refuse clearly": "needs its parent",
    "AFL-found qemu crash input": "is not a sound vmdk file",
}


@pytest.mark.skipif(IMAGES is None, reason="the collection of real images is not at hand (SQLIMAGE_IMAGES)")
@pytest.mark.parametrize("row", container_rows(), ids=lambda row: row["path"].removesuffix(".zst"))
def test_real_containers_are_read_as_others_read_them(row: dict[str, str], tmp_path: Path) -> None:
    assert IMAGES
    source = tmp_path / Path(row["path"]).name.removesuffix(".zst")
    run("zstd", "-dqf", "--sparse", "--long=27", IMAGES / row["path"], "-o", source)
    if row["note"] in REFUSED:
        with pytest.raises(sqlimage.SqlimageError) as caught:
            sqlimage.capture(source, tmp_path / "i.sqlimage", preset="fast")
        assert REFUSED[row["note"]] in str(caught.value)
        return
    report = sqlimage.capture(source, tmp_path / "i.sqlimage", preset="fast")
    assert report.warnings[0].startswith(f"{source} is read as ")
    assert row["virtual_size"] in ("", str(report.medium_bytes))
    restored(tmp_path / "i.sqlimage", tmp_path / "copy.qcow2")
    assert (tmp_path / "copy.qcow2").stat().st_size < report.allocated_bytes + (16 << 20)
    driver = next(WRITABLE[name] for name in WRITABLE if report.warnings[0].endswith(f"as {name}"))
    if all(volume.captured_as == "raw" for volume in report.volumes) and report.medium_bytes < 1 << 30:
        run("qemu-img", "compare", "-f", driver, "-F", "qcow2", source, tmp_path / "copy.qcow2")
    if not row["raw_sha256"]:
        return
    digest = hashlib.sha256()
    device = open_source(source)
    for at in range(0, device.size_bytes, 1 << 20):
        digest.update(device.read(at, min(1 << 20, device.size_bytes - at)))
    device.close()
    assert digest.hexdigest() == row["raw_sha256"]
    if row["facts"] and not all(volume.captured_as == "raw" for volume in report.volumes):
        facts = json.loads((IMAGES / row["facts"]).read_text())
        wanted = {file[2] for system in facts["filesystems"] for file in system["files"] if file[2]}
        with sqlimage.open(str(tmp_path / "i.sqlimage")) as opened:
            found = opened.database.query("SELECT digest FROM file WHERE digest NOT NULL")
            assert wanted <= {digest.hex() for (digest,) in found} | {hashlib.sha256().hexdigest()}


# From an image into a container


@pytest.mark.parametrize("name", WRITABLE)
def test_the_end_of_the_name_is_the_format(name: str, image: Path, tmp_path: Path) -> None:
    target = tmp_path / f"out.{SUFFIXES[name]}"
    report = restored(image, target)
    assert (report.format, report.padding_bytes) == (name, 0)
    restored(image, tmp_path / "raw")
    run("qemu-img", "compare", "-f", "raw", "-F", WRITABLE[name], tmp_path / "raw", target)
    if name not in ("qcow", "vhd"):  # those QEMU cannot check
        run("qemu-img", "check", "-f", WRITABLE[name], target)
    holes = json.loads(run("qemu-img", "map", "--output=json", "-f", WRITABLE[name], target).stdout)
    if name not in ("vhdx", "vhd"):  # of which QEMU tells none, or whose blocks are all in use
        assert any(extent["zero"] for extent in holes)
    assert target.stat().st_blocks * 512 < 8 << 20
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["raw", target.name])


def test_a_container_that_was_restored_is_captured_as_the_same_again(image: Path, tmp_path: Path) -> None:
    for name in WRITABLE:
        target = tmp_path / f"out.{SUFFIXES[name]}"
        restored(image, target)
        child = sqlimage.capture(target, tmp_path / f"{name}.sqlimage", parent=image)
        assert child.stored_bytes == 0
        assert not any((child.files or {}).values())


def test_the_format_of_a_new_file_can_be_told(image: Path, tmp_path: Path) -> None:
    said = tool("restore", image, tmp_path / "disk.qcow2", "--format", "raw")
    assert "(raw): 8.0 MiB" in said
    assert (tmp_path / "disk.qcow2").read_bytes()[3:7] == b"NTFS"
    report = json.loads(tool("restore", image, tmp_path / "disk.img", "--format", "vpc", "--json"))
    assert report["format"] == "vhd"
    assert (tmp_path / "disk.img").read_bytes().startswith(b"conectix")
    for name, said in (("dmg", "dmg can only be read"), ("zip", "zip: no such format")):
        assert said in run_tool("restore", image, tmp_path / "x", "--format", name).stderr
    assert not (tmp_path / "x").exists()


def test_an_existing_file_is_replaced_only_by_force_and_only_when_all_is_done(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.vhdx"
    target.write_bytes(b"precious")
    assert run_tool("restore", image, target).returncode == 4
    assert target.read_bytes() == b"precious"
    with sqlimage.open(str(image)) as opened, pytest.raises(ZeroDivisionError):
        sqlimage.restore(opened.version(), target, force=True, progress=lambda *_: 1 // 0)  # type: ignore[arg-type]
    assert target.read_bytes() == b"precious"
    tool("restore", image, target, "--force")
    assert target.read_bytes().startswith(b"vhdxfile")
    assert list(tmp_path.iterdir()) == [target]


def test_a_container_is_a_new_file_not_a_partition_and_not_a_device(image: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.vmdk").write_bytes(bytes(16 << 20))
    with pytest.raises(sqlimage.RefusedError, match=r"a partition holds no vmdk file; restore to a new file, or as"):
        restored(image, tmp_path / "disk.vmdk", partition=1)
    if os.geteuid() == 0:
        loop = run("losetup", "--find", "--show", tmp_path / "disk.vmdk").stdout.decode().strip()
        try:
            with pytest.raises(sqlimage.RefusedError, match="a device holds no vdi file"):
                restored(image, Path(loop), destination_format="vdi")
        finally:
            run("losetup", "--detach", loop)


def test_zeros_that_fill_the_last_sector_are_told(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(noise(1, 5000))
    sqlimage.capture(tmp_path / "raw", tmp_path / "i.sqlimage")
    done = run_tool("restore", tmp_path / "i.sqlimage", tmp_path / "out.qcow2")
    assert "note: 120 zeros follow the medium: qcow2 holds whole sectors only" in done.stderr
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", tmp_path / "out.qcow2", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == noise(1, 5000) + bytes(120)


def test_a_version_too_large_for_the_format_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "raw").open("wb") as file:
        file.truncate(3 << 40)
    sqlimage.capture(tmp_path / "raw", tmp_path / "i.sqlimage")
    with pytest.raises(sqlimage.RefusedError, match="cannot be made as vhd"):
        restored(tmp_path / "i.sqlimage", tmp_path / "out.vhd")
    restored(tmp_path / "i.sqlimage", tmp_path / "out.vhdx")
    assert (tmp_path / "out.vhdx").stat().st_blocks * 512 < 32 << 20


# Killed

KILLED = """
import sys, time
import sqlimage

def stop(done, total):
    print("ready", flush=True)
    time.sleep(60)

what, source, target = sys.argv[1:]
if what == "capture":
    sqlimage.capture(source, target, progress=stop)
else:
    with sqlimage.open(source) as image:
        sqlimage.restore(image.version(), target, progress=stop)
"""


@pytest.mark.parametrize("what", ["capture", "restore"])
def test_kill_9_leaves_no_program_and_nothing_under_the_name(
    what: str, sample: Path, image: Path, tmp_path: Path
) -> None:
    source = image if what == "restore" else convert(sample, tmp_path / "source", "qcow2")
    place = tmp_path / "place"
    place.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, what, source, place / "out.qcow2"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        programs = children(process.pid)
        assert len(programs) == 2
        process.kill()
    assert gone(programs)
    assert all(entry.name.startswith(".sqlimage-") for entry in place.iterdir())
