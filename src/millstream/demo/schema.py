"""The schema that the demo's log takes in PostgreSQL: made, taken, and emptied of what an earlier demo left there."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..errors import UsageError
from ..log.log import require_postgres

_NAME = "millstream_demo"
_MARK = "The log of a `millstream demo`; the next one makes it anew"
_LOCK = 1296649294


class Schema:
    """A schema of the demo's own, held while the demo runs.

    Only a schema that a demo has made or found empty is ever removed; its comment says so.

    Args:
        url: Where: ``postgresql://user@host/database``. The schema is ``millstream_demo``, or what ``?schema=`` says.

    Raises:
        UsageError: It is no such URL, the schema holds something else, or another demo is running in it.
        ConnectionFailed, PermissionDenied: The server cannot be reached, or refuses.
        MissingExtra: The driver for PostgreSQL is not installed.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("postgresql://", "postgres://")):
            raise UsageError(
                f"--log {url.partition('://')[0]:.60} is no log in PostgreSQL",
                hint="Give a postgresql:// URL; a log in a file goes into the folder of --out",
            )
        require_postgres()
        from ..storage.postgres.connections import connect
        from ..storage.postgres.faults import translated
        from ..storage.postgres.place import parse_url

        place = parse_url(url, _NAME)
        self.url = url
        """As `millstream.open` takes it."""
        if "schema=" not in url:
            self.url += f"{'&' if '?' in url else '?'}schema={_NAME}"
        self.location = place.location
        """The same for people: without a password."""
        self._connection = connect(place)
        try:
            with translated(self.location):
                self._take(place.schema, place.quoted)
        except BaseException:
            self._connection.close()
            raise

    def _take(self, name: str, quoted: str) -> None:
        db = self._connection
        row = db.execute("select pg_try_advisory_lock($1, hashtext($2))", (_LOCK, name)).fetchone()
        if row is None or not row[0]:
            raise UsageError(f"another demo is running in {self.location}", hint="End it, or name another ?schema=")
        with db.transaction():
            found = db.execute(
                "select obj_description(n.oid, 'pg_namespace'), exists (select from pg_class c where"
                " c.relnamespace = n.oid) from pg_namespace n where n.nspname = $1",
                (name,),
            ).fetchone()
            if found is not None and found[0] == _MARK:
                db.execute(f"drop schema {quoted} cascade")
            elif found is not None and found[1]:
                raise UsageError(
                    f"schema {name} of {self.location} holds other things", hint="Name another with ?schema="
                )
            db.execute(f"create schema if not exists {quoted}")
            db.execute(f"comment on schema {quoted} is '{_MARK}'")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
