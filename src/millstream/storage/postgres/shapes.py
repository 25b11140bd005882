"""The shapes of frames that streams hold: what a new frame's columns are checked against before it is sent."""

from __future__ import annotations

from ...frames import Columns, join_columns, schema_columns
from ..base import Encoding, Request
from .database import Connection
from .place import Place


class Shapes:
    """What the writer knows of the catalogue. The database refuses an append that was checked against less."""

    def __init__(self, place: Place) -> None:
        self._query = (
            f"select k.type, k.schema from {place.quoted}.catalogue c"
            f" join {place.quoted}.kinds k on k.id = c.kind join {place.quoted}.streams s on s.id = c.stream"
            " where s.name = $1"
        )
        self._known: dict[str, dict[tuple[str, str], Columns]] = {}

    def check(self, connection: Connection, request: Request) -> dict[str, int]:
        """Check the frames of a request; for each stream with a new shape, how many shapes it was checked against.

        Raises:
            SchemaConflict: A column does not agree with what the stream holds.
        """
        checked: dict[str, int] = {}
        added: dict[str, dict[tuple[str, str], Columns]] = {}
        for append in request.appends:
            for run in append.runs:
                if run.encoding is not Encoding.ARROW:
                    continue
                key = (run.type, run.schema)
                known = self._of(connection, append.stream)
                more = added.setdefault(append.stream, {})
                if key in known or key in more:
                    continue
                more[key] = schema_columns(run.schema)
                join_columns(append.stream, [*known.values(), *more.values()])
                checked[append.stream] = len(known)
        return checked

    def forget(self, stream: str | None = None) -> None:
        """Look again the next time: for a stream, or for all."""
        if stream is None:
            self._known.clear()
        else:
            self._known.pop(stream, None)

    def _of(self, connection: Connection, stream: str) -> dict[tuple[str, str], Columns]:
        known = self._known.get(stream)
        if known is None:
            rows = connection.execute(self._query, (stream,)).fetchall()
            known = {(type, schema): schema_columns(schema) for type, schema in rows}
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[stream] = known
        return known

    def learn(self, request: Request) -> None:
        """A request was committed: its streams have new shapes now."""
        for append in request.appends:
            known = self._known.get(append.stream)
            if known is None:
                continue
            for run in append.runs:
                if run.encoding is Encoding.ARROW and (run.type, run.schema) not in known:
                    known[(run.type, run.schema)] = schema_columns(run.schema)
