"""Which Windows lives on a volume: its hives on real NTFS and FAT volumes, and what Windows from NT 4.0 on says."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.filesystem.osinfo import OperatingSystem, find_system
from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.file import FileDevice
from tests.make import fat, ntfs
from tests.make.cost import PATIENCE
from tests.make.hive import BareHive, Data, Tree, fill
from tests.make.memory_volume import Counted, Damaged, File, MemoryVolume

CURRENT_VERSION = "Microsoft\\Windows NT\\CurrentVersion"
SOFTWARE, SYSTEM = "/Windows/System32/config/SOFTWARE", "/Windows/System32/config/SYSTEM"
Values = Mapping[str, Data | str | int]
WINDOWS_10: dict[str, str | int] = {
    "ProductName": "Windows 10 Pro",
    "CurrentVersion": "6.3",
    "CurrentMajorVersionNumber": 10,
    "CurrentMinorVersionNumber": 0,
    "CurrentBuild": "19045",
    "CurrentBuildNumber": "19045",
    "UBR": 3803,
    "EditionID": "Professional",
    "InstallationType": "Client",
    "ReleaseId": "2009",
    "DisplayVersion": "22H2",
    "InstallDate": 1_700_000_000,
}


def software(values: Values) -> bytes:
    return bytes(BareHive({"Microsoft": {"Windows NT": {"CurrentVersion": values}}}).content)


def system(name: str = "DESKTOP-1", architecture: str = "AMD64", *, current: int = 1, product: str = "WinNT") -> bytes:
    control: Tree = {
        "ComputerName": {"ComputerName": {"ComputerName": name}},
        "ProductOptions": {"ProductType": product},
        "Session Manager": {"Environment": {"PROCESSOR_ARCHITECTURE": architecture}},
    }
    other: Tree = {"ComputerName": {"ComputerName": {"ComputerName": "LAST-KNOWN-GOOD"}}}
    sets: Tree = {f"ControlSet{n:03}": {"Control": control if n == current else other} for n in (1, 2, 3)}
    return bytes(BareHive({"Select": {"Current": current, "LastKnownGood": 3}, **sets}).content)


def found_in(files: Mapping[str, File]) -> OperatingSystem | None:
    volume = MemoryVolume(files)
    return find_system(volume, volume.scan())


def windows(values: Values, **of_system: str | int) -> OperatingSystem:
    found = found_in({SOFTWARE: software(values), SYSTEM: system(**of_system)})  # type: ignore[arg-type]
    assert found
    return found


@pytest.fixture(scope="module")
def hives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with SOFTWARE and SYSTEM as hivex writes them."""
    place = tmp_path_factory.mktemp("hives")
    others = {f"Microsoft\\Product {n}": {"Version": n} for n in range(400)}
    fill(place / "SOFTWARE", {CURRENT_VERSION: WINDOWS_10, "Classes\\.txt": {"": "txtfile"}, **others})
    fill(
        place / "SYSTEM",
        {
            "Select": {"Current": 2},
            "ControlSet001\\Control\\ComputerName\\ComputerName": {"ComputerName": "BEFORE"},
            "ControlSet002\\Control\\ComputerName\\ComputerName": {"ComputerName": "DESKTOP-7ABC123"},
            "ControlSet002\\Control\\Session Manager\\Environment": {"PROCESSOR_ARCHITECTURE": "AMD64"},
        },
    )
    return place


def test_windows_10_is_found_on_an_ntfs_volume(hives: Path, tmp_path: Path) -> None:
    image = ntfs.make_volume(tmp_path / "c.img", 24 << 20)
    with ntfs.mounted(image) as root:
        config = root / "Windows" / "System32" / "config"
        files = {name: (hives / name).read_bytes() for name in ("SOFTWARE", "SYSTEM")}
        ntfs.write_tree(config, {**files, "SOFTWARE.LOG1": b"", "RegBack/SOFTWARE": b""})
    device = FileDevice(image)
    volume = open_file_system(device)
    assert volume
    found = find_system(volume, volume.scan())
    device.close()
    assert found == OperatingSystem(
        name="Windows 10 Pro",
        version="10.0",
        build="19045",
        update="22H2, UBR 3803",
        edition="Professional",
        architecture="x86_64",
        host_name="DESKTOP-7ABC123",
        installed_ns=1_700_000_000 * 10**9,
    )
    assert found.properties() == {
        "os.name": "Windows 10 Pro",
        "os.version": "10.0",
        "os.build": "19045",
        "os.update": "22H2, UBR 3803",
        "os.edition": "Professional",
        "os.architecture": "x86_64",
        "host.name": "DESKTOP-7ABC123",
    }


