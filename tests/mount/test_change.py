"""Single changes to a volume: what comes is there, what must not be touched is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from sqlimage.errors import DeviceError, NotFoundError, RefusedError, SqlimageError, UsageError
from sqlimage.filesystem.contract import read_all
from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.file import WritableFileDevice
from sqlimage.mount import inside, records
from sqlimage.mount.change import edit_volume, make_directory, move, put, remove
from sqlimage.mount.inside import ChangeReport, parts_of
from sqlimage.mount.mountpoint import mounts
from sqlimage.mount.stack import Way, mount_device_file
from tests.conftest import CHECKOUT, run
from tests.images import noise
from tests.mount.volumes import WatchedDevice, make_volume

KINDS = ("ntfs", "fat", "exfat", "ext")
WITH_LINKS = ("ntfs", "ext")
TIME_NS = 981_173_106_000_000_000  # an even second: FAT has no others
CHECKS = {
    "ntfs": ("ntfsfix", "-n"),
    "fat": ("fsck.fat", "-n"),
    "exfat": ("fsck.exfat", "-n"),
    "ext": ("e2fsck", "-f", "-n"),
}


class Volume:
    """A volume in a file, its device, and what its own tools find in it."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = make_volume(path, kind)
        self.device = WritableFileDevice(self.path)

    def read(self, path: str) -> bytes:
        """A file's bytes, by our reader or by debugfs; of exFAT, by its driver."""
        if self.kind == "ext":
            return run("debugfs", "-R", f'cat "{path}"', self.path).stdout
        if self.kind == "exfat":
            with self._mounted() as directory:
                return Path(directory + path).read_bytes()
        file_system = open_file_system(self.device)
        assert file_system is not None
        entries = file_system.scan().entries
        return b"".join(read_all(file_system.open(int(entries.record[entries.path.index(path)]))))

    def paths(self) -> set[str]:
        """What was put there; ``name@`` for a link."""
        with self._mounted() as directory:
            found = set()
            for at, directories, names in os.walk(directory):
                for name in [*directories, *names]:
                    path = os.path.join(at, name)
                    found.add(path.removeprefix(directory) + "@" * os.path.islink(path))
        return found - {"/lost+found"}

    def _mounted(self) -> _Mounted:
        return _Mounted(self)

    def check(self) -> None:
        """Its own checker finds no fault."""
        self.device.flush()
        run(*CHECKS[self.kind], self.path)


class _Mounted:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._directory = volume.path.with_suffix(".seen")

    def __enter__(self) -> str:
        self._directory.mkdir(exist_ok=True)
        volume = self._volume
        if volume.kind == "fat":
            run(
                "mcopy", "-i", volume.path, "-s", "-n", "::/*", self._directory, env={**os.environ, "LC_ALL": "C.UTF-8"}
            )
        else:
            ways = {"ntfs": Way.NTFS_3G, "exfat": Way.EXFAT_FUSE, "ext": Way.KERNEL}
            self._mount = mount_device_file(
                str(volume.path), str(self._directory), kind=volume.kind, way=ways[volume.kind], writable=False
            )
        return str(self._directory)

    def __exit__(self, *_: object) -> None:
        if self._volume.kind == "fat":
            subprocess.run(["rm", "-r", self._directory], check=True)
        else:
            assert self._mount.unmount()


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    made = Volume(request.param, tmp_path / "volume")
    yield made
    assert os.listdir(records.run_directory()) == []
    assert not any(mount.directory.startswith(str(tmp_path)) for mount in mounts())
    made.check()
    made.device.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "sub [1]" / "deep").mkdir(parents=True)
    (top / "sub [1]" / "deep" / "Größe 漢字 (2).bin").write_bytes(noise(1, 100_000))
    (top / "sub [1]" / "sparse.bin").write_bytes(bytes(2 << 20) + b"an island" + bytes(1 << 20))
    (top / "empty.txt").write_bytes(b"")
    (top / "link").symlink_to("/etc/hostname")
    os.mkfifo(top / "pipe")
    os.utime(top / "sub [1]" / "sparse.bin", ns=(TIME_NS, TIME_NS))
    return top


