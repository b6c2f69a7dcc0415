"""Second versions beside those of the peers: ``python -m tests.bench.versions --corpus DIR [--only NAME] ...``

A second capture into a child file or the same file, a merge, and housekeeping in an image of many versions. Options
and report are those of ``tests.bench.run``; what counts as size is what a program adds to what it has already.
``tests.bench.chains`` measures reading through many versions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import run
from tests.bench.cases import SQLIMAGE, ZSTD, qcow2, sqlimage_capture, wim
from tests.bench.measure import CACHE, Case, Contender

CHAIN_VERSIONS = 64
"""Versions on top of the captured one."""
_NEWEST = CHAIN_VERSIONS + 1
_MIDDLE = CHAIN_VERSIONS // 2

FIRST, _BORG, _WIM, _QCOW2, _RESTIC, _CASYNC = "first.sqlimage", "borg", "first.wim", "base.qcow2", "restic", "casync"
"""What is prepared from the first version."""

# Nothing is asked and nothing is kept outside of the directory that is copied. The cache goes along with the
# repository: without it borg would first read the whole index, which it does not do for those who use it every day.
_BORG_SETTINGS = (
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes",
)
_BORG_CREATE = ("borg", "create", "--chunker-params", "fixed,131072", "--compression", "zstd,3")
_BORG_FIRST = f'mkdir "$2" && borg init -e none "$2/repo" && {" ".join(_BORG_CREATE)} "$2/repo::first" "$1"'
_RESTIC_FIRST = 'mkdir "$2" && restic -r "$2/repo" init && restic -r "$2/repo" backup "$1"'
_CASYNC_FIRST = 'mkdir "$2" && casync make --what=blob-index --store="$2/store" "$2/first" "$1"'

# What differs from the base, and nothing else, in compressed clusters. `convert -B` alone compares nothing and stores
# everything again; a rebase of a whole qcow2 leaves its clusters where they are. But an empty overlay on the raw second
# version, rebased to the first, gets exactly the clusters of 64 KiB that differ. This qemu-img rebases without
# compression, so a conversion follows that takes from the overlay alone and keeps the base.
_OVERLAY = 'qemu-img create -q -f qcow2 -b "$1" -F raw "$2" && qemu-img rebase -q -f qcow2 -b "$3" -F qcow2 "$2"'
_COMPRESSED = f"qemu-img convert -f qcow2 -O qcow2 -c {' '.join(ZSTD)} -m 8 -W -F qcow2"
_QCOW2_CHILD = (
    f'child=$2 && set -- "$1" "$2.plain" "$3" && {_OVERLAY} && {_COMPRESSED} -B "$3" "$2" "$child" && rm "$2"'
)
# The same as files that name each other without a directory, so that they can be copied together.
_QCOW2_PAIR = (
    'mkdir "$2" && cp "$3" "$2/base.qcow2" && cd "$2" && set -- "$1" child.qcow2 base.qcow2 && '
    f"{_OVERLAY} && {_COMPRESSED} -B base.qcow2 child.qcow2 compressed.qcow2"
)
_SQLIMAGE_PAIR = f'mkdir "$2" && cp "$3" "$2/{FIRST}" && "$4" capture "$1" "$2/child.sqlimage" --parent "$2/{FIRST}"'


def shell(script: str, *arguments: str) -> tuple[str, ...]:
    """A command of several: the arguments are ``$1``, ``$2`` and so on in the script."""
    return ("sh", "-ec", script, "sh", *arguments)


def _borg(place: str) -> tuple[str, ...]:
    return ("env", f"BORG_BASE_DIR={place}/{CACHE}", *_BORG_SETTINGS)


def _restic(place: str) -> tuple[str, ...]:
    return ("env", "RESTIC_PASSWORD=bench", f"RESTIC_CACHE_DIR={place}/{CACHE}")


def _first_versions(source: str) -> tuple[Contender, ...]:
    """What each program has already when the second version comes."""
    both = ("{source}", "{out}")
    return (
        sqlimage_capture(FIRST, source),
        Contender(_BORG, (*_borg("{out}"), *shell(_BORG_FIRST, *both)), source, ("borg",)),
        qcow2(_QCOW2, source, *ZSTD),
        Contender(_RESTIC, (*_restic("{out}"), *shell(_RESTIC_FIRST, *both)), source, ("restic",)),
        Contender(_CASYNC, shell(_CASYNC_FIRST, *both), source, ("casync",)),
    )


def _ours(name: str, source: str, out: str, *options: str) -> Contender:
    return Contender(name, (SQLIMAGE, "capture", "{source}", out, *options), source, (SQLIMAGE,), FIRST)


def _second_versions(first: str, second: str) -> tuple[Contender, ...]:
    """Every program adds the second version to what it has of the first; ``sqlimage first`` is for the ratio to it."""
    create = (*_borg("{start}"), *_BORG_CREATE, "{start}/repo::second", "{source}")
    backup = (*_restic("{start}"), "restic", "-r", "{start}/repo", "backup", "{source}")
    make = ("casync", "make", "--what=blob-index", "--store={start}/store", "{out}", "{source}")
    return (
        _ours("sqlimage child", second, "{out}", "--parent", "{start}"),
        sqlimage_capture("sqlimage first", first),
        Contender("borg", create, second, ("borg",), _BORG),
        Contender(
            "qcow2 zstd child", shell(_QCOW2_CHILD, "{source}", "{out}", "{start}"), second, ("qemu-img",), _QCOW2
        ),
        Contender("restic", backup, second, ("restic",), _RESTIC),
        Contender("casync", make, second, ("casync",), _CASYNC),
        _ours("sqlimage append", second, "{start}", "--append"),
        _ours("sqlimage unchanged", first, "{out}", "--parent", "{start}"),
    )


def _wim_append(name: str, source: str, *options: str) -> Contender:
    command = ("wimlib-imagex", "append", "{source}", "{start}", "second", *options)
    return Contender(name, command, source, ("wimlib-imagex",), _WIM)


_NTFS_SECOND = Case(
    "ntfs-second",
    "A second version of an NTFS volume",
    "sqlimage child",
    (
        *_second_versions("ntfs.img", "ntfs_v2.img"),
        _wim_append("wim xpress append", "ntfs_v2.img"),
        _wim_append("wim xpress append, trusting times", "ntfs_v2.img", "--update-of=1"),
    ),
    prepare=(*_first_versions("ntfs.img"), wim(_WIM, "ntfs.img", "XPRESS")),
)
_EXT4_SECOND = Case(
    "ext4-second",
    "A second version of an ext4 volume",
    "sqlimage child",
    _second_versions("ext4.img", "ext4_v2.img"),
    prepare=_first_versions("ext4.img"),
)


def _commit(name: str, overlay: str) -> Contender:
    # -d: the overlay is not emptied afterwards, which is faster
    command = ("qemu-img", "commit", "-q", "-d", "-f", "qcow2", f"{{start}}/{overlay}")
    return Contender(name, command, "", ("qemu-img",), "qcow2-pair")


_MERGE = Case(
    "merge",
    "A child merged into its parent (NTFS)",
    "sqlimage merge",
    (
        Contender(
            "sqlimage merge",
            (SQLIMAGE, "merge", "{start}/child.sqlimage", "--into", f"{{start}}/{FIRST}"),
            "",
            (SQLIMAGE,),
            "sqlimage-pair",
        ),
        _commit("qemu-img commit", "child.qcow2"),
        _commit("qemu-img commit, compressed", "compressed.qcow2"),
    ),
    prepare=(
        sqlimage_capture(FIRST, "ntfs.img"),
        qcow2(_QCOW2, "ntfs.img", *ZSTD),
        Contender(
            "sqlimage-pair",
            shell(_SQLIMAGE_PAIR, "{source}", "{out}", "{start}", SQLIMAGE),
            "ntfs_v2.img",
            (SQLIMAGE,),
            FIRST,
        ),
        Contender(
            "qcow2-pair", shell(_QCOW2_PAIR, "{source}", "{out}", "{start}"), "ntfs_v2.img", ("qemu-img",), _QCOW2
        ),
    ),
)

_CHECKOUT = Path(__file__).resolve().parents[2]
_PYTHON = ("env", f"PYTHONPATH={_CHECKOUT}", sys.executable, "-m", "tests.bench.chain")
_LARGE_CHAIN, _SMALL_CHAIN = "large-chain.sqlimage", "small-chain.sqlimage"
# Of the places that `tests.bench.chain` takes the small volume has 96; versions of half of them are alike on both.
_VERSIONS = (f"--versions={CHAIN_VERSIONS}", "--clusters=48")
_CHAINS = (
    sqlimage_capture(FIRST, "ntfs.img"),
    Contender(_LARGE_CHAIN, (*_PYTHON, "{out}", "--on", "{start}", *_VERSIONS), "", (SQLIMAGE,), FIRST),
    Contender(_SMALL_CHAIN, (*_PYTHON, "{out}", *_VERSIONS), "", (SQLIMAGE,)),
)


def _housekeeping(name: str, title: str, *command: str) -> Case:
    """The same on a large and on a small file with equal versions: time must follow the version, not the file."""
    verb = command[0]
    return Case(
        name,
        title,
        f"sqlimage {verb}, 2 GiB",
        tuple(
            Contender(f"sqlimage {verb}, {size}", (SQLIMAGE, verb, "{start}", *command[1:]), "", (SQLIMAGE,), chain)
            for size, chain in (("2 GiB", _LARGE_CHAIN), ("8 MiB", _SMALL_CHAIN))
        ),
        prepare=_CHAINS,
    )


CASES = (
    _NTFS_SECOND,
    _EXT4_SECOND,
    _MERGE,
    _housekeeping("prune-64", f"The newest of {CHAIN_VERSIONS} versions removed", "prune", str(_NEWEST)),
    _housekeeping(
        "squash-64",
        f"One of {CHAIN_VERSIONS} versions squashed into the next",
        "squash",
        f"--from={_MIDDLE}",
        f"--to={_MIDDLE + 1}",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases that the arguments choose and print the report; returns the exit code."""
    return run.main(argv, CASES, module="versions")


if __name__ == "__main__":
    sys.exit(main())
