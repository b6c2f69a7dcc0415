"""A push beside others who change the image, or the store."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import sqlimage
from sqlimage.transfer import rows
from sqlimage.transfer.pull import pull
from sqlimage.transfer.stores.contract import SEGMENTS
from sqlimage.transfer.stores.memory import MemoryStore
from sqlimage.transfer.stores.wrappers import Checked
from sqlimage.transfer.there import what_is_there
from tests.images import noise, tool
from tests.make import travelling
from tests.make.travelling import rows_of
from tests.transfer.test_travel import NAME, pushed


def test_segments_that_are_gone_from_a_store_are_sent_again(tmp_path: Path) -> None:
    """Whoever cleared them away: what is told to be there is looked for before it is relied on."""
    image = travelling.image(tmp_path)
    (tmp_path / "new").write_bytes(noise("new", 90_000))

    def without(store: MemoryStore, number: int) -> MemoryStore:
        names = [name for name in store.list() if name.startswith(SEGMENTS) and name != store.first(NAME)]
        poor = MemoryStore()
        for name in store.list():
            if name != names[number]:
                poor.put(name, store.get(name, 1 << 30))
        return poor

    store = MemoryStore()
    pushed(image, store)
    store = without(store, 3)
    assert pushed(image, store).sent_segments == 1
    with sqlimage.changing(str(image), label="second") as changes:
        changes.put(str(tmp_path / "new"), "/new.bin")
    store = without(store, 5)
    pushed(image, store)
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    assert rows_of(tmp_path / "pulled.sqlimage") == rows_of(image)


@pytest.mark.parametrize("moment", ["look", "plan"])
def test_versions_that_are_pruned_meanwhile_do_not_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    image = travelling.image(tmp_path)
    for number in range(2):
        (tmp_path / "new").write_bytes(noise(("new", number), 90_000))
        with sqlimage.changing(str(image)) as changes:
            changes.put(str(tmp_path / "new"), f"/new{number}.bin")
    pruned: list[object] = []
    lock = threading.Lock()

    def prune() -> bool:
        with lock:
            if not pruned:
                pruned.append(tool("prune", image, "3"))
        return True

    store = MemoryStore()
    if moment == "look":
        monkeypatch.setattr("sqlimage.transfer.push.what_is_there", lambda *asked: (prune(), what_is_there(*asked))[1])
    else:
        usual = rows._large
        monkeypatch.setattr(rows, "_large", lambda *asked: (prune(), usual(*asked))[1])
    pushed(image, store)
    assert pruned
    pull(Checked(store), NAME, str(tmp_path / "pulled.sqlimage"))
    found, expected = rows_of(tmp_path / "pulled.sqlimage"), rows_of(image)
    del found["format"], expected["format"]  # pruning moved contents, which only the file itself tells
    assert found == expected
