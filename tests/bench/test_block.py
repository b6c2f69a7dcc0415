"""The benchmark of an image as a disk: its machinery, no figures."""

from __future__ import annotations

from pathlib import Path

import pytest

import sqlimage
from tests.bench import records
from tests.bench.block import JOBS
from tests.bench.serving import Figures, is_met, rate_ratio, row


def test_the_image_of_many_records_is_one_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS", 1000)
    image = records.many_records(tmp_path / "many.sqlimage", tmp_path)
    with sqlimage.open(str(image)) as opened:
        driver = opened.driver()
        assert driver.read(998 * 8192, 9) == b"one chunk"
        assert driver.read(998 * 8192 + 4096, 9) == bytes(9)
        driver.close()
        assert opened.database.rows("SELECT count(*) FROM cluster_map") == [(1000,)]


def test_a_ratio_is_the_median_of_each_rounds_and_time_counts_the_other_way_round() -> None:
    ours, theirs = Figures([26.0, 30.0, 13.0]), Figures([20.0, 20.0, 10.0])
    by_name = {job.name: job for job in JOBS}
    assert rate_ratio(ours, theirs) == pytest.approx(1.3)
    assert not is_met(by_name["nbdcopy to null"], ours, theirs)
    assert is_met(by_name["random 4 KiB reads, depth 1"], ours, theirs)
    expected = "| nbdcopy to null, s | 26.00 (13.00-30.00) | 20.00 (10.00-20.00) | 1.30 | at most 1.00 | **missed** |"
    assert row(by_name["nbdcopy to null"], ours, theirs) == expected
