"""Images as a stranger may hand them over: small ones of every kind, what they must read as, and a hand that changes
rows as no tool of ours would."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import apsw

import sqlimage
from tests.conftest import run
from tests.images import noise, sample_volume
from tests.make import fat
from tests.make.encrypted import KEY, with_key

Tree = dict[str, bytes]
"""What came out of an image, by path: the digest of a file, the target of a link, nothing for a directory."""


@dataclass(frozen=True)
class Base:
    """One image that is right, with the files it needs beside it."""

    name: str
    opened: str
    """The file that a user names."""
    files: dict[str, bytes]
    attacked: tuple[str, ...]
    """Those of the files that a stranger may have made."""
    media: dict[str, bytes] = field(default_factory=dict)
    """By UUID, what a version must be restored as."""
    trees: dict[str, Tree] = field(default_factory=dict)
    """By UUID, what must be extracted."""
    pages: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Of each file, the numbers of the database pages that each table or index has."""


def lax(
    image: Path, target: Path, *statements: str, values: tuple[object, ...] = (), dice: Callable[..., int] | None = None
) -> Path:
    """A copy changed by a hand that knows how: types and checks are off while it writes, the schema is as it was.
    ``dice`` is a function for the statements."""
    shutil.copy(image, target)
    connection = apsw.Connection(str(target))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute("PRAGMA synchronous = OFF; PRAGMA writable_schema = ON; PRAGMA ignore_check_constraints = ON")
    saved = connection.execute("SELECT rowid, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE type = 'table'")
    connection.close()
    connection = apsw.Connection(str(target))
    connection.execute("PRAGMA synchronous = OFF; PRAGMA ignore_check_constraints = ON")
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    if dice is not None:
        connection.create_scalar_function("dice", dice, 0)
    for statement in statements:
        connection.execute(statement, values or None)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute("PRAGMA writable_schema = ON")
    for row, sql in saved:
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE rowid = ?", [sql, row])
    connection.close()
    return target


def tree_of(place: Path) -> Tree:
    """What lies below a directory; links are not followed."""
    found: Tree = {}
    for base, directories, names in os.walk(place):
        for name in (*directories, *names):
            path = os.path.join(base, name)
            shown = os.path.relpath(path, place)
            if os.path.islink(path):
                found[shown] = os.fsencode(os.readlink(path))
            elif name in directories:
                found[shown] = b""
            else:
                found[shown] = hashlib.sha256(Path(path).read_bytes()).digest()
    return found


def bases(place: Path) -> list[Base]:
    """NTFS, FAT and ext alone, one encrypted as a whole, two versions in one file, and a child in another file than its
    parent. The key is known to this process from here on."""
    with_key()
    sqlimage.capture(sample_volume(place / "v.ntfs"), place / "ntfs.sqlimage", preset="fast")
    first, second = _fat_volumes(place)
    sqlimage.capture(first, place / "fat.sqlimage", preset="fast", label="golden")
    sqlimage.capture(_ext_volume(place), place / "ext.sqlimage", preset="fast")
    shutil.copy(place / "fat.sqlimage", place / "both.sqlimage")
    both, parent, child = (place / f"{name}.sqlimage" for name in ("both", "parent", "child"))
    sqlimage.capture(second, both, append=True, property_values={"os.name": "Debian"})
    shutil.copy(place / "fat.sqlimage", parent)
    sqlimage.capture(second, child, parent=parent, label="mine")
    sqlimage.capture(first, place / "sealed.sqlimage", preset="fast", encrypt_all=True, ways=[KEY])
    alone = [_base(place, name, (f"{name}.sqlimage",)) for name in ("ntfs", "fat", "ext", "both", "sealed")]
    return [*alone, _base(place, "child", ("child.sqlimage", "parent.sqlimage"))]


def _fat_volumes(place: Path) -> tuple[Path, Path]:
    """A volume, and what became of it."""
    first, second = place / "v1.fat", place / "v2.fat"
    fat.make_volume(first, 256 << 10, 12, sectors_per_cluster=8)
    tree = {f"docs/a long name {n}.txt": noise(("fat", n), 700 * n) for n in range(6)}
    fat.fill(first, {**tree, "text": b"to be or not to be " * 2000, "empty": b""}, place / "fat")
    shutil.copy(first, second)
    fat.delete(second, "docs/a long name 3.txt")
    fat.fill(second, {"docs/new": noise("new", 20_000), "text": b"that is the question " * 1500}, place / "fat2")
    return first, second


def _ext_volume(place: Path) -> Path:
    root, volume = place / "ext", place / "v.ext4"
    (root / "a" / "b").mkdir(parents=True)
    for path, content in {"a/b/file": noise("ext", 9000), "a/text": b"where lies it " * 3000, "empty": b""}.items():
        (root / path).write_bytes(content)
    for path, target in {"up": "../../escaped", "a/far": "/" + "far/" * 40, "a/b/near": "file"}.items():
        (root / path).symlink_to(target)
    os.mkfifo(root / "fifo")
    with volume.open("wb") as file:
        file.truncate(512 << 10)
    run("mke2fs", "-qF", "-t", "ext4", "-b", "1024", "-O", "^has_journal,metadata_csum", "-N", "32", "-d", root, volume)
    return volume


def _base(place: Path, name: str, names: tuple[str, ...]) -> Base:
    base = Base(name, names[0], {each: (place / each).read_bytes() for each in names}, names)
    with sqlimage.open(str(place / base.opened)) as image:
        for version in image.versions():
            uuid, number = version.control.uuid, version.number
            medium, tree = place / f"{name}.{number}.medium", place / f"{name}.{number}.tree"
            sqlimage.restore(version, medium)
            base.media[uuid] = medium.read_bytes()
            sqlimage.extract(version, "/", tree)
            base.trees[uuid] = tree_of(tree)
    for each in names:
        connection = apsw.Connection(str(place / each))
        owners: dict[str, list[int]] = {}
        for table, page in connection.execute("SELECT name, pageno FROM dbstat"):
            owners.setdefault(table, []).append(page)
        base.pages[each] = owners
        connection.close()
    return base
