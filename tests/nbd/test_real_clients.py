"""The clients people use: libnbd's tools and its Python module, qemu's, fio."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sqlimage.media.file import WritableFileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.nbd.server import Export, Server
from sqlimage.units import KIB, MIB, TIB
from tests.conftest import run
from tests.images import noise
from tests.make.cost import PATIENCE
from tests.media.kinds import write_sparse
from tests.nbd.client import SparseDevice, TroubledDevice, serving

SIZE = 16 * MIB
CONTENT = noise("first", 3 * MIB) + bytes(5 * MIB) + noise("second", MIB) + bytes(7 * MIB)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    write_sparse(tmp_path / "disk.raw", CONTENT)
    return tmp_path / "disk.raw"


@pytest.fixture(params=["memory", "file"])
def server(request: pytest.FixtureRequest, tmp_path: Path, disk: Path) -> Iterator[Server]:
    """A writable export of CONTENT, from memory and from a sparse file, beside a read-only one."""
    fixed = Export("größe", MemoryDevice(CONTENT), "ein Band")
    if request.param == "memory":
        with serving(tmp_path, Export("disk", MemoryDevice(CONTENT), writable=True), fixed) as (server, _):
            yield server
    else:
        with (
            closing(WritableFileDevice(disk)) as device,
            serving(tmp_path, Export("disk", device, writable=True), fixed) as (server, _),
        ):
            yield server


def test_nbdinfo_shows_what_is_offered(server: Server) -> None:
    shown = json.loads(run("nbdinfo", "--json", server.uri).stdout)
    assert (shown["protocol"], shown["TLS"], shown["structured"]) == ("newstyle-fixed", False, True)
    export = shown["exports"][0]
    wanted = {
        "export-size": SIZE, "is_read_only": False, "can_cache": True, "can_df": True, "can_fast_zero": False,
        "can_flush": True, "can_fua": True, "can_multi_conn": True, "can_trim": True, "can_zero": True,
        "block_size_minimum": 1, "block_size_preferred": 4096, "block_size_maximum": 32 * MIB,
        "contexts": ["base:allocation"],
    }  # fmt: skip
    assert {key: export[key] for key in wanted} == wanted
    fixed = json.loads(run("nbdinfo", "--json", server.uris[1]).stdout)["exports"][0]
    assert (fixed["is_read_only"], fixed["can_trim"], fixed["description"]) == (True, False, "ein Band")
    listed = json.loads(run("nbdinfo", "--list", "--json", server.uri).stdout)["exports"]
    assert [export["export-name"] for export in listed] == ["disk", "größe"]


def test_nbdinfo_shows_holes(tmp_path: Path, disk: Path) -> None:
    with closing(WritableFileDevice(disk)) as device, serving(tmp_path, Export("disk", device)) as (server, _):
        shown = json.loads(run("nbdinfo", "--map", "--json", server.uri).stdout)
    assert [(row["offset"], row["length"], row["type"]) for row in shown] == [
        (0, 3 * MIB, 0),
        (3 * MIB, 5 * MIB, 3),
        (8 * MIB, MIB, 0),
        (9 * MIB, 7 * MIB, 3),
    ]


def test_nbdcopy_out_and_in(server: Server, tmp_path: Path) -> None:
    copy = tmp_path / "copy.raw"
    run("nbdcopy", server.uri, copy)
    assert copy.read_bytes() == CONTENT
    changed = noise("changed", 2 * MIB) + bytes(6 * MIB) + noise("more", 8 * MIB)
    write_sparse(copy, changed)
    run("nbdcopy", "--flush", copy, server.uri)
    run("nbdcopy", "--no-extents", "--connections=4", "--requests=16", server.uri, tmp_path / "again.raw")
    assert (tmp_path / "again.raw").read_bytes() == changed


def test_nbdcopy_decodes_in_threads_what_is_not_ready(tmp_path: Path) -> None:
    device = TroubledDevice(CONTENT, not_ready_from=MIB)
    with serving(tmp_path, Export("disk", device)) as (server, _):
        run("nbdcopy", server.uri, tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == CONTENT


def test_a_tebibyte_of_holes_is_copied_in_seconds(tmp_path: Path) -> None:
    device = SparseDevice(TIB, every_bytes=16 << 30, data_bytes=64 * KIB)
    with serving(tmp_path, Export("disk", device)) as (server, _):
        begin = time.monotonic()
        run("nbdcopy", server.uri, "null:")
        assert time.monotonic() - begin < 20 * PATIENCE


def test_qemu_img_reads_converts_and_compares(server: Server, disk: Path, tmp_path: Path) -> None:
    assert json.loads(run("qemu-img", "info", "--output=json", server.uri).stdout)["virtual-size"] == SIZE
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk, server.uris[1])
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uris[1], tmp_path / "copy.qcow2")
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "copy.qcow2", server.uris[1])
    write_sparse(tmp_path / "new.raw", noise("new", SIZE))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "new.raw", server.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "new.raw", server.uri)


def test_qemu_io_writes_discards_and_flushes(server: Server) -> None:
    commands = (
        "write -P 0x5a 1M 3M", "read -P 0x5a 1M 3M", "discard 2M 1M", "write -z 3M 512k", "write -z -u 3584k 512k",
        "read -P 0x5a 1M 1M", "read -P 0 2M 2M", "write -f -P 0x11 4097 3", "read -P 0x11 4097 3", "flush",
        "aio_write -P 7 5M 2M", "aio_read 6M 2M", "aio_flush", "read -P 7 5M 2M",
    )  # fmt: skip
    run("qemu-io", "-f", "raw", *(word for command in commands for word in ("-c", command)), server.uri)


def test_qemu_io_is_refused_what_is_not_allowed(server: Server) -> None:
    done = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", server.uris[1]], capture_output=True)
    assert done.returncode != 0
    assert b"Permission denied" in done.stderr


def test_qemu_io_is_told_of_a_damaged_block(tmp_path: Path) -> None:
    device = TroubledDevice(CONTENT)
    device.bad = {5 * MIB}
    commands = ("-c", "read 4M 2M", "-c", "read 0 4M")
    with serving(tmp_path, Export("disk", device)) as (server, _):
        done = subprocess.run(["qemu-io", "-r", "-f", "raw", *commands, server.uri], capture_output=True)
    assert b"read failed: Input/output error" in done.stdout + done.stderr
    assert b"read 4194304/4194304 bytes at offset 0" in done.stdout


@pytest.mark.parametrize("pattern", ["randrw", "randwrite"])
def test_fio_finds_what_it_wrote(server: Server, pattern: str, tmp_path: Path) -> None:
    run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={pattern}", "--bsrange=512-64k",
        "--size=8M", "--io_size=8M", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
        "--randseed=7", "--fsync=32", cwd=tmp_path,
    )  # fmt: skip


LIBNBD = """
import nbd, sys
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
size = h.get_size()
assert h.get_structured_replies_negotiated() and h.can_multi_conn() and h.can_df() and h.can_cache()
whole = h.pread(size, 0)
chunks = []
data = h.pread_structured(2 << 20, 2 << 20, lambda piece, offset, kind, error: chunks.append(kind))
assert data == whole[2 << 20:4 << 20]
if sys.argv[2] == "file":
    assert chunks == [nbd.READ_DATA, nbd.READ_HOLE], chunks
