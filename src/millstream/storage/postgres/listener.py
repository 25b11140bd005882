"""How followers learn of commits in PostgreSQL: by LISTEN, or where that is not to be had, by looking."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psycopg

from .connections import connect
from .database import Connection
from .place import Place
from .reader import Reader

_WAIT = 1.0
"""The longest wait for a notification, in seconds; a look at the head follows, for one may have been lost."""
_POLL = 0.01
"""The pause between two looks where LISTEN is not to be had: on a standby, or through a transaction pooler."""


class Listener:
    """A connection of its own that waits for commits; made by the first that waits, gone when nobody does."""

    waits = True

    def __init__(self, place: Place, reader: Reader) -> None:
        self._reader = reader
        self._connection: Connection = connect(place)
        self._listens = False
        self._head: int | None = None
        self._missed = 0
        try:
            row = self._connection.execute(
                "select to_regclass($1)::oid::text, pg_is_in_recovery()", (f"{place.quoted}.runs",)
            ).fetchone()
            assert row is not None
            if not row[1]:
                self._connection.execute(f"listen millstream_{row[0]}")
                self._listens = True
        except psycopg.Error:
            with suppress(psycopg.Error):
                self._connection.execute("rollback")

    def look(self) -> tuple[object, Callable[[], int]]:
        """Wait for news, for a moment. The first value changes with the head, which the second gives."""
        heard = 0
        if self._listens and self._head is not None:
            for notice in self._connection.notifies(timeout=_WAIT, stop_after=1):
                heard = int(notice.payload)
                self._missed = 0
        elif self._head is not None:
            time.sleep(_POLL)
        position = heard or self._reader.head(self._connection).position
        if self._listens and not heard and self._head is not None and position > self._head:
            # Something came that was not announced: a pooler may have taken LISTEN for itself. Or it came just now,
            # and is announced in a moment; so it counts only if nothing is ever heard in between.
            self._missed += 1
            self._listens = self._missed < 3
        self._head = position
        return position, lambda: position

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
