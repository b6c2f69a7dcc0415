"""The child process behind a disk in a container: it ends with us, however we end, and takes nothing with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sqlimage.errors import DeviceError, FormatError
from sqlimage.media.foreign import client
from sqlimage.media.foreign.source import open_source
from tests.media.foreign import children, children_when, convert, disk, gone, opened


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "raw"
    path.write_bytes(disk())
    return path


def test_closing_leaves_no_process_no_descriptor_and_no_file(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = convert(raw, tmp_path / "disk.vmdk", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(600))
    before, descriptors = children(os.getpid()), len(os.listdir("/proc/self/fd"))
    with opened(path) as foreign:
        processes = [pid for pid in children(os.getpid()) if pid not in before]
        assert len(processes) == 2
        assert list((tmp_path / "temporary").iterdir()) == []
        foreign.read(0, 512)
    with pytest.raises(FormatError):
        open_source(broken)
    assert children(os.getpid()) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert list((tmp_path / "temporary").iterdir()) == []
    with pytest.raises(DeviceError, match="it is closed"):
        foreign.read(0, 512)


def test_a_child_that_dies_is_an_error_and_no_hang(raw: Path, tmp_path: Path) -> None:
    before = children(os.getpid())
    with opened(convert(raw, tmp_path / "disk", "qcow2")) as foreign:
        foreign.read(0, 512)
        for pid in set(children(os.getpid())) - set(before):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "qemu-nbd":
                os.kill(pid, signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(DeviceError, match="reading at byte 0 failed"):
                foreign.read(0, 512)


def test_a_child_that_hangs_is_given_up(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REQUEST_S", 0.3)
    before = children(os.getpid())
    with opened(convert(raw, tmp_path / "disk", "qcow2")) as foreign:
        for pid in set(children(os.getpid())) - set(before):
            os.kill(pid, signal.SIGSTOP)
            if Path(f"/proc/{pid}/comm").read_text().strip() != "qemu-nbd":
                os.kill(pid, signal.SIGCONT)
        with pytest.raises(DeviceError, match="no answer within 0 seconds"):
            foreign.read(0, 512)
    assert children(os.getpid()) == before


@pytest.mark.parametrize("moment", ["open", "opening"])
def test_when_we_are_killed_the_child_dies(moment: str, raw: Path, tmp_path: Path) -> None:
    path = convert(raw, tmp_path / "disk", "qcow2")
    code = (
        "import os, sys, time\n"
        "from sqlimage.media.foreign import device, source\n"
        "if sys.argv[2] == 'opening':\n"
        "    device.connect = lambda connections: (print('ready', flush=True), time.sleep(60))\n"
        "opened = source.open_source(sys.argv[1])\n"
        "opened.read(0, 512)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path, moment], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        processes = children_when(process.pid, 2)
        assert len(processes) == 2
        process.kill()
    assert gone(processes)


def test_an_interrupt_is_not_the_childs(raw: Path, tmp_path: Path) -> None:
    """A Ctrl-C goes to the whole group of processes of a terminal; ours is what ends the child, in order."""
    before = children(os.getpid())
    with opened(convert(raw, tmp_path / "disk", "qcow2")) as foreign:
        groups = {os.getpgid(pid) for pid in set(children(os.getpid())) - set(before)}
        assert os.getpgid(0) not in groups
        assert foreign.read(0, 512) == disk()[:512]
