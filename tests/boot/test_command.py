"""Which medium is booted how, and the command line that does it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sqlimage.boot import Machine, boot, bootable, is_bare_volume, qemu_command, run, usable_accelerator
from sqlimage.errors import NotFoundError, UsageError
from sqlimage.media.compose import ComposedDisk, compose_disk
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.media.memory import MemoryDevice
from tests.conftest import run as run_program
from tests.make.fat import BareVolume


@dataclass(frozen=True)
class Facts:
    offset_clusters: int
    file_system: str | None
    hidden_sectors: int | None = 0


def volume() -> MemoryDevice:
    return MemoryDevice(BareVolume(16, 100).content)


def test_a_bare_volume_is_shown_as_a_disk_and_the_note_says_so() -> None:
    medium = bootable(volume(), [Facts(0, "fat16", 63)])
    assert isinstance(medium.device, ComposedDisk)
    assert medium.note == "a FAT16 volume, shown as partition 1 (type 0x06) of a disk, from sector 63 on"


@pytest.mark.parametrize("facts", [[], [Facts(8, "fat16")], [Facts(0, None)], [Facts(0, "iso9660")]])
def test_a_medium_without_a_file_system_at_its_start_is_booted_as_it_is(facts: list[Facts]) -> None:
    device = volume()
    medium = bootable(device, facts)
    assert medium.device is device
    assert medium.note == "a whole disk, booted as it is"


def test_a_disk_is_not_composed_again() -> None:
    disk = compose_disk(volume(), file_system="fat16")
    assert not is_bare_volume(disk, [Facts(0, "fat16")])


def test_boot_code_that_looks_like_a_broken_table_is_no_table() -> None:
    ext = bytearray(1 << 20)
    ext[446:478] = bytes((0x80, 1, 1, 0, 0x83, 1, 1, 0)) + b"\x01\0\0\0\xff\xff\xff\xff" + bytes(16)
    ext[510:512] = b"\x55\xaa"
    assert is_bare_volume(MemoryDevice(ext), [Facts(0, "ext4")])


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_unix_socket_and_an_export_reach_the_command_whatever_is_in_them() -> None:
    command = qemu_command("nbd+unix:///a%2Cb?socket=/tmp/x%20y,z/nbd.sock")
    drive = option(command, "-drive")
    assert "file.server.path=/tmp/x y,,z/nbd.sock,file.export=a,,b" in drive
    assert "cache=writeback" in drive and "discard=unmap,detect-zeroes=unmap,snapshot=off" in drive


def test_a_server_elsewhere_can_be_booted_from() -> None:
    drive = option(qemu_command("nbd://[::1]/disk"), "-drive")
    assert "file.driver=nbd,file.server.type=inet,file.server.host=::1,file.server.port=10809" in drive


@pytest.mark.parametrize(
    "place", ["http://a/b", "nbd:///disk", "nbd+unix:///disk", "nbd+unix:///d?socket=a&socket=b", "nbd://a:x/d"]
)
def test_other_uris_are_refused(place: str) -> None:
    with pytest.raises(UsageError, match=r"nbd\+unix:///export\?socket=path"):
        qemu_command(place)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.raw: No such file"):
        qemu_command(str(tmp_path / "gone.raw"))


def test_the_machine_is_as_it_was_ordered(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.touch()
    machine = Machine(memory_bytes=64 << 20, interface="virtio", processors=2, display="gtk", extra=("-snapshot",))
    command = qemu_command(str(path), machine, discard_writes=True)
    assert (option(command, "-m"), option(command, "-smp"), option(command, "-display")) == ("64M", "2", "gtk")
    assert option(command, "-device").startswith("virtio-blk-pci,")
    assert option(command, "-accel") == "tcg"
    assert command[-1] == "-snapshot"
    assert "snapshot=on" in option(command, "-drive") and f"file.filename={path}" in option(command, "-drive")
    assert "-nographic" not in command


@pytest.mark.parametrize("machine", [Machine(memory_bytes=1000), Machine(memory_bytes=0), Machine(processors=0)])
def test_a_machine_that_cannot_be_is_refused(machine: Machine) -> None:
    with pytest.raises(UsageError, match="not possible"):
        qemu_command("nbd://localhost/disk", machine)


def test_an_ide_disk_has_the_geometry_of_the_volume() -> None:
    disk = compose_disk(volume(), file_system="fat16")
    command = qemu_command("nbd://localhost/disk", geometry=disk.geometry)
    assert option(command, "-device").endswith(",lcyls=3,lheads=16,lsecs=63")
    fast = qemu_command("nbd://localhost/disk", Machine(interface="virtio"), geometry=disk.geometry)
    assert "lcyls" not in option(fast, "-device")


def test_kvm_is_used_only_where_it_is_asked_for_and_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed in (False, True):
        monkeypatch.setattr(os, "access", lambda *_, allowed=allowed: allowed)
        assert usable_accelerator("kvm") == ("kvm" if allowed else "tcg")
        assert usable_accelerator("tcg") == "tcg"


def test_a_missing_qemu_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotFoundError, match=r"Debian's package qemu-system-x86$"):
        run(qemu_command("nbd://localhost/disk"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_guest_and_its_end_is_told(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def send() -> None:
        while signal.getsignal(number) is before:  # a signal that nobody waits for yet would end the tests
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    started = time.monotonic()
    assert run(["sleep", "30"]) == 128 + number
    assert time.monotonic() - started < 25
    assert signal.getsignal(number) is before


def test_an_exit_code_is_passed_on() -> None:
    assert run(["sh", "-c", "exit 7"]) == 7
    told: list[int] = []
    thread = threading.Thread(target=lambda: told.append(run(["sh", "-c", "exit 3"])))
    thread.start()
    thread.join()
    assert told == [3]


def test_a_guest_does_not_outlive_an_error(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    def interrupted(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(TimeoutError):
            run(["sh", "-c", f"echo $$ > {mark}; exec sleep 30"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize("is_writable", [True, False])
def test_the_guests_socket_is_nobody_elses_and_goes_with_it(
    is_writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(volume().content)
    device = WritableFileDevice(path) if is_writable else FileDevice(path)
    seen: list[Path] = []

    def looked_at(command: list[str]) -> int:
        options = dict(part.split("=", 1) for part in option(command, "-drive").split(","))
        seen.append(Path(options["file.server.path"]))
        assert seen[0].parent.stat().st_mode & 0o777 == 0o700
        assert options["snapshot"] == ("off" if is_writable else "on")
        told = json.loads(run_program("nbdinfo", "--json", f"nbd+unix:///disk?socket={seen[0]}").stdout)["exports"][0]
        assert (told["export-size"], told["is_read_only"]) == (device.size_bytes, not is_writable)
        return 5

    monkeypatch.setattr("sqlimage.boot.run", looked_at)
    assert boot(device) == 5
    assert not seen[0].parent.exists()
    device.close()
