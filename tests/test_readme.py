"""Every block of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, run
from tests.images import sample_volume, tool

README = (CHECKOUT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a volume, as the README's reader has one."""
    here = tmp_path_factory.mktemp("readme")
    sample_volume(here / "disk.img")
    return here


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_tour_runs_line_by_line(place: Path) -> None:
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) > 20
    shown = {}
    try:
        for line in lines:
            done = shell(line, place)
            assert done.returncode == 0, (line, done.stderr)
            shown[line.split()[1]] = done.stdout
    finally:
        shell("mountpoint -q mnt && sqlimage unmount mnt --discard", place)
    assert "disk.sqlimage" in shown["find"]
    assert "/Users/ann" in shown["unmount"]
    assert "/Users/joe/Documents/haystack.txt" in shown["audit"]


def test_every_query_of_the_cookbook_runs_here_and_in_the_sqlite3_shell(tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    tool("capture", sample_volume(tmp_path / "disk.img"), image)
    queries = blocks("sql")
    assert len(queries) >= 8
    for query in queries:
        shown = tool("sql", image, query)
        assert len(shown.splitlines()) > 1, query
        if "content(" not in query:
            run("sqlite3", "-readonly", image, query)


def test_the_python_block_runs(place: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_second_block_is_what_continuous_integration_calls() -> None:
    first, second = blocks("sh")
    assert "sqlimage tour" in first
    assert second.strip() in (CHECKOUT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_the_first_block_does_all_the_set_up_from_a_fresh_copy(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    files = run("git", "-C", CHECKOUT, "ls-files", "-z").stdout.decode().split("\0")
    for name in filter(None, files):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, copy / name)
    done = subprocess.run(["sh", "-c", blocks("sh")[0]], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "identical to the source" in done.stdout


def test_the_examples_in_the_help_parse() -> None:
    for name in ("capture", "find", "sql", "get"):
        shown = " ".join(tool(name, "--help").split())
        example = shown[shown.index("Example: ") + 9 :]
        assert shlex.split(example)[:2] == ["sqlimage", name]
