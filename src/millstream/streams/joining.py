"""Verbs of a flow that bring the rows of another flow, or of a table, to its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import polars as pl

from ..errors import UsageError
from ..time import Duration, span_micros
from .broadcast import Broadcast
from .columns import columns_named
from .errors import FlowError
from .expressions import check_rowwise
from .joins import AsOfJoin, How, IntervalJoin, Strategy, check_join
from .overtaking import check_after
from .revising import refuse_revised
from .tree import order_of
from .windowjoin import WindowJoin
from .windows import Hopping, Window

if TYPE_CHECKING:
    from .captured import Table
    from .flow import Flow

_HOWS = ("inner", "left", "full", "semi", "anti")


class Joining:
    """What `Flow` has of them."""

    __slots__ = ()

    keys: tuple[str, ...]

    def join(
        self,
        other: Flow,
        *,
        on: str | Sequence[str],
        back: Duration | None = None,
        ahead: Duration | None = None,
        window: Hopping | None = None,
        how: How = "inner",
        prefix: str = "",
    ) -> Flow:
        """Pairs with rows of another flow of the same key, whose time is near, or in the same window.

        A pair comes out in the order of the later of its two times, once the watermark of both sides has passed
        it. A row without a partner (``left``, ``full``, ``anti``), and one that has some (``semi``), comes out once
        no partner can come any more, at the end of its interval. Null equals no key. Columns: the keys, this
        flow's, the other's.

        With ``window`` two rows are partners if they are in the same window. All of a window comes out when the
        watermark has passed its end, with ``window_start`` and ``window_end`` after the keys; where windows overlap,
        a pair (or a row without a partner) comes out once for each.

        Args:
            other: The other flow.
            on: The key columns.
            back: A partner is at most this much earlier than a row of this flow; where ``ahead`` is given, by default
                not at all,
            ahead: and at most this much later; where ``back`` is given, by default not at all. So with ``back="0s"``
                partners have the same time, as results of one window do.
            window: `tumbling` or `hopping`, in place of ``back`` and ``ahead``.
            how: ``"inner"``, ``"left"``, ``"full"``; ``"semi"``: this flow's rows with a partner; ``"anti"``: those
                without.
            prefix: Goes before the names of the other's columns. Two columns of one name raise `FlowError`.

        Example:
            >>> import millstream as ms
            >>> shown, clicked = ms.stream("shown", time="at"), ms.stream("clicked", time="at")
            >>> paired = shown.join(clicked, on="ad", ahead="10m", prefix="click_")
            >>> people, auctions = ms.stream("people", time="at"), ms.stream("auctions", time="at")
            >>> new = people.join(auctions, on="person", window=ms.tumbling("10s"), how="semi")
        """
        keys = _keys(on)
        check_join(keys, how, _HOWS)
        flows = _flows(self, other)
        if window is not None:
            if back is not None or ahead is not None:
                raise UsageError("a join is by window= or by back= and ahead=", hint="Give one of them")
            if not isinstance(window, Hopping):
                given = f"a {type(window).__name__.lower()} window" if isinstance(window, Window) else f"{window!r:.80}"
                raise UsageError(f"{given} is none to join in", hint="Use tumbling or hopping")
            return flows[0].__class__(WindowJoin(flows, keys, how, prefix, window), keys=keys)
        if back is None and ahead is None:
            # It would pair equal times alone: of most streams none, and without a word.
            raise UsageError(
                "a join does not say how far apart the times of two partners may be",
                hint="Say it: back='10m', ahead='10m' or both (back='0s' for equal times), or window=; for what the"
                " other flow said last, use join_asof or join_latest",
            )
        reach = (span_micros(f"{name}=", span or "0s") for name, span in (("back", back), ("ahead", ahead)))
        return flows[0].__class__(IntervalJoin(flows, keys, how, prefix, *reach), keys=keys)

    def join_asof(
        self,
        other: Flow | Table,
        *,
        on: str | Sequence[str] = (),
        within: Duration | None = None,
        strategy: Strategy = "backward",
        how: Literal["left", "inner"] = "left",
        prefix: str = "",
        delete: pl.Expr | None = None,
    ) -> Flow:
        """Each row with the last row of another flow of the same key, at or before its time: a table as it stood then.

        A row comes out once the watermark of both sides has passed it, in order of time. Of several rows of one time
        the last of the log counts. Null equals no key. Without ``within`` the last row of each key is kept for good.

        Other strategies look ahead, too. Then a row comes out, and its time for what follows is, at the end of the
        time in which its partner may come: its own time and ``within``, which has to be given.

        Args:
            other: The other flow, such as the changes of a table; or a captured `table`, which knows its own deletes.
            on: The key columns. By default those of the table; of a flow none: its last row of all. Of a table, under
                other names than it has them, in its order.
            within: How far away the other row may be.
            strategy: ``"backward"``: the last row at or before; ``"forward"``: the first at or after; ``"nearest"``:
                the nearer of both, and of two that are as near the earlier.
            how: ``"left"``: also rows without a partner, with nulls; ``"inner"``: only those with one.
            prefix: Goes before the names of the other's columns. Two columns of one name raise `FlowError`.
            delete: A row of the other flow that meets this says that its key is gone.

        Example:
            >>> import millstream as ms
            >>> trades, quotes = ms.stream("trades", time="at"), ms.stream("quotes", time="at")
            >>> near = trades.join_asof(quotes, on="share", strategy="nearest", within="5s", prefix="quote_")
        """
        right, keys = _side(other, on)
        check_join(keys, how, ("left", "inner"))
        flows = _flows(self, right)
        if delete is not None:
            check_rowwise([delete], "join_asof")
        if strategy not in ("backward", "forward", "nearest"):
            raise UsageError(f"strategy={strategy!r} is not known", hint="Use 'backward', 'forward' or 'nearest'")
        if strategy != "backward":
            if within is None:
                raise UsageError(
                    f"a join as of the {strategy} row would wait for ever", hint="Say how long: within='5s'"
                )
            if delete is not None or right is not other:
                raise UsageError(
                    f"what is gone has no {strategy} row", hint="A table is joined with strategy='backward'"
                )
        span = None if within is None else span_micros("within=", within)
        return flows[0].__class__(AsOfJoin(flows, keys, how, prefix, span, delete, strategy), keys=keys)

    def join_latest(
        self,
        other: Flow | Table,
        *,
        on: str | Sequence[str] = (),
        how: Literal["left", "inner"] = "left",
        prefix: str = "",
        delete: pl.Expr | None = None,
    ) -> Flow:
        """Each row with what another flow said last, when the row came: limits that change while the flow runs.

        Places in the log decide, not times. A row that is still in the order of the log gets the last row of the other
        flow up to its place; the result of a window, pattern or join the last one up to the row that completed it. So
        a flow of limits that has been quiet for months holds nothing back, and a change counts from where it stands.
        Rows stay in their order, with their keys. Null equals no key. The last row of each key is kept for good.

        Args:
            other: The other flow, of rows that are still in the order of the log; or a captured `table`.
            on: The key columns; by default those of the table, or else the last row of all. Of a table, under other
                names than it has them, in its order.
            how: ``"left"``: also rows without a partner, with nulls; ``"inner"``: only those with one.
            prefix: Goes before the names of the other's columns. Two columns of one name raise `FlowError`.
            delete: A row of the other flow that meets this says that its key is gone.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> counts = ms.stream("clicks").group_by("user").window(ms.tumbling("1m")).agg(n=pl.len())
            >>> alerts = counts.join_latest(ms.stream("limits"), on="user").alert(pl.col("n") >= pl.col("limit"))
        """
        right, keys = _side(other, on)
        check_join(keys, how, ("left", "inner"))
        flows = _flows(self, right)
        if order_of(right) != "log":
            raise FlowError(
                "join_latest goes by places in the log, which the other flow's rows have left",
                hint="Append them to a stream first, with to(...), and join that",
            )
        if delete is not None:
            check_rowwise([delete], "join_latest")
        return flows[0].__class__(Broadcast(flows, keys, how, prefix, delete), keys=self.keys)


def refuse_ended(flow: object) -> None:
    """Refuse what is no flow, and a flow that others cannot go on from."""
    from .captured import Table
    from .flow import Flow

    if isinstance(flow, Table):
        raise no_flow(flow)
    if not isinstance(flow, Flow):
        raise UsageError(f"{flow!r:.80} is no flow", hint="Give a flow, such as ms.stream('payments', time='at')")
    if flow.sink is not None or flow.late is not None:
        raise FlowError("a flow that has ended cannot meet others", hint="Put to() and late_to() after they have met")
    refuse_revised(flow.stages)
    check_after(flow.stages)


def no_flow(table: Table, verb: str | None = None) -> UsageError:
    """What is said where a captured table is given in the place of a flow."""
    name = table.name
    what = "is no flow" if verb is None else f"has no {verb}()"
    return UsageError(
        f"the captured table {name!r} {what}: it holds rows to look up",
        hint=f"Look them up: flow.join_asof(table, on=...), flow.join_latest(table, on=...); or take its changes as the"
        f" rows of ms.stream({name!r}, time='timestamp')",
    )


def _flows(one: Joining, other: Flow) -> tuple[Flow, Flow]:
    refuse_ended(one)
    refuse_ended(other)
    return one, other  # type: ignore[return-value]


def _keys(on: str | Sequence[str]) -> tuple[str, ...]:
    """The columns that both sides of a join have in common."""
    if isinstance(on, Mapping):  # its values would be passed over in silence
        raise UsageError(
            f"on= takes the names of columns, and got {on!r:.60}",
            hint="Name them as this flow does: on='customer'. A table's key may be called otherwise; of a flow, rename"
            " it first: other.with_columns(customer=pl.col('id'))",
        )
    return columns_named("on=", on)


def _side(other: Flow | Table, on: str | Sequence[str]) -> tuple[Flow, tuple[str, ...]]:
    """The other side of a join, and its key."""
    from .captured import Table

    keys = _keys(on)
    return other.side(keys) if isinstance(other, Table) else (other, keys)
