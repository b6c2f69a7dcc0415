"""What SQLite answers, in the words and errors of this library."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apsw

from sqlimage.errors import DeviceError, FormatError, RefusedError, SqlimageError

Row = tuple[Any, ...]


def typed(path: str, table: str, types: Sequence[Any], row: Row) -> Row:
    """The row, if its values are of the types the format gives them.

    A table can be declared STRICT after values of other types were put into it, so that is no protection.
    """
    for value, expected in zip(row, types, strict=True):
        if not isinstance(value, expected):
            raise FormatError(f"{path}: {table} holds a {type(value).__name__} where the format has another type")
    return row


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn what SQLite raises into the errors of this library, naming the file."""
    try:
        yield
    except SqlimageError:
        raise
    except (apsw.BusyError, apsw.LockedError):
        raise RefusedError(f"{path}: another process is writing to it", hint="try again when it has finished") from None
    except (apsw.CorruptError, apsw.NotADBError) as problem:
        raise FormatError(f"{path}: the database is damaged ({problem})") from None
    except apsw.ReadOnlyError as problem:
        if getattr(problem, "extendedresult", 0) in (apsw.SQLITE_READONLY_ROLLBACK, apsw.SQLITE_READONLY_RECOVERY):
            raise _pending(path) from None
        raise RefusedError(f"{path}: opened for reading, it cannot be changed") from None
    except apsw.CantOpenError:
        if os.path.exists(path + "-journal"):
            raise _pending(path) from None
        raise DeviceError(f"{path}: cannot be opened", hint="check its permissions") from None
    except apsw.FullError:
        full = DeviceError(f"{path}: no space left on the device", hint="nothing was changed; make room")
        full.errno = errno.ENOSPC  # a guest is told by number
        raise full from None
    except apsw.IOError as problem:
        raise DeviceError(f"{path}: {problem}") from None
    except apsw.ConnectionClosedError:
        raise RefusedError(f"{path}: is closed already") from None
    except apsw.TooBigError as problem:
        raise FormatError(f"{path}: a value is larger than the format allows ({problem})") from None
    except apsw.AuthError as problem:
        raise RefusedError(f"{path}: {problem}") from None
    except (apsw.ConstraintError, apsw.SQLError) as problem:
        raise FormatError(f"{path}: holds what the format does not allow ({problem})") from None
    except (UnicodeError, OverflowError, apsw.MismatchError) as problem:
        raise FormatError(f"{path}: holds a value that the format does not allow ({problem})") from None


def _pending(path: str) -> RefusedError:
    return RefusedError(
        f"{path}: a change was interrupted, and {os.path.basename(path)}-journal still has to be taken back",
        hint="run `sqlimage verify --recover` on it",
    )
