"""The benchmark of versions: that its cases fit together and do what they say, on small volumes; no figures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import sqlimage
from sqlimage.units import KIB, MIB
from tests.bench import chain, chains, versions
from tests.bench.corpus import MAKERS, write_random
from tests.bench.measure import Case, Contender, Result, filled, run_case
from tests.bench.serving import Figures

BY_NAME = {case.name: case for case in versions.CASES}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two volumes of noise under the names of the large ones; the second differs in one cluster of 64 KiB."""
    place = tmp_path / "corpus"
    place.mkdir()
    for kind in ("ntfs", "ext4"):
        write_random(place / f"{kind}.img", 4 * MIB, 1)
        held = bytearray((place / f"{kind}.img").read_bytes())
        held[MIB : MIB + 4 * KIB] = bytes(range(256)) * 16
        (place / f"{kind}_v2.img").write_bytes(held)
    return place


def results(case: Case, corpus: Path, tmp_path: Path) -> dict[str, Result]:
    return {one.contender: one for one in run_case(case, corpus, tmp_path / "work", 1, lambda text: None)}


@pytest.mark.parametrize("case", versions.CASES, ids=lambda case: case.name)
def test_who_takes_part_has_what_it_needs(case: Case) -> None:
    prepared: set[str] = set()
    for one in (*case.prepare, *case.contenders):
        words = " ".join(one.argv)
        assert ("{source}" in words) == bool(one.source)
        assert ("{start}" in words) == bool(one.start)
        assert not one.source or one.source in MAKERS
        assert not one.start or one.start in prepared, "what is prepared first is there first"
        if one in case.prepare:
            assert "{out}" in words
            prepared.add(one.name)
    names = [one.name for one in case.contenders]
    assert case.subject in names
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_everybody_adds_a_second_version(corpus: Path, tmp_path: Path) -> None:
    done = results(BY_NAME["ext4-second"], corpus, tmp_path)
    assert {name: one.failure for name, one in done.items() if one.failure} == {}
    added = {name: one.of("output_bytes")[0] for name, one in done.items()}
    assert added.pop("sqlimage first") > 4 * MIB
    added.pop("restic")  # its chunks are too large for so small a volume
    assert all(0 <= size < MIB for size in added.values()), added
    assert list((tmp_path / "work").iterdir()) == []


def test_a_qcow2_child_holds_what_differs_and_reads_as_the_second_version(corpus: Path, tmp_path: Path) -> None:
    def run(one: Contender, **places: Path) -> None:
        subprocess.run(filled(one.argv, places), check=True)

    def same(image: Path) -> bool:
        command = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(second)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    prepare = {one.name: one for one in BY_NAME["merge"].prepare}
    child = {one.name: one for one in BY_NAME["ntfs-second"].contenders}["qcow2 zstd child"]
    second, base = corpus / "ntfs_v2.img", tmp_path / "base.qcow2"
    run(prepare["base.qcow2"], source=corpus / "ntfs.img", out=base)
    run(child, source=second, out=tmp_path / "child.qcow2", start=base)
    assert same(tmp_path / "child.qcow2")
    assert (tmp_path / "child.qcow2").stat().st_size < MIB
    assert not (tmp_path / "child.qcow2.plain").exists()
    for one in BY_NAME["merge"].contenders[1:]:
        pair = tmp_path / one.name.replace(" ", "-")
        run(prepare["qcow2-pair"], source=second, out=pair, start=base)
        assert not same(pair / "base.qcow2")
        run(one, start=pair)
        assert same(pair / "base.qcow2"), one.name
    assert not same(base)


@pytest.mark.slow
def test_one_file_and_child_files_of_many_versions_read_the_same(tmp_path: Path) -> None:
    image = tmp_path / "one.sqlimage"
    chain.small_first(image)
    beside = tmp_path / "children"
    beside.mkdir()
    first = beside / "first.sqlimage"
    first.write_bytes(image.read_bytes())
    chain.add_versions(image, 3, 10)
    newest = chain.add_children(first, 3, 10)
    assert newest.name == "child-003.sqlimage"
    held = []
    for path in (image, newest, first):
        with sqlimage.open(str(path)) as opened:
            driver = opened.driver()
            held.append(driver.read(0, 8 * MIB))
            driver.close()
    assert held[0] == held[1] != held[2]
    with sqlimage.open(str(image)) as opened:
        assert [one.control.state for one in opened.versions()] == ["sealed"] * 4
        assert opened.version().volumes()[0].raw_reason is None, "the file system is whole"
        rows = opened.database.rows(
            "SELECT sum(end_cluster - start_cluster + 1) FROM cluster_map WHERE version > 1 GROUP BY version"
        )
        assert rows == [(10,)] * 3
    assert set(chains.measure_opening({"one": image, "children": newest}, MIB)) == {"one", "children"}


def test_a_chain_is_made_from_the_command_line(tmp_path: Path) -> None:
    assert chain.main([str(tmp_path / "small.sqlimage"), "--versions=1", "--clusters=2"]) == 0
    on = ["--on", str(tmp_path / "small.sqlimage"), "--versions=1", "--clusters=2"]
    assert chain.main([str(tmp_path / "more.sqlimage"), *on]) == 0
    with sqlimage.open(str(tmp_path / "more.sqlimage")) as opened:
        assert len(opened.versions()) == 3


def test_the_report_of_chains() -> None:
    jobs = chains.JOBS[:2]
    figures = {
        jobs[0].name: {"64 versions": Figures([80.0]), "flat": Figures([100.0])},
        jobs[1].name: {"64 versions": Figures([70.0]), "flat": Figures([100.0])},
    }
    lines = chains.report(jobs, figures, {"one file": 12.34, "64 child files": 100.0}, 1).splitlines()
    told = {line.split(",")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert told["sequential 1 MiB reads"].endswith("| 80 (80-80) | 100 (100-100) | 0.80 | at least 0.77 | met |")
    assert told["random 4 KiB reads"].endswith("| 0.70 | at least 0.77 | **missed** |")
    assert lines[-2].endswith("one file, to the first 4 KiB: 12.3 ms (asked: below 100, met).")
    assert lines[-1].endswith("64 child files, to the first 4 KiB: 100.0 ms (asked: below 100, **missed**).")


def test_the_options_are_those_of_the_other_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        versions.main(["--corpus", str(tmp_path / "missing")])
    assert "python -m tests.bench.versions" in capsys.readouterr().err
