"""``millstream flow``: flows of one's own, looked at from outside."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NotFound, UsageError
from .apps import named
from .options import LogPath, OutputFormat, open_to_read, open_to_write
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


_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The flow's name: see millstream flow ls.", show_default=False)
]


def ls(log: LogPath, output: OutputFormat = None) -> None:
    """List the flows that have been run on a log, and how far each has come.

    \bExamples:
      $ millstream flow ls shop.db
      $ millstream flow ls shop.db --output json
    """
    from ..streams.savepoints import flows_of

    with open_to_read(log) as source:
        rows = flows_of(source)
    write_rows(rows, ("name", "position", "behind", "late", "paused", "savepoints"), chosen(output), limit=len(rows))


def pause(log: LogPath, name: _Name) -> None:
    """Have a flow wait, in whatever process it runs, until it is resumed.

    It commits what it has taken in, and takes in no more, not even when it is
    started anew.

    \bExamples:
      $ millstream flow pause shop.db pages/PageSeen
      $ millstream flow pause shop.db pages/PageSeen && millstream flow ls shop.db
    """
    _tell(log, name, True)


def resume(log: LogPath, name: _Name) -> None:
    """Have a flow that was paused go on where it was.

    \bExamples:
      $ millstream flow resume shop.db pages/PageSeen
      $ millstream flow resume shop.db pages/PageSeen && millstream flow ls shop.db
    """
    _tell(log, name, False)


def _tell(path: str, name: str, paused: bool) -> None:
    from ..streams.pausing import set_paused
    from ..streams.savepoints import flows_of

    with open_to_write(path, create=False) as log:
        if name not in {flow.name for flow in flows_of(log)}:
            raise NotFound(f"no flow {name!r} has been run on this log", hint="List them: millstream flow ls LOG")
        set_paused(log, [name], paused)
