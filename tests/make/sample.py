"""Makes the volume that ships with the package: ``python -m tests.make.sample`` (root, ntfs-3g)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import zstandard

from tests.conftest import CHECKOUT, run

TARGET = CHECKOUT / "cli" / "sample" / "sample.ntfs.zst"
_WORDS = (
    *("cluster", "extent", "bitmap", "parent", "child", "lineage", "seal"),
    *("geometry", "record", "volume", "needlework", "boot", "sector"),
)


def text(seed: int, lines: int) -> str:
    """Prose of a kind: the same for the same seed."""
    out, state = [], seed
    for _ in range(lines):
        words = []
        for _ in range(9):
            state = (state * 1103515245 + 12345) % (1 << 31)
            words.append(_WORDS[state % len(_WORDS)])
        out.append(" ".join(words) + ".")
    return "\n".join(out) + "\n"


def noise(seed: str, length: int) -> bytes:
    return b"".join(hashlib.sha256(f"{seed}{n}".encode()).digest() for n in range(-(-length // 32)))[:length]


def fill(root: Path) -> None:
    documents, system = root / "Users" / "joe" / "Documents", root / "Windows" / "System32"
    documents.mkdir(parents=True)
    system.mkdir(parents=True)
    for n in range(12):
        (documents / f"chapter {n + 1:02}.txt").write_text(text(n, 60))
    (documents / "haystack.txt").write_text(text(99, 40) + "a needle\n" + text(98, 40))
    (documents / "Übersicht — größer.txt").write_text("names are Unicode\n")
    (root / "Users" / "joe" / "copy of chapters").mkdir()
    for n in range(12):
        (root / "Users" / "joe" / "copy of chapters" / f"{n}.txt").write_text(text(n, 60))
    (system / "driver.bin").write_bytes(noise("driver", 20 << 10))
    (system / "library.dll").write_bytes(text(7, 3000).encode())
    with (root / "Users" / "joe" / "sparse.bin").open("wb") as file:
        file.truncate(2 << 20)
        file.seek(1 << 20)
        file.write(b"an island of data in a sparse file")
    (root / "pagefile.sys").write_bytes(noise("page", 64 << 10))
    (root / "deleted.bin").write_bytes(noise("deleted", 16 << 10))
    os.sync()
    (root / "deleted.bin").unlink()


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        volume, mount = Path(work, "sample.ntfs"), Path(work, "mount")
        mount.mkdir()
        with volume.open("wb") as file:
            file.truncate(8 << 20)
        run("mkntfs", "-F", "-Q", "-q", "-L", "SAMPLE", volume)
        run("ntfs-3g", "-o", "streams_interface=windows", volume, mount)
        try:
            fill(mount)
            (mount / "Users" / "joe" / "Documents" / "haystack.txt:comment").write_text("a stream beside the file\n")
        finally:
            subprocess.run(["umount", mount], check=True)
        TARGET.write_bytes(zstandard.ZstdCompressor(level=19).compress(volume.read_bytes()))
    print(TARGET, TARGET.stat().st_size)


if __name__ == "__main__":
    main()