TREE = {"/tree", "/tree/sub [1]", "/tree/sub [1]/deep", "/tree/sub [1]/deep/Größe 漢字 (2).bin"} | {
    "/tree/sub [1]/sparse.bin",
    "/tree/empty.txt",
}


def test_a_directory_comes_with_all_below_it(volume: Volume, source: Path) -> None:
    report = put(volume.device, source, "/tree")
    has_links = volume.kind in WITH_LINKS
    assert volume.paths() == TREE | ({"/tree/link@"} if has_links else set())
    assert volume.read("/tree/sub [1]/deep/Größe 漢字 (2).bin") == noise(1, 100_000)
    assert volume.read("/tree/sub [1]/sparse.bin") == (source / "sub [1]" / "sparse.bin").read_bytes()
    assert (report.files, report.directories) == (3 + has_links, 3)
    assert {path for path, _ in report.skipped} == {str(source / "pipe")} | (set() if has_links else {"/tree/link"})
    with volume._mounted() as directory:
        if volume.kind != "fat":
            assert os.stat(f"{directory}/tree/sub [1]/sparse.bin").st_mtime_ns == TIME_NS
    put(volume.device, source, "/")
    assert "/source/empty.txt" in volume.paths()


def test_the_time_of_a_file_on_fat_is_kept(tmp_path: Path, source: Path) -> None:
    volume = Volume("fat", tmp_path / "volume")
    put(volume.device, source / "sub [1]" / "sparse.bin", "/x")
    file_system = open_file_system(volume.device)
    assert file_system is not None
    entries = file_system.scan().entries
    assert entries.modified_ns[entries.path.index("/x")] == TIME_NS


def test_a_file_gets_the_name_that_is_said_or_goes_into_the_directory(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "file one").write_bytes(b"first")
    put(volume.device, tmp_path / "file one", "/Renamed")
    make_directory(volume.device, "/a/b", parents=True)
    put(volume.device, tmp_path / "file one", "/a/b")
    (tmp_path / "file one").write_bytes(b"second, longer")
    put(volume.device, tmp_path / "file one", "/a/b/")
    assert volume.paths() == {"/Renamed", "/a", "/a/b", "/a/b/file one"}
    assert volume.read("/Renamed") == b"first"
    assert volume.read("/a/b/file one") == b"second, longer"
    (tmp_path / "file one").write_bytes(b"3rd")
    put(volume.device, tmp_path / "file one", "/a/b/file one")
    assert volume.read("/a/b/file one") == b"3rd"


