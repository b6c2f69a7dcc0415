"""An ext4 volume that the kernel filled: captured by its files, restored, and its tree taken out as it is."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sqlimage
from tests.images import noise, tool


@contextmanager
def mounted(volume: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", volume, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ext")
    target = place / "v.img"
    with target.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", "data", target], check=True)
    with mounted(target, place / "m") as top:
        (top / "bin").mkdir()
        (top / "bin" / "tool").write_bytes(noise("tool", 100_000))
        (top / "bin" / "tool").chmod(0o4755)
        (top / "home").mkdir()
        (top / "home" / "diary").write_bytes(b"dear diary")
        (top / "home").chmod(0o700)
        os.utime(top / "home", (1_000_000_000, 1_000_000_000))
        (top / "private").write_bytes(b"secret")
        (top / "private").chmod(0o600)
        os.symlink("bin/tool", top / "short")
        os.symlink("/etc/" + "x" * 200, top / "long")
        os.symlink("/etc/passwd", top / "bin" / "outside")
        os.mkfifo(top / "pipe")
        (top / "stale").write_bytes(noise("stale", 4 << 20))
        os.sync()
        os.unlink(top / "stale")
        os.sync()
        with (top / "reserved").open("wb") as file:
            file.write(b"written")
            file.flush()
            os.posix_fallocate(file.fileno(), 0, 3 << 20)
    return target


@pytest.fixture(scope="module")
def image(volume: Path) -> Path:
    target = volume.with_suffix(".sqlimage")
    report = sqlimage.capture(volume, target)
    assert (report.volumes[0].captured_as, report.volumes[0].label) == ("files", "data")
    return target


def tree(top: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Mode and bytes, or target, of everything below a directory."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(top.rglob("*")):
        mode = path.lstat().st_mode
        content: bytes | str | None = None
        if stat.S_ISLNK(mode):
            content = os.readlink(path)
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(top))] = (mode, content)
    return found


def test_the_restored_volume_is_clean_and_holds_the_same_tree(volume: Path, image: Path, tmp_path: Path) -> None:
    tool("restore", image, tmp_path / "out.img")
    subprocess.run(["e2fsck", "-fn", tmp_path / "out.img"], check=True, capture_output=True)
    with mounted(tmp_path / "out.img", tmp_path / "m") as top:
        restored = tree(top)
    with mounted(volume, tmp_path / "m") as top:
        assert restored == tree(top)


def test_what_was_never_written_is_left_out_and_reads_as_zeros(image: Path, tmp_path: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        version = opened.version()
        with version.content("/reserved") as content:
            data = b"".join(sqlimage.read_all(content))
        places = version.extents("/reserved")
        backed = opened.database.rows("SELECT start_cluster, end_cluster FROM cluster_map WHERE data NOT NULL")
    assert data == b"written".ljust(3 << 20, b"\0")
    clusters = {n for run in places for n in range(run.start_cluster, run.start_cluster + run.clusters)}
    assert len(clusters) == (3 << 20) // 1024, "they are the file's all the same"
    assert len({n for start, end in backed for n in range(start, end + 1)} & clusters) == 1


def test_a_tree_comes_out_with_its_links_and_permissions_and_nothing_is_written_through_a_link(
    image: Path, tmp_path: Path
) -> None:
    said = tool("get", image, "/", tmp_path / "out")
    assert "3 symbolic links" in said
    out = tmp_path / "out"
    assert os.readlink(out / "short") == "bin/tool"
    assert os.readlink(out / "long") == "/etc/" + "x" * 200
    assert os.readlink(out / "bin" / "outside") == "/etc/passwd"
    assert (out / "bin" / "tool").read_bytes() == noise("tool", 100_000)
    assert stat.S_IMODE((out / "bin" / "tool").stat().st_mode) == 0o755, "but for set-user-ID"
    assert stat.S_IMODE((out / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "home").stat().st_mode) == 0o700, "no wider than it was"
    assert (out / "home").stat().st_mtime == 1_000_000_000
    assert not (out / "pipe").exists()
    assert not (out / "lost+found" / "x").exists()


def test_a_single_file_or_link_comes_out_as_in_a_tree(image: Path, tmp_path: Path) -> None:
    tool("get", image, "/bin/tool", tmp_path / "tool")
    assert stat.S_IMODE((tmp_path / "tool").stat().st_mode) == 0o755
    tool("get", image, "/short", tmp_path / "short")
    assert os.readlink(tmp_path / "short") == "bin/tool"
    tool("get", image, "/home", tmp_path / "home")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    tool("get", image, "/pipe", tmp_path / "pipe", code=2)
    assert not os.path.lexists(tmp_path / "pipe")


def test_where_a_file_lies_is_what_debugfs_says(volume: Path, image: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        runs = opened.version().extents("/bin/tool")
        assert opened.version().control.bytes_per_cluster == 1024, "as mke2fs chooses for a small volume"
    said = subprocess.run(["debugfs", "-R", "blocks /bin/tool", volume], capture_output=True, text=True, check=True)
    blocks = [int(word) for word in said.stdout.split()]
    ours = [block for run in runs for block in range(run.start_cluster, run.start_cluster + run.clusters)]
    assert blocks
    assert ours == blocks


def test_the_runs_of_a_file_are_a_command(image: Path) -> None:
    assert "start cluster" in tool("extent", image, "/bin/tool")
    assert tool("extent", image, "/bin/tool", "--json") == tool("extent", image, "bin/tool", "--volume", 0, "--json")
    assert tool("extent", image, "/short") == tool("extent", image, "/pipe"), "what needs no cluster has none"
    tool("extent", image, "/bin/tool", "--volume", 7, code=3)


def test_a_swap_file_is_left_out_but_for_its_header(volume: Path, tmp_path: Path) -> None:
    copy = tmp_path / "v.img"
    subprocess.run(["cp", volume, copy], check=True)
    with mounted(copy, tmp_path / "m") as top:
        for name in ("swapfile", "elsewhere", "not-swap.img"):
            (top / name).write_bytes(noise(name, 2 << 20))
            (top / name).chmod(0o600)
        for name in ("swapfile", "elsewhere"):
            subprocess.run(["mkswap", "-q", top / name], check=True)
        (top / "etc").mkdir()
        (top / "etc" / "fstab").write_text("# swap\n/elsewhere none swap sw 0 0\n/dev/sda1 / ext4 defaults 0 1\n")
    report = sqlimage.capture(copy, tmp_path / "i.sqlimage")
    assert report.volumes[0].left_out == ("/swapfile", "/elsewhere", "extents that were never written")
    tool("restore", tmp_path / "i.sqlimage", tmp_path / "out.img")
    with mounted(tmp_path / "out.img", tmp_path / "m") as top:
        for name in ("swapfile", "elsewhere"):
            assert b"SWAPSPACE2" in (top / name).read_bytes()[:4096]
            assert not any((top / name).read_bytes()[4096:])
            told = subprocess.run(["blkid", "-p", top / name], capture_output=True, text=True, check=True)
            assert 'TYPE="swap"' in told.stdout
        assert (top / "not-swap.img").read_bytes() == noise("not-swap.img", 2 << 20)
    sqlimage.capture(copy, tmp_path / "all.sqlimage", keep_page_files=True)
    with sqlimage.open(str(tmp_path / "all.sqlimage")) as opened, opened.version().content("/swapfile") as content:
        assert content.read(4096, 1 << 20) == noise("swapfile", 2 << 20)[4096 : 4096 + (1 << 20)]
