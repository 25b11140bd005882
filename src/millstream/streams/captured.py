"""Captured tables in flows: a stream of changes, each with the row before and after, as the present rows of a table.

What a change is follows from its columns alone: ``operation`` (INSERT, UPDATE, DELETE, READ, TRUNCATE), ``before`` and
``after``, and the time in ``timestamp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec
import polars as pl

from ..errors import UsageError
from ..time import Duration, duration_micros
from .columns import AT, GONE, LATE, SEQUENCE, columns_named, is_hidden, key_column, need, visible
from .errors import FlowError
from .expressions import all_of
from .joining import no_flow
from .keyed import newest, put
from .shaping import Unmet
from .state import Batch, Kept, OperatorState, Order, Parts, Step, concat, widened
from .tree import Source

if TYPE_CHECKING:
    from .flow import Flow

OPERATION, BEFORE, AFTER, TIME = "operation", "before", "after", "timestamp"
_HELD, _TURN, _ALIVE = ("INSERT", "READ", "UPDATE"), "__turn", "__alive"
_KNOWN = (*_HELD, "DELETE", "TRUNCATE")


class Table(msgspec.Struct, frozen=True, eq=False):
    """A captured table, to be joined to flows; see `table`."""

    changes: Flow
    """Its changes: of each key the row as it then is. Of one that is gone the key alone."""
    key: tuple[str, ...]

    def filter(self, condition: pl.Expr, *more: pl.Expr) -> Table:
        """Only the rows that meet a condition, or several: one that no longer does is gone, as if it were deleted.

        Raises:
            UnsupportedExpression: A condition depends on other rows.
        """
        return Table(self.changes._with(Unmet(all_of(condition, *more))), self.key)

    def select(self, *columns: pl.Expr | str, **named: pl.Expr | str) -> Table:
        """Only these columns, and the key."""
        keys = [pl.col(key) for key in self.key]
        rest = [
            column
            for column in columns
            if not (column in self.key if isinstance(column, str) else any(column.meta.eq(key) for key in keys))
        ]
        return Table(self.changes.select(*self.key, *rest, **named), self.key)

    def with_columns(self, *columns: pl.Expr | str, **named: pl.Expr | str) -> Table:
        """With more columns, or others in place of those of the same name."""
        return Table(self.changes.with_columns(*columns, **named), self.key)

    @property
    def name(self) -> str:
        """The stream of its changes."""
        assert isinstance(self.changes.source, Source)
        return self.changes.source.stream

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            from .flow import Flow

            if not name.startswith("_") and hasattr(Flow, name):
                raise no_flow(self, name)
            raise AttributeError(name)

    def side(self, on: Sequence[str]) -> tuple[Flow, tuple[str, ...]]:
        """The side of a join that it is, its key under the names that the join calls it."""
        names = tuple(on) or self.key
        if len(names) != len(self.key):
            raise UsageError(
                f"a table is joined by its whole key {list(self.key)}, not by {list(names)}",
                hint="Name as many columns in on=, in the order of the key",
            )
        if names == self.key:
            return self.changes, names
        renamed = {name: pl.col(key) for name, key in zip(names, self.key, strict=True)}
        return self.changes.select(pl.all().exclude(*self.key), **renamed), names


def table(stream: str, *, key: str | Sequence[str], idle: Duration | None = None) -> Table:
    """A captured table, from the stream of its changes, to look rows up in.

    Put it on the other side of `Flow.join_asof`: each row meets the table as it stood at its time; or of
    `Flow.join_latest`: as the log had it when the row came. Updates of a key, deletes and truncations are minded. Its
    values are those of the changes' JSON. A change counts from its commit at the source; where one that is earlier in
    the log is later by its timestamp, from that on. Rows of the first snapshot count from the snapshot on.

    Args:
        stream: The stream of the captured table.
        key: The columns of its primary key.
        idle: As for `stream`: a table that nobody changes otherwise holds back what `join_asof` gives.

    Example:
        >>> import millstream as ms
        >>> import polars as pl
        >>> users = ms.table("users", key="id").filter(pl.col("active")).select("email")
        >>> mails = ms.stream("orders", time="at").join_asof(users, on="user", prefix="user_")
        >>> later = ms.stream("orders", time="at").join_latest(users, on="user")
    """
    from .flow import Flow

    if not isinstance(stream, str):
        raise UsageError(f"{stream!r:.60} is no stream", hint="Give its name: ms.table('users', key='id')")
    keys = columns_named("key=", key)
    if not all(keys) or not keys or any(map(is_hidden, keys)):
        raise UsageError(f"key={key!r} names no columns", hint="Write key='id', or key=['country', 'number']")
    silent = None if idle is None else duration_micros(idle)
    changes = Source(stream, TIME, 0, frozenset(["Change"]), None, silent)
    return Table(Flow(changes)._with(TableRows(keys)), keys)


class TableRows(msgspec.Struct, frozen=True, eq=False):
    """The operator that opens changes: each becomes the row as it is then, or says that its key is gone.

    Kept are the keys, each with whether it has a row, since a truncation names none.
    """

    keys: tuple[str, ...]

    order: ClassVar[Order] = "log"

    @property
    def reads(self) -> set[str]:
        """The columns that it reads."""
        return {OPERATION, BEFORE, AFTER}

    @property
    def shape(self) -> str:
        return f"table by {self.keys}"

    def start(self) -> Kept:
        return Kept()

    def restore(self, parts: Parts, watermark: int) -> Kept:
        return Kept(parts)

    def step(self, state: OperatorState, batch: Batch) -> Step:
        frame = batch.frame
        if not frame.width:
            return Step(state, frame)
        need((OPERATION, BEFORE, AFTER), frame.columns, "table")
        late = frame.filter(pl.col(AT).is_null())
        # In the order of the log: a commit that is logged later happened later, whatever the clocks of its writers say.
        frame = frame.filter(pl.col(AT).is_not_null())
        reached = pl.lit(batch.before, pl.Int64)
        if batch.timeline is not None:
            # The table may have been said to be silent meanwhile, so that its time has gone on by itself.
            reached = pl.lit(pl.Series(batch.timeline.before_positions(frame[SEQUENCE].to_numpy()), dtype=pl.Int64))
        at = pl.max_horizontal(pl.col(AT).cum_max(), reached)
        frame = frame.with_columns(at.alias(AT), pl.lit(False).alias(LATE))
        strange = frame.filter(~pl.col(OPERATION).cast(pl.String).is_in(_KNOWN).fill_null(False))
        if strange.height:
            raise FlowError(
                f"the event at position {strange[SEQUENCE][0]} is no change of a table: its operation is"
                f" {strange[OPERATION][0]!r}",
                hint="Name the stream of a captured table in table(...)",
            )
        parts = state.parts
        if batch.reshaped:
            rows = self._rows(frame)
            if parts.items:
                parts = parts.reshaped(self._alive(rows), lambda held: newest(held, self._hidden))
            return Step(Kept(parts), rows)
        out = []
        for piece in _between(frame):
            if piece[OPERATION][0] == "TRUNCATE":
                parts, rows = self._emptied(parts, piece, frame)
            else:
                rows = self._rows(piece)
                parts = put(parts, newest(self._alive(rows), self._hidden), self._hidden, AT)
            out.append(rows)
        return Step(Kept(parts), concat(out) if out else self._rows(frame), late if late.height else None)

    @property
    def _hidden(self) -> list[str]:
        return [key_column(i) for i in range(len(self.keys))]

    def _rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """What changes say of their keys; one that changes a key says two things."""
        about = frame.select(*(name for name in frame.columns if is_hidden(name))).with_row_index(_TURN)
        after, before = _opened(frame, AFTER), _opened(frame, BEFORE)
        is_held = frame[OPERATION].cast(pl.String).is_in(_HELD)
        for side, theirs in ((after, is_held), (before, frame[OPERATION].cast(pl.String) == "DELETE")):
            missing = [key for key in self.keys if key not in side.columns]
            if missing and theirs.any():
                raise FlowError(
                    f"the change at position {frame.filter(theirs)[SEQUENCE][0]} has no column {missing[0]!r}",
                    hint="Name the columns of the table's primary key in key=",
                )
        keys = [_keyed(each, self.keys) for each in (after, before)]
        # Of both sides the key is of one type.
        both = widened(keys)
        mine, old = both[: frame.height], both[frame.height :]
        lost = ~is_held
        for key in self.keys:
            lost = lost | (frame[BEFORE].is_not_null() & mine[key].ne_missing(old[key]))
        held = pl.concat(
            [
                mine,
                after.select(name for name in after.columns if name not in self.keys),
                about.with_columns(pl.lit(False).alias(GONE)),
            ],
            how="horizontal",
        ).filter(is_held)
        deleted = pl.concat([old, about.with_columns(pl.lit(True).alias(GONE))], how="horizontal").filter(lost)
        rows = pl.concat([deleted, held], how="diagonal")
        names = [*visible(held), *(name for name in held.columns if is_hidden(name))]
        return rows.select(names).sort(_TURN, maintain_order=True).drop(_TURN)

    def _alive(self, rows: pl.DataFrame) -> pl.DataFrame:
        keys = [pl.col(key).alias(name) for key, name in zip(self.keys, self._hidden, strict=True)]
        return rows.select(*keys, (~pl.col(GONE)).alias(_ALIVE), AT)

    def _emptied(self, parts: Parts, change: pl.DataFrame, frame: pl.DataFrame) -> tuple[Parts, pl.DataFrame]:
        """No key any more, and a row for each that says so."""
        like = self._rows(frame.clear())
        if not parts.items:
            return parts, like
        known = newest(concat(part.frame for part in parts.items), self._hidden).filter(_ALIVE)
        known = known.sort(self._hidden, nulls_last=False)
        about = {name: change[name][0] for name in like.columns if is_hidden(name) and name != GONE}
        rows = known.select(
            *(pl.col(name).alias(key) for key, name in zip(self.keys, self._hidden, strict=True)),
            *(pl.lit(value, like.schema[name]).alias(name) for name, value in about.items()),
            pl.lit(True).alias(GONE),
        )
        return Parts((), parts.next), pl.concat([like, rows], how="diagonal_relaxed").select(like.columns)


def _between(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """The changes up to each truncation, and it."""
    cuts = (frame[OPERATION].cast(pl.String) == "TRUNCATE").arg_true().to_list()
    pieces, start = [], 0
    for cut in cuts:
        pieces += [frame[start:cut], frame[cut : cut + 1]]
        start = cut + 1
    return [piece for piece in [*pieces, frame[start:]] if piece.height]


def _opened(frame: pl.DataFrame, side: str) -> pl.DataFrame:
    """The fields of the rows before or after."""
    if isinstance(frame.schema[side], pl.Struct):
        return frame.select(side).unnest(side)
    if frame.schema[side] == pl.Null:
        return pl.DataFrame(height=frame.height)
    raise FlowError(
        f"column {side!r} is {frame.schema[side]}, which is no row of a table",
        hint="Name the stream of a captured table in table(...)",
    )


def _keyed(fields: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    nothing = pl.Series([None] * fields.height, dtype=pl.Null)
    return pl.DataFrame([fields[key] if key in fields.columns else nothing.alias(key) for key in keys])
