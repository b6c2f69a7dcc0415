"""What of a medium is to be encrypted: the files that globs name, and all places where their bytes may lie."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Sequence

import numpy as np

from sqlimage.errors import UsageError
from sqlimage.extent import Int64s, Runs, overlaps
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents, EntryKind
from sqlimage.image.medium import Medium, SourceVolume
from sqlimage.streams.properties import Value

PROPERTY = "capture.encrypt"
"""The globs, as a JSON list; inherited, so that edits and children go by them too."""
_MOST_GLOBS = 1000
_NTFS_LOG, _EXT_JOURNAL, _MFT = 2, 8, 0
_EXT_INCOMPAT_AT, _EXT_INLINE_DATA = 1024 + 0x60, 0x8000
_LAST_SYSTEM = 15
"""The records up to this one belong to NTFS itself."""


def check_globs(globs: Sequence[str]) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` where a glob cannot be one."""
    for glob in globs:
        if not glob or len(glob) > 1000 or "\0" in glob:
            raise UsageError(f"{glob[:60]!r} names no files", hint="use a name or a path with * and ?, as '*.docx'")
    if len(globs) > _MOST_GLOBS:
        raise UsageError(f"{len(globs)} globs; allowed are {_MOST_GLOBS}")


def told(globs: Sequence[str]) -> str:
    """As the property has them."""
    return json.dumps(sorted(set(globs)), ensure_ascii=False)


def globs_of(value: Value) -> tuple[str, ...]:
    """The globs of a property; none where it is no list of texts."""
    try:
        found = json.loads(value) if isinstance(value, str) else []
    except (ValueError, RecursionError):
        return ()
    return tuple(glob for glob in found if isinstance(glob, str)) if isinstance(found, list) else ()


def wholly_secret(medium: Medium) -> Medium:
    """A medium of which everything is to be encrypted."""
    return dataclasses.replace(medium, secret=Runs.of([(0, medium.total_clusters * medium.bytes_per_cluster)]))


def secret_files(medium: Medium, globs: Sequence[str]) -> tuple[Medium, list[str]]:
    """A medium of which the files that match are to be encrypted, and the globs that match nothing.

    A glob with a slash is matched with whole paths, else with names; a directory stands for all below it. Case does not
    count. A volume whose files are not read is encrypted as a whole, for any of it may be what is meant.
    """
    if not globs:
        return medium, []
    unmatched = set(globs)
    volumes, secret = [], Runs.empty()
    for volume in medium.volumes:
        if volume.scan is None:
            found, runs = volume, Runs.of([(0, volume.length_bytes)])
        else:
            rows = _matching(volume, globs, unmatched)
            found, runs = _secret(volume, rows, may_be_inline=_may_be_inline(medium, volume))
        volumes.append(found)
        secret = secret.union(runs.shift(volume.offset_bytes))
    changed = dataclasses.replace(medium, volumes=tuple(volumes), secret=secret)
    return changed, [glob for glob in globs if glob in unmatched]


def _matching(volume: SourceVolume, globs: Sequence[str], unmatched: set[str]) -> set[int]:
    assert volume.scan is not None
    entries = volume.scan.entries
    found: set[int] = set()
    patterns = [(glob, _pattern(glob)) for glob in dict.fromkeys(globs)]
    kinds, rows = entries.kind.tolist(), entries.content.tolist()
    for path, kind, row in zip(entries.path, kinds, rows, strict=True):
        if row < 0 or kind in (EntryKind.METADATA, EntryKind.DIRECTORY):
            continue  # names are no secret, and what leads to other files is needed without the key
        folded = path.casefold()
        if kind == EntryKind.STREAM:  # it goes with its file
            folded = folded[: folded.index(":", folded.rindex("/"))]
        for glob, pattern in patterns:
            if pattern.match(folded):
                unmatched.discard(glob)
                found.add(row)
    return found


def _pattern(glob: str) -> re.Pattern[str]:
    folded = glob.casefold().rstrip("/") or "/"
    whole = folded if folded.startswith("/") else f"/{folded}" if "/" in folded else f"*/{folded}"
    return re.compile(f"{fnmatch.translate(whole)}|{fnmatch.translate(whole.rstrip('/') + '/*')}")


