"""The stages of a flow over all rows at once: row-wise ones by Polars, what looks at other rows by SQL."""

from __future__ import annotations

import polars as pl

from ..alerts import Alert
from ..columns import ENVELOPE, is_hidden, names_of
from ..distinct import Distinct, Top
from ..enriching import Enriched
from ..entering import Entering
from ..errors import CannotCheck
from ..expressions import apply
from ..flow import Stage
from ..latest import Latest
from ..shaping import Filter, Mapped, Select, WithColumns
from ..trailing import SlidingWindows
from .engine import AT, LATE, PLACE, Engine, keyed, names, with_keys
from .windows import Windows, slid, windowed

_CANNOT = {
    "Match": ("match", "SQL has no sequences of rows here"),
    "Sequences": ("match", "SQL has no sequences of rows here"),
    "RevisingWindows": ("a window with early or corrected results", "what came early hangs on the order of the log"),
    "TableRows": ("table", "what a change says depends on its JSON"),
    "Processed": ("process", "what a Python function makes of rows and timers is known to that function alone"),
    "Overtaking": ("enrich", "what a Python function makes of a row is known to that function alone"),
    "Fold": ("fold", "what a Python function makes of rows is known to that function alone"),
}


class Passage:
    """Rows on their way through the stages of a flow.

    Attributes:
        rows: The rows, with their hidden columns.
        log: Whether they are still in the order of the log, so that some may be late.
        late: How many were left out as late.
    """

    def __init__(self, engine: Engine, rows: pl.DataFrame, *, log: bool, watermark: int) -> None:
        self._engine = engine
        self._watermark = watermark
        self.rows = rows
        self.log = log
        self.late = 0

    def take(self, stage: Stage) -> None:
        """Let the rows through a stage.

        Raises:
            CannotCheck: It cannot be said in SQL.
        """
        match stage:
            case Filter():
                self.rows = apply("filter", self.rows.columns, lambda: self.rows.filter(stage.condition))
            case WithColumns() | Select():
                self.rows = _shaped(stage, self.rows)
            case Mapped():
                verb = "map_rows" if stage.by_row else "map_batches"
                verb = "enrich" if isinstance(stage, Enriched) else verb
                raise CannotCheck(verb, "what a Python function makes of a row is known to that function alone")
            case SlidingWindows():
                self._put_late_aside()
                self.rows, self.log = slid(self._engine, stage, self.rows, self._watermark), False
            case _ if isinstance(stage, Windows):
                self._put_late_aside()
                self.rows, self.log = windowed(self._engine, stage, self.rows, self._watermark), False
            case Alert():
                self._alert(stage)
            case Entering():
                self._entering(stage)
            case Distinct():
                self._distinct(stage)
            case Latest():
                self._latest(stage)
            case Top():
                self._top(stage)
            case _:
                raise CannotCheck(*_CANNOT.get(type(stage).__name__, (type(stage).__name__, "it has no SQL here")))

    def _put_late_aside(self) -> None:
        if self.log and LATE in self.rows.columns:
            self.late += int(self.rows[LATE].sum())
            self.rows = self.rows.filter(~pl.col(LATE)).drop(LATE)

    def _chosen(self, query: str, table: pl.DataFrame) -> pl.DataFrame:
        """The rows that a query names, in their order."""
        return self.rows[self._engine.ask(query, t=table)["rn"].sort().to_numpy()]

    def _alert(self, stage: Alert) -> None:
        self.rows = apply("alert", self.rows.columns, lambda: self.rows.filter(stage.condition))
        if stage.cooldown:
            self.rows = self._apart([f"__key{n}" for n in range(stage.keys)], stage.cooldown)

    def _apart(self, keys: list[str], span: int) -> pl.DataFrame:
        """The rows of a key without one less than a span before."""
        query = f"""
            select rn from t qualify coalesce(ts - lag(ts) over (partition by {names(len(keys))} order by ts, place)
                                               >= {span}, true)
        """
        return self._chosen(query, keyed(self.rows, keys))

    def _entering(self, stage: Entering) -> None:
        keys = [f"__key{n}" for n in range(stage.keys)]
        hot = apply("alert", self.rows.columns, lambda: self.rows.with_columns(stage.condition.alias("__hot")))
        query = f"""
            with told as (select *, coalesce(hot, false) as met from t)
            select rn from told
            qualify met and not coalesce(lag(met) over (partition by {names(len(keys))} order by ts, place), false)
        """
        self.rows = self._chosen(query, keyed(hot, keys, hot=pl.col("__hot")))

    def _distinct(self, stage: Distinct) -> None:
        self._put_late_aside()
        self.rows = with_keys(self.rows.filter(pl.col(AT) < self._watermark), stage.keys)
        self.rows = self._apart(list(stage.keys), stage.within)
        self.log = False

    def _latest(self, stage: Latest) -> None:
        self.late += self.rows[AT].null_count()
        self.rows = with_keys(self.rows.filter(pl.col(AT).is_not_null()), stage.keys)
        order = "place" if self.log else "ts, place"
        before = f"partition by {names(len(stage.keys))} order by {order} rows between unbounded preceding"
        query = f"""
            select rn from t
            qualify ts >= coalesce(max(ts) over ({before} and 1 preceding), ts)
        """
        self.rows = self._chosen(query, keyed(self.rows, stage.keys))

    def _top(self, stage: Top) -> None:
        per = ", ".join(["ts", *(f"k{n}" for n in range(len(stage.per)))])
        order = f"by_value {'desc' if stage.descending else 'asc'} nulls last, place"
        query = f"""
            with best as (select *, row_number() over (partition by {per} order by {order}) as rank from t)
            select rn, row_number() over (order by ts, {order}) as new from best where rank <= {stage.rows} order by rn
        """
        table = keyed(self.rows, stage.per, by_value=pl.col(stage.by))
        best = self._engine.ask(query, t=table)
        self.rows = self.rows[best["rn"].to_numpy()].with_columns(best["new"].alias(PLACE))


def _shaped(stage: WithColumns | Select, rows: pl.DataFrame) -> pl.DataFrame:
    """With other columns, beside those that travel unseen."""
    asked = names_of(stage.expressions)
    seen = rows.select(name for name in rows.columns if not is_hidden(name) or (name in ENVELOPE and name in asked))

    def made() -> pl.DataFrame:
        with_all = seen.with_columns(stage.expressions)
        if isinstance(stage, Select):
            return with_all.select(seen.lazy().select(stage.expressions).collect_schema().names())
        return with_all

    verb = "select" if isinstance(stage, Select) else "with_columns"
    shown = apply(verb, rows.columns, made)
    shown = shown.select(name for name in shown.columns if not is_hidden(name))
    return shown.with_columns(rows.select(name for name in rows.columns if is_hidden(name)).get_columns())
