"""e2fsck and resize2fs at work on an open file of ours: how they are run, and what they answer.

They are never let loose on a destination: given ``FILE?offset=N``, resize2fs cuts the file off behind the file system
(or makes it longer), whatever else lies there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from sqlimage.errors import DeviceError, NotFoundError, RefusedError

_PACKAGE = "e2fsprogs"
_TOOLS = ("e2fsck", "resize2fs")
_FIXED = 3
"""Bits of what e2fsck exits with that say: there was something, and all of it was mended."""
_CHECKED = 7
"""These, or the one that says: something is wrong still. With others, it has not come to an end."""
_SAYS_NOTHING = re.compile(
    r"^\s*$|^(e2fsck|resize2fs) \d|^Pass \d|UNEXPECTED INCONSISTENCY|^\s*\(i\.e\., without|^Please run 'e2fsck|"
    r"^after the aborted|\*{5} FILE ?SYSTEM WAS MODIFIED|\*{5} WARNING|: \d+/\d+ files \("
)
_MENDED = re.compile(r"\b[A-Z]{4,}\.$")
AS_CAPTURED = "restore it at the size it was captured at"
_LONGEST_SAID, _MOST_TOLD = 300, 3


def check_tools() -> None:
    """Raise :class:`~sqlimage.errors.NotFoundError`, naming the Debian package, where a tool is not installed."""
    for name in _TOOLS:
        _find(name)


def mend(fd: int) -> str:
    """Let e2fsck check the volume on an open file, replay its journal and mend what can be mended without asking: what
    it did, in its words; empty where all was well.

    Raises :class:`~sqlimage.errors.RefusedError` where more is wrong than that, and nothing is mended for sure then.
    """
    code, said = _run("e2fsck", ["-f", "-p"], fd)
    if code & ~_FIXED:
        hint = f"{AS_CAPTURED}, and mend it there with e2fsck"
        what = "the volume is damaged" if code > 0 and not code & ~_CHECKED else "the volume cannot be checked"
        raise RefusedError(f"{what} (e2fsck: {_problem(said, code)})", hint=hint)
    return _told(said) if code else ""


def check(fd: int) -> None:
    """Raise :class:`~sqlimage.errors.RefusedError` where e2fsck finds anything wrong with the volume on an open file;
    nothing is written."""
    code, said = _run("e2fsck", ["-f", "-n"], fd)
    if code:
        problem = _problem(said, code)
        raise RefusedError(f"resize2fs would not leave the volume whole (e2fsck: {problem})", hint=AS_CAPTURED)


def check_resized(fd: int) -> str:
    """As :func:`check`, but what resize2fs has left is mended first where that takes no decision: some of its versions
    miscount free blocks, or forget to mark a block as used. What was mended, in e2fsck's words."""
    code, _ = _run("e2fsck", ["-f", "-n"], fd)
    if not code:
        return ""
    _, said = _run("e2fsck", ["-f", "-p"], fd)
    check(fd)
    return _told(said)


def set_blocks(fd: int, blocks: int) -> None:
    """Let resize2fs bring the volume on an open file, which has been checked, to so many blocks, or a few less.

    It is told to go below its own estimate of what can be done, which is a guess, at times too high by half and at
    times too low. Raises :class:`~sqlimage.errors.RefusedError` where it fails; then the file is good for nothing.
    """
    code, said = _run("resize2fs", ["-f"], fd, str(blocks))
    if code:
        raise RefusedError(f"the volume cannot be resized (resize2fs: {_problem(said, code)})", hint=AS_CAPTURED)


def _run(name: str, options: list[str], fd: int, *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and the lines that say something, errors first. Whatever stops us stops the tool before."""
    path, program = f"/proc/self/fd/{fd}", _find(name)
    try:
        process = subprocess.Popen(
            [program, *options, path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[fd],
            env=_environment(),
        )
    except OSError as problem:
        raise DeviceError(f"{name} cannot be run ({problem.strerror})") from None
    with process:
        try:
            said, complained = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
    lines = []
    for line in (complained + b"\n" + said).decode("utf-8", "replace").splitlines():
        if not _SAYS_NOTHING.search(line):
            line = line.strip().removeprefix(f"{path}: ").removeprefix(f"{program}: ").removeprefix(f"{name}: ")
            line = line.replace(path, "the volume")
            lines.append("".join(c if c.isprintable() else "?" for c in line)[:_LONGEST_SAID])
    return process.returncode, lines


def _told(said: list[str]) -> str:
    more = [f"and {len(said) - _MOST_TOLD} lines more"] if len(said) > _MOST_TOLD else []
    return "; ".join([*said[:_MOST_TOLD], *more]) or "small repairs"


def _problem(said: list[str], code: int) -> str:
    """The first line that tells of something that was not mended."""
    if code < 0:
        return f"ended by signal {-code}"
    return next((line for line in said if not _MENDED.search(line)), f"exit code {code}")


def _find(name: str) -> str:
    found = shutil.which(name, path=_environment()["PATH"])
    if found is None:
        raise NotFoundError(f"{name} is missing, which resizes ext volumes", hint=f"install the package {_PACKAGE}")
    return found


def _environment() -> dict[str, str]:
    """Messages in English; programs of the administrator among those that are found; no settings of this machine."""
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    return {
        **os.environ,
        "LC_ALL": "C",
        "PATH": path,
        "E2FSCK_CONFIG": "/dev/null",
        "BLKID_FILE": "/dev/null",
    }
