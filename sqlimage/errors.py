"""The error tree. Every error a caller can meet derives from :class:`SqlimageError`, carries its data as
attributes, and says in one line what is wrong, where, what was allowed, and what to do next."""

from __future__ import annotations


class SqlimageError(Exception):
    """Root of all errors of this library.

    ``exit_code`` is what the command line exits with; ``hint`` names the next step, or is empty.
    """

    exit_code = 6

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(SqlimageError, ValueError):
    """An argument is not of the allowed form or range."""

    exit_code = 2


class NotFoundError(SqlimageError, FileNotFoundError):
    """A file, a version, a path inside an image or a property that was asked for does not exist."""

    exit_code = 3


class RefusedError(SqlimageError):
    """The request is well formed but would harm something; nothing was written."""

    exit_code = 4


class LockedError(RefusedError):
    """Something is encrypted, and none of the keys that were given opens it."""

    exit_code = 7


class FormatError(SqlimageError):
    """A file is not an image of a format this reader knows, or its records are out of range."""

    exit_code = 5


class DamagedError(FormatError):
    """Bytes of an image do not match their digest, or cannot be decoded.

    ``data`` is the id of the damaged ``data`` row, or None where the damage is elsewhere.
    """

    def __init__(self, message: str, *, data: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.data = data


class InconsistentVolume(SqlimageError):
    """The control information of a captured file system or partition table contradicts itself or its medium.

    ``structure`` names the on-disk structure in its specification's spelling; ``offset_bytes`` is where it
    lies on the device that was read, or None where no single place is at fault.
    """

    exit_code = 5

    def __init__(self, structure: str, problem: str, *, offset_bytes: int | None = None) -> None:
        where = "" if offset_bytes is None else f" at byte {offset_bytes}"
        super().__init__(f"{structure}{where}: {problem}")
        self.structure = structure
        self.problem = problem
        self.offset_bytes = offset_bytes


class DeviceError(SqlimageError, OSError):
    """The operating system refused a read, a write or a sync of a device."""

    exit_code = 6
