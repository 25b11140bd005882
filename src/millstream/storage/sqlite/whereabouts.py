"""Where a log's file was when it was opened, and whether it is still there."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ...errors import StorageError

_LOOK = 0.01
"""How often, in seconds, it is looked at most: that takes as long as a lock."""


class Whereabouts:
    """The place of a file, as it is when this is made.

    Args:
        path: Names the log in errors.
        address: The file's whole path.
    """

    def __init__(self, path: str, address: str) -> None:
        self._path = path
        self._address = address
        self._file = _file_at(address)
        self._looked = 0.0

    def check(self, lately: float | None = None) -> None:
        """See that the file is still there, unless that was seen a moment ago.

        What is written to a file without its name, nobody finds again.

        Args:
            lately: How long that moment is, in seconds, if not a hundredth of one.

        Raises:
            StorageError: There is another one, or none.
        """
        now = time.monotonic()
        if now - self._looked < (_LOOK if lately is None else lately):
            return
        with suppress(OSError):  # that cannot be told, as where this user may not look into the folder
            if _file_at(self._address) != self._file:
                raise StorageError(
                    f"{self._path} is no longer the file that was opened: that was moved, removed or replaced",
                    hint="Put it back, with the -wal beside it; or close this log, and open the one that is there",
                )
        self._looked = now


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file stands at a path; None when there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
