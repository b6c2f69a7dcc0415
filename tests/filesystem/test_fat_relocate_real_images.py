"""Volumes that others made, laid out anew: as right as they were, or refused."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume, RefusedError, SqlimageError
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.relocation import Wish
from tests.filesystem.test_fat_real_images import Image, select, unpacked
from tests.make.cost import PATIENCE
from tests.make.fat_oracle import carry_out, fsck, in_pieces
from tests.make.relocated import check_moves


@pytest.mark.slow
@pytest.mark.parametrize("image", select("valid", "quirky"))
def test_volumes_of_others_are_laid_out_right(image: Image, tmp_path: Path) -> None:
    device = unpacked(image, tmp_path)
    volume = FatVolume(device)
    if volume.facts.dirty:
        with pytest.raises(RefusedError, match="marked as in use"):
            volume.relocate(volume.scan(), Wish(defragment=True))
        return
    least, size = volume.smallest_bytes(volume.scan()), volume.facts.size_bytes
    sound = fsck(Path(device.path))[0] == 0
    for wish in (
        Wish(True),
        Wish(True, least),
        Wish(False, (least + size) // 2),
        Wish(False, size * 5 // 4, 63, 32, 64),
    ):
        plan = carry_out(Path(device.path), wish, tmp_path / "new", mtools=False, checker=sound)
        assert not wish.defragment or in_pieces(plan.scan) == []


@pytest.mark.slow
@pytest.mark.parametrize("image", select("corrupt"))
def test_damaged_volumes_of_others_are_refused_or_planned_in_bounded_time(image: Image, tmp_path: Path) -> None:
    started = time.monotonic()
    device = unpacked(image, tmp_path)
    with contextlib.suppress(InconsistentVolume):
        volume = FatVolume(device)
        scan = volume.scan()
        for wish in (
            Wish(True),
            Wish(size_bytes=volume.facts.size_bytes // 2),
            Wish(True, volume.facts.size_bytes * 2),
        ):
            with contextlib.suppress(SqlimageError):
                check_moves(volume.relocate(scan, wish), device.size_bytes)
    assert time.monotonic() - started < 10 * PATIENCE
