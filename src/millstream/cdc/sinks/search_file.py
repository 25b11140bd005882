"""A search index in a SQLite file, by FTS5."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import DatabaseError, Rejected, UsageError
from ...storage.sqlite.database import SQLiteDatabase, open_database
from ..capture import stream_of
from ..change import Row, SchemaChanged, SnapshotCompleted
from ..shape import Shape, shape_of
from ..values import decode_row, encode_any, encode_row
from .base import Changes
from .held import Claim, Held
from .net import Exact, Key, Move, Net, by_shape, steps
from .search import Hit
from .target import quote

if TYPE_CHECKING:
    from ...log import Log, Recorded

_INDEXES = "millstream_indexes"
_SHAPES = "millstream_shapes"
_SEARCHED = ("text", "any", "json", "text[]")
_WORD = re.compile(r"\w")
_SNIPPET_WORDS = 12


class FileIndex:
    """Three tables for each stream: what FTS5 makes, the rows with their keys, and the shapes that these have."""

    def __init__(
        self, path: str, key: tuple[str, ...], fields: tuple[str, ...] | None, tokenize: str, table: str | None
    ) -> None:
        if not path or "://" in path:
            raise UsageError(
                f"{path!r:.60} is no place for an index", hint="Give the path of a file, or http://host/index"
            )
        self.path = path
        self.location = path
        self._key, self._wanted, self._tokenize = key, fields, tokenize
        self._stream = stream_of(table) if table is not None else ""
        self._claim = Claim(f"search:{path}")
        self._db: SQLiteDatabase | None = None
        self._fields: tuple[str, ...] = ()
        self._shape: Shape | None = None
        self._shape_id = 0

    # --- the file -----------------------------------------------------------------------------------------

    @property
    def db(self) -> SQLiteDatabase:
        """The connection."""
        assert self._db is not None
        return self._db

    def open(self, log: Log, stream: str) -> int:
        """Open the file, and say what it holds."""
        if log.path and os.path.realpath(log.path) == os.path.realpath(self.path):
            raise UsageError("the index would be in the log's own file", hint="Give another file")
        if self._db is None:
            self._db = open_database(self.path, synchronous="NORMAL")
        self._stream, self._shape = stream, None
        with self.db.transaction():
            self.db.execute(
                f"create table if not exists {_INDEXES} (stream text primary key, log text not null,"
                " position integer not null, holder text not null, fields text not null, tokenize text not null)"
            )
            self.db.execute(f"create table if not exists {_SHAPES} (id integer primary key, shape text unique)")
            self.db.execute(
                f"create table if not exists {self._rows}"
                " (id integer primary key, key text not null unique, shape integer not null, row text not null)"
            )
            position = self._claim.open(self, log.id, stream)
            found = self.db.one(f"select fields, tokenize from {_INDEXES} where stream = ?", (stream,))
            self._fields = tuple(msgspec.json.decode(found["fields"])) if found else ()
            wanted = self._wanted if self._wanted is not None else self._fields
            if found and (wanted != self._fields or found["tokenize"] != self._tokenize):
                self._rebuild(wanted)
        return position

    def close(self) -> None:
        """Close the file."""
        self._claim.release()
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def _index(self) -> str:
        return quote(self._stream)

    @property
    def _rows(self) -> str:
        return quote(f"{self._stream} rows")

    def held(self, stream: str) -> Held | None:
        """What the table of indexes says."""
        row = self.db.one(f"select log, position, holder from {_INDEXES} where stream = ?", (stream,))
        return Held(**row) if row else None

    def hold(self, stream: str, held: Held) -> None:
        """Write it to the table of indexes."""
        self.db.execute(
            f"insert into {_INDEXES} (stream, log, position, holder, fields, tokenize) values (?, ?, ?, ?, ?, ?)"
            " on conflict (stream) do update set log = excluded.log, position = excluded.position,"
            " holder = excluded.holder, fields = excluded.fields, tokenize = excluded.tokenize",
            (
                stream,
                held.log,
                held.position,
                held.holder,
                msgspec.json.encode(self._fields).decode(),
                self._tokenize,
            ),
        )

    # --- the index ----------------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> None:
        """One transaction for all, with the position."""
        with self.db.transaction():
            for shape, some in by_shape(changes):
                self._fit(shape)
                key = self._key or shape.key
                if not key:
                    raise UsageError(
                        f"table {some[0][0].table!r} has no key, so that its rows cannot be told apart in an index",
                        hint="Give the columns that do, with key=",
                    )
                for step in steps((change for change, _ in some), key):
                    self._step(step, key, shape)
            self._claim.move(self, changes[-1][1].position)

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Change the columns of the rows that are there as the source's were."""
        shape = shape_of(recorded.run.schema)
        with self.db.transaction():
            if isinstance(event, SchemaChanged) and shape is not None:
                for found in self.db.query(f"select id, row from {self._rows}"):
                    old = msgspec.json.decode(found["row"])
                    row = {event.renamed.get(name, name): value for name, value in old.items()}
                    row = {**event.added, **row}
                    self.db.execute(
                        f"update {self._rows} set row = ? where id = ?",
                        (msgspec.json.encode({n: row[n] for n in event.columns if n in row}).decode(), found["id"]),
                    )
                self._fit(shape)
                self.db.execute(f"update {self._rows} set shape = ?", (self._shape_id,))
                self._rebuild(self._fields)
            self._claim.move(self, recorded.position)

    def _fit(self, shape: Shape) -> None:
        if shape == self._shape:
            return
        wanted = self._wanted
        if wanted is None:
            wanted = tuple(c.name for c in shape.columns if c.kind in _SEARCHED)
            wanted = (*(n for n in self._fields if n in wanted), *(n for n in wanted if n not in self._fields))
        # One that was added or renamed later is not in the older shapes.
        if wanted and not set(wanted).intersection(shape.names):
            raise UsageError(f"the table has no column {wanted[0]!r}", hint="Correct fields=")
        if wanted != self._fields or not self._there():
            self._rebuild(wanted)
        self.db.execute(f"insert into {_SHAPES} (shape) values (?) on conflict do nothing", (shape.text,))
        row = self.db.one(f"select id from {_SHAPES} where shape = ?", (shape.text,))
        assert row is not None
        self._shape, self._shape_id = shape, row["id"]

    def _there(self) -> bool:
        return self.db.one("select 1 from sqlite_master where name = ?", (self._stream,)) is not None

    def _rebuild(self, fields: tuple[str, ...]) -> None:
        """Make the index anew, from the rows that it keeps."""
        self.db.execute(f"drop table if exists {self._index}")
        self._fields = fields
        if not fields:
            return
        tokenize = self._tokenize.replace("'", "''")
        columns = ", ".join(quote(name) for name in fields)
        try:
            self.db.execute(f"create virtual table {self._index} using fts5({columns}, tokenize = '{tokenize}')")
        except DatabaseError as error:
            raise UsageError(
                f"there can be no such index: {error.message}", hint="Correct tokenize= or fields="
            ) from error
        for row in self.db.query(f"select id, row from {self._rows}"):
            self._put(row["id"], msgspec.json.decode(row["row"]))

    def _put(self, id: int, row: Row) -> None:
        marks = ", ".join("?" * (len(self._fields) + 1))
        names = ", ".join(quote(name) for name in self._fields)
        self.db.execute(
            f"insert or replace into {self._index} (rowid, {names}) values ({marks})",
            [id, *(_searched(row.get(name)) for name in self._fields)],
        )

    def _step(self, step: Net | Move | Exact, key: Sequence[str], shape: Shape) -> None:
        if isinstance(step, Exact):
            raise Rejected("a column of the key is NULL, so that the row cannot be told from others in an index")
        if isinstance(step, Move):
            known = self._known(step.old, shape)
            self._delete(step.old)
            self._upsert(step.new, {**known, **step.row}, shape)
            return
        if step.truncate:
            self.db.execute(f"delete from {self._rows}")
            if self._fields:
                self.db.execute(f"delete from {self._index}")
        for gone in step.gone.values():
            self._delete(gone)
        for address, (values, row) in step.rows.items():
            known = self._known(values, shape) if address in step.partial else {}
            self._upsert(values, {**known, **row}, shape)

    def _known(self, key: Key, shape: Shape) -> Row:
        row = self.db.one(
            f"select row, (select shape from {_SHAPES} where id = r.shape) as shape from {self._rows} r where key = ?",
            (_key_text(key),),
        )
        if row is None:
            return {}
        return decode_row(msgspec.json.decode(row["row"]), shape_of(row["shape"]))

    def _delete(self, key: Key) -> None:
        row = self.db.one(f"select id from {self._rows} where key = ?", (_key_text(key),))
        if row is not None:
            self.db.execute(f"delete from {self._rows} where id = ?", (row["id"],))
            if self._fields:
                self.db.execute(f"delete from {self._index} where rowid = ?", (row["id"],))

    def _upsert(self, key: Key, row: Row, shape: Shape) -> None:
        text = _key_text(key)
        encoded = encode_row({name: row[name] for name in shape.names if name in row}, shape)
        [(id,)] = self.db.execute(
            f"insert into {self._rows} (key, shape, row) values (?, ?, ?)"
            " on conflict (key) do update set shape = excluded.shape, row = excluded.row returning id",
            (text, self._shape_id, msgspec.json.encode(encoded).decode()),
        ).fetchall()
        if self._fields:
            self._put(id, encoded)

    # --- search -------------------------------------------------------------------------------------------

    def search(self, query: str, limit: int, syntax: bool, marks: tuple[str, str]) -> list[Hit]:
        """By a connection of its own, so that any thread may."""
        if not os.path.exists(self.path):
            return []
        asked = query if syntax else _words(query)
        if not asked:
            return []
        db = open_database(self.path, readonly=True)
        try:
            stream = self._stream or _only_stream(db)
            if db.one("select 1 from sqlite_master where name = ?", (stream,)) is None:
                return []
            index, rows = quote(stream), quote(f"{stream} rows")
            try:
                found = db.query(
                    f"select r.row, s.shape, -bm25({index}) as score,"
                    f" snippet({index}, -1, ?, ?, '…', {_SNIPPET_WORDS}) as snippet"
                    f" from {index} join {rows} r on r.id = {index}.rowid join {_SHAPES} s on s.id = r.shape"
                    f" where {index} match ? order by bm25({index}), r.id limit ?",
                    (*marks, asked, limit),
                )
            except DatabaseError as error:
                raise UsageError(
                    f"the query is not understood: {error.message}", hint="See FTS5's query syntax"
                ) from error
        finally:
            db.close()
        return [
            Hit(decode_row(msgspec.json.decode(row["row"]), shape_of(row["shape"])), row["score"], row["snippet"])
            for row in found
        ]


def _only_stream(db: SQLiteDatabase) -> str:
    if not db.has_table(_INDEXES):
        return ""
    found = db.query(f"select stream from {_INDEXES} order by stream")
    if len(found) > 1:
        names = ", ".join(repr(row["stream"]) for row in found)
        raise UsageError(f"the file has indexes of several tables: {names}", hint="Say which with table=")
    return str(found[0]["stream"]) if found else ""


def _words(query: str) -> str:
    """A query for all of the words, none of which means anything but itself."""
    found = []
    for word in query.split():
        star = "*" if word.endswith("*") else ""
        bare = word.rstrip("*").replace('"', " ").strip()
        if _WORD.search(bare):
            found.append(f'"{bare}"{star}')
    return " ".join(found)


def _searched(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        return None
    if isinstance(value, list):
        return "\n".join(str(item) for item in value if item is not None)
    return str(value)


def _key_text(key: Key) -> str:
    return msgspec.json.encode([_key_part(value) for value in key]).decode()


def _key_part(value: Any) -> Any:
    if value is None or isinstance(value, int | float | str | bytes):
        return encode_any(str(value) if isinstance(value, str) else value)
    return str(value)
