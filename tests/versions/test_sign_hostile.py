"""Images that lie in what is signed, in types that STRICT does not hold: told in one line, and never trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

import sqlimage
from tests.image.strangers import lax
from tests.images import run_tool, sample_volume
from tests.make.signing import KEY


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    sqlimage.capture(sample_volume(place / "v"), place / "i.sqlimage", preset="fast", property_values={"site": "here"})
    sqlimage.sign(place / "i.sqlimage", KEY)
    sqlimage.SigningKey.make(place / "key")
    return place / "i.sqlimage"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE signature SET public_key = 7",
        "UPDATE signature SET signature = 'text'",
        "UPDATE signature SET signature = zeroblob(1000)",
        "UPDATE signature SET statement = json_set(statement, '$.version', 5)",
        "UPDATE signature SET statement = json_set(statement, '$.audit.rows', 1 << 62)",
        "UPDATE signature SET statement = statement || zeroblob(100000)",
        "UPDATE audit SET detail = x'00' WHERE action = 'sign'",
        "UPDATE audit SET previous_hash = 5 WHERE action = 'sign'",
        "UPDATE audit SET action = 'merge', detail = '[[[' WHERE action = 'sign'",
        "UPDATE audit SET version = 'x', action = 'squash', detail = 5",
        "UPDATE control SET source = CAST(x'ff' AS TEXT)",
        "UPDATE volume SET number = 'x'",
        "UPDATE bitmap SET end_cluster = 9223372036854775807",
        "UPDATE cluster_map SET data = -data",
        "UPDATE cluster_map SET data = 'x'",
        "UPDATE data SET digest = CAST(hex(digest) AS TEXT)",
        "UPDATE data SET length = 'x'",
        "UPDATE file SET path = CAST(x'2fff' AS TEXT) WHERE path = '/Users'",
        "UPDATE file SET record = 'x' WHERE path = '/Users'",
        "UPDATE extent SET clusters = 'x' WHERE start_cluster > 100",
        "UPDATE property SET value = zeroblob(5000000) WHERE name = 'site'",
    ],
)
def test_a_value_of_the_wrong_kind_is_told_and_nothing_is_trusted(image: Path, tmp_path: Path, statement: str) -> None:
    bad = lax(image, tmp_path / "bad.sqlimage", statement)
    done = run_tool("verify", bad, "--trust", KEY.public.hex())
    assert done.returncode in (1, 5) and "is as it was signed" not in done.stdout, done.stdout
    for command in (("sign", bad, "--key", image.parent / "key"), ("compact", bad), ("info", bad), ("versions", bad)):
        done = run_tool(*command)
        assert done.returncode in (0, 4, 5), (command, done.stderr)
