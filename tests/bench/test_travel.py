"""The benchmark of travelling: that it does what it says, on small volumes; no figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.bench import travel
from tests.images import noise
from tests.make import fat, travelling
from tests.make.servers import BUCKET


def test_both_copies_and_both_pushes_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL", "SQLIMAGE_CACHE"):
        monkeypatch.setenv(name, "as it was")  # so that it is put back afterwards
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first = travelling.volume(tmp_path, files=6, file_bytes=90_000).rename(tmp_path / "ntfs.img")
    second = Path(shutil.copy(first, tmp_path / "ntfs_v2.img"))
    (tmp_path / "new.bin").write_bytes(noise("new", 400_000))
    fat.copy_in(second, tmp_path / "new.bin")
    told = tmp_path / "told.json"
    code = travel.main(["--corpus", str(tmp_path), "--repeat", "1", "--json", str(told)])
    assert code in (0, 1)  # of volumes this small no bar is met or missed
    figures = json.loads(told.read_text())
    assert {name: len(both["plain"]) for name, both in figures["seconds"].items()} == {"push": 1, "pull": 1}
    assert 400_000 < figures["own"] < figures["sent"] < 430_000
    assert 1 <= figures["first_byte"]["requests"] <= travel.MOST_REQUESTS
    shown = capsys.readouterr().out
    assert "| push |" in shown and "| pull |" in shown and BUCKET not in shown
