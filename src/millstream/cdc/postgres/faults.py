"""What PostgreSQL says about a source, in the words of a capture, and without a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from ...errors import CaptureError, SourceUnavailable
from ...storage.postgres.faults import is_lost
from ...storage.redact import redact

_RESYNC = "Run the capture with resync=True, which makes a new slot and reads the tables again"

_REASONS = (
    ("password authentication failed", "Check the user and the password"),
    ("pg_hba.conf", "Let pg_hba.conf admit this user from here, for the database and for `replication`"),
    ("must be superuser or replication role", "ALTER ROLE … REPLICATION"),
    ("permission denied to start WAL sender", "ALTER ROLE … REPLICATION"),
    ("permission denied to use replication slots", "ALTER ROLE … REPLICATION"),
    ("all replication slots are in use", "ALTER SYSTEM SET max_replication_slots = …, restart; or drop unused slots"),
    ("number of requested standby connections exceeds", "ALTER SYSTEM SET max_wal_senders = …, and restart"),
    ("can no longer get changes from replication slot", _RESYNC),
    ("can no longer access replication slot", _RESYNC),
    ("has been invalidated", _RESYNC),
    ("requested WAL segment", _RESYNC),
)


def fault(error: psycopg.Error, location: str) -> CaptureError:
    """The typed error that stands for one of the driver's."""
    said = redact(str(error).strip().partition("\n")[0]) or type(error).__name__
    for text, hint in _REASONS:
        if text in said:
            return CaptureError(f"{location}: {said}", hint=hint)
    if error.sqlstate == "42501":
        return CaptureError(
            f"{location}: {said}", hint="Grant the role what it lacks, or give it the publication ready"
        )
    if isinstance(error, psycopg.errors.ObjectInUse):
        # An earlier connection of this capture mostly, of which the server does not know yet that it is lost.
        return SourceUnavailable(
            f"{location}: {said}",
            hint="End the other program that reads this slot, or give this capture a slot of its own: slot=",
        )
    if is_lost(error) or (error.sqlstate or "").startswith(("57", "53")):
        return SourceUnavailable(f"{location}: {said}", hint="Check that the server runs and is reachable")
    return CaptureError(f"{location} cannot be captured: {said}", hint="Look into the server's log")


@contextmanager
def source_errors(location: str) -> Iterator[None]:
    """Turn errors of the driver into `CaptureError`, with what to do about them."""
    try:
        yield
    except psycopg.Error as error:
        raise fault(error, location) from error
