"""How a process learns that another has committed to the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from .forks import at_work
from .writer import read_head


class DataVersion:
    """Sees by one pragma whether another connection has committed: the `Probe` of a file."""

    waits = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def look(self) -> tuple[object, Callable[[], int]]:
        with at_work:
            mark = self._connection.execute("pragma data_version").fetchone()[0]
        return mark, self._head

    def _head(self) -> int:
        with at_work:
            return read_head(self._connection).position

    def close(self) -> None:
        self._connection.close()
