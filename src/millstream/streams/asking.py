"""What a flow is asked without being run: what it makes of the past, whether that is right, what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..log.log import check_log

if TYPE_CHECKING:
    import polars as pl

    from ..log.log import Log
    from ..log.records import Recorded
    from ..time import Moment
    from .explaining import Explanation
    from .filesource import Files
    from .flow import Flow
    from .lateness import Lateness
    from .referee import FlowCheck
    from .running import Running


class Asking:
    """What `Flow` answers."""

    __slots__ = ()

    @property
    def _flow(self) -> Flow:
        raise NotImplementedError

    def over(
        self,
        history: Log | Files | object,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        final: bool = True,
    ) -> pl.DataFrame:
        """What the flow makes of the past, as a frame; nothing is written.

        Args:
            history: The log; or a frame (Polars', Arrow's or pandas'), or `files`, of the source's rows in the order of
                their arrival.
            since: Only events recorded at or after this time.
            until: Only events recorded before this time.
            final: Close what is still open at the end, as if time had gone on. Without it, the frame holds
                just what a run would have given so far.

        Returns:
            The rows, in the order in which a run gives them. Without any, the frame may lack columns.

        Raises:
            StreamNotFound: The log has none of the flow's streams; or lacks one, and has one of another category whose
                name is nearly the same.
        """
        from .replay import replay

        return replay(self._flow, history, since=since, until=until, final=final)

    def late_over(
        self, history: Log | Files | object, *, since: Moment | None = None, until: Moment | None = None
    ) -> pl.DataFrame:
        """The rows that come late in the past, or have no time, as they are: what `late_to` would have appended.

        Only windows, patterns, joins and the like leave late rows out; a row is late where it meets the first of them.

        Args:
            history: As for `over`.
            since: Only events recorded at or after this time: the watermark begins there.
            until: Only events recorded before this time.

        Returns:
            The rows, in the order in which they came.

        Example:
            >>> import millstream as ms
            >>> from datetime import datetime
            >>> import polars as pl
            >>> days = [datetime(2024, 1, day) for day in (1, 3, 2)]
            >>> counts = ms.stream("parts", time="at").window(ms.tumbling("1d")).agg(n=pl.len())
            >>> counts.late_over(pl.DataFrame({"at": days}))["at"].dt.day().to_list()
            [2]
        """
        from .left import late_over

        return late_over(self._flow, history, since, until)

    def schema(self, log: Log) -> pl.Schema:
        """The columns of what comes out, with their types, by the events that the log holds now; nothing is run.

        Types follow those of the source's columns: where these widen later, as fields of objects may, so do they.

        Raises:
            MissingColumn: The flow asks for a column that no event has.
            StreamNotFound, FlowError: The log has no event for the flow yet.
        """
        check_log(log)
        from .replay import schema

        return schema(self._flow, log)

    def lateness(self, log: Log, *, since: Moment | None = None, until: Moment | None = None) -> tuple[Lateness, ...]:
        """How late the rows of each source came, in the past of a log: to choose a ``lateness`` by.

        Args:
            since: Only events recorded at or after this time.
            until: Only events recorded before this time.

        Example:
            >>> import millstream as ms
            >>> from datetime import datetime
            >>> log = ms.open()
            >>> minutes = [0, 2, 1, 5]
            >>> events = [ms.Plain("Click", {"ts": f"2024-01-15T10:0{minute}:00Z"}) for minute in minutes]
            >>> receipt = log.append("clicks", events)
            >>> [clicks] = ms.stream("clicks", time="ts").lateness(log)
            >>> clicks.rows, clicks.late, clicks.worst, clicks.keeps(0.75)
            (4, 1, datetime.timedelta(seconds=60), datetime.timedelta(0))
        """
        check_log(log)
        from .lateness import lateness

        return lateness(self._flow, log, since, until)

    def check(self, log: Log, *, tolerance: float = 1e-9) -> FlowCheck:
        """Compute all that the flow should have given anew, in one piece, by SQL; and compare, row by row, both ways.

        What a run of the flow has written to its stream is compared (all events of its type there), with what the rows
        up to the run's checkpoint give. A flow that has not been run, or has no end, is compared by what `over` gives
        of the whole log. Of the operators' code nothing is used: windows, joins and the like are SQL over all rows at
        once, by DuckDB, and the expressions are Polars' own. All rows are held in memory.

        A row is late by the watermark before it, and then counts nowhere but in the number of late rows, which is
        compared too. A result counts once the watermark at the position has passed it; what is still open counts on
        neither side.

        Args:
            log: The log. Nothing is written.
            tolerance: Floats that differ by at most this part of them are equal, where all else of their rows is.

        Raises:
            CannotCheck: SQL cannot say what a part of the flow means, such as a pattern or a Python function.
            MissingExtra: DuckDB is not installed.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> log = ms.open()
            >>> receipt = log.append("clicks", pl.DataFrame({"user": [1, 1, 2]}), type="Click")
            >>> counts = ms.stream("clicks").group_by("user").window(ms.tumbling("1h")).agg(n=pl.len())
            >>> counts.check(log).equal
            True
        """
        check_log(log)
        from .referee import check

        return check(self._flow, log, tolerance=tolerance)

    def explain(self, log: Log, row: Recorded | Mapping[str, Any] | pl.DataFrame) -> Explanation:
        """The very events behind a row: those whose presence made it, followed back to the sources.

        The log is played again, up to the row, and all of it is held in memory; nothing is written. An event is
        explained from the last savepoint that is older than all that can be behind it, if the flow bounds that: by
        windows of a fixed length, ``within``, ``back`` and ``ahead``.

        Behind the row of a window stand the rows of its key in its span (that had come when it was given); behind a
        joined row those of both sides; behind a match the rows that it took; behind those of a fold or process all of
        its key up to it; behind an alert, and behind what ``distinct``, ``latest`` or ``top`` let through, the row
        itself. What made no other row is not named: those that were filtered out, came late, or were outdone. Of the
        rows named, alone, the flow makes the row again.

        Args:
            log: The log.
            row: An event of the stream that the flow wrote to; or a row of `over`, as a dict or a frame of one row, of
                which some columns are enough, when only one row is like that.

        Raises:
            NotFound: The flow gives no such row.
            FlowError: It gives several that differ.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> log = ms.open()
            >>> receipt = log.append("clicks", pl.DataFrame({"user": [1, 2, 1]}), type="Click")
            >>> busy = ms.stream("clicks").group_by("user").window(ms.tumbling("1h")).agg(n=pl.len())
            >>> busy.alert(pl.col("n") > 1).explain(log, {"user": 1}).positions
            [1, 3]
        """
        check_log(log)
        from .explaining import explain

        return explain(self._flow, log, row)

    def graph(self, running: Running | None = None) -> str:
        """The flow as a picture, SVG: sources, stages, where flows meet, its end.

        Args:
            running: Flows at work, of which it is one: then the picture says how many rows have come and gone and how
                fast, where the watermarks stand, and how many rows each stage holds.

        Example:
            >>> import millstream as ms
            >>> import polars as pl
            >>> counts = ms.stream("clicks").group_by("user").window(ms.tumbling("5m")).agg(clicks=pl.len())
            >>> counts.graph().startswith("<svg")
            True
        """
        from .graph import graph

        flow = self._flow
        if running is None:
            return graph(flow)
        name = flow.sink.name if flow.sink is not None else ""
        if name not in getattr(running, "flows", ()):
            raise UsageError("the flow is not among those that run", hint="Give the ms.Running that runs it")
        return graph(flow, running.progress().get(name))
