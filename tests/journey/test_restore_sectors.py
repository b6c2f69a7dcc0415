"""A whole disk goes only onto a device whose sectors are as large as those its partition table counts."""

from __future__ import annotations

from pathlib import Path

import pytest

import sqlimage
from sqlimage.units import MIB
from tests.conftest import run
from tests.images import noise
from tests.media.kinds import loop_device


def disk(path: Path, *sectors: str) -> Path:
    """A disk of 20 MiB with one partition that holds noise, made through a device of such sectors."""
    with path.open("wb") as file:
        file.truncate(20 * MIB)
    with loop_device(path, *sectors) as device:
        run("sfdisk", "-q", device, input=b"label: gpt\nsize=8MiB\n")
        with Path(device).open("r+b") as file:
            file.seek(MIB)
            file.write(noise("partition", MIB))
    return path


@pytest.mark.parametrize(("here", "there"), [("4096", "512"), ("512", "4096")])
def test_sectors_of_another_size_are_refused_beforehand(tmp_path: Path, here: str, there: str) -> None:
    source = disk(tmp_path / "disk", "--sector-size", here)
    with loop_device(source, "--sector-size", here) as device:
        sqlimage.capture(device, tmp_path / "i.sqlimage")
    with (tmp_path / "other").open("wb") as file:
        file.truncate(24 * MIB)
    image = sqlimage.open(str(tmp_path / "i.sqlimage"))
    told = f"has sectors of {there} bytes, the disk in the image has {here}"
    with image, loop_device(tmp_path / "other", "--sector-size", there) as device:
        with pytest.raises(sqlimage.RefusedError, match=told):
            sqlimage.restore(image.version(), device)
        assert not any(Path(device).read_bytes())
        with pytest.raises(sqlimage.RefusedError):
            sqlimage.restore(image.version(), device, force=True)
    image = sqlimage.open(str(tmp_path / "i.sqlimage"))
    with image, loop_device(tmp_path / "other", "--sector-size", here) as device:
        sqlimage.restore(image.version(), device)
        assert run("sfdisk", "--dump", device).stdout.count(b"start=") == 1
