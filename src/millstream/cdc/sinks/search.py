"""A search index of a captured table: in a file by SQLite's FTS5, or in OpenSearch or Elasticsearch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from ...errors import UsageError
from ..change import Row, SchemaChanged, SnapshotCompleted
from .base import RETRIES, Changes, SinkBase

if TYPE_CHECKING:
    from ...log import Log, Recorded
    from ...storage.database import Database


class Hit(msgspec.Struct, frozen=True):
    """A row that a search has found.

    Attributes:
        row: The row.
        score: How well it fits; the higher the better. Comparable within one answer.
        snippet: Where it fits, with marks around the words.
    """

    row: Row
    score: float
    snippet: str


class Engine(Protocol):
    """An index."""

    location: str

    def open(self, log: Log, stream: str) -> int | None: ...
    def apply(self, changes: Changes) -> None: ...
    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None: ...
    def search(self, query: str, limit: int, syntax: bool, marks: tuple[str, str]) -> list[Hit]: ...
    def close(self) -> None: ...


class SearchIndex(SinkBase):
    """A search index that is kept up to date with a captured table.

    In a file (``"search.db"``) it is SQLite's FTS5, and the position up to which it holds the table's changes is beside
    it, changed in the same transaction: exactly once. At an address (``"http://host:9200/users"``) it is an index of
    OpenSearch or Elasticsearch, filled by the bulk API; each document has the position of its change as its external
    version, so that what comes again, or late, changes nothing.

    Args:
        place: The path of a file, which is made if it is not there; or the URL of an index (extra ``http``), maybe with
            user and password.
        key: The columns that tell a row from others; by default, the table's key.
        fields: The columns to search in (in a file; by default, all that hold text), or to send (to a server; by
            default, all).
        table: The table to search in, when a file has several and this object follows none.
        tokenize: How FTS5 takes text apart; by default, words without regard to case and accents.
        timeout: The longest time for a request to a server, in seconds.
        name: Names the follower; by default made of where the index is.
        size: How many changes are given at once.
        retries: As in `SinkBase`.

    Raises:
        UsageError: The place cannot be used.
        MissingExtra: The extra ``http`` is not installed.

    Example:
        >>> import millstream as ms
        >>> ms.SearchIndex("search.db", fields=["name", "bio"]).name
        'search:search.db'
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        key: Sequence[str] | None = None,
        fields: Sequence[str] | None = None,
        table: str | None = None,
        tokenize: str = "unicode61 remove_diacritics 2",
        timeout: float = 30.0,
        name: str | None = None,
        size: int = 1_000,
        retries: int | None = RETRIES,
    ) -> None:
        for argument, value in (("key", key), ("fields", fields)):
            if isinstance(value, str) or (value is not None and not value):
                raise UsageError(f"{argument}= is no list of columns", hint=f'Write {argument}=["name"]')
        chosen = tuple(fields) if fields is not None else None
        self._engine: Engine
        place = os.fspath(place)
        if place.startswith(("http://", "https://")):
            from .search_http import HttpIndex

            self._engine = HttpIndex(place, tuple(key or ()), chosen, timeout)
        else:
            from .search_file import FileIndex

            self._engine = FileIndex(place, tuple(key or ()), chosen, tokenize, table)
        self.name = name or f"search:{self._engine.location}"
        self.size = size
        self.retries = retries

    def open(self, log: Log, stream: str) -> int | None:
        """Get the index ready."""
        return self._engine.open(log, stream)

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Bring changes into the index."""
        self._engine.apply(changes)

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Follow the table's columns, in a file."""
        self._engine.notice(event, recorded)

    def close(self) -> None:
        """Close the file, or the connections."""
        self._engine.close()

    def search(
        self, query: str, *, limit: int = 10, syntax: bool = False, marks: tuple[str, str] = ("[", "]")
    ) -> list[Hit]:
        """The rows that fit best.

        Args:
            query: Words, all of which have to occur; ``wor*`` stands for all that begin so.
            limit: At most so many.
            syntax: The query is in the language of the engine: FTS5's, or a query string of OpenSearch.
            marks: What stands around the words in a snippet.

        Raises:
            UsageError: The query is not understood.
            SinkUnavailable: The server cannot be reached.
        """
        return self._engine.search(query, limit, syntax, marks)
