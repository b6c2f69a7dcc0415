"""A machine starts from an image elsewhere before that has arrived."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sqlimage
from sqlimage.transfer import places
from sqlimage.transfer.contents import unpack_contents
from sqlimage.transfer.segment import read_header
from sqlimage.units import KIB
from tests.images import noise
from tests.make import bootable, fat
from tests.make.web import Web
from tests.transfer.made import first_segment


@pytest.mark.slow
def test_a_linux_boots_from_a_url_some_of_whose_segments_never_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    volume = Path(shutil.copy(bootable.fat_volume(16, 63), tmp_path / "boot.img"))
    (tmp_path / "filler.bin").write_bytes(noise("filler", 4_000_000))
    fat.copy_in(volume, tmp_path / "filler.bin")
    image = tmp_path / "boot.sqlimage"
    sqlimage.capture(str(volume), str(image))
    sqlimage.split(str(image), None, str(tmp_path / "shelf"), segment_bytes=512 * KIB)
    first = first_segment(tmp_path / "shelf", image.name).read_bytes()
    header = read_header("x", first)
    listed = unpack_contents(
        "x", first[header.contents.offset_bytes : header.contents.end_bytes], header.streams.length_bytes
    ).segments
    web = Web(tmp_path / "shelf")
    web.held = {segment.digest.hex() for segment in listed[-6:-2]}  # what lies in the middle of a file that is not read
    program = str(Path(sys.executable).with_name("sqlimage"))
    command = [program, "boot", f"{web.url}/{image.name}", "--", "-no-reboot"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=200, check=False)
        assert not web.free.is_set()
    finally:
        web.close()
    assert bootable.BOOT_DONE in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 0
    assert b"what the guest writes vanishes" in done.stderr
