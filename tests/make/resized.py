"""Volumes of every kind that can be restored to another size, what they hold, and what everybody says of them then."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from contextlib import closing, suppress
from pathlib import Path

import sqlimage
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import EntryKind, read_all
from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.file import FileDevice
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.make import ext, fat, fat_oracle, ntfs
from tests.make.ext_oracle import checked, seen_by_kernel
from tests.make.fat_tree import ScatteredVolume
from tests.make.ntfs_relocated import check_by_others

SIZES = {
    "ntfs": 12 * MIB,
    "fat12": 3 * MIB,
    "fat16": 6 * MIB,
    "fat32": 40 * MIB,
    "ext2": 12 * MIB,
    "ext3": 16 * MIB,
    "ext4": 16 * MIB,
}


def noise(seed: object, length: int) -> bytes:
    """Bytes that no compressor shrinks, the same for the same seed; of many megabytes in no time."""
    return random.Random(repr(seed)).randbytes(length)


def make(kind: str, path: Path, size_bytes: int = 0, seed: int = 1) -> Path:
    """A volume in use: files of all sizes in pieces, deleted ones between them, directories."""
    size = size_bytes or SIZES[kind]
    if kind == "ntfs":
        return _make_ntfs(path, size, seed)
    return _make_fat(kind, path, size, seed) if kind.startswith("fat") else _make_ext(kind, path, size, seed)


def _make_ntfs(path: Path, size: int, seed: int) -> Path:
    ntfs.make_volume(path, size, cluster_bytes=1024, label="kept")
    with ntfs.mounted(path) as root:
        doomed = [root / f"doomed {n}" for n in range(40)]
        for n, file in enumerate(doomed):
            file.write_bytes(noise((seed, "old", n), 30 * KIB))
        for file in doomed[::2]:
            file.unlink()
        ntfs.write_tree(root, {f"tree/{n % 5}/file {n}": noise((seed, n), n * n * 20) for n in range(40)})
        ntfs.write_tree(root, {"large": noise((seed, "large"), size // 8), "large:stream": noise((seed, "s"), 5000)})
        (root / "packed").mkdir()
        os.setxattr(root / "packed", ntfs.ATTRIBUTES, ntfs.COMPRESSED_DIRECTORY)
        (root / "packed" / "text").write_bytes(b"to be or not to be " * 9000)
        with (root / "sparse").open("wb") as file_:
            for n in range(30):
                file_.seek(n * 5000)
                file_.write(noise((seed, "hole", n), 900))
        for file in doomed[1::4]:
            file.unlink()
        (root / "last").write_bytes(noise((seed, "last"), 100 * KIB))
    return path


def _make_fat(kind: str, path: Path, size: int, seed: int) -> Path:
    bits = int(kind[3:])
    fat.make_volume(path, size, bits, sectors_per_cluster={12: 4, 16: 1, 32: 1}[bits])
    volume, chance = ScatteredVolume(bytearray(path.read_bytes()), seed, longest=9), random.Random(seed)
    for n in range(6):
        volume.add_directory(f"/directory number {n}")
    for n in range(60):
        content = noise((seed, n), chance.choice((0, 100, 5000, 20_000, 60_000)))
        volume.add_file(f"/directory number {n % 6}/{n} is the name", content, deleted=n % 7 == 0)
    volume.add_file("/LARGE.BIN", noise((seed, "large"), 300_000))
    path.write_bytes(volume.finish())
    return path


def _make_ext(kind: str, path: Path, size: int, seed: int) -> Path:
    with ext.in_memory() as work:
        made = ext.make_volume(work / "v", size, "-t", kind, "-b", "1024", "-L", "kept")
        with ext.mounted(made) as root:
            (root / "before").write_bytes(noise((seed, "old"), size // 8))
            ext.fill_names(root, names=60)
            ext.punched(root / "in pieces", 1024, 30)
            ntfs.write_tree(root, {f"tree/{n % 5}/file {n}": noise((seed, n), n * n * 20) for n in range(40)})
            with (root / "reserved").open("wb") as file, suppress(OSError):  # block maps have no such thing
                file.write(noise((seed, "written"), 3000))
                file.flush()
                ext.fallocate(file.fileno(), 0, 0, size // 50)
            os.truncate(root / "tree" / "0" / "file 5", MIB)
            (root / "large").write_bytes(noise((seed, "large"), size // 6))
            (root / "before").unlink()
        run("cp", "--sparse=always", made, path)
    return path


def captured(source: Path | sqlimage.BlockDevice, image: Path, **options: object) -> Path:
    """The image of a source."""
    sqlimage.capture(source, image, preset="fast", **options)  # type: ignore[arg-type]
    return image


def restored(
    image: Path, destination: Path | str, version: str | None = None, **options: object
) -> sqlimage.RestoreReport:
    with sqlimage.open(str(image)) as opened:
        return sqlimage.restore(opened.version(version), destination, **options)  # type: ignore[arg-type]


def explained(
    image: Path, destination: Path | str, version: str | None = None, **options: object
) -> sqlimage.Explanation:
    with sqlimage.open(str(image)) as opened:
        return sqlimage.explain_restore(opened.version(version), destination, **options)  # type: ignore[arg-type]


def contents(device: Path | sqlimage.BlockDevice) -> dict[str, str]:
    """SHA-256 of every file and stream by path, as our reader has it."""
    if isinstance(device, Path):
        with closing(FileDevice(device)) as opened:
            return contents(opened)
    volume = open_file_system(device)
    assert volume is not None
    scan, found = volume.scan(), {}
    entries, streams = scan.entries, scan.contents.stream
    rows = zip(entries.path, entries.kind.tolist(), entries.record.tolist(), entries.content.tolist(), strict=True)
    for path, kind, record, row in rows:
        if kind in (EntryKind.FILE, EntryKind.STREAM):
            digest = hashlib.sha256()
            for block in read_all(volume.open(record, streams[row] if row >= 0 else "")):
                digest.update(block)
            found[path] = digest.hexdigest()
    return found


def free_of(path: Path) -> Runs:
    """What a volume alone in a file calls free, in bytes."""
    with closing(FileDevice(path)) as device:
        volume = open_file_system(device)
        assert volume is not None
        return volume.allocated().complement(device.size_bytes)


def hidden_sectors(volume: Path | sqlimage.BlockDevice, *, ntfs_backup: int | None = None) -> list[int]:
    """What the boot sector of a FAT or NTFS volume, and the backup of it, say; ``ntfs_backup`` is where that lies."""
    if isinstance(volume, Path):
        with closing(FileDevice(volume)) as device:
            return hidden_sectors(device, ntfs_backup=ntfs_backup)
    boot = volume.read(0, 512)
    places = [0]
    if boot[3:7] == b"NTFS":
        places.append(int.from_bytes(boot[40:48], "little") * 512 if ntfs_backup is None else ntfs_backup)
    elif boot[22:24] == b"\0\0":
        places.append(int.from_bytes(boot[50:52], "little") * 512)
    return [int.from_bytes(volume.read(place + 28, 4), "little") for place in places]


def check(kind: str, path: Path, expected: dict[str, str]) -> None:
    """A volume alone in a file: in order by its own tools and by others, and every file as it was."""
    assert contents(path) == expected
    if kind == "ntfs":
        check_by_others(path)
    elif kind.startswith("fat"):
        code, said = fat_oracle.fsck(path)
        assert code == 0, said
        assert fat_oracle.mtools_digests(path, path.with_suffix(".tree")) == expected
    else:
        assert checked(path) == 0


def use(kind: str, path: Path, expected: dict[str, str]) -> None:
    """Change files of a volume alone in a file through a driver, which must read all others as they were."""
    with ext.in_memory() as work:
        volume = Path(shutil.copy(path, work / "v"))
        if kind == "ntfs":
            with ntfs.mounted(volume) as root:
                _change_beside(root, expected)
        elif kind.startswith("fat"):
            _change(work)
            fat.copy_in(volume, work / "changed", to="/")
        else:
            with ext.mounted(volume) as root:
                _change_beside(root, {name: digest for name, digest in expected.items() if _is_named(root, name)})
        after = contents(volume)
        changed = {name: digest for name, digest in after.items() if name.startswith("/changed/")}
        assert len(changed) == 6
        check(kind, volume, expected | changed)


def _is_named(root: Path, name: str) -> bool:
    """Whether the kernel knows it by this name: the journal has none, and bytes that are no Unicode are escaped."""
    return os.path.lexists(f"{root}{name}")


def _change_beside(root: Path, expected: dict[str, str]) -> None:
    for name, digest in expected.items():
        assert hashlib.sha256((root / name[1:]).read_bytes()).hexdigest() == digest, name
    _change(root)


def _change(root: Path) -> None:
    (root / "changed").mkdir(parents=True)
    for n in range(12):
        (root / "changed" / f"{n}").write_bytes(noise(("new", n), 700 * n))
    for n in range(0, 12, 2):
        (root / "changed" / f"{n}").unlink()


def as_the_kernel_sees(path: Path) -> dict[bytes, object]:
    """The tree of an ext volume: names, modes, times, attributes, contents."""
    with ext.in_memory() as work, ext.mounted(Path(shutil.copy(path, work / "v")), "ro") as root:
        return {name: seen._replace(inode=0) for name, seen in seen_by_kernel(root).items()}
