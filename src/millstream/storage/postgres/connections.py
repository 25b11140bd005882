"""Connections: one for the writer, a pool for readers, each found anew when the server has gone away."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolClosed

from ...errors import LogClosed
from .database import Connection
from .faults import is_lost, translate, translated
from .place import Place

Result = TypeVar("Result")

_READERS = 8
PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two tries to reach a server that is away: at first, and at most."""
_open: weakref.WeakSet[Connection] = weakref.WeakSet()
_abandoned: list[Any] = []


# Errors are raised here; what the pool logs of them as well is for those who have set up logging, not for stderr.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())


def _leave_to_parent() -> None:
    # A forked child shares its parent's sockets: whatever closes them here must not speak on them.
    null = os.open(os.devnull, os.O_RDWR)
    for connection in list(_open):
        if not connection.closed:
            os.dup2(null, connection.fileno())
            _abandoned.append(connection)
    os.close(null)


os.register_at_fork(after_in_child=_leave_to_parent)


def _settings() -> dict[str, Any]:
    # No statement is prepared: a transaction pooler hands each transaction another session.
    return {
        "autocommit": True,
        "prepare_threshold": None,
        "cursor_factory": psycopg.RawCursor,
        "row_factory": tuple_row,
    }


def connect(place: Place) -> Connection:
    """A connection of its own.

    Raises:
        ConnectionFailed: The server cannot be reached, or refuses.
    """
    with translated(place.location):
        return connect_raw(place)


def connect_raw(place: Place, name: str | None = None) -> Connection:
    """The same, for who deals with the driver's own errors.

    Args:
        name: What the server calls the session, instead of the name that the URL gives.
    """
    conninfo = place.conninfo if name is None else {**place.conninfo, "application_name": name}
    connection: Connection = psycopg.connect(**conninfo, **_settings())
    _open.add(connection)
    return connection


class Readers:
    """Pools of connections for readers. No transaction outlives a loan.

    What is lent out goes by a pool of its own: who holds a connection may ask the log something before it comes back.

    Args:
        patience: How long, in seconds, a read goes on trying while the server is away.
    """

    def __init__(self, place: Place, patience: float) -> None:
        self._place = place
        self._patience = patience
        self._pool = self._new()
        # What is lent out is tried first: what its borrower does with it cannot be done again.
        self._lent = self._new(check=self._tried)

    def _new(self, **options: Any) -> ConnectionPool[Connection]:
        return ConnectionPool(
            kwargs={**self._place.conninfo, **_settings()},
            min_size=0,
            max_size=_READERS,
            timeout=max(1.0, self._patience),
            max_idle=60,
            configure=_open.add,
            open=True,
            name="millstream",
            num_workers=1,
            **options,
        )

    def _tried(self, connection: Connection) -> None:
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            # What cut this one has cut the idle ones as well. The pool pauses longer after each that it finds.
            self._lent.check()
            raise

    @contextmanager
    def reader(self) -> Iterator[Connection]:
        """A connection, for as long as the block lasts."""
        try:
            with translated(self._place.location), self._lent.connection() as connection:
                yield connection
        except PoolClosed as error:
            raise LogClosed(self._place.location) from error

    def read(self, operation: Callable[[Connection], Result]) -> Result:
        """What an operation answers that only reads; it runs again when the connection is lost.

        Raises:
            ConnectionFailed: The server did not come back in time.
        """
        deadline = time.monotonic() + self._patience
        pause = PAUSE
        while True:
            try:
                with self._pool.connection() as connection:
                    return operation(connection)
            except PoolClosed as error:
                raise LogClosed(self._place.location) from error
            except psycopg.Error as error:
                # On a standby, what is replayed may end a query: it can be asked again.
                again = is_lost(error) or error.sqlstate == "40001"
                if not again or time.monotonic() + pause > deadline:
                    raise translate(error, self._place.location) from error
            # What cut this one has cut the idle ones as well: none of them is to cost another try.
            self._pool.check()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        """Close what is idle now, and the rest when it comes back."""
        self._pool.close()
        self._lent.close()

    def abandon(self) -> None:
        """In a forked child: never use or close what the parent has opened."""
        _abandoned.extend((self._pool, self._lent))
