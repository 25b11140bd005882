"""``millstream flow``: flows of one's own, looked at from outside."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NotFound, UsageError
from .apps import named
from .options import LogPath, OutputFormat, open_to_read
from .output import chosen, note, write_record, write_rows

if TYPE_CHECKING:
    from ..streams import Flow

_ENVELOPE = ("_position", "_stream", "_version", "_type", "_time")

FlowName = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FLOW",
        help="Where the flow is: a module that can be imported from here, and the ms.Flow in it, or a function that"
        " makes one.",
        show_default=False,
    ),
]


def load(place: str) -> Flow:
    """The flow that ``module:flow`` names.

    Raises:
        UsageError: There is none.
    """
    from ..streams import Flow

    found = named(place, "a flow")
    if callable(found):
        found = found()
    if not isinstance(found, Flow):
        raise UsageError(f"{place} is no millstream.Flow but {found!r:.60}", hint="Name the variable that holds one")
    return found


def check(
    log: LogPath,
    flow: FlowName,
    differences: Annotated[
        bool, typer.Option("--rows", help="Show the rows that differ, not the summary.", show_default=False)
    ] = False,
    output: OutputFormat = None,
) -> None:
    """Compute anew, by SQL, all that a flow should have given, and compare.

    Of a flow that has been run here, what it wrote is compared; of one that has
    not, what it gives now. The exit code is 1 if anything differs. Needs DuckDB.

    \bExamples:
      $ millstream flow check shop.db shop:pages
      $ millstream flow check shop.db shop:pages --rows
    """
    with open_to_read(log) as source:
        found = load(flow).check(source)
    if differences:
        rows = [
            {"side": side, **row}
            for side, frame in (("missing", found.missing), ("excess", found.excess))
            for row in frame.iter_rows(named=True)
        ]
        write_rows(rows, ["side", *found.missing.columns], chosen(output), limit=len(rows))
    else:
        record = {
            "equal": found.equal,
            "rows": found.rows,
            "recomputed": found.expected,
            "missing": found.missing.height,
            "excess": found.excess.height,
            "late": found.late,
            "late_recomputed": found.expected_late,
            "position": found.position,
            "compared": "written" if found.written else "computed now",
            "engine": found.engine,
        }
        write_record(record, chosen(output))
    if not found.equal:
        note(str(found))
        raise typer.Exit(1)


def explain(
    log: LogPath,
    flow: FlowName,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", help="Where a row of the flow stands in the log.", show_default=False)
    ],
    output: OutputFormat = None,
) -> None:
    """Show the very events behind a row that a flow has written.

    They are found by playing the log again up to the row, in memory. Of these
    events alone, the flow would have made the row.

    \bExamples:
      $ millstream flow explain shop.db shop:pages 8
      $ millstream flow explain shop.db shop:pages 8 --output json
    """
    with open_to_read(log) as source:
        event = next(source.read(after=position - 1, limit=1), None)
        if event is None:
            raise NotFound(f"there is no event at position {position}", hint="Positions begin with 1")
        found = load(flow).explain(source, event)
    rows = [
        {"position": row["_position"], "stream": row["_stream"], "type": row["_type"], "time": row["_time"]}
        | {"data": {name: value for name, value in row.items() if name not in _ENVELOPE}}
        for frame in found.inputs.values()
        for row in frame.iter_rows(named=True)
    ]
    rows.sort(key=lambda row: row["position"])
    write_rows(rows, ("position", "stream", "type", "time", "data"), chosen(output), limit=len(rows))


def graph(flow: FlowName) -> None:
    """Draw a flow: its sources, its stages and its end, as SVG.

    \bExamples:
      $ millstream flow graph shop:pages > pages.svg
      $ millstream flow graph shop:pages | head -c 4
    """
    sys.stdout.write(load(flow).graph())
