"""SQLite's faults as this library's errors: no driver exception leaves the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import (
    ConstraintViolated,
    DamagedLog,
    DatabaseError,
    DiskFull,
    LogLocked,
    MillstreamError,
    NotALog,
    ReadOnlyLog,
    StorageError,
    UsageError,
)

_AUTH = 23
_TOO_BIG = 18
_FULL = 13
_READONLY = 8
_BUSY = {5, 6}
_CORRUPT = 11
_NOT_A_DATABASE = 26
_IO = 10
_CANT_OPEN = 14
_PERMISSION = 3


def translate(error: sqlite3.Error, path: str, *, lock_timeout: float = 0.0) -> MillstreamError:
    """The typed error that stands for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintViolated(str(error), hint="The transaction was rolled back; correct the row")
    if primary == _AUTH:
        return UsageError(
            "this statement is not for a commit of the log",
            hint="Leave BEGIN, COMMIT, savepoints, ATTACH, PRAGMAs that set things and the log's own tables to the log",
        )
    if primary == _FULL:
        return DiskFull(path)
    if primary in (_READONLY, _PERMISSION):
        return ReadOnlyLog(path)
    if primary in _BUSY:
        return LogLocked(path, lock_timeout)
    if primary == _CORRUPT:
        return DamagedLog(0, str(error))
    if primary == _NOT_A_DATABASE:
        return NotALog(path)
    if primary == _IO:
        # A file-size limit or a quota shows as a failed write, not as SQLITE_FULL.
        if "WRITE" in getattr(error, "sqlite_errorname", ""):
            return DiskFull(path)
        return StorageError(f"{path}: {error}", hint="Check the disk and the file's permissions")
    if primary == _CANT_OPEN:
        return StorageError(f"{path} cannot be opened: {error}", hint="Check that its folder exists and is writable")
    if primary == _TOO_BIG:
        return DatabaseError(
            "a value is larger than the gigabyte that SQLite holds", hint="Keep it elsewhere, and store where it is"
        )
    if "binding parameter" in str(error) and "not supported" in str(error):
        return DatabaseError(str(error), hint="SQLite holds numbers, text and bytes: write others as text, str(…)")
    return DatabaseError(str(error).rstrip("."), hint="Check the statement and its parameters")


MISFITS = (OverflowError, UnicodeEncodeError)
"""What the driver raises for values that SQLite cannot hold, beside its own errors."""


def misfit(error: Exception) -> DatabaseError:
    """The typed error that stands for one of these."""
    return DatabaseError(
        f"SQLite does not hold a value: {error}",
        hint="Give whole numbers within 64 bits, and texts without halves of surrogate pairs",
    )


@contextmanager
def translated(path: str, *, lock_timeout: float = 0.0) -> Iterator[None]:
    """Turns SQLite's exceptions raised inside into typed ones."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path, lock_timeout=lock_timeout) from error
