"""`Database`: a SQL connection as users of the library see it, whichever database it is."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..errors import DatabaseError

if TYPE_CHECKING:
    import polars as pl

    from .watching import Watch

Params = Sequence[Any] | Mapping[str, Any]
ONLY_READS = "log.connect() only reads: write in `with log.transaction() as tx:`, by tx.db.execute(…)"
"""What to tell those who write where they can only read."""


def no_statement(sql: object) -> DatabaseError:
    """The error that stands for what was given in the place of a statement."""
    return DatabaseError(f"{sql!r:.60} is no SQL", hint="Give the statement as text, and its values as parameters")


def no_params(params: object) -> DatabaseError:
    """The error that stands for what was given in the place of a statement's values."""
    return DatabaseError(
        f"{params!r:.60} is no list of parameters", hint="Give one value for each ? in a list, or a dict for :name"
    )


def no_rows(rows: object) -> DatabaseError:
    """The error that stands for what was given in the place of many rows."""
    return DatabaseError(
        f"{rows!r:.60} is no list of rows", hint="Give a list with the parameters of each row: [(1, 'a'), (2, 'b')]"
    )


def spoiled(dialect: str) -> DatabaseError:
    """The error that stands for one that was caught, and should not have been."""
    return DatabaseError(
        f"a statement has failed, and its error was caught; {dialect} keeps nothing of a transaction after that",
        hint="Have the statement not fail: insert … on conflict do nothing; or let its error leave the handler",
    )


class Cursor(Protocol):
    """What a statement has brought."""

    @property
    def rowcount(self) -> int: ...
    @property
    def description(self) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Database(ABC):
    """A SQL connection. Inside ``log.transaction()`` it shares the transaction of the appends.

    Statements are in the database's own dialect; their parameters are written ``?``, or ``:name`` with a dict, in
    all of them. Errors of the driver leave it as `DatabaseError` and its kin. Transactions belong to whoever handed
    the connection out: statements such as COMMIT are not for its users.
    """

    _watch: Watch | None = None
    dialect: ClassVar[str]
    """``"sqlite"``, ``"postgresql"`` or ``"duckdb"``."""
    blob: ClassVar[str]
    """The type of a column of bytes."""

    @abstractmethod
    def execute(self, sql: str, params: Params = ()) -> Cursor:
        """Run one statement and return its cursor.

        Raises:
            ConstraintViolated: A constraint rejects a row.
            DatabaseError: The statement is wrong.
        """

    @abstractmethod
    def executemany(self, sql: str, rows: Iterable[Params]) -> None:
        """Run one statement for each of the rows."""

    @abstractmethod
    def executescript(self, sql: str) -> None:
        """Run several statements, inside the transaction that is open (nothing is committed)."""

    @abstractmethod
    def own(self, name: str) -> str:
        """How a statement names one of the library's own tables, which may stand in a schema of their own."""

    @abstractmethod
    def has_table(self, name: str) -> bool:
        """Whether the library's own table of a name is there."""

    @abstractmethod
    def find_table(self, name: str) -> str | None:
        """A table or view by its name in any case, as a statement names it; None when there is none."""

    @abstractmethod
    def savepoint(self) -> AbstractContextManager[None]:
        """Statements inside happen together or not at all, within the transaction around them."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """A write transaction of a database of one's own: committed at the end, rolled back on an error."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """A read-only transaction in which all statements see the same moment. For a connection not in one."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def watched(self, watch: Watch) -> Database:
        """The same connection for one who is not to use some of the tables: statements on them raise what it says."""
        return self._under(watch)

    def check_whole(self) -> None:  # noqa: B027 - in most databases a statement that fails spoils nothing
        """See that no statement has failed that takes the transaction with it, though its error was caught.

        Raises:
            DatabaseError: One has: nothing more can be done in the transaction, and nothing of it will be kept.
        """

    def unwatched(self) -> Database:
        """The same connection for the library itself, which keeps tables of its own beside those of its users."""
        return self if self._watch is None else self._under(None)

    def _under(self, watch: Watch | None) -> Database:
        found = copy.copy(self)
        found._watch = watch
        return found

    @abstractmethod
    def _faults(self) -> AbstractContextManager[None]:
        """Turns the driver's exceptions raised inside into typed ones."""

    def ensure_table(self, name: str, columns: str) -> None:
        """Make one of the library's own tables, unless it is there. Who may not make tables must find it there.

        Args:
            columns: Its columns and constraints; ``{blob}`` stands for the type of bytes.
        """
        if not self.has_table(name):
            self.make_alone()
            self.execute(f"create table if not exists {self.own(name)} ({columns.format(blob=self.blob)})")

    def make_alone(self) -> None:  # noqa: B027 - most databases have one writer anyway
        """Have nobody else make the library's tables, or what is noted in them once, before the transaction ends."""

    def insert(self, table: str, frame: pl.DataFrame) -> None:
        """Insert all rows of a frame: its columns into those of the same names.

        In SQLite, decimals and times become text, durations microseconds, lists and structs JSON.

        Raises:
            ConstraintViolated: A constraint rejects a row.
            DatabaseError: The table, or a column, is not there.
        """
        from .frames import insert_sql, plain_rows

        if frame.height:
            self.executemany(insert_sql(table, frame.columns, "?"), plain_rows(frame))

    def upsert(self, table: str, frame: pl.DataFrame, *, key: str | Sequence[str], add: Sequence[str] = ()) -> None:
        """Insert the rows of a frame; where a row with the same key is there, change that one.

        Args:
            key: The column or columns that a unique constraint of the table is on. Where several rows of the frame have
                one key, they take effect one after the other.
            add: Columns whose values are added to what is there; the others replace it.

        Raises:
            UsageError: The frame lacks a named column, or a column to add is no number.
            ConstraintViolated: A constraint rejects a row.
            DatabaseError: The table, a column or the unique constraint is not there.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> log = ms.open()
            >>> with log.transaction() as tx:
            ...     tx.db.execute("create table stock (sku text primary key, n integer)").rowcount < 0
            ...     tx.db.upsert("stock", pl.DataFrame({"sku": ["a", "b"], "n": [3, 4]}), key="sku", add=["n"])
            ...     tx.db.upsert("stock", pl.DataFrame({"sku": ["b"], "n": [1]}), key="sku", add=["n"])
            ...     tx.db.query("select * from stock order by sku")
            True
            [{'sku': 'a', 'n': 3}, {'sku': 'b', 'n': 5}]
        """
        from .frames import check_upsert, plain_rows, upsert_sql

        keys = check_upsert(frame, key, add, exact=self.dialect != "sqlite")
        if frame.height:
            self.executemany(upsert_sql(table, frame.columns, keys, add, "?"), plain_rows(frame))

    def query(self, sql: str, params: Params = ()) -> list[dict[str, Any]]:
        """All rows of a query, as dicts."""
        cursor = self.execute(sql, params)
        names = [column[0] for column in cursor.description or ()]
        with self._faults():
            return [dict(zip(names, row, strict=True)) for row in cursor] if names else []

    def one(self, sql: str, params: Params = ()) -> dict[str, Any] | None:
        """The first row of a query as a dict, or None."""
        cursor = self.execute(sql, params)
        if not cursor.description:
            return None
        with self._faults():
            row = cursor.fetchone()
        if row is None:
            return None
        return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}

    def frame(self, sql: str, params: Params = ()) -> pl.DataFrame:
        """All rows of a query as a Polars frame."""
        import polars as pl

        cursor = self.execute(sql, params)
        names = [column[0] for column in cursor.description or ()]
        with self._faults():
            rows = cursor.fetchall() if names else []
        return pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