df = []
h.pread_structured(2 << 20, 2 << 20, lambda piece, offset, kind, error: df.append(kind), nbd.CMD_FLAG_DF)
assert df == [nbd.READ_DATA], df
found = []
h.block_status(size, 0, lambda context, offset, entries, error: found.extend(entries))
assert sum(found[::2]) == size, found
one = []
h.block_status(size, 0, lambda context, offset, entries, error: one.extend(entries), nbd.CMD_FLAG_REQ_ONE)
assert len(one) == 2
other = nbd.NBD()
other.connect_uri(sys.argv[1])
h.pwrite(b"hello", 12345, nbd.CMD_FLAG_FUA)
assert other.pread(5, 12345) == b"hello"
other.trim(4096, 8192); other.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE); other.cache(1 << 20, 0); other.flush()
wanted = bytes(4096) + whole[4096:8192] + bytes(4096) + whole[12288:12345] + b"hello" + whole[12350:16384]
assert h.pread(16384, 0) == wanted
h.set_strict_mode(0)
for operation in (lambda: h.pread(10, size - 5), lambda: h.trim(10, size - 5), lambda: h.block_status(10, size, print)):
    try: operation()
    except nbd.Error as problem: assert problem.errno == "EINVAL", problem
    else: raise SystemExit("beyond the end")
try: h.pwrite(b"x" * 10, size - 5)
except nbd.Error as problem: assert problem.errno == "ENOSPC", problem
cookies = [h.aio_pread(nbd.Buffer(65536), at << 16) for at in range(64)]
while h.aio_in_flight(): h.poll(1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
simple = nbd.NBD()
simple.set_request_structured_replies(False)
simple.connect_uri(sys.argv[1])
assert simple.pread(5, 12345) == b"hello"
try: simple.block_status(512, 0, print)
except nbd.Error: pass
else: raise SystemExit("no context was agreed on")
fixed = nbd.NBD()
fixed.connect_uri(sys.argv[3])
fixed.set_strict_mode(0)
for operation in (lambda: fixed.pwrite(b"x" * 100000, 0), lambda: fixed.trim(512, 0), lambda: fixed.zero(512, 0)):
    try: operation()
    except nbd.Error as problem: assert problem.errno == "EPERM", problem
    else: raise SystemExit("written to a read-only export")
assert fixed.pread(512, 0) == whole[:512]
for handle in (h, other, simple, fixed): handle.shutdown()
print("done")
"""


def test_libnbd_in_python(server: Server, request: pytest.FixtureRequest) -> None:
    """Debian's module (package python3-libnbd), which only Debian's own Python can load."""
    kind = request.node.callspec.params["server"]
    done = run("/usr/bin/python3", "-c", LIBNBD, server.uri, kind, server.uris[1])
    assert done.stdout == b"done\n", sys.executable
