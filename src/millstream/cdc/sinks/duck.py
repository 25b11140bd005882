"""A warehouse in a DuckDB file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import polars as pl

from ...errors import DatabaseError, MissingExtra, Rejected, SinkUnavailable, UsageError
from ..change import Row, SchemaChanged, SnapshotCompleted
from ..shape import Column, Shape, shape_of
from ..values import decode_row
from .base import Changes
from .columns import dtype_of, frame, with_kind
from .held import Claim, Held
from .history import AFTER, BEFORE, history_frame
from .net import Exact, Key, Move, Net, by_shape, steps
from .target import quote

if TYPE_CHECKING:
    from ...log import Log, Recorded

_POSITIONS = "millstream_positions"
_TYPES = {
    pl.Boolean: "BOOLEAN",
    pl.Int64: "BIGINT",
    pl.UInt64: "UBIGINT",
    pl.Float64: "DOUBLE",
    pl.Binary: "BLOB",
    pl.String: "VARCHAR",
    pl.Date: "DATE",
    pl.Time: "TIME",
    pl.Datetime("us"): "TIMESTAMP",
    pl.Datetime("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
    pl.Duration("us"): "INTERVAL",
    pl.Null: "INTEGER",
}
_NUMBERS = {"BIGINT", "DOUBLE"}
_BATCH = "millstream_batch"


class Duck:
    """Two tables, ``users`` and ``users_history``, and the position, changed in one transaction."""

    def __init__(self, path: str, table: str | None, kinds: dict[str, str]) -> None:
        try:
            import duckdb
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise MissingExtra("sql", "duckdb") from error
        self._duckdb = duckdb
        self.location = path
        self._path, self._table, self._kinds = path, table, kinds
        self._claim = Claim(f"warehouse:{path}")
        self._connection: Any = None
        self._shape: Shape | None = None
        self._current = self._history = ""
        self._types: dict[str, dict[str, str]] = {}

    # --- the file -----------------------------------------------------------------------------------------

    def open(self, log: Log, stream: str) -> int:
        """Open the file, and say what it holds."""
        self._shape = None
        with self._transaction():
            self._run(
                f"create table if not exists {_POSITIONS}"
                " (stream varchar primary key, log varchar not null, position bigint not null, holder varchar not null)"
            )
            return self._claim.open(self, log.id, stream)

    def settle(self, last: bool) -> None:
        """Let others at the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the file."""
        self._claim.release()
        self.settle(True)

    @property
    def _db(self) -> Any:
        if self._connection is None:
            try:
                self._connection = self._duckdb.connect(self._path)
                self._connection.execute("set timezone = 'UTC'")
            except self._duckdb.Error as error:
                raise SinkUnavailable(
                    f"{self._path} cannot be opened: {str(error).splitlines()[0]}",
                    hint="Another program may have it open to write; the follower tries again",
                ) from error
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        db, duckdb = self._db, self._duckdb
        try:
            db.execute("begin")
            yield
            db.execute("commit")
        except BaseException as error:
            if not isinstance(error, duckdb.Error):
                self._roll_back()
                raise
            self._roll_back()
            said = str(error).partition("\n")[0]
            if isinstance(error, duckdb.IOException | duckdb.FatalException | duckdb.OutOfMemoryException):
                self.settle(True)
                raise SinkUnavailable(f"{self._path}: {said}") from error
            if isinstance(error, duckdb.ConversionException | duckdb.ConstraintException | duckdb.OutOfRangeException):
                raise Rejected(said) from error
            raise DatabaseError(said, hint="Look at the table in the warehouse") from error

    def _roll_back(self) -> None:
        self._shape = None
        try:
            self._db.execute("rollback")
        except self._duckdb.Error:
            self.settle(True)

    def _run(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self._db.execute(sql, list(values))

    def held(self, stream: str) -> Held | None:
        """What the table of positions says."""
        row = self._run(f"select log, position, holder from {_POSITIONS} where stream = ?", (stream,)).fetchone()
        return Held(*row) if row else None

    def hold(self, stream: str, held: Held) -> None:
        """Write it to the table of positions."""
        self._run(
            f"insert into {_POSITIONS} values (?, ?, ?, ?) on conflict (stream) do update"
            " set log = excluded.log, position = excluded.position, holder = excluded.holder",
            (stream, held.log, held.position, held.holder),
        )

    # --- changes ------------------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> None:
        """History and present rows in one transaction, with the position."""
        with self._transaction():
            for shape, some in by_shape(changes):
                self._fit(shape, some[0][0].table)
                self._add_history(some, shape)
                for step in steps((change for change, _ in some), shape.key):
                    self._step(step, shape)
            self._claim.move(self, changes[-1][1].position)

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Rename, drop and add columns of the present rows. The history keeps what it has."""
        shape = shape_of(recorded.run.schema)
        with self._transaction():
            if isinstance(event, SchemaChanged) and shape is not None:
                self._name(event.table)
                if self._look(self._current):
                    types, table = self._types[self._current], quote(self._current)
                    for old, new in event.renamed.items():
                        if old in types and new not in types:
                            self._run(f"alter table {table} rename column {quote(old)} to {quote(new)}")
                    for name in event.dropped:
                        if name in types and name not in shape.names:
                            self._run(f"alter table {table} drop column {quote(name)}")
                    there = self._look(self._current)
                    new_columns = [c for c in shape.columns if c.name in event.added and c.name not in there]
                    self._fit(shape, event.table)
                    values: Row = decode_row(event.added, shape)
                    for column in new_columns:
                        if values[column.name] is not None:
                            self._register(frame([values], [column], self._kinds))
                            self._hold_all(self._current, [column.name])
                            self._run(f"update {table} set {quote(column.name)} = (select * from {_BATCH})")
                self._shape = None
            elif shape is not None:
                self._fit(shape, event.table)
            self._claim.move(self, recorded.position)

    def _name(self, table: str) -> None:
        self._current = self._table or table
        self._history = f"{self._current}_history"

    def _fit(self, shape: Shape, table: str) -> None:
        """See that both tables are there, and have the columns of a shape with their types."""
        if shape == self._shape:
            return
        self._name(table)
        if self._claim.fresh and self._look(self._current):
            raise UsageError(
                f"table {self._current!r} of {self._path} is there already, and was not made by this follower",
                hint="Give the warehouse's another name with table=, or remove what is there",
            )
        columns = [with_kind(column, self._kinds) for column in shape.columns]
        self._make(self._current, [(c.name, c) for c in columns])
        if not self._look(self._history):
            self._run(
                f"create table {quote(self._history)} (position bigint, operation varchar,"
                " time timestamp with time zone, unchanged varchar[])"
            )
        sides = [(side + c.name, c) for side in (BEFORE, AFTER) for c in columns]
        self._make(self._history, sides)
        self._shape = shape

    def _make(self, table: str, columns: Sequence[tuple[str, Column]]) -> None:
        there = self._look(table)
        if not there:
            named = ", ".join(f"{quote(name)} {_type_of(column)}" for name, column in columns)
            self._run(f"create table {quote(table)} ({named})")
            self._look(table)
            return
        for name, column in columns:
            wanted = _type_of(column)
            if name not in there:
                self._run(f"alter table {quote(table)} add column {quote(name)} {wanted}")
            elif column.kind != "any" and there[name] != wanted:
                self._retype(table, name, wanted)
        self._look(table)

    def _look(self, table: str) -> dict[str, str]:
        rows = self._run(
            "select column_name, data_type from duckdb_columns() where table_name = ? and schema_name = 'main'"
            " order by column_index",
            (table,),
        ).fetchall()
        self._types[table] = dict(rows)
        return self._types[table]

    def _retype(self, table: str, column: str, wanted: str) -> None:
        """Another type, if all values can be read as such; else text, which holds them all."""
        name = quote(column)
        [misfits] = self._run(
            f"select count(*) from {quote(table)} where {name} is not null and try_cast({name} as {wanted}) is null"
        ).fetchone()
        self._run(f"alter table {quote(table)} alter column {name} type {'VARCHAR' if misfits else wanted}")

    def _hold_all(self, table: str, columns: Sequence[str]) -> None:
        """See that columns of no certain type can hold what is in the batch."""
        batch = dict(
            self._run(
                "select column_name, data_type from duckdb_columns() where table_name = ? and schema_name = 'main'",
                (_BATCH,),
            ).fetchall()
        )
        types = self._types[table]
        for name in columns:
            wanted, has = batch[name], types[name]
            [any_given] = self._run(f"select count({quote(name)}) from {_BATCH}").fetchone()
            if not any_given or wanted == has:
                continue
            [any_there] = self._run(f"select count({quote(name)}) from {quote(table)}").fetchone()
            if any_there:
                wanted = "DOUBLE" if {wanted, has} <= _NUMBERS else "VARCHAR"
            if wanted != has:
                self._run(f"alter table {quote(table)} alter column {quote(name)} type {wanted}")
                types[name] = wanted

    def _register(self, rows: pl.DataFrame) -> None:
        """Have rows at hand under the batch's name. A table, not a view: types are then those of the columns."""
        self._db.register("millstream_arrow", rows.to_arrow())
        self._run(f"create or replace temp table {_BATCH} as select * from millstream_arrow")
        self._db.unregister("millstream_arrow")

    def _picked(self, table: str, names: Sequence[str]) -> str:
        return ", ".join(f"cast(b.{quote(n)} as {self._types[table][n]})" for n in names)

    def _insert(self, table: str, rows: pl.DataFrame, loose: Sequence[str]) -> None:
        self._register(rows)
        self._hold_all(table, loose)
        names = ", ".join(map(quote, rows.columns))
        self._run(f"insert into {quote(table)} ({names}) select {self._picked(table, rows.columns)} from {_BATCH} b")

    def _add_history(self, changes: Changes, shape: Shape) -> None:
        rows = history_frame(changes, shape, self._kinds)
        if changes[0][1].position <= self._claim.position:
            # Tried again; it may have been here before a crash.
            self._register(rows.select("position"))
            self._run(f"delete from {quote(self._history)} where position in (select position from {_BATCH})")
        loose = [side + name for side in (BEFORE, AFTER) for name in self._loose(shape)]
        self._insert(self._history, rows, loose)

    def _loose(self, shape: Shape) -> list[str]:
        return [c.name for c in shape.columns if with_kind(c, self._kinds).kind == "any"]

    # --- present rows -------------------------------------------------------------------------------------

    def _step(self, step: Net | Move | Exact, shape: Shape) -> None:
        loose = self._loose(shape)
        if isinstance(step, Exact):
            if step.come:
                self._insert(self._current, frame(step.come, shape.columns, self._kinds), loose)
            if step.gone:
                self._remove(frame(step.gone, shape.columns, self._kinds), loose)
        elif isinstance(step, Move):
            self._delete([step.new], shape)
            self._update([(step.old, step.row)], shape)
        else:
            if step.truncate:
                self._run(f"delete from {quote(self._current)}")
            self._delete(
                [*step.gone.values(), *(key for a, (key, _) in step.rows.items() if a not in step.partial)], shape
            )
            if whole := step.whole:
                self._insert(self._current, frame(whole, shape.columns, self._kinds), loose)
            self._update(step.parts, shape)

    def _key_rows(self, keys: Sequence[Key], shape: Shape) -> pl.DataFrame:
        columns = {column.name: column for column in shape.columns}
        rows: list[Row] = [dict(zip(shape.key, key, strict=True)) for key in keys]
        return frame(rows, [columns[name] for name in shape.key], self._kinds)

    def _equal(self, shape: Shape, prefix: str = "") -> str:
        types = self._types[self._current]
        return " and ".join(f"t.{quote(name)} = cast(b.{quote(prefix + name)} as {types[name]})" for name in shape.key)

    def _delete(self, keys: Sequence[Key], shape: Shape) -> None:
        if keys:
            self._register(self._key_rows(keys, shape))
            self._hold_all(self._current, [name for name in self._loose(shape) if name in shape.key])
            self._run(f"delete from {quote(self._current)} t using {_BATCH} b where {self._equal(shape)}")

    def _update(self, parts: Sequence[tuple[Key, Row]], shape: Shape) -> None:
        groups: dict[tuple[str, ...], list[tuple[Key, Row]]] = {}
        for part in parts:
            groups.setdefault(tuple(part[1]), []).append(part)
        for names, some in groups.items():
            keys = self._key_rows([key for key, _ in some], shape)
            keys = keys.rename({name: f"old {name}" for name in keys.columns})
            told = frame([row for _, row in some], [c for c in shape.columns if c.name in names], self._kinds)
            self._register(pl.concat([told, keys], how="horizontal"))
            self._hold_all(self._current, [name for name in self._loose(shape) if name in told.columns])
            types = self._types[self._current]
            sets = ", ".join(f"{quote(n)} = cast(b.{quote(n)} as {types[n]})" for n in told.columns)
            self._run(f"update {quote(self._current)} t set {sets} from {_BATCH} b where {self._equal(shape, 'old ')}")

    def _remove(self, rows: pl.DataFrame, loose: Sequence[str]) -> None:
        """Of each of the rows, one that equals it."""
        self._register(rows)
        self._hold_all(self._current, loose)
        table, names = quote(self._current), ", ".join(map(quote, rows.columns))
        same = " and ".join(f"t.{quote(n)} is not distinct from g.{quote(n)}" for n in rows.columns)
        gone = ", ".join(f"cast(b.{quote(n)} as {self._types[self._current][n]}) as {quote(n)}" for n in rows.columns)
        self._run(
            f"delete from {table} where rowid in (select t.row from (select *, rowid as row,"
            f" row_number() over (partition by {names} order by rowid) as number from {table}) t"
            f" join (select {names}, count(*) as gone from (select {gone} from {_BATCH} b) group by {names}) g"
            f" on {same} where t.number <= g.gone)"
        )

    # --- to look at ---------------------------------------------------------------------------------------

    def current(self) -> pl.DataFrame:
        """The present rows."""
        return self._all(self._current, "")

    def history(self) -> pl.DataFrame:
        """All changes."""
        return self._all(self._history, " order by position")

    def _all(self, table: str, order: str) -> pl.DataFrame:
        try:
            connection = self._duckdb.connect(self._path, read_only=True)
        except self._duckdb.Error:
            # It is open to write, by this process maybe: there, any connection may read.
            connection = self._duckdb.connect(self._path)
        try:
            rows = connection.sql(f"describe {quote(table)}").fetchall()
            spans = [row[0] for row in rows if row[1] == "INTERVAL"]
            # Polars has no type for an interval of months and days; these have none.
            others = ", ".join(f"epoch_us({quote(name)}) as {quote(name)}" for name in spans)
            picked = f"* replace ({others})" if spans else "*"
            found = pl.DataFrame(connection.sql(f"select {picked} from {quote(table)}{order}").to_arrow_table())
            return found.with_columns(pl.col(name).cast(pl.Duration("us")) for name in spans)
        finally:
            connection.close()


def _type_of(column: Column) -> str:
    return _name_of(dtype_of(column))


def _name_of(dtype: Any) -> str:
    if dtype is None:
        return "INTEGER"
    if isinstance(dtype, pl.List):
        return f"{_name_of(dtype.inner)}[]"
    if isinstance(dtype, pl.Decimal):
        return f"DECIMAL({dtype.precision},{dtype.scale})"
    return _TYPES[dtype]
