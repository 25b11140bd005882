"""PostgreSQL's faults as this library's errors: no driver exception leaves the store, and no password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import psycopg
import psycopg_pool

from ...conversion import ready
from ...errors import (
    ClockJumped,
    ConnectionFailed,
    ConstraintViolated,
    DatabaseError,
    Deadlocked,
    DiskFull,
    LogLocked,
    MillstreamError,
    PermissionDenied,
    ReadOnlyLog,
    StorageError,
    UsageError,
)
from ...time import iso
from ..raw import Role
from ..redact import redact


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone: the server ended it, restarts or cannot be reached."""
    if isinstance(error, psycopg_pool.PoolTimeout | ConnectionFailed):
        return True
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    state = error.sqlstate
    return state is None or state.startswith("08") or state in {"57P01", "57P02", "57P03", "57P05", "25P03"}


def translate(error: psycopg.Error, location: str, *, lock_timeout: float = 0.0) -> MillstreamError:
    """The typed error that stands for one of the driver's."""
    state = error.sqlstate or ""
    said = redact(str(error).partition("\n")[0])
    if state == "MS001":
        return UsageError(
            "this statement is not for a commit of the log", hint="The log's own tables are append-only; use its API"
        )
    if state == "MS002":
        return StorageError(
            f"{location}: appends need READ COMMITTED transactions",
            hint="Remove default_transaction_isolation from the role or the database",
        )
    if state == "MS003":
        return ClockJumped(iso(int(error.diag.message_detail or 0)), "what this process's own clock allows,")
    if state == "MS004":
        return msgspec.json.decode(error.diag.message_detail or "{}", type=ready(Role)).refusal(location)
    if state.startswith("23"):
        return ConstraintViolated(said, hint="The transaction was rolled back; correct the row")
    if state == "55P03":
        return LogLocked(location, lock_timeout)
    if state in {"53100", "53200"}:
        return DiskFull(location)
    if state in {"40001", "40P01"}:
        return Deadlocked(said)
    if state == "25006":
        return ReadOnlyLog(location, hint="Write outside of what only reads, and at the primary server")
    if state == "42501":
        return PermissionDenied(location, said)
    if state == "53300":
        return ConnectionFailed(location, said, hint="Raise max_connections, or put a pooler before the server")
    if is_lost(error):
        return ConnectionFailed(location, said, hint=next((hint for text, hint in _HINTS.items() if text in said), ""))
    if state.startswith(("53", "58", "XX")):
        return StorageError(f"{location}: {said}", hint="Look into the server's log")
    return DatabaseError(said, hint="Check the statement and its parameters")


# Before there is a session the driver gives a text, but no code.
_HINTS = {
    "password": "Check the user and the password",
    "authentication": "Check the user and the password",
    "role ": "Check the user",
    "no pg_hba.conf entry": "Let the server's pg_hba.conf admit this user from here",
    "database ": "Create the database first, or correct its name",
}


@contextmanager
def translated(location: str, *, lock_timeout: float = 0.0) -> Iterator[None]:
    """Turns the driver's exceptions raised inside into typed ones."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, location, lock_timeout=lock_timeout) from error
    except psycopg_pool.PoolTimeout as error:
        raise ConnectionFailed(location, "no connection came free in time") from error
