"""A volume of 200,000 files is planned within seconds and a few hundred MiB."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sqlimage.units import GIB, MIB
from tests.images import noise
from tests.make.ext import in_memory, make_volume, mounted, needs_mount

pytestmark = [needs_mount, pytest.mark.slow]
DIRECTORIES, FILES_EACH = 2000, 100
MEASURE = """
import json, resource, sys, time
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.file import FileDevice

started = time.monotonic()
volume = ExtVolume(FileDevice(sys.argv[1]))
volume.facts
allocated, scan = volume.allocated(), volume.scan()
seconds = time.monotonic() - started
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps([seconds, memory, len(scan.entries), len(scan.contents)]))
"""


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
        done = subprocess.run([sys.executable, "-c", MEASURE, image], capture_output=True, check=True)
        seconds, memory, entries, contents = json.loads(done.stdout)
        print(f"{options}: {seconds:.2f} s, {memory >> 20} MiB")
        assert entries > DIRECTORIES * FILES_EACH < contents
        assert seconds < 5
        assert memory < 500 * MIB