def test_standard_input_becomes_a_file(volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/", "/typed"):
        read_fd, write_fd = os.pipe()
        os.write(write_fd, b"from a pipe")
        os.close(write_fd)
        with os.fdopen(read_fd) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            if path == "/":
                with pytest.raises(UsageError, match="is a directory"):
                    put(volume.device, "-", path)
            else:
                put(volume.device, "-", path)
    assert volume.read("/typed") == b"from a pipe"


def test_moving_renames_and_replaces_nothing(volume: Volume, source: Path) -> None:
    put(volume.device, source / "sub [1]", "/sub [1]")
    put(volume.device, source / "empty.txt", "/other")
    move(volume.device, "/sub [1]/sparse.bin", "/Sparse one.bin")
    make_directory(volume.device, "/target [2]")
    move(volume.device, "/sub [1]", "/target [2]")
    deep = {"/target [2]/sub [1]", "/target [2]/sub [1]/deep", "/target [2]/sub [1]/deep/Größe 漢字 (2).bin"}
    assert volume.paths() == {"/Sparse one.bin", "/other", "/target [2]"} | deep
    assert volume.read("/target [2]/sub [1]/deep/Größe 漢字 (2).bin") == noise(1, 100_000)
    for old, new, error in (
        ("/other", "/Sparse one.bin", RefusedError),
        ("/target [2]", "/target [2]/sub [1]", UsageError),
        ("/target [2]", "/target [2]", UsageError),
        ("/missing", "/x", NotFoundError),
        ("/other", "/missing/x", NotFoundError),
        ("/other", "/Sparse one.bin/x", SqlimageError),
        ("/", "/x", RefusedError),
    ):
        with pytest.raises(error):
            move(volume.device, old, new)
    assert volume.paths() == {"/Sparse one.bin", "/other", "/target [2]"} | deep


def test_a_directory_with_something_in_it_is_removed_only_when_that_is_said(volume: Volume, source: Path) -> None:
    put(volume.device, source, "/tree")
    make_directory(volume.device, "/empty")
    with pytest.raises(RefusedError, match="something in it"):
        remove(volume.device, "/tree")
    remove(volume.device, "/tree/sub [1]/sparse.bin")
    remove(volume.device, "/empty")
    assert "/tree/sub [1]/deep" in volume.paths()
    assert {"/empty", "/tree/sub [1]/sparse.bin"}.isdisjoint(volume.paths())
    with pytest.raises(NotFoundError):
        remove(volume.device, "/empty", recursive=True)
    with pytest.raises(RefusedError):
        remove(volume.device, "/", recursive=True)
    put(volume.device, source / "empty.txt", "/stays")
    remove(volume.device, "/tree", recursive=True)
    assert volume.paths() == {"/stays"}


def test_making_a_directory(volume: Volume) -> None:
    with pytest.raises(NotFoundError):
        make_directory(volume.device, "/a/b")
    assert make_directory(volume.device, "/a/b/c", parents=True).directories == 3
    assert make_directory(volume.device, "/a/b/d", parents=True).directories == 1
    assert make_directory(volume.device, "/a/b/d", parents=True).directories == 0
    for path in ("/a", "/"):
        with pytest.raises(RefusedError, match="exists already"):
            make_directory(volume.device, path)
    assert volume.paths() == {"/a", "/a/b", "/a/b/c", "/a/b/d"}


def test_a_volume_that_is_full_says_so(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(noise(1, 20 << 20))
    with pytest.raises(DeviceError, match=r"full|[Nn]o space"):
        put(volume.device, tmp_path / "large", "/large")


@pytest.mark.parametrize("kind", WITH_LINKS)
def test_no_link_in_a_volume_leads_out_of_it(kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    (outside / "file").write_bytes(b"mine")
    links = tmp_path / "links"
    links.mkdir()
    (links / "to directory").symlink_to(outside)
    (links / "to file").symlink_to(outside / "file")
    (links / "up").symlink_to("../" * 20 + str(outside)[1:])
    volume = Volume(kind, tmp_path / "volume")
    put(volume.device, links, "/")
    (tmp_path / "new").write_bytes(b"evil")
    for link in ("to directory", "up"):
        there = f"/links/{link}"
        attempts: list[Callable[[], ChangeReport]] = [
            partial(put, volume.device, tmp_path / "new", f"{there}/new"),
            partial(put, volume.device, tmp_path / "new", f"{there}/file"),
            partial(put, volume.device, links, f"{there}/kept"),
            partial(make_directory, volume.device, f"{there}/made"),
            partial(make_directory, volume.device, f"{there}/made/deep", parents=True),
            partial(remove, volume.device, f"{there}/file"),
            partial(remove, volume.device, f"{there}/kept", recursive=True),
            partial(move, volume.device, "/links/to file", f"{there}/moved"),
            partial(move, volume.device, f"{there}/file", "/stolen"),
        ]
        for attempt in attempts:
            with pytest.raises(SqlimageError):
                attempt()
    with pytest.raises(SqlimageError):
        put(volume.device, tmp_path / "new", "/links/to file")
    remove(volume.device, "/links", recursive=True)
    assert volume.paths() == set()
    assert (outside / "file").read_bytes() == b"mine"
    assert sorted(os.listdir(outside)) == ["file", "kept"]
    volume.device.close()


@pytest.mark.parametrize("path", ["", "relative", "/a/../b", "/..", "..", "/nul\0"])
def test_a_path_that_is_none_in_a_volume_is_refused_before_anything_is_mounted(path: str, tmp_path: Path) -> None:
    device = WatchedDevice(bytes(1 << 20))
    device.failure = AssertionError("it was read")
    with pytest.raises(UsageError, match="no path in a volume"):
        parts_of(path)
    changes: list[Callable[[], ChangeReport]] = [
        lambda: put(device, tmp_path, path),
        lambda: remove(device, path),
        lambda: make_directory(device, path),
        lambda: move(device, path, "/x"),
        lambda: move(device, "/x", path),
    ]
    for change in changes:
        with pytest.raises(UsageError, match="no path in a volume"):
            change()


@pytest.mark.parametrize("name", ['a"b', "a*b", "a?b", "a:b", "a|b", "a\\b", "ends.", "ends ", "a\nb"])
def test_a_name_that_fat_cannot_have_is_refused(name: str, tmp_path: Path) -> None:
    volume = Volume("fat", tmp_path / "volume")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot be a name on FAT"):
        put(volume.device, tmp_path / "file", f"/{name}")
    volume.device.close()


def test_what_fails_is_told_and_nothing_stays_mounted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(noise(1, 100_000))
    for kind in KINDS:
        content = make_volume(tmp_path / kind, kind).read_bytes()

        class Failing(WatchedDevice):
            def write(self, offset_bytes: int, data: object) -> None:
                raise DeviceError("the disk is broken")

        told: list[str] = []
        with pytest.raises(SqlimageError):
            put(Failing(content), tmp_path / "file", "/file", on_problem=told.append)
        assert "the disk is broken" in told
        assert not any(mount.directory.startswith(str(tmp_path)) for mount in mounts())
        assert os.listdir(records.run_directory()) == []


def test_the_device_is_flushed_at_the_end(tmp_path: Path) -> None:
    device = WatchedDevice(make_volume(tmp_path / "volume", "ntfs").read_bytes())
    with edit_volume(device) as editor:
        editor.make_directory("/one")
        editor.make_directory("/two")
        before = device.flushes
    assert device.flushes > before
    file_system = open_file_system(device)
    assert file_system is not None
    assert {"/one", "/two"} <= set(file_system.scan().entries.path)


def test_what_a_killed_change_leaves_is_cleared_by_the_next(tmp_path: Path) -> None:
    path = make_volume(tmp_path / "volume", "ext")
    kill = (
        "import os, sys\n"
        "from sqlimage.media.file import WritableFileDevice\n"
        "from sqlimage.mount.change import edit_volume\n"
        "with edit_volume(WritableFileDevice(sys.argv[1])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", kill, path], cwd=CHECKOUT, check=False)
    assert os.listdir(records.run_directory()) != []
    device = WritableFileDevice(path)
    make_directory(device, "/made")
    device.close()
    assert os.listdir(records.run_directory()) == []
    assert str(tmp_path).encode() not in run("losetup", "--list", "--output", "BACK-FILE").stdout


def test_sigterm_in_a_change_leaves_nothing(tmp_path: Path) -> None:
    path = make_volume(tmp_path / "volume", "ntfs")
    end = (
        "import os, sys, time\n"
        "from sqlimage.media.file import WritableFileDevice\n"
        "from sqlimage.mount.change import edit_volume\n"
        "with edit_volume(WritableFileDevice(sys.argv[1])) as editor:\n"
        "    editor.make_directory('/made')\n"
        "    os.kill(os.getpid(), 15)\n"
        "    time.sleep(20)\n"
    )
    done = subprocess.run([sys.executable, "-c", end, path], cwd=CHECKOUT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (128 + 15, b"")
    assert os.listdir(records.run_directory()) == []


def test_a_pipe_or_device_in_a_volume_is_not_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    source = os.open(tmp_path / "file", os.O_RDONLY)
    listener = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(RefusedError, match="no regular file"):
            inside.Inside(root).write_file(source, "/pipe", ChangeReport())
        assert os.read(listener, 10) == b""
    finally:
        for fd in (root, source, listener):
            os.close(fd)