def _may_be_inline(medium: Medium, volume: SourceVolume) -> bool:
    """Whether files of an ext volume may lie in their inodes, which keep what was deleted."""
    if volume.facts is None or not volume.facts.file_system.startswith("ext"):
        return False
    told = medium.device.read(volume.offset_bytes + _EXT_INCOMPAT_AT, 4)
    return int.from_bytes(told, "little") & _EXT_INLINE_DATA != 0


def _secret(volume: SourceVolume, rows: set[int], *, may_be_inline: bool) -> tuple[SourceVolume, Runs]:
    """The volume, with the contents of which no digest may be kept; and what is secret of it, in bytes of it."""
    assert volume.scan is not None and volume.facts is not None
    contents, is_ntfs = volume.scan.contents, volume.facts.file_system == "ntfs"
    journal = _NTFS_LOG if is_ntfs else _EXT_JOURNAL if volume.facts.file_system.startswith("ext") else None
    if journal is not None:  # what was written lately is in there too, of files that are gone now among others
        rows = rows | set(np.flatnonzero(contents.record == journal).tolist())
    chosen = np.zeros(len(contents), dtype=np.bool_)
    chosen[list(rows)] = True
    backed = contents.run_offset != HOLE
    owner, start, length = contents.run_owner()[backed], contents.run_offset[backed], contents.run_length[backed]
    mine = chosen[owner]
    secret = Runs.of(zip(start[mine].tolist(), length[mine].tolist(), strict=True))
    inline = np.flatnonzero(chosen & (contents.flags & ContentFlag.INLINE != 0) & (contents.size_bytes > 0))
    if is_ntfs:
        secret = secret.union(_records(volume, contents, np.array(sorted(rows), dtype=np.int64)))
    elif len(inline) or may_be_inline:
        secret = secret.union(_unclaimed(volume, contents))
    touching = overlaps(start, length, secret.start, secret.length)
    chosen[owner[touching.a]] = True
    undigested = frozenset(np.flatnonzero(chosen).tolist())
    return dataclasses.replace(volume, undigested=undigested), secret


def _records(volume: SourceVolume, contents: Contents, rows: Int64s) -> Runs:
    """The records of the MFT that may hold bytes of contents, in bytes of the volume: their own, for one that has
    become too long for its record leaves the beginning behind there; those that hold an attribute of theirs; and all
    that are not in use, where whatever was deleted still stands."""
    assert volume.facts is not None and volume.facts.clusters_per_record is not None
    told, cluster = volume.facts.clusters_per_record, volume.facts.bytes_per_cluster
    size = told * cluster if told > 0 else 1 << -told
    mft = next(row for row in np.flatnonzero(contents.record == _MFT).tolist() if not contents.stream[row])
    low, high = int(contents.first_run[mft]), int(contents.first_run[mft + 1])
    length = contents.run_length[low:high]
    at = np.cumsum(length) - length
    own = contents.record[rows]
    inline = [contents.inline_holder[row] for row in rows.tolist() if row in contents.inline_holder]
    unused = np.setdiff1d(np.arange(int(contents.size_bytes[mft]) // size), contents.record)
    holders = np.unique(np.concatenate((own[own > _LAST_SYSTEM], np.array(inline, dtype=np.int64), unused)))
    holders = holders.astype(np.int64)
    found = overlaps(holders * size, np.full(len(holders), size, dtype=np.int64), at, length)
    start = contents.run_offset[low:high][found.b] + found.into_b
    return Runs.of(zip(start.tolist(), found.length.tolist(), strict=True))


def _unclaimed(volume: SourceVolume, contents: Contents) -> Runs:
    """All control information: where in it a content lies is not known."""
    backed = contents.run_offset != HOLE
    return volume.allocated.subtract(
        Runs.of(zip(contents.run_offset[backed].tolist(), contents.run_length[backed].tolist(), strict=True))
    )
