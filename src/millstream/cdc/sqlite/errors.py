"""What SQLite says about a source, in the words of a capture."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import CaptureError

_REASONS = {
    "SQLITE_CANTOPEN": ("cannot be opened", "Check that the file is there, and the path is the right one"),
    "SQLITE_BUSY": (
        "is locked by another program",
        "End that program's transaction, or give capture() a longer lock_timeout=",
    ),
    "SQLITE_READONLY": (
        "is read-only, and a capture adds triggers to it",
        "Check the permissions of the file and of its folder",
    ),
    "SQLITE_NOTADB": ("is not a SQLite database", "Check the path"),
    "SQLITE_CORRUPT": ("is damaged", "Repair it with `sqlite3 FILE .recover`, or restore a backup"),
    "SQLITE_FULL": ("has no room left on its disk", "Free some space"),
    "SQLITE_IOERR": ("cannot be read or written", "Check the disk, and that the file is still there"),
}


@contextmanager
def source_errors(path: str) -> Iterator[None]:
    """Turn errors of the driver into `CaptureError`, with what to do about them."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        for prefix, (reason, hint) in _REASONS.items():
            if name.startswith(prefix):
                raise CaptureError(f"{path} {reason} ({error})", hint=hint) from error
        raise CaptureError(f"{path} cannot be captured: {error}", hint="See the cause above") from error
