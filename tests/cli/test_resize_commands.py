"""``restore --size``, ``--hidden-sectors``, ``--geometry`` and ``--explain`` as a user meets them: exit codes, what is
said where, and that nothing is written where nothing shall be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sqlimage.units import MIB
from tests.conftest import run
from tests.images import run_tool, tool
from tests.make import ext, resized, resized_disk
from tests.make.resized import check, contents, noise
from tests.media.disks import make_disk
from tests.media.kinds import loop_device

PROGRAM = Path(sys.executable).with_name("sqlimage")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("cli")
    tool("capture", resized.make("fat12", here / "fat12"), here / "fat12.sqlimage")
    tool("capture", ext.make_volume(here / "ext4", 8 * MIB, "-t", "ext4"), here / "ext4.sqlimage")
    disk = resized_disk.make(here / "disk", "label: gpt\nsize=4MiB\nsize=1MiB\n", ("fat12", "raw"), 16 * MIB)
    tool("capture", disk.path, here / "disk.sqlimage")
    return here


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to" / "file"


def refused(code: int, says: str, *arguments: object) -> None:
    done = run_tool(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_what_was_done_is_told_in_two_lines_or_as_json(place: Path, target: Path) -> None:
    said = tool("restore", place / "fat12.sqlimage", target, "--size", "minimum").splitlines()
    assert said[0].startswith(f"restored version 1 of {place / 'fat12.sqlimage'} to {target} (raw): 1.3 MiB, ")
    assert said[1].startswith("laid out anew: ") and said[1].endswith(" contents read again, all as they were")
    check("fat12", target, contents(place / "fat12"))
    report = json.loads(tool("restore", place / "fat12.sqlimage", target, "--size", "4MiB", "--force", "--json"))
    assert (report["medium_bytes"], report["captured_bytes"]) == (4 * MIB, 3 * MIB)
    assert report["fixups"] > 0 and report["files_compared"] > 20 and report["notes"] == []


def test_sizes_are_written_as_everywhere(place: Path, target: Path) -> None:
    for text, size in (("4MiB", 4 * MIB), (str(5 * MIB), 5 * MIB), ("3.5 MiB", 3584 * 1024)):
        tool("restore", place / "fat12.sqlimage", target, "--size", text, "--force")
        assert target.stat().st_size == size


@pytest.mark.parametrize(
    ("code", "says", "image", "options"),
    [
        (2, "'big' is not a size; write minimum, maximum, or a number with a unit", "fat12", ("--size", "big")),
        (2, "is not a size", "fat12", ("--size", "")),
        (2, "is not a size", "fat12", ("--size", "Minimum")),
        (2, "a new file has no size of its own to fill", "fat12", ("--size", "maximum")),
        (4, "do not suffice: what the image holds needs 1.3 MiB (", "fat12", ("--size", "1MiB")),
        (4, "do not suffice", "disk", ("--size", "2MiB")),
        (4, "do not suffice", "ext4", ("--size", "1MiB")),
        (2, "is not in the range x>=0", "fat12", ("--hidden-sectors", "-1")),
        (2, "allowed are 0 to 4294967295", "fat12", ("--hidden-sectors", str(1 << 32))),
        (2, "the partition table says", "disk", ("--hidden-sectors", "63")),
        (2, "is not a geometry; write cylinders/heads/sectors", "fat12", ("--geometry", "16/63")),
        (2, "allowed are 1 to 255", "fat12", ("--geometry", "100/256/63")),
        (4, "ext4 does not tell where on its disk it begins", "ext4", ("--hidden-sectors", "63")),
        (3, "no volume 7; there are 0, 1", "disk", ("--volume", "7", "--size", "minimum")),
        (4, "what no reader knows cannot be laid out anew", "disk", ("--volume", "1", "--size", "8MiB")),
    ],
)
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_written(
    place: Path, target: Path, code: int, says: str, image: str, options: tuple[str, ...]
) -> None:
    refused(code, says, "restore", place / f"{image}.sqlimage", target, *options)
    refused(code, says, "restore", place / f"{image}.sqlimage", target, *options, "--explain")
    assert os.listdir(target.parent) == []


def test_notes_are_for_the_person_and_not_in_the_answer(place: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", "label: dos\nstart=2048, size=16384\n")
    done = run_tool("restore", place / "fat12.sqlimage", disk, "--partition", "1")
    assert done.returncode == 0
    assert done.stderr == "note: its boot sector says that 2048 sectors lie before it, as there do\n"
    assert done.stdout.startswith("restored version 1") and len(done.stdout.splitlines()) == 1
    done = run_tool("restore", place / "disk.sqlimage", tmp_path / "large", "--size", "20MiB", "--json")
    assert "note: volume 1 is moved as it is: what no reader knows cannot be laid out anew\n" in done.stderr
    assert json.loads(done.stdout)["medium_bytes"] == 20 * MIB


def test_explain_tells_volumes_changes_and_sizes_and_writes_nothing(place: Path, target: Path) -> None:
    before = target.parent.stat().st_mtime_ns
    said = tool("restore", place / "disk.sqlimage", target, "--size", "minimum", "--explain").splitlines()
    assert said[0].startswith("volume 0: fat12, 4.0 MiB at byte 1048576 -> ")
    assert said[1].split()[:2] == ["offset", "bytes"]
    assert any("backup GPT header" in line for line in said)
    assert said[-1].startswith("size  16.0 MiB (16777216 bytes) -> ")
    told = json.loads(tool("restore", place / "disk.sqlimage", target, "--size", "minimum", "--explain", "--json"))
    assert set(told) == {"size_before", "size_bytes", "volumes", "fixups", "notes"}
    assert len(told["fixups"]) == len(said) - 3
    assert all(len(fixup["original"]) == len(fixup["replacement"]) for fixup in told["fixups"])
    assert tool("restore", place / "fat12.sqlimage", target, "--explain") == "size  3.0 MiB (3145728 bytes)\n"
    assert (os.listdir(target.parent), target.parent.stat().st_mtime_ns) == ([], before)


def test_explain_leaves_a_device_alone(place: Path, tmp_path: Path) -> None:
    content = noise("precious", 6 * MIB)
    (tmp_path / "device").write_bytes(content)
    with loop_device(tmp_path / "device") as name:
        said = tool("restore", place / "fat12.sqlimage", name, "--size", "maximum", "--explain", "--force")
        assert said.splitlines()[-1] == "size  3.0 MiB (3145728 bytes) -> 6.0 MiB (6291456 bytes)"
        refused(4, "is not empty; use --force", "restore", place / "fat12.sqlimage", name, "--size", "maximum")
    assert (tmp_path / "device").read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="programs can be hidden by root only")
def test_without_e2fsprogs_the_package_is_named(place: Path, target: Path) -> None:
    hidden = run("sh", "-c", "command -v resize2fs").stdout.decode().strip()
    script = 'mount --make-rprivate / && mount --bind /dev/null "$1" && shift && exec "$@"'

    def without(*arguments: object) -> subprocess.CompletedProcess[str]:
        argv = ["unshare", "--mount", "sh", "-c", script, "sh", hidden, PROGRAM, *arguments]
        return subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)

    done = without("restore", place / "ext4.sqlimage", target, "--size", "minimum")
    said = "sqlimage: resize2fs is missing, which resizes ext volumes; install the package e2fsprogs\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", said)
    assert os.listdir(target.parent) == []
    assert without("restore", place / "ext4.sqlimage", target).returncode == 0