def test_windows_nt_is_found_on_a_fat_volume(tmp_path: Path) -> None:
    """NT 4.0 has no ProductName, and what a name's case is depends on who made the volume."""
    values = {"CurrentVersion": "4.0", "CurrentBuildNumber": "1381", "CSDVersion": "Service Pack 6"}
    place = tmp_path / "hives"
    place.mkdir()
    fill(place / "software", {CURRENT_VERSION: values})
    options = "ControlSet001\\Control\\ProductOptions"
    fill(place / "system", {"Select": {"Current": 1}, options: {"ProductType": "ServerNT"}})
    image = fat.make_volume(tmp_path / "c.img", 32 << 20, 16)
    tree = {f"WINNT/system32/config/{name}": (place / name).read_bytes() for name in ("software", "system")}
    fat.fill(image, tree, tmp_path / "work")
    device = FileDevice(image)
    volume = open_file_system(device)
    assert volume
    found = find_system(volume, volume.scan())
    device.close()
    assert found == OperatingSystem("Windows NT 4.0", "4.0", "1381", "Service Pack 6", "Server")


@pytest.mark.parametrize(
    ("values", "name", "version", "build", "update", "edition"),
    [
        (
            {"ProductName": "Microsoft Windows 2000", "CurrentVersion": "5.0", "CurrentBuildNumber": "2195",
             "CurrentBuild": "1.511.1 () (Obsolete data - do not use)", "CSDVersion": "Service Pack 4"},
            "Windows 2000", "5.0", "2195", "Service Pack 4", "Workstation",
        ),
        (
            {"ProductName": "Microsoft Windows XP", "CurrentVersion": "5.1", "CurrentBuildNumber": "2600",
             "CSDVersion": "Service Pack 3"},
            "Windows XP", "5.1", "2600", "Service Pack 3", "Workstation",
        ),
        (
            {"ProductName": "Windows Vista (TM) Business", "CurrentVersion": "6.0", "CurrentBuildNumber": "6002",
             "EditionID": "Business", "CSDVersion": "Service Pack 2", "InstallationType": "Client"},
            "Windows Vista Business", "6.0", "6002", "Service Pack 2", "Business",
        ),
        (
            {"ProductName": "Windows Server (R) 2008 Standard", "CurrentVersion": "6.0", "CurrentBuild": "6003"},
            "Windows Server 2008 Standard", "6.0", "6003", None, "Workstation",
        ),
        (
            {"ProductName": "Windows 7 Ultimate", "CurrentVersion": "6.1", "CurrentBuildNumber": "7601",
             "CSDVersion": "Service Pack 1", "EditionID": "Ultimate", "UBR": 24214},
            "Windows 7 Ultimate", "6.1", "7601", "Service Pack 1, UBR 24214", "Ultimate",
        ),
        (
            {"ProductName": "Windows 8.1 Pro", "CurrentVersion": "6.3", "CurrentBuildNumber": "9600",
             "EditionID": "Professional"},
            "Windows 8.1 Pro", "6.3", "9600", None, "Professional",
        ),
        (
            {**WINDOWS_10, "DisplayVersion": "", "ReleaseId": "1909", "CurrentBuildNumber": "18363", "UBR": 0},
            "Windows 10 Pro", "10.0", "18363", "1909", "Professional",
        ),
        (
            {**WINDOWS_10, "DisplayVersion": "23H2", "CurrentBuildNumber": "22631", "UBR": 2861},
            "Windows 11 Pro", "10.0", "22631", "23H2, UBR 2861", "Professional",
        ),
        (
            {**WINDOWS_10, "ProductName": "Windows Server 2022 Standard", "CurrentBuildNumber": "20348",
             "EditionID": "ServerStandard", "InstallationType": "Server Core", "DisplayVersion": "21H2"},
            "Windows Server 2022 Standard", "10.0", "20348", "21H2, UBR 3803", "ServerStandard (Server Core)",
        ),
        (
            {**WINDOWS_10, "ProductName": "Windows 10 Pro", "EditionID": "WindowsPE", "InstallationType": "WindowsPE",
             "DisplayVersion": "", "ReleaseId": ""},
            "Windows 10 Pro", "10.0", "19045", "UBR 3803", "WindowsPE",
        ),
    ],
)  # fmt: skip
def test_what_windows_says_of_itself_becomes_name_version_build_update_and_edition(
    values: Values, name: str, version: str, build: str, update: str | None, edition: str
) -> None:
    found = windows(values)
    assert (found.name, found.version, found.build) == (name, version, build)
    assert (found.update, found.edition) == (update, edition)


@pytest.mark.parametrize(
    ("said", "word"), [("AMD64", "x86_64"), ("x86", "x86"), ("ARM64", "aarch64"), ("IA64", "ia64")]
)
def test_the_architecture_has_the_word_that_others_use(said: str, word: str) -> None:
    assert windows(WINDOWS_10, architecture=said).architecture == word


