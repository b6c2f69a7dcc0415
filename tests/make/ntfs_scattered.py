"""NTFS volumes that have everything a relocation can meet, thoroughly fragmented."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

from tests.make.ntfs import ATTRIBUTES, COMPRESSED_DIRECTORY, make_volume, mounted, scatter_free_space, write_tree


def make_scattered(image: Path, size_bytes: int, cluster_bytes: int, gap_bytes: int) -> dict[str, bytes]:
    """A volume with every kind of stream, written into free space that lies in pieces of ``gap_bytes``; what it holds,
    by path."""
    make_volume(image, size_bytes, cluster_bytes=cluster_bytes, label="scattered")
    chance = random.Random(cluster_bytes)
    with mounted(image) as root:
        written = scatter_free_space(root, gap_bytes)
        new = {
            f"tree/{i % 7}/{i % 3}/file {i:04}": chance.randbytes(chance.choice([0, 90, 700, 5000])) for i in range(99)
        }
        new |= {f"big directory/a name that takes its room {i:05}": b"" for i in range(300)}
        new |= {f"large {i}": chance.randbytes(gap_bytes * 100 + i) for i in range(3)}
        streams = {f"tree/streams:stream number {i:03}": chance.randbytes(120 + i * 9) for i in range(120)}
        new |= {"tree/streams": b"main", **streams}
        if cluster_bytes <= 4096:
            (root / "packed").mkdir()
            os.setxattr(root / "packed", ATTRIBUTES, COMPRESSED_DIRECTORY)
            new["packed/text"] = b" ".join(b"%d" % chance.randrange(3000) for _ in range(40_000))
            new["packed/noise"] = chance.randbytes(100_000)
        write_tree(root, new)
        written |= new | make_sparse(root, chance, cluster_bytes)
        os.link(root / "tree/0/0/file 0000", root / "linked")
        written["linked"] = written["tree/0/0/file 0000"]
        os.symlink("tree/0", root / "symlink")
        written |= fill_up(root, chance, "many runs")
        for i in range(1, 1001, 20):
            (root / f"fill{i}").unlink()
            del written[f"fill{i}"]
    return written


def fill_up(root: Path, chance: random.Random, path: str) -> dict[str, bytes]:
    """A file that takes whatever is free."""
    content = bytearray()
    with suppress(OSError), (root / path).open("wb", buffering=0) as file:
        while True:
            block = chance.randbytes(4096)
            content += block[: file.write(block)]
    return {path: bytes(content)}


def make_sparse(root: Path, chance: random.Random, cluster_bytes: int) -> dict[str, bytes]:
    """A file of holes and short stretches of data, written from its end to its start."""
    step = max(cluster_bytes, 4096) * 3
    content = bytearray(step * 150 + 10)
    with (root / "sparse").open("wb", buffering=0) as file:
        file.truncate(len(content))
        for i in range(149, -1, -1):
            block = chance.randbytes(cluster_bytes)
            file.seek(i * step + cluster_bytes)
            file.write(block)
            content[i * step + cluster_bytes : i * step + 2 * cluster_bytes] = block
    return {"sparse": bytes(content)}


def read_through_driver(image: Path, paths: dict[str, bytes]) -> None:
    """ntfs-3g reads every file as it was written, mounted to be written to; files come and go."""
    with mounted(image) as root:
        for path, content in paths.items():
            assert (root / path).read_bytes() == content, path
        first = next(iter(sorted(paths)))
        (root / "new directory").mkdir()
        for i in range(12):
            (root / f"new directory/{i}").write_bytes(bytes([i]) * 3000)
        for i in range(0, 12, 2):
            (root / f"new directory/{i}").unlink()
        with (root / first).open("ab") as file:
            file.write(b"more" * 500)
    with mounted(image) as root:
        for path, content in paths.items():
            wanted = content + (b"more" * 500 if path == first else b"")
            assert (root / path).read_bytes() == wanted, path
        for i in range(1, 12, 2):
            assert (root / f"new directory/{i}").read_bytes() == bytes([i]) * 3000
