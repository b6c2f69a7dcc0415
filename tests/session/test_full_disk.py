"""The disk that holds the image fills up while a client writes: the client is told, nothing is lost, and it goes on."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import run
from tests.images import noise, tool
from tests.nbd.client import ENOSPC, FLUSH, WRITE, Client
from tests.session import media
from tests.session.use import check_at_rest, full_tmpfs, needs_root, restored, served, states

pytestmark = needs_root
STEP = 256 * 1024


def test_a_client_is_told_that_the_disk_is_full_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    with full_tmpfs(tmp_path / "small", "10m") as small:
        image = media.image_of(media.plain(), small)
        wanted = bytearray(media.plain().read_bytes())
        with served(image, "--writable", "--commit", sock=tmp_path / "x.sock") as server:
            assert server.sock is not None
            client = Client.connect(server.sock).enter()
            other = Client.connect(server.sock).enter()
            errors = []
            for turn in range(len(wanted) // STEP):
                new = noise(("full", turn), STEP)
                error = client.do(WRITE, turn * STEP, data=new).error or client.do(FLUSH).error
                errors.append(error)
                # taken, though it could not be flushed: it is held, and goes with the next flush
                wanted[turn * STEP : (turn + 1) * STEP] = new
                if error:
                    break
            assert errors[-1] == ENOSPC and set(errors[:-1]) == {0} and len(errors) > 2
            assert client.do(FLUSH).error == ENOSPC, "it stays so, until there is room"
            assert other.read(0, 4 * STEP) == wanted[: 4 * STEP], "the server lives, and what it took is read"
            assert other.read(len(wanted) - STEP, STEP) == wanted[-STEP:]
            run("mount", "-o", "remount,size=32m", small)
            assert client.do(FLUSH).error == 0
            assert client.do(WRITE, len(wanted) - 4096, data=b"L" * 4096).error == 0
            wanted[-4096:] = b"L" * 4096
            assert client.do(FLUSH).error == 0
            server.end()
        assert states(image) == [(1, "sealed"), (2, "sealed")]
        check_at_rest(image)
        assert restored(image, tmp_path / "r.raw") == wanted
        assert restored(f"{image}@1", tmp_path / "old.raw") == media.plain().read_bytes()


def test_a_commit_that_finds_no_room_is_told_and_the_edit_waits(tmp_path: Path) -> None:
    with full_tmpfs(tmp_path / "small", "11m") as small:
        image = media.image_of(media.plain(), small)
        (small / "ballast").write_bytes(bytes(2 << 20))
        with served(image, "--writable", "--commit", sock=tmp_path / "x.sock") as server:
            assert server.sock is not None
            client = Client.connect(server.sock).enter()
            assert client.do(WRITE, 0, data=noise("flushed", 4096)).error == 0
            assert client.do(FLUSH).error == 0
            for turn in range(1, 16):
                assert client.do(WRITE, turn * STEP, data=noise(("lost", turn), STEP)).error == 0
            server.end(code=6)
        assert "no space left" in server.complained.splitlines()[-1]
        assert states(image) == [(1, "sealed"), (2, "open")]
        (small / "ballast").unlink()
        tool("edit", "commit", f"{image}@2")
        check_at_rest(image)
        wanted = noise("flushed", 4096) + media.plain().read_bytes()[4096:]
        assert restored(image, tmp_path / "r.raw") == wanted
        assert restored(f"{image}@1", tmp_path / "old.raw") == media.plain().read_bytes()
