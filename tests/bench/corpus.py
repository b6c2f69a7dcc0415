"""Makes the volumes that the benchmark runs on: ``python -m tests.bench.corpus DIR [--only NAME]``.

``ntfs.img``: 2 GiB NTFS with the files of this machine's /usr, about 1.2 GB used, some of it twice, a page file and a
hibernation file of random bytes, deleted files' data in free clusters, a sparse file and a named stream.
``ntfs_v2.img``: the same after some files were changed in place, rewritten, deleted or added.
``ext4.img``: 2 GiB ext4 that looks like a root file system, 64 MiB of it incompressible, with about 240 MiB of deleted
files' data in free blocks. ``ext4_v2.img``: the same after edits of the same kind.
``fat32.img``: 512 MiB FAT32. ``ntfs_1t.img``, ``ntfs_2g.img``, ``fat32_1t.img``, ``fat32_2g.img``: the same GiB of
files on a large and on a small volume; the FAT32 pair has 32 KiB clusters, of which 2 GiB would be too few for
FAT32, so its small one has 16 MiB more.

Needs root and the Debian packages that ``tests/install-debian-packages.sh`` installs. The same machine gives the same
files in the same order; other machines give other volumes, so figures are only comparable as ratios.
"""

from __future__ import annotations

import argparse
import glob
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlimage.units import GIB, KIB, MIB, TIB

_FILE_MAXIMUM = 48 * MIB
"""Larger programs are left out: one of them would decide how well the whole volume compresses."""
_PAGE_FILE_BYTES, _HIBERNATION_BYTES = 200 * MIB, 96 * MIB
_SMALL_FAT32_BYTES = 2 * GIB + 16 * MIB
_SHARE = ("doc", "man", "vim", "perl", "icons", "i18n", "zoneinfo", "X11", "fonts", "java", "mime", "maven-repo")
_SHARE_EXT4 = ("doc", "man", "vim", "perl", "i18n", "zoneinfo", "java")
_EXT4_UUID = "12345678-1234-1234-1234-123456789abc"
"""Also the seed of its directory hashes."""
_EXT4 = f"hash_seed={_EXT4_UUID},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
_FAT_TIME = 1_704_164_646
"""2024-01-02 03:04:06 UTC: an even second, as FAT keeps them."""


def run(*argv: str | Path, **options: object) -> None:
    """Run a program that must succeed, silently."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"{argv[0]} failed ({done.returncode}): {done.stderr.decode(errors='replace').strip()[-500:]}")


def select_files(roots: Iterable[str], budget_bytes: int, smallest_bytes: int = 0) -> Iterator[str]:
    """Regular files below the roots in a fixed order, until their sizes reach the budget."""
    for root in roots:
        for directory, below, names in os.walk(root):
            below.sort()
            for name in sorted(names):
                path = os.path.join(directory, name)
                if name.endswith(".pyc") or os.path.islink(path) or not os.path.isfile(path):
                    continue
                size = os.path.getsize(path)
                if smallest_bytes <= size <= _FILE_MAXIMUM:
                    budget_bytes -= size
                    if budget_bytes < 0:
                        return
                    yield path


def matching(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern))


def copy_files(files: Iterable[str], destination: Path) -> None:
    """Copy with directories and times; names that the file system beneath does not allow are passed over."""
    for path in files:
        target = destination / path.lstrip("/")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            os.utime(target, ns=(os.stat(path).st_mtime_ns,) * 2)
        except OSError as problem:
            if problem.errno == 28:
                sys.exit(f"{destination}: the volume is full")


def write_random(path: Path, length_bytes: int, seed: int) -> None:
    """Incompressible bytes, the same for the same seed, over what the file holds."""
    chance = random.Random(seed)
    with path.open("r+b" if path.exists() else "wb") as file:
        for at in range(0, length_bytes, MIB):
            file.write(chance.randbytes(min(MIB, length_bytes - at)))


@contextmanager
def mounted_ntfs(image: Path, options: str = "windows_names") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        run("ntfs-3g", "-o", f"big_writes,streams_interface=windows,{options}", image, directory)
        try:
            yield Path(directory)
        finally:
            run("umount", directory)


@contextmanager
def mounted_ext4(image: Path) -> Iterator[Path]:
    """Without discards: what is deleted leaves its bytes behind, as on a disk."""
    with tempfile.TemporaryDirectory() as directory:
        run("mount", "-o", "loop,nodiscard", image, directory)
        try:
            yield Path(directory)
        finally:
            run("umount", directory)


def make_volume(image: Path, size_bytes: int, *make: str) -> None:
    """An empty file system on a sparse file, with holes where its maker wrote zeros."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size_bytes)
    run(*make, image)
    run("fallocate", "--dig-holes", image)


