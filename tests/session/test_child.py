"""An edit into a file of its own: the parent keeps every byte, and the two together are the medium."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import run
from tests.images import noise, run_tool, tool
from tests.session import media
from tests.session.use import beside, check_at_rest, digest, refused, restored, served, states, told


@pytest.fixture
def parent(place: Path) -> Path:
    return media.image_of(media.plain(), place, "parent.sqlimage")


def test_a_child_beside_its_parent_is_served_and_restored_and_written_again(parent: Path, tmp_path: Path) -> None:
    before, child = digest(parent), parent.parent / "child.sqlimage"
    with served(parent, "--writable", "--commit", "--into", child, "--label", "first") as server:
        server.io("write -P 0x21 3M 128k", "flush", "read -P 0x21 3M 128k", "write -z 5M 1M")
        assert "uuid" in server.end()
    assert digest(parent) == before
    assert beside(parent) == beside(child) == []
    assert child.stat().st_size < parent.stat().st_size // 4
    wanted = bytearray(media.plain().read_bytes())
    wanted[3 << 20 : (3 << 20) + 131072] = b"\x21" * 131072
    wanted[5 << 20 : 6 << 20] = bytes(1 << 20)
    assert restored(child, tmp_path / "child.raw") == wanted
    with served(f"{child}@first") as server:
        run("nbdcopy", server.uri(), tmp_path / "served.raw")
        server.end()
    assert (tmp_path / "served.raw").read_bytes() == wanted
    with served(child, "--writable", "--commit") as server:
        server.io("read -P 0x21 3M 128k", "write -P 0x22 0 4k")
        server.end()
    wanted[:4096] = b"\x22" * 4096
    assert restored(child, tmp_path / "again.raw") == wanted
    assert restored(parent, tmp_path / "parent.raw") == media.plain().read_bytes()
    assert digest(parent) == before
    check_at_rest(child)


def test_a_child_finds_its_parent_in_another_directory_by_the_search_path(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    before, child = digest(parent), away / "child.sqlimage"
    with served(parent, "--writable", "--into", child, sock=tmp_path / "x.sock") as server:
        server.io("write -P 0x21 0 64k")
        assert f"`sqlimage edit commit {child}@1`" in server.end()
    uuid = told("info", parent)["uuid"]
    for command in (
        ("restore", f"{child}@1", tmp_path / "r.raw"),
        ("serve", f"{child}@1", "--socket", tmp_path / "y.sock"),
        ("serve", f"{child}@1", "--writable", "--socket", tmp_path / "y.sock"),
        ("edit", "commit", f"{child}@1"),
    ):
        assert str(away) in refused(3, uuid, *command)
    assert not (tmp_path / "r.raw").exists()
    assert beside(child) == []
    monkeypatch.setenv("SQLIMAGE_PATH", str(parent.parent))
    tool("edit", "commit", f"{child}@1")
    assert states(child) == [(1, "sealed")]
    wanted = b"\x21" * 65536 + media.plain().read_bytes()[65536:]
    assert restored(child, tmp_path / "r.raw") == wanted
    with served(child, sock=tmp_path / "y.sock") as server:
        run("nbdcopy", server.uri(), tmp_path / "served.raw")
        server.end()
    assert (tmp_path / "served.raw").read_bytes() == wanted
    assert digest(parent) == before
    check_at_rest(child)


@pytest.mark.parametrize("end", ["--discard", "--commit"])
def test_a_child_into_which_nothing_goes_is_not_left_behind(parent: Path, end: str) -> None:
    child = parent.parent / "child.sqlimage"
    with served(parent, "--writable", end, "--into", child) as server:
        server.io("read 0 64k")
        if end == "--discard":
            server.io("write 0 64k", "flush")
        server.end()
    assert not child.exists()
    assert beside(parent) == beside(child) == []
    assert states(parent) == [(1, "sealed")]


def test_a_child_never_takes_the_place_of_a_file(parent: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(noise("precious", 1000))
    refused(4, "exists", "serve", parent, "--writable", "--into", precious, "--socket", tmp_path / "x.sock")
    refused(3, "no such directory", "serve", parent, "--writable", "--into", tmp_path / "no" / "child", "--socket", "x")
    assert precious.read_bytes() == noise("precious", 1000)
    assert states(parent) == [(1, "sealed")]


def test_a_child_is_never_restored_over_the_parent_that_it_is_read_from(tmp_path: Path) -> None:
    parent, child = tmp_path / "p.sqlimage", tmp_path / "c.sqlimage"
    (tmp_path / "raw").write_bytes(b"content" * 10_000)
    tool("capture", tmp_path / "raw", parent)
    tool("edit", "begin", parent, "--into", child)
    before = parent.read_bytes()
    done = run_tool("restore", child, parent, "--force")
    assert done.returncode == 4
    assert "parent" in done.stderr
    assert parent.read_bytes() == before
