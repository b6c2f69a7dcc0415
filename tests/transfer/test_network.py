"""Between two machines, over a line that loses packets and is cut in the middle: what travels arrives, and after a cut
the same commands go on."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.make.network import Network, cannot, far_web_server, network
from tests.transfer.made import (
    NAME,
    SEGMENT,
    SEGMENT_BYTES,
    check_beside,
    check_copy,
    check_one_line,
    check_partial,
    here,
    here_bytes,
    make_image,
    shelf_of,
)

PROGRAM = Path(sys.executable).with_name("sqlimage")
PORT = 9000
IDLE_S = 5
"""After which the programs at both ends of the pipe take the line for cut, as those of ssh can be told to."""
MOST_ROUNDS = 20
SECONDS = 240


@pytest.fixture(scope="module")
def line() -> Iterator[Network]:
    if reason := cannot():
        pytest.skip(reason)
    with network() as made:
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def shelf(source: Path) -> Path:
    shelf_of(source, source.with_name("shelf"))
    return source.with_name("shelf")


def started(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    said, complained = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


def test_a_pull_gets_over_a_line_that_is_cut_for_a_moment(
    line: Network, source: Path, shelf: Path, tmp_path: Path
) -> None:
    image = tmp_path / "here" / "copy.sqlimage"
    image.parent.mkdir()
    with far_web_server(line, shelf, tmp_path) as url:
        since = line.arrived_bytes(line.near)
        pulling = started(line.inside(line.near, PROGRAM, "pull", f"{url}/{NAME}", image, "--json"))
        line.wait_for(line.near, 4 * SEGMENT_BYTES, since)
        line.down()
        time.sleep(1)
        assert pulling.poll() is None
        line.up()
        done = ended(pulling)
        assert done.returncode == 0, done.stderr
        check_copy(image, source)
        assert [path.name for path in image.parent.iterdir()] == [image.name]


@pytest.mark.slow
def test_a_pull_whose_line_stays_cut_says_so_and_goes_on_when_it_is_mended(
    line: Network, source: Path, shelf: Path, tmp_path: Path
) -> None:
    image = tmp_path / "here" / "copy.sqlimage"
    image.parent.mkdir()
    with far_web_server(line, shelf, tmp_path) as url:
        words = line.inside(line.near, PROGRAM, "pull", f"{url}/{NAME}", image, "--json")
        since = line.arrived_bytes(line.near)
        pulling = started(words)
        line.wait_for(line.near, 6 * SEGMENT_BYTES, since)
        line.down()
        done = ended(pulling)
        assert line.far_address in check_one_line(done, 6)
        line.up()
        check_partial(image)
        check_beside(image)
        was_here = here_bytes(image)
        assert was_here > 0
        report = json.loads(ended(started(words)).stdout)
        assert report["here_bytes"] == was_here
        check_copy(image, source)


def pipe(line: Network, source: Path, image: Path, number: int, *, cut_after: int = 0) -> tuple[int, str]:
    """``send`` on the near side, ``receive`` on the far one; how that ended, and what it said."""
    receive = f"socat -u -T {IDLE_S} TCP-LISTEN:{PORT},reuseaddr STDOUT | "
    receive += shlex.join([str(PROGRAM), "receive", str(image)])
    send = shlex.join([str(PROGRAM), "send", str(source), "--segment-size", SEGMENT, "--from", str(number)])
    send += f" | socat -u -T {IDLE_S} STDIN TCP:{line.far_address}:{PORT},retry=100,interval=0.1,connect-timeout=5"
    since = line.arrived_bytes(line.far)
    receiving = started(line.inside(line.far, "sh", "-c", receive))
    sending = started(line.inside(line.near, "sh", "-c", send))
    if cut_after:
        line.wait_for(line.far, cut_after, since)
        line.down()
        assert sending.poll() is None and receiving.poll() is None
    done = ended(receiving)
    if cut_after:
        line.up()
    ended(sending)
    return done.returncode, done.stderr


def test_a_pipe_that_was_cut_goes_on_from_the_segment_that_is_told(line: Network, source: Path, tmp_path: Path) -> None:
    image = tmp_path / "there" / "copy.sqlimage"
    image.parent.mkdir()
    code, told = pipe(line, source, image, 1, cut_after=7 * SEGMENT_BYTES)
    assert code == 6, told
    was_here = len(here(image))
    assert was_here >= 3
    for _ in range(MOST_ROUNDS):  # a line so bad may look cut once more
        check_partial(image)
        check_beside(image)
        found = re.search(r"sqlimage: .*`sqlimage send --from (\d+)`\n\Z", told)
        assert found, told
        assert int(found[1]) == len(here(image)) + 1, "it came in order, and what came is not sent again"
        code, told = pipe(line, source, image, int(found[1]))
        if code == 0:
            break
        assert code == 6, told
    check_copy(image, source)
    assert [path.name for path in image.parent.iterdir()] == [image.name]
