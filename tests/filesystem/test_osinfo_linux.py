"""Which Linux lives on a volume: what distributions say of themselves, kernels, packages and names."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.filesystem.osinfo import OperatingSystem, find_system
from sqlimage.filesystem.osinfo.linux import assignments
from sqlimage.filesystem.osinfo.system import common_architecture, newest_first
from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.file import FileDevice
from tests.conftest import run
from tests.make.linux import DEBIAN, DEBIAN_12, DEBIAN_TREE, elf, found_in, linux, stanza
from tests.make.memory_volume import File, Link


def test_debian_is_found_by_its_files() -> None:
    found = found_in(DEBIAN_TREE)
    assert found == DEBIAN
    assert found.properties() == {
        "os.name": "Debian GNU/Linux",
        "os.version": "12",
        "os.update": "12.5",
        "os.architecture": "x86_64",
        "os.kernels": "6.1.0-18-amd64, 6.1.0-9-amd64",
        "os.packages": 2,
        "host.name": "web-1",
    }


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_debian_is_found_on_a_volume_of(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for path, file in DEBIAN_TREE.items():
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, Link):
            place.symlink_to(file.target)
        else:
            assert isinstance(file, bytes | str)
            place.write_bytes(file if isinstance(file, bytes) else file.encode())
    image = tmp_path / "root.img"
    run("mke2fs", "-q", "-t", kind, "-d", root, image, "16M")
    device = FileDevice(image)
    volume = open_file_system(device)
    assert volume
    assert find_system(volume, volume.scan()) == DEBIAN
    device.close()


@pytest.mark.parametrize(
    ("files", "name", "version", "update", "build", "edition"),
    [
        (
            {"/etc/os-release": 'NAME="Ubuntu"\nVERSION="22.04.4 LTS (Jammy Jellyfish)"\nVERSION_ID="22.04"\n',
             "/etc/debian_version": "bookworm/sid\n"},
            "Ubuntu", "22.04", "22.04.4", None, None,
        ),
        (
            {"/etc/os-release": 'NAME="Fedora Linux"\nVERSION="39 (S)"\nVERSION_ID=39\nVARIANT="Server Edition"'},
            "Fedora Linux", "39", None, None, "Server Edition",
        ),
        (
            {"/etc/os-release": 'NAME="CentOS Linux"\nVERSION="7 (Core)"\nID="centos"\nVERSION_ID="7"\n',
             "/etc/redhat-release": "CentOS Linux release 7.9.2009 (Core)\n"},
            "CentOS Linux", "7", "7.9.2009", None, None,
        ),
        (
            {"/etc/os-release": 'NAME="Alpine Linux"\nVERSION_ID=3.19.1\n', "/etc/alpine-release": "3.19.1\n"},
            "Alpine Linux", "3.19.1", None, None, None,
        ),
        (
            {"/usr/lib/os-release": 'NAME="Arch Linux"\nID=arch\nBUILD_ID=rolling\n'},
            "Arch Linux", None, None, "rolling", None,
        ),
        (
            {"/etc/os-release": 'NAME="Debian GNU/Linux"\nID=debian\n', "/etc/debian_version": "trixie/sid\n"},
            "Debian GNU/Linux", None, "trixie/sid", None, None,
        ),
        ({"/etc/os-release": "ID=own\n"}, "own", None, None, None, None),
        ({"/etc/os-release": 'PRETTY_NAME="Own 1"\n'}, "Linux", None, None, None, None),
        (
            {"/etc/lsb-release": "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=8.04\nDISTRIB_DESCRIPTION=\"Ubuntu 8.04.4 LTS\"\n",
             "/etc/debian_version": "lenny/sid"},
            "Ubuntu", "8.04", "8.04.4", None, None,
        ),
        (
            {"/etc/lsb-release": "LSB_VERSION=base-4.0\n", "/etc/redhat-release": "CentOS release 6.10 (Final)\n"},
            "CentOS", "6.10", None, None, None,
        ),
        (
            {"/etc/redhat-release": "Red Hat Enterprise Linux Server release 5.11 (Tikanga)\n"},
            "Red Hat Enterprise Linux Server", "5.11", None, None, None,
        ),
        (
            {"/etc/SuSE-release": "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\nPATCHLEVEL = 4\n"},
            "SUSE Linux Enterprise Server", "11", None, None, None,
        ),
        ({"/etc/slackware-version": "Slackware 13.37.0\n"}, "Slackware", "13.37.0", None, None, None),
        ({"/etc/alpine-release": "2.7.9\n"}, "Alpine Linux", "2.7.9", None, None, None),
        ({"/etc/debian_version": "6.0.10\n"}, "Debian GNU/Linux", "6", "6.0.10", None, None),
        ({"/etc/debian_version": "wheezy/sid\n"}, "Debian GNU/Linux", None, "wheezy/sid", None, None),
    ],
)  # fmt: skip
def test_what_a_distribution_says_of_itself_becomes_name_version_and_update(
    files: dict[str, File], name: str, version: str | None, update: str | None, build: str | None, edition: str | None
) -> None:
    found = found_in(files)
    assert found == OperatingSystem(name, version, build, update, edition)


def test_a_volume_without_a_system_is_none() -> None:
    boot = {"/vmlinuz-6.1.0-18-amd64": b"", "/grub/grub.cfg": b"", "/config-6.1.0-18-amd64": b""}
    assert found_in({}) is None
    assert found_in(boot) is None
    assert (
        found_in({"/etc/os-release": "", "/etc/redhat-release": "\n# nothing\n", "/etc/debian_version": " \n"}) is None
    )
    assert found_in({"/backup/etc/os-release": DEBIAN_12}) is None


def test_quotes_are_taken_as_a_shell_takes_them(tmp_path: Path) -> None:
    lines = [
        'A="double"', "B='single'", "C=plain", "D=", 'E=""', "F=''",
        r'G="a \"quoted\" \$HOME \`x\` \\ \n"', "H='a \"b\" \\ c'",
        r"I=a\ b\'c", "# J=comment", "C=last", 'K="# no comment"', "_l9=x", "M=a-b.c:d/e", 'N="ä € 😀"', "O='it'",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    assert assignments(text) == evaluated(text, tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"])), st.sampled_from("\"'\\")
        )
    )
)
def test_every_value_quoted_for_a_shell_comes_back(values: list[tuple[str, str]]) -> None:
    lines = []
    for n, (value, quote) in enumerate(values):
        if quote == '"':
            quoted = '"' + "".join("\\" + c if c in '$"`\\' else c for c in value) + '"'
        elif quote == "'":
            quoted = "'" + value.replace("'", "") + "'"
        else:
            quoted = "".join("\\" + c for c in value)
        lines.append(f"V{n}={quoted}")
    found = assignments("\n".join(lines))
    for n, (value, quote) in enumerate(values):
        assert found[f"V{n}"] == (value.replace("'", "") if quote == "'" else value)


def evaluated(text: str, work: Path) -> dict[str, str]:
    """The variables that a shell has after reading the text."""
    (work / "text").write_text(text, encoding="utf-8")
    script = f"set -a; . {work / 'text'}; exec env -0"
    told = subprocess.run(["env", "-i", "sh", "-c", script], capture_output=True, check=True).stdout.decode()
    known = dict(line.split("=", 1) for line in told.split("\0") if line)
    return {name: value for name, value in known.items() if name not in ("PWD", "SHLVL", "_", "OLDPWD")}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('  A="led by blanks"', "led by blanks"),
        ('A="no end', "no end"),
        ("A='no end", "no end"),
        ("A=two words", "two"),
        ('A="x"junk', "x"),
        ("A=crlf\r", "crlf"),
        ('A="end\\', "end"),
    ],
)
def test_what_no_shell_would_take_gives_what_can_be_read(line: str, value: str) -> None:
    assert assignments(line + "\nB = no\n=x\n1=x\nA B=y") == {"A": value}


def test_kernels_come_from_modules_and_images_newest_first() -> None:
    found = linux(
        {
            "/lib/modules/5.10.0-8-amd64/kernel": None,
            "/lib/modules/extramodules-6/kernel": None,
            "/lib/modules/6.6.14-0-lts/modules.dep": "",
            "/lib/modules/5.9.1": "a file",
            "/usr/lib/modules/6.7.0-rc3/modules.dep": "",
            "/usr/lib/modules/6.7.0/modules.dep": "",
            "/boot/vmlinuz-5.10.0-28-amd64": b"",
            "/boot/vmlinuz-0-rescue-0123456789abcdef": b"",
            "/boot/vmlinuz-lts": b"",
            "/boot/efi/vmlinuz-1.2.3": b"",
            "/boot/initrd.img-9.9.9": b"",
        }
    )
    assert found.kernels == ("6.7.0", "6.7.0-rc3", "6.6.14-0-lts", "5.10.0-28-amd64", "5.10.0-8-amd64")


def test_versions_are_sorted_by_their_numbers() -> None:
    order = [
        "10.0",
        "6.10.2",
        "6.9",
        "6.1.76",
        "6.1.0-18-amd64",
        "6.1.0-9-amd64",
        "6.1.0",
        "6.1.0-rc10",
        "6.1.0-rc9",
        "6.1~a",
    ]
    assert newest_first(reversed(order)) == order


def test_only_whole_versions_stand_in_the_property_of_kernels() -> None:
    many = {f"/lib/modules/6.1.{n}-generic/modules.dep": "" for n in range(500)}
    found = linux(many)
    assert len(found.kernels) == 64 and found.kernels[0] == "6.1.499-generic"
    text = str(found.properties()["os.kernels"])
    assert len(text) <= 256 and tuple(text.split(", ")) == found.kernels[: text.count(",") + 1]


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (elf(62), "x86_64"), (elf(3, 32), "x86"), (elf(183), "aarch64"), (elf(40, 32), "arm"),
        (elf(243), "riscv64"), (elf(21), "ppc64le"), (elf(21, little=False), "ppc64"),
        (elf(22, little=False), "s390x"), (elf(8, 32), "mipsel"),
        (elf(258), "loongarch64"), (elf(999), None), (b"\x7fELF", None), (b"#!/bin/true" + bytes(20), None),
    ],
)  # fmt: skip
def test_the_architecture_is_what_the_shell_is_made_for(header: bytes, word: str | None) -> None:
    assert linux({"/bin/sh": Link("busybox"), "/bin/busybox": header}).architecture == word


def test_this_machine_is_told_as_it_tells_of_itself() -> None:
    paths = ("/etc/os-release", "/etc/debian_version", "/bin/sh", "/var/lib/dpkg/status", "/etc/hostname")
    found = found_in({path: Path(path).read_bytes() for path in paths})
    told = platform.freedesktop_os_release()
    states = run("dpkg-query", "-W", "-f", "${db:Status-Status}\n").stdout.split()
    assert found and (found.name, found.version) == (told["NAME"], told.get("VERSION_ID"))
    assert found.architecture == common_architecture(platform.machine())
    assert found.packages == states.count(b"installed") > 50


def test_without_a_shell_the_architecture_is_that_of_most_packages() -> None:
    status = (
        stanza("a", architecture="all") * 3 + stanza("b", architecture="i386") + stanza("c", architecture="arm64") * 2
    )
    assert linux({"/var/lib/dpkg/status": status}).architecture == "aarch64"


def test_installed_packages_are_counted_as_dpkg_counts_them(tmp_path: Path) -> None:
    states = ["install ok installed", "hold ok installed", "deinstall ok config-files", "install ok unpacked",
              "install reinstreq half-installed", "deinstall ok installed"]  # fmt: skip
    text = "".join(stanza(f"p{n}", states[n % len(states)]) for n in range(20_000))
    (tmp_path / "status").write_text(text)
    told = run("dpkg-query", f"--admindir={tmp_path}", "-W", "-f", "${db:Status-Status}\n").stdout.split()
    assert len(text) > 2 << 20
    assert linux({"/var/lib/dpkg/status": text}).packages == told.count(b"installed") > 8000
    assert linux({"/var/lib/dpkg/status": text.rstrip("\n")}).packages == told.count(b"installed")


def test_packages_of_other_managers_are_counted() -> None:
    apk = "".join(f"C:Q1abc=\nP:p{n}\nV:1.0-r0\nT:P:text\nF:lib\nR:file\n\n" for n in range(14))
    assert linux({"/lib/apk/db/installed": apk}).packages == 14
    assert linux({"/lib": Link("usr/lib"), "/usr/lib/apk/db/installed": apk}).packages == 14
    assert linux({"/lib/apk/db/installed": "P:name\n" * 400_000}).packages == 400_000
    pacman: dict[str, File] = {f"/var/lib/pacman/local/p{n}-1-1/desc": "" for n in range(9)}
    assert linux({**pacman, "/var/lib/pacman/local/ALPM_DB_VERSION": "9\n"}).packages == 9
    assert linux({**pacman, "/var/lib/dpkg/status": "", "/var/lib/pacman/local/p1-1-1/more/x": ""}).packages == 9
    assert linux({"/var/lib/rpm/Packages": bytes(8192)}).packages is None


def test_the_host_name_is_the_first_line_that_says_something() -> None:
    assert linux({"/etc/hostname": "\n# the name\n  box  \nother\n"}).host_name == "box"
    assert linux({"/etc/hostname": "\n", "/etc/HOSTNAME": "slack.example.org\n"}).host_name == "slack.example.org"
    assert (
        linux({"/etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=rh5.example.org\n"}).host_name == "rh5.example.org"
    )
    assert linux({}).host_name is None
