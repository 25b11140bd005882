"""Where a log in PostgreSQL is: the server's address, and the schema that the log lives in."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ...errors import UsageError
from ..redact import redact

DEFAULT_SCHEMA = "millstream"
_SCHEMA = re.compile(r"[\w-]+")


class Place(NamedTuple):
    """A log's place.

    Attributes:
        conninfo: What the driver connects with.
        schema: The schema's name as it is.
        location: The URL for people: without a password.
    """

    conninfo: dict[str, Any]
    schema: str
    location: str

    @property
    def quoted(self) -> str:
        """The schema as a statement names it."""
        return quote_name(self.schema)


def quote_name(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def parse_url(url: str, schema: str | None = None) -> Place:
    """The place that a URL names: ``postgresql://user@host:5432/database?schema=shop``.

    Args:
        schema: The schema, if the URL does not name one; by default ``millstream``.

    Raises:
        UsageError: It is no such URL, or names no usable schema.
    """
    try:
        parts = urlsplit(url)
        options = parse_qsl(parts.query, keep_blank_values=True)
        parts.port  # noqa: B018 - raises when it is no number
    except ValueError as error:
        raise UsageError(f"{redact(url)!r:.120} is not a URL", hint=_HINT) from error
    if parts.netloc.count("@") > 1 or "@" in parts.path + parts.fragment + "".join(key for key, _ in options):
        # What follows an unescaped mark would be taken for the host or the database, and shown.
        raise UsageError(
            "the URL is not understood", hint="In a password, write %40 for @, %2F for /, %3F for ? and %23 for #"
        )
    named = [value for key, value in options if key == "schema"]
    rest = [(key, value) for key, value in options if key != "schema"]
    schema = named[-1] if named else schema if schema is not None else DEFAULT_SCHEMA
    if not _SCHEMA.fullmatch(schema) or len(schema.encode()) > 63 or schema.startswith("pg_"):
        raise UsageError(
            f"{schema!r:.80} is not a name for a schema",
            hint="Use up to 63 bytes of letters, digits, '_' and '-', not beginning with pg_",
        )
    target = urlunsplit(parts._replace(query=urlencode(rest, quote_via=quote)))
    try:
        conninfo = conninfo_to_dict(target)
    except psycopg.ProgrammingError as error:
        raise UsageError(f"{redact(url)!r:.120} is not understood: {redact(str(error)).strip()}", hint=_HINT) from error
    conninfo.setdefault("connect_timeout", 10)
    conninfo.setdefault("application_name", "millstream")
    # All text is sent as UTF-8, whatever the environment (PGCLIENTENCODING) or the URL says.
    conninfo["client_encoding"] = "UTF8"
    # A server that went away without a word is noticed before a minute is over.
    for key, value in (("keepalives_idle", 20), ("keepalives_interval", 5), ("tcp_user_timeout", 30_000)):
        conninfo.setdefault(key, value)
    return Place(conninfo, schema, _location(parts, rest, schema, bool(named)))


_HINT = "Write postgresql://user@host:5432/database?schema=shop, and in a password @ as %40, / as %2F, : as %3A"


def _location(parts: Any, options: list[tuple[str, str]], schema: str, named: bool) -> str:
    host = parts.hostname or ""
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    shown = [(key, value) for key, value in options if "password" not in key.lower()]
    if named or schema != DEFAULT_SCHEMA:
        shown.append(("schema", schema))
    suffix = "?" + urlencode(shown, quote_via=quote, safe="/") if shown else ""
    return f"postgresql://{user}{host}{port}{parts.path}{suffix}"
