"""Where a MySQL database is, from its URL, and connections to it."""

from __future__ import annotations

import re
import ssl
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import pymysql

from ...errors import UsageError
from ...storage.redact import redact

Connection = Any
"""A connection of PyMySQL. Its stubs leave out the parts that a binary log is read by."""

PATIENCE = 60.0

_HINT = "Write mysql://user:password@host:3306/database, and in a password @ as %40, / as %2F, : as %3A"
_OPTIONS = {"ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify", "connect_timeout", "unix_socket"}
_SETTINGS = (
    "time_zone = '+00:00'",
    "sql_mode = ''",
    "wait_timeout = 86400",
    "net_write_timeout = 600",
    "lock_wait_timeout = 50",
)


class Place(NamedTuple):
    """A database's place.

    Attributes:
        arguments: What the driver connects with.
        database: Its name.
        location: The URL for people: without credentials.
    """

    arguments: dict[str, Any]
    database: str
    location: str


def parse_url(url: str) -> Place:
    """The place that a URL names: ``mysql://user:password@host:3306/shop?ssl=true``.

    Raises:
        UsageError: It is no such URL.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        port = parts.port or 3306
    except ValueError as error:
        raise UsageError(f"{redact(url)!r:.120} is not a URL", hint=_HINT) from error
    if parts.netloc.count("@") > 1 or "@" in parts.path + parts.fragment + "".join(options):
        # What follows an unescaped mark would be taken for the host or the database, and shown.
        raise UsageError("the URL is not understood", hint=_HINT)
    database = unquote(parts.path[1:])
    host = parts.hostname or "127.0.0.1"
    if not database or "/" in parts.path[1:]:
        raise UsageError(f"mysql://{host}:{port} names no database", hint=_HINT)
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise UsageError(
            f"the URL has an option {unknown[0]!r:.40} that is not known",
            hint=f"Use some of {', '.join(sorted(_OPTIONS))}",
        )
    arguments: dict[str, Any] = {
        "host": host,
        "port": port,
        "user": unquote(parts.username or "root"),
        "password": unquote(parts.password or ""),
        "database": database,
        "connect_timeout": int(options.get("connect_timeout", 10)),
    }
    if "unix_socket" in options:
        arguments["unix_socket"] = options["unix_socket"]
    if _is_on(options.get("ssl", "")) or options.keys() & {"ssl_ca", "ssl_cert"}:
        arguments["ssl"] = _tls(options)
    shown = parts.path[1:]
    return Place(arguments, database, f"mysql://{host}:{port}/{shown}")


def _is_on(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on", "required")


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca"))
        if "ssl_cert" in options:
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the certificates cannot be read: {error}", hint="Check ssl_ca, ssl_cert and ssl_key"
        ) from error
    if not _is_on(options.get("ssl_verify", "true")):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connect(place: Place, *, patience: float = PATIENCE) -> Connection:
    """A connection whose queries give all values as text, times in UTC.

    Args:
        patience: Seconds that the server may be silent while it owes an answer.

    Raises:
        pymysql.MySQLError: The server does not let it in.
    """
    return _Connection(
        **place.arguments,
        charset="utf8mb4",
        autocommit=True,
        read_timeout=patience,
        write_timeout=PATIENCE,
        conv={},
        init_command=f"SET SESSION {', '.join(_SETTINGS)}",
    )


class _Connection(pymysql.connections.Connection):
    """One that does not read all of the machine's certificates where none is checked: TLS that is taken when it is
    offered, and not asked for."""

    def _create_ssl_ctx(self, sslp: Any) -> ssl.SSLContext:
        return sslp if isinstance(sslp, ssl.SSLContext) else _unchecked()


@cache
def _unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def query(connection: Connection, statement: str) -> list[dict[str, Any]]:
    """A statement's rows, with names in lower case and values as text."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        names = [column[0].lower() for column in cursor.description or ()]
        return [dict(zip(names, map(_text, row), strict=True)) for row in cursor.fetchall()]


def value(connection: Connection, expression: str) -> str | None:
    """One value, such as of a variable; None where it is NULL or not known to the server."""
    try:
        [row] = query(connection, f"SELECT {expression} AS v")
    except (pymysql.err.OperationalError, pymysql.err.InternalError, pymysql.err.ProgrammingError) as error:
        if error.args and error.args[0] in (1193, 1305):  # unknown variable or function
            return None
        raise
    return row["v"]  # type: ignore[no-any-return]


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def quote_name(name: str) -> str:
    """An identifier, quoted."""
    return "`" + name.replace("`", "``") + "`"


def quote_text(text: str) -> str:
    """A string in a statement, under a ``sql_mode`` with backslashes."""
    return "'" + re.sub(r"(['\\])", r"\\\1", text).replace("\0", "\\0") + "'"
