"""The house itself: imports run one way, everything ships, every command is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import sqlimage
from tests.conftest import CHECKOUT
from tests.images import run_tool

# Rooms from the ground up; a room may import itself and those in rows below. Siblings of a row do not know each other.
ROWS = (
    {"errors", "tool"},
    {"units", "extent", "device", "fixup", "nameless", "nbd_layout"},
    {"moves"},
    {"codec"},
    {"media", "filesystem", "streams"},
    {"image"},
    {"journey", "versions"},
    {"catalog", "nbd", "mount", "transfer"},
    {"boot"},
    {"session"},
    {"cli"},
)
COMMANDS = (
    "capture",
    "restore",
    "info",
    "ls",
    "cat",
    "get",
    "extent",
    "sql",
    "audit",
    "property",
    "key",
    "find",
    "verify",
    "tour",
    "edit",
    "serve",
    "mount",
    "unmount",
    "put",
    "rm",
    "mkdir",
    "mv",
    "boot",
    "versions",
    "diff",
    "merge",
    "squash",
    "prune",
    "rebase",
    "flatten",
    "compact",
    "sign",
    "push",
    "pull",
    "split",
    "join",
    "send",
    "receive",
)


def modules() -> list[Path]:
    return sorted([*(CHECKOUT / "sqlimage").rglob("*.py"), *(CHECKOUT / "cli").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).parts
    return "cli" if parts[0] == "cli" else parts[1].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found.update(name.split(".")[1] for name in names if name.startswith("sqlimage."))
    return found


def row_of(room: str) -> int:
    return next(n for n, rooms in enumerate(ROWS) if room in rooms)


@pytest.mark.parametrize("path", [m for m in modules() if m.name != "__init__.py"], ids=lambda p: str(p.name))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "cli":
        return
    for other in imported_rooms(path) - {room, "schema"}:
        assert row_of(other) < row_of(room), f"{path.relative_to(CHECKOUT)} imports {other}"


def test_the_command_line_uses_only_the_public_interface() -> None:
    for path in (CHECKOUT / "cli").glob("*.py"):
        assert not imported_rooms(path), path


def test_every_public_name_can_be_had() -> None:
    for name in sqlimage.__all__:
        assert getattr(sqlimage, name) is not None


def test_every_package_on_the_disk_ships() -> None:
    listed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join(place.parent.relative_to(CHECKOUT).parts) for place in (CHECKOUT / "sqlimage").rglob("__init__.py")
    }
    assert sorted(listed) == sorted(on_disk | {"sqlimage.cli", "sqlimage.schema"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(command: str) -> None:
    done = run_tool(command, "--help")
    assert done.returncode == 0
    if command != "property":
        assert f"Example: sqlimage {command}" in " ".join(done.stdout.split())
    assert re.search(rf"sqlimage {command}\b", (CHECKOUT / "README.md").read_text("utf-8"))


def test_every_command_is_listed_here() -> None:
    shown = run_tool("--help").stdout
    listed = set(re.findall(r"^  (\w+)  ", shown[shown.index("Commands:") :], re.MULTILINE))
    assert listed == set(COMMANDS)


def test_no_file_is_long() -> None:
    long = [
        (str(path.relative_to(CHECKOUT)), lines)
        for path in [*modules(), *(CHECKOUT / "tests").rglob("*.py")]
        if (lines := len(path.read_text("utf-8").splitlines())) > 400
    ]
    assert long == []


@pytest.mark.slow
def test_the_built_wheel_works_without_the_checkout(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "-q", "-w", "-o", tmp_path, CHECKOUT], check=True)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "sqlimage", "tour", tmp_path / "tour"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "identical to the source" in done.stdout