def test_the_control_set_is_the_one_that_select_names() -> None:
    assert windows(WINDOWS_10, current=2).host_name == "DESKTOP-1"
    without = found_in({SYSTEM: bytes(BareHive({"ControlSet001": {"Control": {
        "ComputerName": {"ComputerName": {"ComputerName": "ALONE"}}}}}).content)})  # fmt: skip
    assert without == OperatingSystem("Windows", host_name="ALONE")


@pytest.mark.parametrize(
    "directory", ["/WINDOWS/system32/config", "/windows/SYSTEM32/Config", "/WINNT/System32/config"]
)
def test_the_case_of_names_does_not_count(directory: str) -> None:
    found = found_in({f"{directory}/software": software(WINDOWS_10), f"{directory}/System": system()})
    assert found and (found.name, found.host_name) == ("Windows 10 Pro", "DESKTOP-1")


@pytest.mark.parametrize("damaged", [Damaged(), Damaged(opens=False), b"", b"regf", bytes(9000), None])
def test_one_damaged_hive_leaves_what_the_other_says(damaged: File) -> None:
    no_system, no_software = (
        found_in({SOFTWARE: software(WINDOWS_10), SYSTEM: damaged}),
        found_in({SOFTWARE: damaged, SYSTEM: system()}),
    )
    assert no_system and no_system.update == "22H2, UBR 3803" and no_system.host_name is None
    assert no_software == OperatingSystem(
        "Windows", edition="Workstation", architecture="x86_64", host_name="DESKTOP-1"
    )
    assert found_in({SOFTWARE: damaged, SYSTEM: damaged}) is None


def test_a_winnt_directory_counts_where_the_windows_directory_says_nothing() -> None:
    found = found_in({SOFTWARE: b"junk", "/WINNT/system32/config/software": software({"CurrentVersion": "3.51"})})
    assert found and found.name == "Windows NT 3.51"


def test_texts_are_printable_and_short() -> None:
    hostile: Values = {
        "ProductName": "Windows\x1b[31m 10\u202e\r\n\tPro\x07",
        "EditionID": "E" * 5000,
        "CurrentBuildNumber": (1, b"\x00\xdc\x00\xdc9\0"),
        "DisplayVersion": "\x00hidden",
        "UBR": (11, struct.pack("<Q", (1 << 64) - 1)),
        "InstallDate": (11, struct.pack("<Q", (1 << 64) - 1)),
        "CurrentMajorVersionNumber": "ten",
        "CurrentMinorVersionNumber": 0,
    }
    found = windows(hostile, name="\U0001f600" * 300)
    assert found.name == "Windows [31m 10 Pro"
    assert found.edition == "E" * 256
    assert found.host_name == "\U0001f600" * 256
    assert found.build == "\ufffd\ufffd9"
    assert found.version is None and found.installed_ns is None
    assert found.update == "UBR 18446744073709551615"


def test_a_volume_without_windows_is_none() -> None:
    assert found_in({}) is None
    assert found_in({"/Windows/System32/config/other": b"", "/a/Windows/System32/config/SOFTWARE": b""}) is None
    assert found_in({SOFTWARE: bytes(BareHive({}).content), SYSTEM: bytes(BareHive({}).content)}) is None


def test_little_is_read_of_hives_of_many_mebibytes() -> None:
    filler: Tree = {f"blob {n}": (3, bytes(16_000)) for n in range(4000)}
    content = BareHive({"Classes": filler, "Microsoft": {"Windows NT": {"CurrentVersion": WINDOWS_10}}}).content
    hive = Counted(content)
    volume = MemoryVolume({SOFTWARE: hive, SYSTEM: system(), **{f"/files/{n}": b"" for n in range(50_000)}})
    scan = volume.scan()
    started = time.perf_counter()
    found = find_system(volume, scan)
    assert time.perf_counter() - started < 2 * PATIENCE
    assert found and found.build == "19045"
    assert hive.bytes_read < 100_000 < hive.size_bytes


PRISTINE = (software(WINDOWS_10), system(current=2))


@settings(max_examples=int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "200")), deadline=2000)
@given(st.data())
def test_no_change_to_the_hives_makes_it_raise(data: st.DataObject) -> None:
    changed = [bytearray(hive) for hive in PRISTINE]
    for hive in changed:
        for at, value in data.draw(
            st.lists(st.tuples(st.integers(0, len(hive) - 5), st.binary(min_size=1, max_size=4)))
        ):
            hive[at : at + len(value)] = value
        del hive[data.draw(st.integers(len(hive) // 2, len(hive))) :]
    found = found_in({SOFTWARE: changed[0], SYSTEM: changed[1]})
    for told in found.properties().values() if found else ():
        assert isinstance(told, str) and told.isprintable() and 0 < len(told) <= 256
