"""Where flows meet, by SQL: rows of several as one, pairs within an interval, what the other side said last."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ...log.objects import fitted, union
from ..broadcast import Broadcast
from ..columns import SEQUENCE, is_hidden
from ..errors import CannotCheck
from ..joins import AsOfJoin, IntervalJoin, Join
from ..merging import Merge
from ..tree import Meeting, Source
from ..windowjoin import WindowJoin
from .engine import AT, LATE, PLACE, Engine, equal, keyed, keys_of, names, with_keys
from .rows import Given
from .stages import Passage


class Encounter:
    """The rows of several flows, and where they meet.

    Attributes:
        late: How many rows were left out as late.
    """

    def __init__(self, engine: Engine, given: Given, sources: Sequence[Source], watermark: int) -> None:
        self._engine = engine
        self._given = given
        self._sources = sources
        self._watermark = watermark
        self.late = 0

    def meet(self, meeting: Meeting, inputs: Sequence[Passage]) -> Passage:
        """The rows that come out.

        Raises:
            CannotCheck: It is a meeting that cannot be said in SQL.
        """
        match meeting:
            case Merge():
                return self._merged(meeting, inputs)
            case IntervalJoin():
                return self._passage(self._joined(meeting, *self._sides(inputs)), log=False)
            case WindowJoin():
                return self._passage(self._in_windows(meeting, *self._sides(inputs)), log=False)
            case AsOfJoin():
                return self._passage(self._as_of(meeting, *self._sides(inputs)), log=False)
            case Broadcast():
                return self._passage(self._told(meeting, *inputs), log=inputs[0].log)
        raise CannotCheck(type(meeting).__name__, "it has no SQL here")

    def _passage(self, rows: pl.DataFrame, *, log: bool) -> Passage:
        return Passage(self._engine, rows, log=log, watermark=self._watermark)

    def _related(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows that are still in the order of the log, with whether they are late by the watermark of all sources."""
        places = rows.select(pl.int_range(pl.len(), dtype=pl.Int64).alias("rn"), pl.col(SEQUENCE).alias("pos"))
        reached = self._given.before(self._sources, places)["reached"]
        late = pl.col(AT).is_null() | (pl.col(AT) < reached)
        return rows.with_columns(late.alias(LATE))

    def _in_time(self, passage: Passage) -> pl.DataFrame:
        rows = passage.rows
        if passage.log:
            rows = self._related(rows)
            self.late += int(rows[LATE].sum())
            rows = rows.filter(~pl.col(LATE)).drop(LATE)
        return rows

    def _sides(self, inputs: Sequence[Passage]) -> list[pl.DataFrame]:
        return [self._in_time(each) for each in inputs]

    def _merged(self, meeting: Merge, inputs: Sequence[Passage]) -> Passage:
        timed = any(not each.log for each in inputs)
        several = [self._in_time(each) if timed else each.rows for each in inputs]
        kept = []
        for number, rows in enumerate(several):
            gone = [name for name in keys_of(rows) if int(name[5:]) >= meeting.keys]
            kept.append(rows.drop(gone).with_columns(pl.lit(number, pl.Int64).alias("__input")))
        columns: dict[str, pl.DataType] = {}
        for rows in kept:
            columns = union(columns, dict(rows.schema))
        rows = pl.concat([fitted(each, columns) for each in kept])
        order = "ts, input, place" if timed else "pos, input, place"
        more = {"input": pl.col("__input")} | ({} if timed else {"pos": pl.col(SEQUENCE)})
        query = f"select rn, row_number() over (order by {order}, rn) as new from t order by new"
        found = self._engine.ask(query, t=keyed(rows, (), **more))
        rows = rows[found["rn"].to_numpy()].with_columns(found["new"].alias(PLACE)).drop("__input")
        if not timed:
            return self._passage(self._related(rows), log=True)
        return self._passage(rows.filter(pl.col(AT) < self._watermark), log=False)

    # --- joins ------------------------------------------------------------------------------------------

    def _joined(self, join: IntervalJoin, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
        a, b = _tables(left, right, join.on)
        count = len(join.on)
        # Of each side only rows of one stretch of time meet, so that few keys with many rows do not all meet.
        width = join.back + join.ahead + 1
        pairs = f"""
            pairs as (
                select a.rn as l, b.rn as r, greatest(a.ts, b.ts) as ts
                from (select *, unnest(range((ts - {join.back}) // {width}, (ts + {join.ahead}) // {width} + 1)) as s
                      from a) a
                join (select *, ts // {width} as s from b) b
                on a.s = b.s and {equal(count, "a", "b")} and b.ts between a.ts - {join.back} and a.ts + {join.ahead}
            )
        """
        alone = f"select rn as l, null as r, ts + {join.ahead} as ts from a where rn"
        others = f"select null as l, rn as r, ts + {join.back} as ts from b where rn not in (select r from pairs)"
        some = "select * from pairs"
        without = f"{alone} not in (select l from pairs)"
        query = {
            "inner": some,
            "left": f"{some} union all {without}",
            "full": f"{some} union all {without} union all {others}",
            "semi": f"{alone} in (select l from pairs)",
            "anti": without,
        }[join.how]
        found = self._engine.ask(f"with {pairs} select * from ({query}) where ts < {self._watermark}", a=a, b=b)
        return self._beside(join, left, right, found)

    def _as_of(self, join: AsOfJoin, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
        gone = pl.lit(False) if join.delete is None else join.delete.fill_null(False)
        a, b = _tables(left, right, join.on, gone=gone)
        count = len(join.on)
        near = "true" if join.within is None else f"abs(a.ts - b.ts) <= {join.within}"
        ways = {"backward": [">="], "forward": ["<="], "nearest": [">=", "<="]}[join.strategy]
        found = [
            f"""
            select a.rn as l, case when {near} then b.rn end as r, a.ts as ts, abs(a.ts - b.ts) as away, {way} as way,
                   b.gone as gone
            from a asof left join b on {equal(count, "a", "b")} and a.ts {sign} b.ts
            """
            for way, sign in enumerate(ways)
        ]
        some = "and r is not null and not gone" if join.how == "inner" else ""
        query = f"""
            with b as (
                select * from rights qualify
                row_number() over (partition by {names(count, first="ts")} order by place desc) = 1
            ), found as ({" union all ".join(found)}),
            chosen as (
                select * from found
                qualify row_number() over (partition by l order by r is null, away, way) = 1
            )
            select l, case when not gone then r end as r, ts + {join.ahead} as ts from chosen
            where ts + {join.ahead} < {self._watermark} {some}
        """
        return self._beside(join, left, right, self._engine.ask(query, a=a, rights=b))

    def _in_windows(self, join: WindowJoin, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
        a, b = _tables(left, right, join.on)
        count, size, every = len(join.on), join.window.size, join.window.every
        last = f"(ts - ((ts % {every}) + {every}) % {every})"

        def spread(table: str) -> str:
            return f"select *, unnest(range({last}, ts - {size}, -{every})) as s from {table}"

        same = f"a.s = b.s and {equal(count, 'a', 'b')}"
        paired = f"select a.rn as l, b.rn as r, a.s from a join b on {same}"
        query = {
            "inner": paired,
            "left": f"select a.rn as l, b.rn as r, a.s from a left join b on {same}",
            "full": f"select a.rn as l, b.rn as r, coalesce(a.s, b.s) as s from a full join b on {same}",
            "semi": f"select a.rn as l, null as r, a.s from a semi join b on {same}",
            "anti": f"select a.rn as l, null as r, a.s from a anti join b on {same}",
        }[join.how]
        found = self._engine.ask(
            f"""with a as ({spread("lefts")}), b as ({spread("rights")})
                select l, r, s + {size - 1} as ts from ({query}) where s + {size} <= {self._watermark}""",
            lefts=a,
            rights=b,
        )
        rows = self._beside(join, left, right, found)
        end = pl.col(AT) + 1
        bounds = ((end - size).alias("window_start"), end.alias("window_end"))
        return rows.with_columns(each.cast(pl.Datetime("us", "UTC")) for each in bounds)

    def _told(self, join: Broadcast, rows: Passage, said: Passage) -> pl.DataFrame:
        gone = pl.lit(False) if join.delete is None else join.delete.fill_null(False)
        a, b = _tables(rows.rows, said.rows, join.on, gone=gone)
        if rows.log:
            a = a.with_columns(rows.rows[SEQUENCE].alias("pos"))
        else:
            a = a.with_columns(self._given.passed(self._sources, a.select("rn", "ts"))["pos"])
        b = b.with_columns(said.rows[SEQUENCE].alias("pos"))
        count = len(join.on)
        query = f"""
            with b as (
                select * from saids qualify
                row_number() over (partition by {names(count, first="pos")} order by place desc) = 1
            )
            select a.rn as l, case when not b.gone then b.rn end as r
            from a asof left join b on {equal(count, "a", "b")} and a.pos >= b.pos order by a.rn
        """
        found = self._engine.ask(query, a=a, saids=b)
        if join.how == "inner":
            found = found.filter(pl.col("r").is_not_null())
        left = rows.rows[found["l"].to_numpy()]
        return left.with_columns(self._others(join, left, said.rows, found["r"]))

    def _others(self, join: Join, left: pl.DataFrame, right: pl.DataFrame, rows: pl.Series) -> list[pl.Series]:
        """The columns of the other side, for these of its rows."""
        if join.how in ("semi", "anti"):
            return []
        shown = [name for name in right.columns if not is_hidden(name) and name not in join.on]
        # Of two columns of one name the flow gives the one that ever had a value.
        kept = [n for n in shown if join.prefix + n not in left.columns or right.schema[n] != pl.Null]
        taken = right.select(pl.col(kept).gather(rows.cast(pl.Int64))) if kept else pl.DataFrame()
        return [taken[name].alias(join.prefix + name) for name in kept]

    def _beside(self, join: Join, left: pl.DataFrame, right: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
        """Rows of both sides beside one another, with their place among those of one time."""
        lefts, rights = found["l"].cast(pl.Int64), found["r"].cast(pl.Int64)
        given = {join.prefix + name for name, dtype in right.schema.items() if dtype != pl.Null and name not in join.on}
        shown = [n for n in left.columns if not is_hidden(n) and not (n in given and left.schema[n] == pl.Null)]
        mine = left.select(pl.col([*shown, AT, PLACE]).gather(lefts))
        theirs = right.select(pl.col([*join.on, AT, PLACE]).gather(rights))
        keys = [mine[name] for name in join.on]
        if join.how == "full":
            types = union(dict(mine.select(join.on).schema), dict(theirs.select(join.on).schema))
            sides = [fitted(side, types) for side in (mine, theirs)]
            keys = [pl.select(pl.coalesce(*(side[name] for side in sides))).to_series() for name in join.on]
        rows = pl.DataFrame(
            [
                *keys,
                *(mine[name] for name in shown if name not in join.on),
                *self._others(join, left, right, rights),
                found["ts"].alias(AT),
            ]
        )
        order = ["ts", *(f"k{n} nulls first" for n in range(len(join.on)))]
        order += ["la nulls first", "lp nulls first", "ra nulls first", "rp nulls first"]
        table = keyed(
            rows.with_columns(pl.lit(0, pl.Int64).alias(PLACE)),
            join.on,
            la=pl.lit(mine[AT]),
            lp=pl.lit(mine[PLACE]),
            ra=pl.lit(theirs[AT]),
            rp=pl.lit(theirs[PLACE]),
        )
        query = f"select rn, row_number() over (order by {', '.join(order)}) as place from t order by rn"
        places = self._engine.ask(query, t=table)["place"]
        return with_keys(rows.with_columns(places.alias(PLACE)), join.on)


def _tables(
    left: pl.DataFrame, right: pl.DataFrame, on: Sequence[str], **more: pl.Expr
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both sides as SQL sees them, their keys of one type."""
    columns = union(dict(left.select(on).schema), dict(right.select(on).schema))
    sides = []
    for rows, extra in ((left, {}), (right, more)):
        keys = fitted(rows.select(on), columns) if on else rows.select(on)
        sides.append(keyed(rows, (pl.lit(keys[name]) for name in on), **extra))
    return sides[0], sides[1]
