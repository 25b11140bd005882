"""Verbs of a flow that let some rows through: alerts, those that are new, the newest, the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from ..errors import UsageError
from ..time import Duration, span_micros
from .alerts import Alert
from .columns import columns_named
from .distinct import Distinct, Top
from .entering import Entering
from .errors import FlowError
from .expressions import check_rowwise
from .latest import Latest
from .windows import check_names

if TYPE_CHECKING:
    from .flow import Flow, Stage
    from .state import Order


class Choosing:
    """What `Flow` has of them."""

    __slots__ = ()

    keys: tuple[str, ...]

    @property
    def _order(self) -> Order:
        raise NotImplementedError

    def _with(self, stage: Stage, **changes: Any) -> Flow:
        raise NotImplementedError

    def alert(self, condition: pl.Expr, *, cooldown: Duration = "0s", on: Literal["each", "enter"] = "each") -> Flow:
        """The rows that meet a condition, once per burst and key.

        Args:
            condition: What to be alerted of, such as ``pl.col("clicks") >= 50``.
            cooldown: Alerts of a key, each less than this after the one before (in event time), are one burst, and
                only the first of them is given. With zero every one is.
            on: ``"each"``: each row that meets the condition is an alert. ``"enter"``: only one that comes after a
                row of its key that did not meet it, or is the key's first. A row that does not come says nothing.

        Raises:
            UnsupportedExpression: The condition depends on other rows.
            FlowError: There is a cooldown, or ``on="enter"``, and no window or pattern before it to put rows into
                order of time.
        """
        if on not in ("each", "enter"):
            raise UsageError(f"on={on!r} is not known", hint="Use 'each' or 'enter'")
        check_rowwise([condition], "alert")
        micros = span_micros("cooldown=", cooldown)
        if (micros or on == "enter") and self._order == "log":
            what = "with a cooldown" if micros else "on='enter'"
            raise FlowError(
                f"an alert {what} needs rows in order of time",
                hint="Put a window, such as sliding(...), or a pattern before it",
            )
        if on == "each":
            return self._with(Alert(condition, micros, len(self.keys)))
        entering = self._with(Entering(condition, len(self.keys)))
        return entering._with(Alert(pl.lit(True), micros, len(self.keys))) if micros else entering

    def distinct(self, *keys: str, within: Duration) -> Flow:
        """The rows of a key of which there was none less than ``within`` before, in order of time.

        Each row, given or not, makes the time begin anew. Rows come out once the watermark has passed them; of
        several of one time the first of the log counts. Null is a key. Keys are forgotten after ``within``.

        Args:
            keys: The columns by which rows are the same, such as an id.
            within: The time for which a key is remembered.
        """
        if not keys or not all(isinstance(key, str) for key in keys):
            raise UsageError("distinct takes the names of columns", hint="Write distinct('id', within='1h')")
        check_names(keys, ())
        micros = span_micros("within=", within)
        if micros == 0:
            raise UsageError("a key that is remembered for no time", hint="Give within= a duration such as '1h'")
        return self._with(Distinct(keys, micros), keys=keys)

    def latest(self, *keys: str) -> Flow:
        """The rows that are the newest of their key when they come: those that change a table.

        Rows come out at once, as they stand in the log: one whose time is before that of a row of its key that has
        come earlier is left out, and of one time the last of the log counts. So who puts each row in the place of
        the one before it has the newest of each key at any moment. No row is late, but for those without a time. Null
        is a key. The time of each key is kept for good. Behind a window or pattern, rows of one time go on in the order
        of these keys.

        Args:
            keys: The columns by which rows are of one thing, such as an id.

        Example:
            >>> import millstream as ms
            >>> from datetime import datetime
            >>> import polars as pl
            >>> rows = pl.DataFrame({"id": [1, 2, 1], "at": [datetime(2024, 1, day) for day in (3, 1, 2)]})
            >>> ms.stream("parts", time="at").latest("id").over(rows)["id"].to_list()
            [1, 2]
        """
        if not keys or not all(isinstance(key, str) for key in keys):
            raise UsageError("latest takes the names of columns", hint="Write latest('id')")
        check_names(keys, ())
        return self._with(Latest(keys, self._order != "log"), keys=keys)

    def top(self, rows: int, *, by: str, descending: bool = True, per: str | Sequence[str] = ()) -> Flow:
        """Of each window the rows with the greatest values of a column, best first (ties by key, nulls last).

        Args:
            rows: How many rows of each window, at most.
            by: The column.
            descending: False for the least values.
            per: So many rows for each value of these columns.

        Raises:
            FlowError: There is no window of time, pattern or join before it.
        """
        if not isinstance(rows, int) or rows < 1:
            raise UsageError(f"the top {rows!r}", hint="Give a number of rows, such as 3")
        if self._order != "time":
            raise FlowError("top goes over the results of a window", hint="Put tumbling(...) or the like before it")
        if not isinstance(by, str):
            raise UsageError(f"by= takes the name of a column, and got {by!r:.60}", hint="Write by='n'")
        return self._with(Top(rows, by, descending, columns_named("per=", per)))