def make_ntfs(corpus: Path) -> None:
    image = corpus / "ntfs.img"
    make_volume(image, 2 * GIB, "mkntfs", "-q", "-F", "-Q", "-s", "512", "-L", "NTFSVOL")
    python = matching("/usr/lib/python3*")
    share = [f"/usr/share/{name}" for name in _SHARE]
    with mounted_ntfs(image) as top:
        joe = top / "Users/joe"
        copy_files(select_files(["/usr/include", "/usr/share/locale"], 300 * MIB), top / "stale")
        copy_files(select_files(["/usr/bin"], 400 * MIB), top / "Windows/System32")
        copy_files(select_files([*python, "/usr/lib/git-core"], 150 * MIB), top / "Program Files")
        copy_files(select_files(share, 250 * MIB), top / "ProgramData")
        copy_files(select_files([*python, "/usr/share/vim"], 150 * MIB), joe / "backup")
        write_random(top / "pagefile.sys", _PAGE_FILE_BYTES, 1)
        write_random(top / "hiberfil.sys", _HIBERNATION_BYTES, 2)
        copy_files(select_files(matching("/usr/lib/*-linux-gnu/perl*"), 100 * MIB), joe / "data")
        os.sync()
        shutil.rmtree(top / "stale")
        with (joe / "sparse.bin").open("wb") as file:
            file.truncate(300 * MIB)
            file.seek(150_000_000)
            file.write(b"x")
        (joe / "note.txt").write_text("a note\n")
        (joe / "note.txt:zone").write_text("stream\n")


def make_ntfs_v2(corpus: Path) -> None:
    image = corpus / "ntfs_v2.img"
    run("cp", "--sparse=always", corpus / "ntfs.img", image)
    with mounted_ntfs(image) as top:
        joe = top / "Users/joe"
        edit_files([top / "Program Files", top / "ProgramData"], joe, ["/usr/sbin", "/usr/libexec"])
        write_random(top / "pagefile.sys", _PAGE_FILE_BYTES, 4)


