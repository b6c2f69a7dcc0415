"""A disk with a volume of every kind: each is taken as it can be, and every one is found by its number."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import sqlimage
from tests.images import kept_bytes, noise, run_tool, sample_volume, tool

MIB = 1 << 20
_KINDS = ("fat", "ntfs", "ext4", "swap", "exfat", "xfs", "squashfs", "unknown")
_SIZES_MIB = (4, 8, 16, 8, 8, 304, 4, 4)
RELEASE = 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n'


def run(*command: object, given: bytes | None = None) -> None:
    subprocess.run([str(word) for word in command], input=given, check=True, capture_output=True)


def make(kind: str, path: Path, size: int) -> None:
    """A volume of one kind."""
    with path.open("wb") as file:
        file.truncate(size)
    if kind == "fat":
        run("mkfs.fat", "-n", "ESP", path)
        run("mcopy", "-i", path, "-", "::boot.txt", given=b"boot")
    elif kind == "ntfs":
        sample_volume(path)
    elif kind == "ext4":
        tree = path.with_suffix(".tree")
        (tree / "etc").mkdir(parents=True)
        (tree / "etc" / "os-release").write_text(RELEASE)
        (tree / "etc" / "hostname").write_text("laboratory\n")
        run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, path)
    elif kind == "swap":
        path.write_bytes(noise("swap", size))
        run("mkswap", "-q", "-L", "swap", path)
    elif kind == "exfat":
        run("mkfs.exfat", "-L", "stick", path)
    elif kind == "xfs":
        run("mkfs.xfs", "-q", "-L", "data", path)
    elif kind == "squashfs":
        tree = path.with_suffix(".tree")
        tree.mkdir()
        (tree / "inside").write_bytes(noise("inside", 100_000))
        run("mksquashfs", tree, path.with_suffix(".small"), "-quiet", "-no-progress")
        path.write_bytes(path.with_suffix(".small").read_bytes().ljust(size, b"\0"))
    else:
        path.write_bytes(noise("unknown", size))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("disk")
    target = place / "disk.img"
    with target.open("wb") as file:
        file.truncate((sum(_SIZES_MIB) + 2) * MIB)
    table = "label: gpt\n" + "".join(
        f"size={size}MiB, name={kind}\n" for kind, size in zip(_KINDS, _SIZES_MIB, strict=True)
    )
    run("sfdisk", "-q", target, given=table.encode())
    start = 1
    for kind, size in zip(_KINDS, _SIZES_MIB, strict=True):
        make(kind, place / kind, size * MIB)
        run("dd", f"if={place / kind}", f"of={target}", "bs=1M", f"seek={start}", "conv=notrunc,sparse")
        start += size
    with target.open("r+b") as file:  # a boot loader between the table and the first partition
        file.seek(40 * 512)
        file.write(noise("loader", 100_000))
    return target


@pytest.fixture(scope="module")
def image(disk: Path) -> Path:
    tool("capture", disk, disk.with_suffix(".sqlimage"))
    return disk.with_suffix(".sqlimage")


def test_each_volume_is_taken_as_it_can_be(image: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        volumes = opened.version().volumes()
    assert [(v.file_system, v.captured_as, v.label) for v in volumes] == [
        ("fat12", "files", "ESP"),
        ("ntfs", "files", "SAMPLE"),
        ("ext4", "files", "root"),
        ("swap", "blocks", "swap"),
        ("exfat", "files", "stick"),
        ("xfs", "blocks", "data"),
        ("squashfs", "raw", None),
        (None, "raw", None),
    ]
    assert [v.partition_name for v in volumes] == list(_KINDS)
    assert [v.number for v in volumes] == list(range(8))


def test_the_disk_comes_back_but_for_what_nobody_needs(disk: Path, image: Path, tmp_path: Path) -> None:
    tool("restore", image, tmp_path / "out.img")
    out, source = (tmp_path / "out.img").read_bytes(), bytearray(disk.read_bytes())
    swap = (1 + sum(_SIZES_MIB[:3])) * MIB
    assert any(source[swap + 4096 : swap + 8 * MIB])
    source[swap + 4096 : swap + 8 * MIB] = bytes(8 * MIB - 4096)
    assert out == kept_bytes(image, bytes(source))
    assert out[:MIB] == source[:MIB], "table and boot loader"
    run("sfdisk", "--verify", "-q", tmp_path / "out.img")


@pytest.mark.parametrize(
    ("number", "check"),
    [(0, ("fsck.fat", "-n")), (2, ("e2fsck", "-fn")), (3, ("blkid", "-p")), (4, ("fsck.exfat", "-n"))],
)
def test_one_volume_goes_into_a_file_where_its_own_checker_finds_it_clean(
    image: Path, tmp_path: Path, number: int, check: tuple[str, ...]
) -> None:
    tool("restore", image, tmp_path / "volume", "--volume", number)
    assert (tmp_path / "volume").stat().st_size == _SIZES_MIB[number] * MIB
    run(*check, tmp_path / "volume")


def test_one_volume_goes_into_a_partition_and_touches_nothing_else(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "other.img"
    with target.open("wb") as file:
        file.truncate(64 * MIB)
    run("sfdisk", "-q", target, given=b"label: dos\nstart=2048, size=32768\nstart=40960\n")
    before = target.read_bytes()
    tool("restore", image, target, "--volume", 2, "--partition", 2)
    after = target.read_bytes()
    assert after[: 40960 * 512] == before[: 40960 * 512]
    assert after[40960 * 512 + 16 * MIB :] == before[40960 * 512 + 16 * MIB :]
    run("dd", f"if={target}", f"of={tmp_path / 'v'}", "bs=512", "skip=40960", "count=32768")
    run("e2fsck", "-fn", tmp_path / "v")


def test_files_of_every_volume_are_reached_by_its_number(image: Path, tmp_path: Path) -> None:
    assert tool("cat", image, "/0/boot.txt") == "boot"
    assert tool("cat", image, "/boot.txt", "--volume", 0) == "boot"
    assert "haystack.txt" in tool("ls", image, "/1/Users/joe/Documents")
    assert tool("cat", image, "/2/etc/os-release") == RELEASE
    assert "/2/etc/hostname" in tool("ls", image, "-r", "--volume", 2)
    assert tool("extent", image, "/0/boot.txt", "--json") != "[]"
    tool("get", image, "/", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [str(n) for n in range(8)]
    assert (tmp_path / "all" / "2" / "etc" / "hostname").read_text() == "laboratory\n"
    listed = tool("ls", image, "-r").splitlines()
    assert any(line.endswith("/2/etc/hostname") for line in listed)
    assert sum(line.endswith(f"/{n}") for line in listed for n in range(8)) >= 8, "those without files, too"
    assert run_tool("ls", image, "/" + "9" * 5000).returncode == 3
    done = run_tool("ls", image, "--volume", 9)
    assert (done.returncode, "no volume 9" in done.stderr) == (3, True)


def test_the_system_on_one_of_the_volumes_is_how_the_image_is_found(image: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        properties = opened.version().properties()
        volumes = opened.version().volumes()
    assert (properties["os.name"], properties["os.version"]) == ("Debian GNU/Linux", 12)
    assert properties["host.name"] == "laboratory"
    assert (volumes[2].os_name, volumes[2].os_version) == ("Debian GNU/Linux", "12")
    found = tool("find", image.parent, "--where", "os.name LIKE 'Debian%' AND os.version = 12")
    assert str(image) in found
