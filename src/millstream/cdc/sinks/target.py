"""A database that a copy is kept in: what `Replica` asks of it, and the SQL that all of them understand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

from ..change import Row
from ..shape import Column, Shape
from .held import Held
from .net import Key

POSITIONS = "millstream_replicas"
"""The table in the target that says which position each copy is at."""


def quote(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


class Target(ABC):
    """One copied table in a database. Errors of the driver leave it as typed ones."""

    location: str
    """Where it is, without a password."""
    path: str = ""
    """Its file, if it is one."""
    types: dict[str, str]
    """The copy's columns with their types, after `look`."""
    table: str
    """The copy's name as statements have it, after `look`."""
    name: str

    # --- the database -------------------------------------------------------------------------------------

    @abstractmethod
    def connect(self) -> None:
        """Open a connection, unless there is a good one, and make the table of positions."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """All that is done inside happens together or not at all.

        Raises:
            Rejected: The database refuses a value or a row.
        """

    @abstractmethod
    def held(self, stream: str) -> Held | None:
        """See `Keeper`."""

    @abstractmethod
    def hold(self, stream: str, held: Held) -> None:
        """See `Keeper`."""

    # --- columns ------------------------------------------------------------------------------------------

    @abstractmethod
    def look(self, name: str) -> bool:
        """Find the table of a name, and its columns; whether it is there."""

    @abstractmethod
    def type_of(self, column: Column) -> str:
        """The type of a column that holds what the source's does; may be empty."""

    def create(self, name: str, shape: Shape) -> None:
        """Make the table."""
        columns = ", ".join(f"{quote(c.name)} {self.type_of(c)}".rstrip() for c in shape.columns)
        self.run(f"create table {self.table} ({columns})")
        self.look(name)

    def add(self, column: Column) -> None:
        """Add a column."""
        self.run(f"alter table {self.table} add column {quote(column.name)} {self.type_of(column)}".rstrip())
        self.look(self.name)

    def rename(self, old: str, new: str) -> None:
        """Give a column another name."""
        self.run(f"alter table {self.table} rename column {quote(old)} to {quote(new)}")
        self.look(self.name)

    def drop(self, column: str) -> None:
        """Remove a column."""
        self.run(f"alter table {self.table} drop column {quote(column)}")
        self.look(self.name)

    @abstractmethod
    def retype(self, column: Column) -> None:
        """Give a column the type that its kind has now."""

    @abstractmethod
    def widen(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """See that columns of no certain type can hold the values of rows."""

    @abstractmethod
    def index(self, key: Sequence[str]) -> None:
        """See that the columns of the key are unique, and no others by this library's doing."""

    def has_rows(self) -> bool:
        """Whether the table has any."""
        return bool(self.ask(f"select exists (select 1 from {self.table})")[0][0])

    # --- rows ---------------------------------------------------------------------------------------------

    def truncate(self) -> None:
        """Remove all rows."""
        self.run(f"delete from {self.table}")

    def upsert(self, key: Sequence[str], rows: Sequence[Row]) -> None:
        """Insert rows; those whose key is there replace the ones that have it."""
        names = ", ".join(map(quote, key))
        for columns, some in _by_columns(rows):
            others = [f"{quote(c)} = excluded.{quote(c)}" for c in columns if c not in key]
            then = f"update set {', '.join(others)}" if others else "nothing"
            self.insert_many(columns, some, f" on conflict ({names}) do {then}")

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert rows."""
        for columns, some in _by_columns(rows):
            self.insert_many(columns, some, "")

    @abstractmethod
    def insert_many(self, columns: Sequence[str], rows: Sequence[Row], conflict: str) -> None:
        """Insert rows that have these columns."""

    @abstractmethod
    def delete(self, key: Sequence[str], keys: Sequence[Key]) -> None:
        """Delete the rows of some keys."""

    @abstractmethod
    def update(self, key: Sequence[str], parts: Sequence[tuple[Key, Row]]) -> None:
        """Change some columns of rows that are there, each found by its key."""

    @abstractmethod
    def remove(self, row: Row) -> None:
        """Delete one row that equals this one."""

    @abstractmethod
    def fill(self, column: str, value: Any) -> None:
        """Set a column of all rows."""

    # --- statements ---------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run a statement."""

    @abstractmethod
    def ask(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""


def _by_columns(rows: Sequence[Row]) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Rows that have the same columns together, in their order."""
    return [(columns, list(some)) for columns, some in groupby(rows, key=tuple)]
