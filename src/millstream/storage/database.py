"""`Database`: a SQL connection as users of the library see it, whichever database it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import polars as pl

Params = Sequence[Any] | Mapping[str, Any]


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

    dialect: ClassVar[str]
    """``"sqlite"`` or ``"postgresql"``."""
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

    @abstractmethod
    def _faults(self) -> AbstractContextManager[None]:
        """Turns the driver's exceptions raised inside into typed ones."""

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
