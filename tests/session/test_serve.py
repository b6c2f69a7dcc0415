"""A served image is a disk to programs that know nothing of us, and stays one file whatever becomes of the server."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

import sqlimage
from tests.conftest import run
from tests.images import kept_bytes, noise, tool
from tests.nbd.client import FLUSH, READ, WRITE, Client, request
from tests.session import media
from tests.session.use import (
    PROGRAM,
    Served,
    actions,
    beside,
    check_at_rest,
    digest,
    refused,
    restored,
    served,
    states,
    told,
)

MIB = 1 << 20
NTFS_BYTES = 8 * MIB


@pytest.fixture
def image(place: Path) -> Path:
    return media.image_of(media.plain(), place)


@pytest.fixture
def ntfs(place: Path) -> Path:
    return media.image_of(media.ntfs(), place)


def test_other_programs_copy_out_of_a_served_image_what_was_captured(ntfs: Path, tmp_path: Path) -> None:
    wanted = kept_bytes(ntfs, media.ntfs().read_bytes())
    with served(ntfs) as server:
        run("nbdcopy", server.uri(), tmp_path / "nbdcopy.raw")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri("volume-0"), tmp_path / "volume.qcow2")
        said = server.end()
    assert said.split() == [f"nbd+unix:///{name}?socket={server.sock}" for name in ("medium", "volume-0")]
    run("qemu-img", "convert", "-O", "raw", tmp_path / "volume.qcow2", tmp_path / "volume.raw")
    assert (tmp_path / "nbdcopy.raw").read_bytes() == wanted
    assert (tmp_path / "volume.raw").read_bytes() == wanted
    assert restored(ntfs, tmp_path / "restored.raw") == wanted


def test_a_whole_disk_is_converted_into_a_served_image_and_becomes_a_version(image: Path, tmp_path: Path) -> None:
    new = media.ntfs().read_bytes()
    with served(image, "--writable", "--commit", "--label", "replaced", "-m", "by qemu-img", "--user", "joe") as server:
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", media.ntfs(), server.uri())
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", media.ntfs(), server.uri())
        said = server.end()
    assert "created" in said and "/Users/joe/sparse.bin" in said
    assert states(image) == [(1, "sealed"), (2, "sealed")]
    (volume,) = told("info", f"{image}@replaced")["volumes"]
    assert (volume["file_system"], volume["captured_as"]) == ("ntfs", "files")
    assert tool("cat", image, "/Users/joe/Documents/haystack.txt").count("a needle") == 1
    got = restored(image, tmp_path / "new.raw")
    with sqlimage.open(str(image)) as opened:
        version = opened.version()
        unit = version.control.bytes_per_cluster
        for start, length in version.allocated():
            assert got[start * unit : (start + length) * unit] == new[start * unit : (start + length) * unit]
    assert len(got) == len(new)
    assert restored(f"{image}@1", tmp_path / "old.raw") == media.plain().read_bytes()
    commit = told("audit", image)[-1]
    assert (commit["action"], commit["user"]) == ("edit-commit", "joe")
    assert json.loads(commit["detail"])["message"] == "by qemu-img"
    check_at_rest(image)


def test_fio_finds_in_an_edit_what_it_wrote_at_depth_16(image: Path, tmp_path: Path) -> None:
    with served(image, "--writable", "--commit") as server:
        run(
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri()}", "--rw=randwrite", "--bsrange=512-64k",
            "--size=8M", "--io_size=8M", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--randseed=7",
            "--fsync=64", cwd=tmp_path,
        )  # fmt: skip
        before = tmp_path / "before.raw"
        run("nbdcopy", server.uri(), before)
        server.end()
    assert restored(image, tmp_path / "after.raw") == before.read_bytes() != media.plain().read_bytes()
    assert restored(f"{image}@1", tmp_path / "first.raw") == media.plain().read_bytes()
    check_at_rest(image)


def test_what_is_written_through_one_export_is_read_through_the_other(place: Path) -> None:
    image = media.image_of(media.disk(), place)
    first, length, _ = media.PARTITIONS[1]
    at = first * 512 + length - 1 * MIB
    with served(image, "--writable", "--discard") as server:
        listed = run("nbdinfo", "--list", "--json", server.uri()).stdout
        sizes = {export["export-name"]: export["export-size"] for export in json.loads(listed)["exports"]}
        assert sizes == {"medium": 34 * MIB, "volume-0": NTFS_BYTES, "volume-1": 16 * MIB}
        server.io(f"write -P 0xa7 {length - 1 * MIB} 64k", export="volume-1")
        server.io(f"read -P 0xa7 {at} 64k", f"write -P 0x5b {at + 65536} 4k", export="medium")
        server.io(f"read -P 0x5b {length - 1 * MIB + 65536} 4k", export="volume-1")
        server.io(f"write -P 0x11 {length} 512", export="volume-1", code=1)
        assert server.end().splitlines()[-1] == "what was written is gone"
    assert states(image) == [(1, "sealed")]


def test_a_stopped_server_keeps_what_was_flushed_and_says_how_to_go_on(image: Path, tmp_path: Path) -> None:
    with served(image, "--writable") as server:
        assert server.sock is not None
        idle, client = Client.connect(server.sock).enter(), Client.connect(server.sock).enter()
        assert client.do(WRITE, 0, data=b"F" * 65536).error == 0
        assert client.do(FLUSH).error == 0
        assert client.do(WRITE, 65536, data=b"U" * 65536).error == 0
        said = server.end()
        assert idle.closed() and client.closed()
    assert "version 2 stays open" in said
    assert f"`sqlimage edit commit {image}@2`" in said and f"`sqlimage edit discard {image}@2`" in said
    assert beside(image) == []
    assert not server.sock.exists()
    (waiting,) = told("edit", "list", image)
    assert (waiting["version"], waiting["held_by"], waiting["written_bytes"]) == (2, None, 131072)
    refused(4, f"go on with {image}@2", "serve", image, "--writable", "--socket", tmp_path / "sock")
    refused(4, f"go on with {image}@2", "put", image, PROGRAM, "/x")
    with served(f"{image}@2", "--writable") as server:
        server.io("read -P 0x46 0 64k", "read -P 0x55 64k 64k", "write -P 0x58 128k 4k")
        assert "version 2 stays open" in server.end(signal.SIGINT)
    tool("edit", "commit", f"{image}@2")
    got = restored(image, tmp_path / "r.raw")
    assert got[:135168] == b"F" * 65536 + b"U" * 65536 + b"X" * 4096
    assert got[135168:] == media.plain().read_bytes()[135168:]
    check_at_rest(image)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--commit",), ("--discard",), ()],
    ids=["commit", "discard", "keep"],
)
def test_where_nothing_was_written_no_version_is_made(image: Path, options: tuple[str, ...]) -> None:
    with served(image, "--writable", *options) as server:
        server.io("read 0 64k", "flush")
        said = server.end()
    assert said.splitlines()[-1] in ("nothing was written; no version was made", "what was written is gone")
    assert states(image) == [(1, "sealed")]
    assert actions(image)[-1] == ("edit-discard", None)
    check_at_rest(image)


@pytest.mark.slow
def test_discarded_writes_leave_the_image_as_it_was(image: Path, tmp_path: Path) -> None:
    with served(image, "--writable", "--discard") as server:
        server.io("write -P 9 0 4M", "flush", "read -P 9 0 4M")
        assert server.end().splitlines()[-1] == "what was written is gone"
    assert states(image) == [(1, "sealed")]
    assert restored(image, tmp_path / "r.raw") == media.plain().read_bytes()
    check_at_rest(image)


def test_what_a_client_flushed_survives_the_kill_of_the_server(image: Path, tmp_path: Path) -> None:
    with served(image, "--writable") as server:
        assert server.sock is not None
        client = Client.connect(server.sock).enter()
        for turn in range(8):
            assert client.do(WRITE, turn * MIB, data=noise(turn, 256 * 1024)).error == 0
        assert client.do(FLUSH).error == 0
        for turn in range(40):  # in mid-write: nobody waits for the answers
            client.send(request(WRITE, (turn % 7) * MIB + 512 * 1024, 65536, cookie=turn) + bytes([turn]) * 65536)
        server.process.kill()
        server.process.wait()
    assert beside(image) != [], "the crash was one"
    assert states(image)[-1] == (2, "open"), "a killed server stops no reader"
    resumed = told("edit", "resume", image)
    assert resumed["version"] == 2
    assert beside(image) == []
    tool("edit", "commit", image)
    got = restored(image, tmp_path / "r.raw")
    for turn in range(8):
        assert got[turn * MIB : turn * MIB + 256 * 1024] == noise(turn, 256 * 1024)
    assert got[7 * MIB + 256 * 1024 :] == media.plain().read_bytes()[7 * MIB + 256 * 1024 :]
    check_at_rest(image)


def test_a_client_that_hangs_up_before_its_answers_stops_nobody_else(image: Path) -> None:
    with served(image, "--writable", "--commit") as server:
        assert server.sock is not None
        other = Client.connect(server.sock).enter()
        assert other.do(WRITE, 0, data=b"kept").error == 0
        for _ in range(3):
            rude = Client.connect(server.sock).enter()
            for cookie in range(12):
                rude.send(request(READ, 0, MIB, cookie=cookie))
            rude.receive(1000)
            rude.close()
        for _ in range(20):
            assert other.read(0, 4) == b"kept"
        server.end()
    assert states(image) == [(1, "sealed"), (2, "sealed")]
    check_at_rest(image)


def test_a_server_whose_messages_nobody_reads_goes_on_and_keeps_its_edit(place: Path) -> None:
    image = _with_a_damaged_chunk(place)
    with served(image, "--writable") as server:
        assert server.process.stderr is not None
        server.process.stderr.close()
        server.process.stderr = None
        assert "Input/output error" in server.io("read 0 8M", "write -P 3 0 64k", "read -P 3 0 64k", code=None)
        server.io("read -P 3 0 64k")
        assert "version 2 stays open" in server.end()
    assert beside(image) == []


def test_one_writes_and_everybody_else_is_told_who_while_readers_go_on(ntfs: Path, tmp_path: Path) -> None:
    wanted = kept_bytes(ntfs, media.ntfs().read_bytes())
    with served(ntfs, "--writable", "--commit") as server:
        server.io("write -P 0xee 7M 64k", "flush")
        who = f"process {server.process.pid}, editing"
        for command in (
            ("serve", ntfs, "--writable", "--socket", tmp_path / "x.sock"),
            ("put", ntfs, PROGRAM, "/x"),
            ("edit", "commit", ntfs),
            ("boot", ntfs),
        ):
            refused(4, who, *command)
        assert [row["held_by"].count(who) for row in told("edit", "list", ntfs)] == [1]
        assert "Documents" in tool("ls", ntfs, "/Users/joe")
        assert "a needle" in tool("cat", ntfs, "/Users/joe/Documents/haystack.txt")
        assert json.loads(tool("sql", ntfs, "SELECT count(*) AS n FROM control", "--json")) == [{"n": 2}]
        assert restored(ntfs, tmp_path / "r.raw") == wanted
        with served(ntfs, sock=tmp_path / "second.sock") as second:
            run("nbdcopy", second.uri(), tmp_path / "second.raw")
            second.end()
        assert (tmp_path / "second.raw").read_bytes() == wanted
        server.io("read -P 0xee 7M 64k")
        server.end()
    assert states(ntfs) == [(1, "sealed"), (2, "sealed")]
    check_at_rest(ntfs)


def test_a_reader_that_outlives_the_writer_leaves_one_file_behind(image: Path, tmp_path: Path) -> None:
    with served(image, "--writable", "--commit") as writer:
        writer.io("write -P 7 0 64k", "flush")
        with served(image, sock=tmp_path / "reader.sock") as reader:
            reader.io("read -P 7 0 64k", code=1, writable=False)
            writer.end()
            reader.io("read 0 64k", writable=False)
            reader.end()
    check_at_rest(image)


def test_a_read_only_server_refuses_writes_and_changes_neither_the_file_nor_its_directory(image: Path) -> None:
    before, listed = digest(image), sorted(image.parent.iterdir())
    with served(image) as server:
        assert server.sock is not None
        client = Client.connect(server.sock).enter()
        assert client.do(WRITE, 0, data=b"x" * 512).error == 1, "EPERM"
        assert client.read(0, 4096) == media.plain().read_bytes()[:4096]
        assert set(image.parent.iterdir()) - set(listed) == {server.sock}
        server.end()
    assert digest(image) == before
    assert sorted(image.parent.iterdir()) == listed


def _with_a_damaged_chunk(place: Path) -> Path:
    """An image of plain bytes whose first chunk does not match its digest."""
    import apsw

    image = media.image_of(media.plain(), place)
    connection = apsw.Connection(str(image))
    (first,) = connection.execute("SELECT data FROM cluster_map ORDER BY start_cluster LIMIT 1").fetchone() or (0,)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute("UPDATE data SET bytes = zeroblob(stored_bytes) WHERE id = ?", [first])
    for _, sql in triggers:
        connection.execute(str(sql))
    connection.close()
    return image


def test_a_damaged_chunk_is_an_input_output_error_for_those_who_read_it_and_nobody_else(place: Path) -> None:
    image = _with_a_damaged_chunk(place)
    with served(image) as server:
        assert server.sock is not None
        unlucky, lucky = Client.connect(server.sock).enter(), Client.connect(server.sock).enter()
        for _ in range(3):
            assert unlucky.do(READ, 0, 4096).error == 5, "EIO"
            assert lucky.read(6 * MIB, 4096) == media.plain().read_bytes()[6 * MIB : 6 * MIB + 4096]
        assert unlucky.read(6 * MIB, 4096) == media.plain().read_bytes()[6 * MIB : 6 * MIB + 4096]
        server.end()
    assert "do not match their digest" in server.complained
    assert len(server.complained.strip().splitlines()) == 1


def test_json_is_one_document_at_the_end(image: Path) -> None:
    with served(image, "--writable", "--commit", "--json") as server:
        server.io("write -P 1 0 4k")
        outcome = json.loads(server.end())
    assert (outcome["state"], outcome["version"]) == ("committed", 2)
    assert outcome["report"]["written_bytes"] == 4096
    with served(image, "--json") as server:
        server.io("read -P 1 0 4k", writable=False)
        outcome = json.loads(server.end())
    assert (outcome["state"], outcome["version"], outcome["report"]) == ("read", 2, None)


@pytest.mark.slow
def test_a_server_that_cannot_be_is_refused_in_one_line(image: Path, tmp_path: Path) -> None:
    refused(3, "no such image", "serve", tmp_path / "nothing")
    refused(3, "no version", "serve", f"{image}@7")
    refused(5, "not an sqlimage", "serve", media.plain())
    refused(2, "exclude each other", "serve", image, "--writable", "--commit", "--discard")
    refused(2, "--writable", "serve", image, "--into", tmp_path / "child.sqlimage")
    refused(2, "sealed", "edit", "commit", f"{image}@1")
    with served(image, sock=tmp_path / "taken.sock"):
        refused(4, "taken.sock", "serve", image, "--socket", tmp_path / "taken.sock")
        refused(4, "taken.sock", "serve", image, "--writable", "--socket", tmp_path / "taken.sock")
    assert states(image) == [(1, "sealed")]
    (tmp_path / "precious").write_text("precious")
    refused(4, "precious", "serve", image, "--socket", tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == "precious"
    assert beside(image) == []


def test_an_address_that_others_can_reach_needs_tls(image: Path, tmp_path: Path) -> None:
    from tests.nbd.test_tls import make_authority

    refused(2, "TLS", "serve", image, "--address", "0.0.0.0", "--port", "0")
    refused(3, "server-cert.pem", "serve", image, "--port", "0", "--tls-certificates", tmp_path)
    keys = make_authority(tmp_path / "keys")
    server = Served(image, "--address", "0.0.0.0", "--port", "0", "--tls-certificates", keys, sock=None)
    try:
        assert server.process.stdout is not None
        uri = server.process.stdout.readline().strip().replace("0.0.0.0", "localhost")
        assert uri.startswith("nbds://localhost:") and uri.endswith("/medium")
        copy = tmp_path / "copy.raw"
        run("nbdcopy", f"{uri}?tls-certificates={keys}", copy)
        assert copy.read_bytes() == media.plain().read_bytes()
        plain = subprocess.run(["nbdinfo", uri.replace("nbds", "nbd")], capture_output=True, timeout=30, check=False)
        assert plain.returncode != 0
        server.end()
    finally:
        with server.process:
            server.process.kill()