def edit_files(old_trees: Iterable[Path], home: Path, added: Iterable[str]) -> None:
    """What both second versions have in common: of the larger files in the trees, one in 97 is changed in place and
    one in 97 rewritten with all its bytes moved; one file in 211 is deleted; files from ``added``, which the volume
    does not have yet, come to ``home``."""
    old = sorted(path for tree in old_trees for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    larger = [path for path in old if path.stat().st_size > 2 * KIB]
    for path in larger[96::97]:
        with path.open("r+b") as file:
            file.seek(512)
            file.write(b"EDITED-IN-PLACE")
    for path in larger[30::97]:
        path.write_bytes(b"new head\n" + path.read_bytes())
    for path in old[6::211]:
        path.unlink()
    copy_files(select_files(added, 40 * MIB), home / "new")
    write_random(home / "new/photo.jpg", 4 * MIB, 3)


def make_ext4(corpus: Path) -> None:
    image = corpus / "ext4.img"
    make_volume(image, 2 * GIB, "mkfs.ext4", "-q", "-F", "-U", _EXT4_UUID, "-E", _EXT4, "-L", "root")
    python, perl = matching("/usr/lib/python3*"), matching("/usr/lib/*-linux-gnu/perl*")
    share = [f"/usr/share/{name}" for name in _SHARE_EXT4]
    with mounted_ext4(image) as top:
        copy_files(select_files(["/usr/include", "/usr/share/locale"], 240 * MIB), top / "stale")
        for roots, budget_bytes in (
            (["/etc"], 50 * MIB),
            (["/usr/bin"], 400 * MIB),
            (["/usr/sbin", "/usr/libexec"], 100 * MIB),
            ([*python, "/usr/lib/git-core"], 150 * MIB),
            (share, 200 * MIB),
            (perl, 100 * MIB),
        ):
            copy_files(select_files(roots, budget_bytes), top)
        copy_files(select_files([*python, "/usr/share/vim"], 150 * MIB), top / "home/joe/copy")
        (top / "var/cache").mkdir(parents=True)
        write_random(top / "var/cache/blob.gz", 64 * MIB, 5)
        os.sync()
        shutil.rmtree(top / "stale")


def make_ext4_v2(corpus: Path) -> None:
    image = corpus / "ext4_v2.img"
    run("cp", "--sparse=always", corpus / "ext4.img", image)
    with mounted_ext4(image) as top:
        edit_files([top / "usr/lib", top / "usr/share"], top / "home/joe", matching("/usr/lib/*-linux-gnu"))


def make_fat32(corpus: Path) -> None:
    image = corpus / "fat32.img"
    make_volume(image, 512 * MIB, "mkfs.fat", "-F", "32", "-i", "12345678", "-n", "FATVOL")
    roots = ["/usr/include", "/usr/share/vim", "/usr/share/perl", "/usr/share/java", "/usr/share/i18n"]
    with tempfile.TemporaryDirectory(dir=corpus) as directory:
        tree = Path(directory)
        copy_files(select_files([*roots, *matching("/usr/lib/python3.*")], 330 * MIB), tree)
        copy_to_fat(image, tree / "usr")
    stale = subprocess.run(["mdeltree", "-i", image, "::/usr/include/c++"], capture_output=True, check=False)
    if stale.returncode != 0:
        print("no stale data: this machine has no C++ headers", file=sys.stderr)


def copy_to_fat(image: Path, tree: Path) -> None:
    """Copy a tree into a FAT volume; of names that differ only in case one is kept."""
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (_FAT_TIME, _FAT_TIME))
    command = ["mcopy", "-i", str(image), "-s", "-Q", "-m", "-D", "oO", str(tree), "::/"]
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,  # it complains of every name it passes over
        env={**os.environ, "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"},
    )


def make_sparse_ntfs(corpus: Path) -> None:
    for name, size_bytes in (("ntfs_1t.img", TIB), ("ntfs_2g.img", 2 * GIB)):
        image = corpus / name
        make_volume(image, size_bytes, "mkntfs", "-q", "-F", "-Q", "-s", "512")
        with mounted_ntfs(image) as top, numbered_tree(corpus) as tree:
            shutil.copytree(tree, top / "files")


def make_sparse_fat32(corpus: Path) -> None:
    for name, size_bytes in (("fat32_1t.img", TIB), ("fat32_2g.img", _SMALL_FAT32_BYTES)):
        image = corpus / name
        make_volume(image, size_bytes, "mkfs.fat", "-F", "32", "-s", "64", "-i", "12345678")
        with numbered_tree(corpus) as tree:
            copy_to_fat(image, tree)


@contextmanager
def numbered_tree(corpus: Path) -> Iterator[Path]:
    """About a GiB of files of some size under names that every file system allows."""
    with tempfile.TemporaryDirectory(dir=corpus) as directory:
        tree = Path(directory) / "files"
        for number, path in enumerate(select_files(["/usr/bin", "/usr/lib", "/usr/share"], GIB, 16 * KIB)):
            target = tree / f"d{number // 256:03d}" / f"f{number:05d}.bin"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        yield tree


MAKERS: dict[str, Callable[[Path], None]] = {
    "ntfs.img": make_ntfs,
    "ntfs_v2.img": make_ntfs_v2,
    "ext4.img": make_ext4,
    "ext4_v2.img": make_ext4_v2,
    "fat32.img": make_fat32,
    "ntfs_1t.img": make_sparse_ntfs,
    "fat32_1t.img": make_sparse_fat32,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is not there yet; ``--only`` makes one again."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", action="append", choices=list(MAKERS), help="repeatable; made even if it is there")
    options = parser.parse_args(argv)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    options.directory.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        if name in options.only if options.only else not (options.directory / name).exists():
            print(name, file=sys.stderr, flush=True)
            make(options.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
