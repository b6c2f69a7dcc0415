"""Long lineages read like short ones; those that are endless, or miss a part, are told in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import zstandard

import sqlimage
from cli.main import app
from tests.image.edits import content_of, medium
from tests.images import noise, run_tool, tool
from tests.versions import chains
from tests.versions.chains import LOG, Chain, add_by_hand, log_of, set_control
from tests.versions.family import Made, check_version
from tests.versions.volumes import State, check_told, states, told

DEPTH = 104
MIDDLE = 52
DEEPEST = 1000
HISTORY = (
    "SELECT version, uuid, bytes, lower(hex(digest)) AS digest FROM effective_file JOIN effective_control "
    f"USING (version) WHERE path = '{LOG}' ORDER BY bytes"
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chains.make(tmp_path_factory.mktemp("chain"), DEPTH)


@pytest.fixture(scope="module")
def fresh(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[int, State]:
    """What fresh captures make of the last medium and of one in the middle."""
    work, numbers = tmp_path_factory.mktemp("fresh"), (MIDDLE, DEPTH)
    return dict(zip(numbers, states([chain.media[number - 1] for number in numbers], work), strict=True))


def place(chain: Chain, where: str, number: int) -> tuple[Path, str]:
    """File and number of a version, in the one file or over the many."""
    return (chain.one, str(number)) if where == "one" else (chain.many[number - 1], "1")


@pytest.mark.parametrize("where", ["one", "many"])
@pytest.mark.parametrize("number", [MIDDLE, DEPTH])
@pytest.mark.slow
def test_a_version_on_top_of_a_hundred_reads_and_lists_like_a_fresh_capture(
    chain: Chain, fresh: dict[int, State], where: str, number: int
) -> None:
    file, version = place(chain, where, number)
    state = fresh[number]
    with sqlimage.open(str(file)) as image:
        found = image.version(version)
        check_version(found, Made(state.kept, state.unit))
        check_told(told(found), state.told)
        assert sqlimage.verify_files(found) == []
        with found.content(LOG) as content:
            assert content.read(0, content.size_bytes) == log_of(number)
        assert sqlimage.verify(image).is_whole


@pytest.mark.parametrize("where", ["one", "many"])
@pytest.mark.slow
def test_the_views_tell_every_version_of_a_long_lineage(chain: Chain, fresh: dict[int, State], where: str) -> None:
    """Of ancestors in other files under numbers of their own."""
    file, version = place(chain, where, DEPTH)
    with sqlimage.open(str(file)) as image, sqlimage.Query(image.version(version)) as asked:
        numbers: dict[str, int] = dict(asked.run("SELECT uuid, version FROM effective_control").rows)
        assert len(numbers) == DEPTH
        for number in (MIDDLE, DEPTH):
            there, known = place(chain, where, number)
            with sqlimage.open(str(there)) as other:
                shown = numbers[other.version(known).control.uuid]
            rows = list(asked.run("SELECT path, digest FROM effective_file WHERE version = ?", (shown,)).rows)
            assert sorted(rows) == sorted((row[1], row[8]) for row in fresh[number].told["file"])
            bitmap = list(asked.run("SELECT * FROM effective_bitmap WHERE version = ? ORDER BY 2", (shown,)).rows)
            unit = fresh[number].unit
            assert [(a * unit, (b + 1) * unit) for _, a, b in bitmap] == sorted(fresh[number].told["bitmap"])
            values = list(asked.run("SELECT name, value FROM effective_property WHERE version = ?", (shown,)).rows)
            assert sorted(values) == sorted(fresh[number].told["property"], key=repr)
            uuids = {number: "one" if where == "one" else uuid for uuid, number in numbers.items()}
            assert by_the_map(chain, asked, shown, uuids, fresh[number]) == fresh[number].kept


def by_the_map(chain: Chain, asked: sqlimage.Query, shown: int, holders: dict[int, str], state: State) -> bytes:
    """The medium put together by hand from the view of the cluster map and the data streams of all files."""
    made, (names, contents) = bytearray(len(state.kept)), data_of(chain)
    sql = "SELECT start_cluster, end_cluster, data, data_offset, since FROM effective_cluster_map WHERE version = ?"
    for start, end, data, offset, since in asked.run(sql, (shown,)).rows:
        if data is not None:
            content, length = contents[names[holders[since], data]], (end - start + 1) * state.unit
            made[start * state.unit : start * state.unit + length] = content[offset : offset + length]
    return bytes(made[: len(state.kept)])


def data_of(chain: Chain) -> tuple[dict[tuple[str, int], bytes], dict[bytes, bytes]]:
    """Digests by file (``one``, or the UUID of its only version) and number, and contents by digest."""
    names: dict[tuple[str, int], bytes] = {}
    contents: dict[bytes, bytes] = {}
    for file in (chain.one, *chain.many):
        with sqlimage.open(str(file)) as image:
            name = "one" if file == chain.one else image.version().control.uuid
            for number, digest, length, flags, stored in image.database.rows(
                "SELECT id, digest, length, flags, bytes FROM data"
            ):
                names[name, number] = digest
                if stored is not None:
                    unpack = zstandard.ZstdDecompressor().decompress
                    contents[digest] = unpack(stored, max_output_size=length) if flags else stored
    return names, contents


@pytest.mark.parametrize("where", ["one", "many"])
@pytest.mark.slow
def test_the_commands_tell_the_last_and_the_history_of_a_path(chain: Chain, where: str) -> None:
    file, version = place(chain, where, DEPTH)
    assert tool("cat", f"{file}@{version}", LOG) == log_of(DEPTH).decode()
    assert LOG.strip("/") in tool("ls", file)
    assert json.loads(tool("info", file, "--json"))["version"] == int(version)
    history = json.loads(tool("sql", file, HISTORY, "--json"))
    assert [row["bytes"] for row in history] == [len(log_of(number)) for number in range(1, DEPTH + 1)]
    assert len({row["digest"] for row in history}) == len({row["uuid"] for row in history}) == DEPTH


NEED_THE_LINEAGE = [
    *(["info"], ["ls"], ["cat", LOG], ["get", LOG, "{beside}"], ["restore", "{beside}"], ["flatten", "{beside}"]),
    *(
        ["diff", "{image}"],
        ["property", "list"],
        ["put", "{image}", "/NEW.BIN"],
        ["edit", "begin"],
        ["serve", "--port", "0"],
    ),
    ["capture", "{source}", "--append"],
]
"""Commands that cannot do without the ancestors, with what stands behind the image."""


def told_in_one_line(image: Path, command: list[str], code: int) -> str:
    """The one line that a command ends with; nothing is made, and the image stays as it is."""
    before, beside = image.read_bytes(), image.parent / "out" / "made.sqlimage"
    source = image.parent / "medium"
    beside.parent.mkdir(exist_ok=True)
    source.write_bytes(medium(4096))
    words = [word.format(image=image, beside=beside, source=source) for word in command]
    own = 2 if words[0] in ("property", "edit", "capture") else 1
    with pytest.raises(sqlimage.SqlimageError) as caught:
        app([*words[:own], str(image), *words[own:]], standalone_mode=False)
    assert caught.value.exit_code == code, (command, caught.value)
    assert "\n" not in str(caught.value)
    assert list(beside.parent.iterdir()) == []
    assert image.read_bytes() == before
    return str(caught.value)


def told_by_the_program(image: Path, code: int) -> str:
    """What a command says in a process of its own."""
    done = run_tool("info", image)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    return done.stderr


def by_hand(image: Path, count: int, parent: str | None = None) -> str:
    """A small image with so many more versions; the UUID of the last."""
    sqlimage.capture(sqlimage.MemoryDevice(medium(4096)), image, preset="fast")
    with sqlimage.open(str(image)) as opened:
        own = opened.version().control.uuid
    return add_by_hand(image, count, parent or own)


def test_a_lineage_of_a_thousand_reads_and_one_more_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "deep.sqlimage"
    last = by_hand(image, DEEPEST - 1)
    assert content_of(image, str(DEEPEST)) == medium(4096)
    assert json.loads(tool("info", image, "--json"))["version"] == DEEPEST
    add_by_hand(image, 1, last)
    for command in (*NEED_THE_LINEAGE, ["sql", "SELECT 1"], ["versions"], ["verify"]):
        assert f"deeper than {DEEPEST}" in told_in_one_line(image, command, 5)


def test_a_lineage_too_deep_over_two_files_is_refused(tmp_path: Path) -> None:
    last = by_hand(tmp_path / "a.sqlimage", 600)
    by_hand(tmp_path / "b.sqlimage", 600, last)
    for command in NEED_THE_LINEAGE:
        assert f"deeper than {DEEPEST}" in told_in_one_line(tmp_path / "b.sqlimage", command, 5)


def test_a_circle_in_one_file_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    image = tmp_path / "circle.sqlimage"
    last = by_hand(image, 2)
    with sqlimage.open(str(image), writable=True) as opened:
        opened.database.run("UPDATE control SET parent_uuid = ? WHERE version = 1", [last])
    for command in (*NEED_THE_LINEAGE, ["sql", "SELECT 1"], ["versions"], ["verify"]):
        assert "is its own ancestor" in told_in_one_line(image, command, 5)


def test_a_circle_over_two_files_is_refused_by_all_that_walks_along_it(tmp_path: Path) -> None:
    a, b = tmp_path / "a.sqlimage", tmp_path / "b.sqlimage"
    for image, seed in ((a, "a"), (b, "b")):
        sqlimage.capture(sqlimage.MemoryDevice(noise(seed, 20_000)), image, preset="fast")
    uuids = []
    for image in (a, b):
        with sqlimage.open(str(image)) as opened:
            uuids.append(opened.version().control.uuid)
    set_control(a, "parent_uuid", uuids[1])
    set_control(b, "parent_uuid", uuids[0])
    for command in NEED_THE_LINEAGE:
        assert "is its own ancestor" in told_in_one_line(a, command, 5)
    tool("versions", a)
    assert "its own ancestor" in tool("verify", a, code=1)


@pytest.fixture
def orphan(tmp_path: Path) -> tuple[Path, Path, str]:
    """A child without its parent, the parent elsewhere, and its UUID."""
    (tmp_path / "elsewhere").mkdir()
    parent, child = tmp_path / "elsewhere" / "golden.sqlimage", tmp_path / "child.sqlimage"
    raw = chains.media(tmp_path, 2)
    report = sqlimage.capture(sqlimage.MemoryDevice(raw[0]), parent, preset="fast")
    sqlimage.capture(sqlimage.MemoryDevice(raw[1]), child, parent=parent, preset="fast")
    return child, parent, report.uuid


def test_a_missing_parent_is_one_line_that_says_which_and_where_it_was_looked_for(
    orphan: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    child, parent, uuid = orphan
    monkeypatch.setenv(sqlimage.SEARCH_VARIABLE, "/nowhere")
    words = (uuid, "golden.sqlimage", str(child.parent), "/nowhere", sqlimage.SEARCH_VARIABLE, "--search")
    for line in (told_by_the_program(child, 3), *(told_in_one_line(child, command, 3) for command in NEED_THE_LINEAGE)):
        assert all(word in line for word in words), line
    done = run_tool("sql", child, f"SELECT count(*) AS names FROM effective_file WHERE path = '{LOG}'", "--json")
    assert json.loads(done.stdout) == [{"names": 1}]
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("note: ")
    assert all(word in done.stderr for word in words[:4])
    assert f"{uuid}, not found" in tool("versions", child)
    assert uuid in tool("verify", child, code=1)
    assert tool("cat", child, LOG, "--search", parent.parent) == log_of(2).decode()


def test_a_wrong_parent_of_that_name_is_told_and_passed_over(orphan: tuple[Path, Path, str]) -> None:
    child, parent, uuid = orphan
    impostor = Path(shutil.copy(parent, child.with_name("golden.sqlimage")))
    for column, value, what in (
        ("bytes_per_cluster", 8192, "with clusters of 8192 bytes"),
        ("state", "open", "an edit that is not finished"),
    ):
        shutil.copy(parent, impostor)
        set_control(impostor, column, value)
        for command in NEED_THE_LINEAGE:
            line = told_in_one_line(child, command, 3)
            assert uuid in line
            assert what in line, line
    shutil.copy(parent, child.with_name("the right one.sqlimage"))
    assert tool("cat", child, LOG) == log_of(2).decode()
