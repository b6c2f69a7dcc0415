"""What the tests of images at work share: a run directory of their own, and nothing left mounted or running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.session.use import clear


@pytest.fixture(autouse=True)
def _clear_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    try:
        yield
    finally:
        clear(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which an image is alone, so that what is left beside it shows."""
    path = tmp_path / "place"
    path.mkdir()
    return path
