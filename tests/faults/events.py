"""What can happen to the files of one directory, and a directory's history of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset of a file; files are numbered, for names come and go."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: int
    length: int


@dataclass(frozen=True, slots=True)
class Entries:
    """Names that came to mean a file, or nothing, at once: a creation, a removal, a link, a renaming."""

    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """All of a file's events before the event ``covers`` are on the medium: those made while it ran may not be."""

    file: int
    covers: int


@dataclass(frozen=True, slots=True)
class DirectorySync:
    """As :class:`Sync`, for the names in the directory."""

    covers: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What the test says of this moment."""

    value: object


Event = Write | Truncate | Entries | Sync | DirectorySync | Mark


@dataclass
class History:
    """A directory as it was, and the events since, in order."""

    events: list[Event] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    """What each file that was there held, by its number; a file of a later number began empty."""
    names: dict[str, int] = field(default_factory=dict)
    """The names in the directory as it was."""
