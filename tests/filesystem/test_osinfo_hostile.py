"""A system in files that were made to mislead: links in circles, files without end, bytes that are no text."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.filesystem.ext import ExtVolume
from sqlimage.filesystem.osinfo import OperatingSystem, find_system
from sqlimage.filesystem.osinfo.system import clean
from sqlimage.media.memory import MemoryDevice
from tests.conftest import run
from tests.make.cost import PATIENCE
from tests.make.linux import DEBIAN, DEBIAN_12, DEBIAN_TREE, found_in, linux, stanza
from tests.make.memory_volume import Counted, Damaged, File, Link, MemoryVolume


@pytest.mark.parametrize(
    "target", ["/etc/os-release", "os-release", "../etc/os-release", "/loop/a", "", "/", "..", "x" * 5000]
)
def test_links_that_lead_nowhere_or_in_circles_end(target: str) -> None:
    files: dict[str, File] = {"/loop/a": Link("b"), "/loop/b": Link("../loop/a"), "/etc/hostname": Link("hostname/x")}
    assert found_in({**files, "/etc/os-release": Link(target)}) is None


@pytest.mark.parametrize("hops", [8, 9])
def test_eight_links_are_followed_and_not_nine(hops: int) -> None:
    files: dict[str, File] = {f"/links/{n}": Link(f"../links/{n + 1}") for n in range(hops - 1)}
    files |= {"/etc/os-release": Link("/links/0"), f"/links/{hops - 1}": DEBIAN_12}
    found = found_in(files)
    assert (found is not None) == (hops == 8)


def test_links_stay_inside_the_volume() -> None:
    found = found_in({"/etc/os-release": Link("../../../../usr/./lib//os-release"), "/usr/lib/os-release": DEBIAN_12})
    assert found and found.version == "12"


def test_a_directory_is_not_read_as_a_file(tmp_path: Path) -> None:
    """Its bytes hold names, which may hold lines."""
    (tmp_path / "root/etc/os-release/\nNAME=evil\n").mkdir(parents=True)
    run("mke2fs", "-q", "-d", tmp_path / "root", tmp_path / "root.img", "2M")
    volume = ExtVolume(MemoryDevice((tmp_path / "root.img").read_bytes()))
    scan = volume.scan()
    record = int(scan.entries.record[scan.entries.path.index("/etc/os-release")])
    assert b"\nNAME=evil\n" in volume.open(record).read(0, 4096)
    assert find_system(volume, scan) is None


def test_damaged_files_leave_what_others_say() -> None:
    for damaged in (Damaged(), Damaged(opens=False)):
        broken: dict[str, File] = {path: damaged for path in DEBIAN_TREE if path not in ("/usr/lib/os-release",)}
        found = found_in({**DEBIAN_TREE, **broken, "/etc/os-release": DEBIAN_12})
        assert found == OperatingSystem("Debian GNU/Linux", "12", kernels=DEBIAN.kernels)


def test_texts_are_printable_and_short() -> None:
    release = 'NAME="\x1b]0;x\x07 Evil\u202e\tLinux\x00 \udcff"\nVERSION_ID=' + "9" * 9999 + "\nBUILD_ID='\x01\x02'\n"
    found = linux({"/etc/hostname": b"\xff\xfe\x00h\x1b[2J" + b"n" * 9999}, release)
    assert found.name == "]0;x Evil Linux \ufffd"
    assert found.version == "9" * 256 and found.build is None
    assert found.host_name and len(found.host_name) == 256 and found.host_name.isprintable()


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_clean_text_can_be_stored_and_shown(text: str) -> None:
    cleaned = clean(text)
    assert cleaned is None or (cleaned.isprintable() and 0 < len(cleaned) <= 256 and cleaned == cleaned.strip())
    assert cleaned is None or cleaned.encode("utf-8")


def test_files_of_any_length_cost_little() -> None:
    long = Counted(DEBIAN_12.encode(), 1 << 30)
    huge = Counted(stanza("dpkg").encode(), 1 << 40)
    started = time.perf_counter()
    found = found_in({"/etc/os-release": long, "/etc/hostname": Counted(b"", 1 << 30), "/var/lib/dpkg/status": huge})
    assert time.perf_counter() - started < 2 * PATIENCE
    assert found == OperatingSystem("Debian GNU/Linux", "12")
    assert long.bytes_read == 64 << 10 and huge.bytes_read == 0


@pytest.mark.parametrize(
    "block",
    [
        b"\0", b"Status: a b installed\n", b"Status: " + b"a" * 99 + b"\n", b"Architecture: a\n", b"P", b"\n",
        b"x" * 70_000 + b"\n",
    ],
    ids=["zeros", "packages", "long words", "architectures", "P", "lines", "long lines"],
)  # fmt: skip
def test_a_package_database_of_64_mib_takes_seconds_whatever_it_holds(block: bytes) -> None:
    database = block * ((64 << 20) // len(block))
    started = time.perf_counter()
    linux({"/var/lib/dpkg/status": database, "/lib/apk/db/installed": database})
    assert time.perf_counter() - started < 8 * PATIENCE


def test_a_volume_of_many_files_is_asked_quickly() -> None:
    files: dict[str, File] = {f"/usr/share/doc/package-{n % 900}/file-{n}": None for n in range(200_000)}
    volume = MemoryVolume({**DEBIAN_TREE, **files})
    scan = volume.scan()
    started = time.perf_counter()
    assert find_system(volume, scan) == DEBIAN
    assert time.perf_counter() - started < 2 * PATIENCE


NAMES = st.sampled_from(
    [
        *DEBIAN_TREE,
        "/etc/lsb-release",
        "/etc/redhat-release",
        "/etc/alpine-release",
        "/etc",
        "/usr",
        "/lib/modules",
        "/boot",
    ]
)
FILES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([None, Damaged(), Damaged(opens=False), *DEBIAN_TREE.values()]),
    NAMES.map(Link),
    st.text(st.sampled_from("./abc\0"), max_size=20).map(Link),
)


@settings(max_examples=int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "300")), deadline=2000)
@given(st.dictionaries(NAMES, FILES, max_size=8), st.lists(st.text(max_size=40), max_size=5))
def test_no_content_of_files_makes_it_raise(files: dict[str, File], kernels: list[str]) -> None:
    tree = {
        **DEBIAN_TREE,
        **{f"/usr/lib/modules/{name}": None for name in kernels if "/" not in name and name},
        **files,
    }
    found = found_in(tree)
    for value in found.properties().values() if found else ():
        assert isinstance(value, int) or (value.isprintable() and 0 < len(value) <= 256)
