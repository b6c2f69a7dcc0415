"""A volume of 200,000 files is planned within seconds and a few hundred MiB."""

from __future__ import annotations

import os

import pytest

from sqlimage.units import GIB, MIB
from tests.images import noise
from tests.make.cost import PATIENCE
from tests.make.ext import in_memory, make_volume, mounted, needs_mount
from tests.make.ext_bare import cost_apart

pytestmark = [needs_mount, pytest.mark.slow]
DIRECTORIES, FILES_EACH = 2000, 100


@pytest.mark.parametrize(
    ("options", "has_attributes"),
    [("-t ext4", False), ("-t ext4", True), ("-t ext4 -b 1024 -O inline_data", True), ("-t ext3 -b 1024", False)],
)
def test_two_hundred_thousand_files_are_planned_in_five_seconds(options: str, has_attributes: bool) -> None:
    with in_memory() as place:
        image = make_volume(place / "v.img", 4 * GIB, *options.split(), "-N", "250000")
        content = noise("content", 8000)
        with mounted(image) as root:
            for number in range(DIRECTORIES):
                directory = root / f"part {number % 50}" / f"directory {number}"
                directory.mkdir(parents=True)
                for n in range(FILES_EACH):
                    fd = os.open(directory / f"a file with some name {n}.text", os.O_CREAT | os.O_WRONLY)
                    os.write(fd, content[: (n * 997) % 8000])
                    if has_attributes:
                        os.setxattr(fd, "user.own", f"{number} {n}".encode() + content[:300])
                    os.close(fd)
        cost = cost_apart(image)
        print(f"{options}: {cost.seconds:.2f} s, {cost.memory_bytes >> 20} MiB")
        assert cost.told[1] > DIRECTORIES * FILES_EACH
        assert cost.seconds < 5 * PATIENCE
        assert cost.memory_bytes < 500 * MIB
