"""Read models in PostgreSQL: each version in a schema that its connections look into first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from ...errors import StorageError, UsageError
from ..database import Database
from ..forked import lock
from .connections import Readers
from .database import Connection, GuardedDatabase
from .place import Place, parse_url, quote_name

_MARK = "a version of a read model, kept by millstream"
_PATIENCE = 10.0
"""How long, in seconds, a look goes on trying while the server is away."""


class SchemasDatabase(GuardedDatabase):
    """A connection that finds unqualified names in some schemas first; in transactions, so any pooler will do.

    The library's own tables are those of the first one.
    """

    def __init__(self, connection: Connection, schemas: Sequence[str], location: str) -> None:
        super().__init__(connection, schemas[0], location)
        first = ", ".join(quote_name(each) for each in schemas).replace("'", "''")
        self._first = f"; select set_config('search_path', '{first}, ' || current_setting('search_path'), true)"
        # Rows and checkpoint are of one transaction: a power cut undoes both or neither, and the log has it all.
        self._quick = f"{self._first}; set local synchronous_commit = off"
        self.loan: ExitStack | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield from self._between(f"begin isolation level read committed{self._quick}", "commit")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        yield from self._between(f"begin isolation level repeatable read read only{self._first}", "rollback")


class Server:
    """A PostgreSQL database that read models are kept in, and the connections to it, opened when first needed."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._readers: Readers | None = None
        self._mutex = lock()

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one database from another."""
        return tuple(sorted((name, str(value)) for name, value in self.place.conninfo.items()))

    @contextmanager
    def lend(self, schemas: Sequence[str]) -> Iterator[SchemasDatabase]:
        """A connection, for as long as the block lasts."""
        with self._mutex:
            if self._readers is None:
                self._readers = Readers(self.place, _PATIENCE)
            readers = self._readers
        with readers.reader() as connection:
            yield SchemasDatabase(connection, schemas, self.place.location)

    def take(self, schemas: Sequence[str]) -> SchemasDatabase:
        """A connection inside a read-only transaction, until it is given back."""
        with ExitStack() as stack:
            db = stack.enter_context(self.lend(schemas))
            stack.enter_context(db.snapshot())
            db.loan = stack.pop_all()
        return db

    def give_back(self, db: Database) -> None:
        """Say that a connection is not needed any more."""
        assert isinstance(db, SchemasDatabase)
        assert db.loan is not None
        with suppress(StorageError):  # it was lost: there is nothing to end
            db.loan.close()

    def ensure(self, schema: str, *, ours: bool) -> None:
        """Make a schema, unless it is there.

        Args:
            ours: Mark it as made here, to be dropped with the version that it is for.
        """
        with self.lend([schema]) as db:
            if db.one("select 1 as one from pg_namespace where nspname = ?", (schema,)) is not None:
                return
            with db.transaction():
                db.make_alone()
                db.connection.execute(f"create schema if not exists {quote_name(schema)}")
                if ours:
                    db.connection.execute(f"comment on schema {quote_name(schema)} is '{_MARK}'")

    def drop(self, schema: str) -> None:
        """Drop the schema of a version; one that was not made for that is left alone.

        Raises:
            UsageError: There is a schema of that name which is somebody else's.
        """
        with self.lend([schema]) as db:
            row = db.one(
                "select obj_description(oid, 'pg_namespace') as said from pg_namespace where nspname = ?", (schema,)
            )
            if row is None:
                return
            if row["said"] != _MARK:
                raise UsageError(
                    f"there is a schema {schema!r} in {self.place.location} that is no read model's",
                    hint="Rename it, or drop it: a new version of a read model is to stand there",
                )
            with db.transaction():
                db.connection.execute(f"drop schema {quote_name(schema)} cascade")

    def close(self) -> None:
        """Close the connections; they are opened again when needed."""
        with self._mutex:
            readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()


def server_of(url: str) -> Server:
    """The database that a URL names; its schema is ``public`` if the URL does not name one."""
    return Server(parse_url(url, "public"))
