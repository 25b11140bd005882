"""What MySQL says about a source, in the words of a capture, and without credentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pymysql

from ...errors import CaptureError, MillstreamError, SourceUnavailable
from ...storage.redact import redact

RESYNC = "Run the capture with resync=True, which reads the tables again as they are now"

LOST = OSError, pymysql.err.OperationalError, pymysql.err.InterfaceError, pymysql.err.InternalError
"""What a broken connection raises, among others."""

_UNAVAILABLE = {1040, 1053, 1077, 1078, 1079, 1152, 1153, 1158, 1159, 1160, 1161, 1203, 1205, 1213, 1927, 3024}
_HINTS = {
    1044: "Check the database's name; GRANT SELECT, LOCK TABLES ON it TO the user",
    1045: "Check the user and the password",
    1049: "Check the database's name",
    1142: "GRANT SELECT ON the table TO the user",
    1143: "GRANT SELECT ON the table TO the user",
    1227: "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO the user",
    1698: "Give the user a password, and write it into the URL",
    2026: "Check the certificates, or take ssl= out of the URL",
}
_DUMP = 1236
"""The server cannot go on with its log from where it is asked to."""


def fault(error: Exception, location: str) -> CaptureError:
    """The typed error that stands for one of the driver's."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    said = redact(str(error.args[1] if len(error.args) > 1 else error).strip()) or type(error).__name__
    if isinstance(error, pymysql.err.MySQLError):
        if code == _DUMP:
            return CaptureError(f"{location} no longer has the changes that come next: {said}", hint=RESYNC)
        if code in _HINTS:
            return CaptureError(f"{location}: {said}", hint=_HINTS[code])
        if code not in _UNAVAILABLE and not 2000 <= code < 3000 and code:
            return CaptureError(f"{location} cannot be captured: {said} ({code})", hint="Look into the server's log")
    return SourceUnavailable(f"{location} cannot be reached: {said}", hint="Check that the server runs")


@contextmanager
def source_errors(location: str) -> Iterator[None]:
    """Turn errors of the driver and of the network into `CaptureError`, with what to do about them."""
    try:
        yield
    except MillstreamError:
        raise
    except (pymysql.err.MySQLError, OSError) as error:
        raise fault(error, location) from error
