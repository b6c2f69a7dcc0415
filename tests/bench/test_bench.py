"""The benchmark's own machinery on trivial commands: no figure of any machine is asserted here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from sqlimage.units import MIB
from tests.bench import versions
from tests.bench.bars import BARS, PEAK_ASKED_BYTES, Bar, judge
from tests.bench.cases import CASES
from tests.bench.corpus import edit_files, select_files, write_random
from tests.bench.measure import (
    Case,
    CommandFailed,
    Contender,
    Measurement,
    Result,
    filled,
    measure,
    ratio,
    run_case,
    warm,
)
from tests.bench.run import main


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def contender(name: str, script: str, source: str = "volume.img", needs: tuple[str, ...] = ("sh",)) -> Contender:
    return Contender(name, ("sh", "-c", script, "sh", "{source}", "{out}"), source, needs)


def result(name: str, *walls: float, size: int = 100, peak: int = MIB) -> Result:
    return Result(name, [Measurement(wall, wall, peak, size) for wall in walls])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    place = tmp_path / "corpus"
    place.mkdir()
    (place / "volume.img").write_bytes(b"volume" * 1000)
    return place


def test_output_size_counts_all_files_and_no_holes(tmp_path: Path) -> None:
    made = f"head -c 300000 /dev/zero > {tmp_path}/a; mkdir {tmp_path}/d; head -c 5 /dev/zero > {tmp_path}/d/b"
    assert measure(shell(made), tmp_path).output_bytes == 300_005
    sparse = tmp_path / "sparse"
    sparse.mkdir()
    assert measure(shell(f"truncate -s 1G {sparse}/c"), sparse).output_bytes < MIB


def test_time_and_memory_of_children_count(tmp_path: Path) -> None:
    hungry = f"{sys.executable} -c 'x = bytearray(b\"x\" * (150 << 20)); sum(range(10**6))'; true"
    figures = measure(shell(hungry), tmp_path)
    assert figures.peak_bytes > 150 * MIB
    assert figures.cpu_seconds > 0
    assert figures.wall_seconds > 0


def test_a_failing_command_says_why(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"exit 3: it was too much"):
        measure(shell("echo it was too much >&2; exit 3"), tmp_path)
    with pytest.raises(CommandFailed, match=r"exit -9"):
        measure(shell("kill -9 $$"), tmp_path)
    with pytest.raises(CommandFailed, match=r"no-such-program"):
        measure(["no-such-program"], tmp_path)


def test_the_memory_of_who_measures_does_not_count(tmp_path: Path) -> None:
    ballast = bytearray(os.urandom(1)) * (200 * MIB)
    assert measure(["true"], tmp_path).peak_bytes < 100 * MIB
    assert len(ballast) == 200 * MIB


def test_contenders_take_turns_and_leave_nothing(corpus: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    case = Case(
        "c", "C", "a",
        tuple(contender(name, f'echo {name} >> {log}; cp "$1" "$2"') for name in ("a", "b")),
    )  # fmt: skip
    results = run_case(case, corpus, tmp_path / "work", 3, lambda text: None)
    assert log.read_text().split() == ["a", "b"] * 3
    assert [one.of("output_bytes") for one in results] == [[6000] * 3] * 2
    assert list((tmp_path / "work").iterdir()) == []


def test_prepared_images_are_sources(corpus: Path, tmp_path: Path) -> None:
    case = Case(
        "c", "C", "a",
        (contender("a", 'cat "$1" "$1" > "$2"', source="image"),),
        prepare=(contender("image", 'cat "$1" "$1" > "$2"'),),
    )  # fmt: skip
    (done,) = run_case(case, corpus, tmp_path / "work", 2, lambda text: None)
    assert done.of("output_bytes") == [24_000] * 2


def test_who_cannot_run_is_out_and_the_others_go_on(corpus: Path, tmp_path: Path) -> None:
    case = Case(
        "c", "C", "good",
        (
            contender("good", 'cp "$1" "$2"'),
            contender("bad", "exit 1"),
            contender("absent", "true", needs=("no-such-program",)),
            contender("no volume", "true", source="missing.img"),
            contender("unprepared", "true", source="image"),
            Contender("nothing to add to", ("true",), "volume.img", ("true",), "image"),
            Contender("never prepared", ("true",), "volume.img", ("true",), "other"),
        ),
        prepare=(contender("image", "echo no >&2; exit 1"),),
    )  # fmt: skip
    results = {one.contender: one for one in run_case(case, corpus, tmp_path / "work", 2, lambda text: None)}
    assert results["good"].measured
    failures = {name: one.failure or "" for name, one in results.items() if not one.measured}
    assert set(failures) == {"bad", "absent", "no volume", "unprepared", "nothing to add to", "never prepared"}
    assert "not installed" in failures["absent"]
    assert "no such volume" in failures["no volume"]
    assert "image could not be made" in failures["unprepared"]
    assert "image could not be made" in failures["nothing to add to"]
    assert "other was not prepared" in failures["never prepared"]


def test_what_is_added_to_counts_by_its_growth_and_is_fresh_each_time(corpus: Path, tmp_path: Path) -> None:
    grow = 'test ! -e "$2/new"; cat "$1" "$1" > "$2/new"; mkdir -p "$2/cache"; cp "$1" "$2/cache/again"'
    store = 'mkdir "$2"; cp "$1" "$2/old"'
    case = Case(
        "c", "C", "grows",
        (
            Contender("grows", ("sh", "-ec", grow, "sh", "{source}", "{start}"), "volume.img", ("sh",), "store"),
            Contender("shrinks", ("rm", "{start}/old"), "", ("rm",), "store"),
        ),
        prepare=(contender("store", store),),
    )  # fmt: skip
    grows, shrinks = run_case(case, corpus, tmp_path / "work", 2, lambda text: None)
    assert grows.failure is None
    assert grows.of("output_bytes") == [12_000] * 2
    assert shrinks.of("output_bytes") == [-6_000] * 2


def test_words_of_a_command_are_filled_in() -> None:
    places = {"out": Path("/o"), "start": Path("/s")}
    assert filled(("a", "{start}/repo::x", "--to={out}", "{source}"), places) == [
        "a",
        "/s/repo::x",
        "--to=/o",
        "{source}",
    ]


def test_ratios_pair_the_runs_of_a_round() -> None:
    assert ratio(result("a", 1, 20, 3), result("b", 2, 40, 10)) == 0.5
    assert ratio(result("a", 1, size=50), result("b", 1, size=200), "output_bytes") == 0.25
    assert ratio(result("a"), result("b", 1)) is None
    assert ratio(Result("a", failure="gone"), result("b", 1)) is None
    assert ratio(result("a", 1, size=1), result("b", 1, size=0), "output_bytes") is None
    assert ratio(result("a", 1, size=1), result("b", 1, size=-5), "output_bytes") is None


def test_bars() -> None:
    bars = [
        Bar("met", "case", "sqlimage", "peer", "wall_seconds", 0.5),
        Bar("missed", "case", "sqlimage", "peer", "output_bytes", 0.99),
        Bar("open", "case", "sqlimage", "gone", "wall_seconds", 0.5),
        Bar("of another case", "other", "sqlimage", "peer", "wall_seconds", 0.5),
    ]
    case = {"sqlimage": result("sqlimage", 1, 2), "peer": result("peer", 2, 4), "gone": Result("gone", failure="no")}
    verdicts = {verdict.name: verdict for verdict in judge({"case": case}, bars)}
    assert {name: verdict.met for name, verdict in verdicts.items()} == {
        "met": True,
        "missed": False,
        "open": None,
        "peak memory of sqlimage in any run": True,
    }
    assert verdicts["met"].measured == "0.50"
    assert verdicts["open"].measured == "not measured"


def test_the_memory_bar_looks_at_every_run_of_ours_only() -> None:
    small = result("sqlimage", 1, peak=PEAK_ASKED_BYTES - 1)
    peer = result("peer", 1, peak=PEAK_ASKED_BYTES * 9)
    assert judge({"case": {"sqlimage": small, "peer": peer}}, [])[0].met is True
    large = result("sqlimage fast", 1, peak=PEAK_ASKED_BYTES)
    assert judge({"case": {"sqlimage": small, "sqlimage fast": large}}, [])[0].met is False
    assert judge({"case": {"peer": peer}}, [])[0].met is None


def test_the_cases_and_the_bars_fit_together() -> None:
    cases = {case.name: case for case in CASES}
    assert len(cases) == len(CASES)
    for case in CASES:
        names = [one.name for one in case.contenders]
        assert case.subject in names
        assert len(set(names)) == len(names)
        for one in (*case.contenders, *case.prepare):
            assert {"{source}", "{out}"} <= set(one.argv)
    cases |= {case.name: case for case in versions.CASES}
    assert len(cases) == len(CASES) + len(versions.CASES)
    for bar in BARS:
        names = [one.name for one in cases[bar.case].contenders]
        assert {bar.subject, bar.peer} <= set(names)


def test_the_report(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(
        "toy", "A toy", "sqlimage",
        (contender("sqlimage", 'cp "$1" "$2"'), contender("peer", 'cat "$1" "$1" > "$2"'), contender("bad", "exit 4")),
    )  # fmt: skip
    out = tmp_path / "out.json"
    code = main(["--corpus", str(corpus), "--repeat", "2", "--only", "toy", "--json", str(out)], [case])
    printed = capsys.readouterr().out
    assert code == 0
    assert "### A toy (`toy`)" in printed
    assert "| peer |" in printed
    assert "| 0.50 |" in printed, "the ratio of sizes"
    assert "bad was not measured: sh -c exit 4" in printed
    assert "| peak memory of sqlimage in any run | below 300 MiB |" in printed
    document = json.loads(out.read_text())
    assert len(document["cases"]["toy"]["peer"]["rounds"]) == 2
    assert document["machine"]["kernel"] == os.uname().release
    assert sorted(path.name for path in corpus.iterdir()) == ["volume.img"]


def test_an_unmeasured_bar_fails_the_run(corpus: Path) -> None:
    case = Case("toy", "A toy", "peer", (contender("peer", "true"),))
    assert main(["--corpus", str(corpus), "--repeat", "1"], [case]) == 1


def test_warming_reads_files_with_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(1 << 40)
        file.write(b"x")
        file.truncate(1 << 41)
    warm(path)
    (tmp_path / "empty").touch()
    warm(tmp_path / "empty")


def test_files_are_selected_in_order_within_a_budget(tmp_path: Path) -> None:
    for name, size in (("b/2", 10), ("b/1", 10), ("a/x.pyc", 10), ("a/3", 10), ("c", 50)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "link").symlink_to("c")
    place = str(tmp_path)
    assert list(select_files([place], 1000)) == [f"{place}/{name}" for name in ("c", "a/3", "b/1", "b/2")]
    assert list(select_files([place], 70)) == [f"{place}/{name}" for name in ("c", "a/3", "b/1")]
    assert list(select_files([place], 1000, smallest_bytes=11)) == [f"{place}/c"]
    assert list(select_files([f"{place}/missing"], 10)) == []


def test_random_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    write_random(tmp_path / "a", 3 * MIB // 2, 7)
    write_random(tmp_path / "b", 3 * MIB // 2, 7)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size == 3 * MIB // 2


def test_a_second_version_has_files_changed_rewritten_deleted_and_added(tmp_path: Path) -> None:
    tree, home, extra = tmp_path / "tree", tmp_path / "home", tmp_path / "extra"
    extra.mkdir()
    (extra / "added").write_bytes(b"added")
    tree.mkdir()
    before = {f"{number:04d}": bytes([number % 251]) * 3000 for number in range(211)}
    for name, held in before.items():
        (tree / name).write_bytes(held)
    edit_files([tree], home, [str(extra)])
    after = {path.name: path.read_bytes() for path in tree.iterdir()}
    assert before.keys() - after.keys() == {"0006"}
    changed = {name: held for name, held in after.items() if held != before[name]}
    in_place = {name for name, held in changed.items() if held[512:].startswith(b"EDITED-IN-PLACE")}
    rewritten = {name for name, held in changed.items() if held == b"new head\n" + before[name]}
    assert in_place == {"0096", "0193"}
    assert rewritten == {"0030", "0127"}
    assert changed.keys() == in_place | rewritten
    assert (home / "new" / str(extra).lstrip("/") / "added").read_bytes() == b"added"
    assert (home / "new/photo.jpg").stat().st_size == 4 * MIB
