"""``millstream cdc``: capture a database, and look after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import UsageError
from .options import LogPath, OutputFormat, open_to_read, open_to_write
from .output import chosen, note, write_record, write_rows
from .progress import reading, walking

if TYPE_CHECKING:
    from ..cdc import Capture

_Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The database: postgresql://user@host/shop, mysql://user@host/shop or sqlite:///shop.sqlite.",
        show_default=False,
    ),
]
_Tables = Annotated[
    Optional[list[str]],  # noqa: UP045 - read at run time
    typer.Option("--table", "-t", metavar="TABLE", help="Only this table. Repeatable.", show_default=False),
]
_Name = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--name", metavar="NAME", help="The capture's name, if it has one of its own.", show_default=False),
]
_Prefix = Annotated[str, typer.Option("--prefix", metavar="TEXT", help="What the streams' names begin with.")]


def _capture(source: str, tables: list[str] | None, name: str | None = None, prefix: str = "") -> Capture:
    from ..cdc import capture

    return capture(source, tables=tables, name=name, prefix=prefix)


def check(source: _Source, table: _Tables = None, output: OutputFormat = None) -> None:
    """Say what in a database's settings stands in a capture's way.

    Nothing is changed. Each finding has the statement that mends it; the exit
    code is 1 when there is an error among them, 0 when it can be captured.

    \bExamples:
      $ millstream cdc check postgresql://localhost/shop
      $ millstream cdc check sqlite:///shop.sqlite --table users
    """
    from ..cdc import health

    findings = health.check(_capture(source, table))
    write_rows(findings, ("level", "about", "mend"), chosen(output))
    if not findings:
        note("nothing stands in the way of a capture")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def run(
    log: LogPath,
    source: _Source,
    table: _Tables = None,
    name: _Name = None,
    prefix: _Prefix = "",
    resync: Annotated[
        bool, typer.Option("--resync", help="Read the tables again: the source has lost changes, or its slot is gone.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Take what is there now, and end.")] = False,
    output: OutputFormat = None,
) -> None:
    """Take the rows and the changes of a database into a log.

    Each table goes to the stream of its name: its rows as they are, then every
    change. Ended at any moment, the same command goes on where it was; nothing
    is lost or doubled. Ctrl-C ends it.

    \bExamples:
      $ millstream cdc run shop.db sqlite:///shop.sqlite --once
      $ millstream cdc run shop.db sqlite:///shop.sqlite --once --table users
    """
    made = _capture(source, table, name, prefix)
    with open_to_write(log, create=True) as target:
        before = target.head
        if once:
            write_record({"events": made.catch_up(target, resync=resync)}, chosen(output))
            return
        with reading() as show:
            try:
                made.start(target, resync=resync)
                while made.running:
                    show(made.progress, target.head - before, made.trouble)
                    time.sleep(0.2)
            except KeyboardInterrupt:
                note("stopping after the batch at hand")
            made.stop()


def status(log: LogPath, output: OutputFormat = None) -> None:
    """Show which tables were captured into a log, and how far each has come.

    \bExamples:
      $ millstream cdc status shop.db
      $ millstream cdc status shop.db --output json
    """
    from ..cdc import health

    with open_to_read(log) as source:
        rows = health.status(source)
    write_rows(rows, ("capture", "table", "done", "rows", "position"), chosen(output))


def verify(
    log: LogPath,
    source: _Source,
    table: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--table", "-t", metavar="TABLE", help="Only this table. Default: all.", show_default=False),
    ] = None,
    name: _Name = None,
    repair: Annotated[bool, typer.Option("--repair", help="Append what makes the log agree with the source.")] = False,
    chunk: Annotated[int, typer.Option("--chunk", metavar="N", help="How many rows are compared at once.")] = 10_000,
    output: OutputFormat = None,
) -> None:
    """Compare what the log says of captured tables with the source, row by row.

    All as of one moment of the source, which may be written to meanwhile. Each
    row that differs is named; the exit code is 1 when one does and was not
    repaired.

    \bExamples:
      $ millstream cdc verify shop.db sqlite:///shop.sqlite
      $ millstream cdc verify shop.db sqlite:///shop.sqlite --table users --repair
    """
    from ..cdc import verify as verify_tables

    with open_to_write(log, create=False) as target, walking("comparing") as bar:
        rows: dict[str, int] = {}

        def show(table: str, count: int) -> None:
            rows[table] = count
            if bar is not None:
                bar(sum(rows.values()), sum(rows.values()))

        found = verify_tables(_capture(source, None, name), target, table, repair=repair, chunk=chunk, progress=show)
    for each in found.differences:
        note(str(each))
    fields = ("table", "position", "rows", "differ", "repaired")
    write_rows(
        [
            {
                "table": each.table, "position": each.position, "rows": each.rows,
                "differ": len(each.differences), "repaired": each.repaired,
            }
            for each in found.tables
        ],
        fields,
        chosen(output),
    )  # fmt: skip
    if not found.ok:
        raise typer.Exit(1)


def doctor(
    log: LogPath,
    source: _Source,
    table: _Tables = None,
    name: _Name = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", help="How long to watch how fast the source grows.")
    ] = 2.0,
    room: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--room", metavar="BYTES", help="What the source's disk has left.", show_default=False),
    ] = None,
    output: OutputFormat = None,
) -> None:
    """Say what a source holds back for a capture, and until when that can go on.

    How much it keeps, how much of that is not in the log yet, how fast it
    grows and how long until there is no room left; and what `cdc check` says.

    \bExamples:
      $ millstream cdc doctor shop.db sqlite:///shop.sqlite
      $ millstream cdc doctor shop.db postgresql://localhost/shop --seconds 1
    """
    from ..cdc import health

    made = _capture(source, table, name)
    with open_to_read(log) as target:
        report = health.doctor(made, target, seconds=seconds, room=room)
    found = report.backlog
    if found is not None:
        write_record(
            {
                "source": report.source,
                "holder": found.holder,
                "active": found.active,
                "kept": found.kept,
                "behind": found.behind,
                "unit": found.unit,
                "rate": round(found.rate, 1),
                "room": found.room,
                "full in seconds": None if found.full_in is None else round(found.full_in),
            },
            chosen(output),
        )
    write_rows(report.findings, ("level", "about", "mend"), chosen(output))
    if not report.healthy:
        raise typer.Exit(1)


def snapshot(
    log: LogPath,
    source: _Source,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The table.", show_default=False)],
    name: _Name = None,
) -> None:
    """Have a captured table read again, and no other.

    The capture that runs does it within seconds; one that does not, when it is
    run next. The rows come as READs, after a TRUNCATE.

    \bExamples:
      $ millstream cdc snapshot shop.db sqlite:///shop.sqlite users
      $ millstream cdc snapshot shop.db sqlite:///shop.sqlite users --name mine
    """
    with open_to_write(log, create=False) as target:
        _capture(source, None, name).snapshot(target, table)


def parked(
    log: LogPath,
    table: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--table", "-t", metavar="TABLE", help="Only of this table.", show_default=False),
    ] = None,
    sink: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--sink", metavar="NAME", help="Only of this sink.", show_default=False),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Have them tried again.")] = False,
    skip: Annotated[bool, typer.Option("--skip", help="Give them up: the sink will never see them.")] = False,
    position: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option("--position", metavar="N", help="Only the change at it. Repeatable.", show_default=False),
    ] = None,
    output: OutputFormat = None,
) -> None:
    """Show the changes that sinks could not take; retry or skip them.

    A change that a sink refuses waits aside, with the later ones of its row,
    and the others go on. A retry is made by the sink's follower within
    seconds, if it runs.

    \bExamples:
      $ millstream cdc parked shop.db
      $ millstream cdc parked shop.db --table users --retry
    """
    from .. import cdc

    if retry and skip:
        raise UsageError("--retry and --skip exclude each other", hint="Give one of them")
    if not (retry or skip):
        with open_to_read(log) as source:
            rows = cdc.parked(source, table, sink)
        write_rows(rows, ("position", "stream", "sink", "state", "attempts", "since", "error"), chosen(output))
        return
    with open_to_write(log, create=False) as target:
        act = cdc.retry if retry else cdc.skip
        count = act(target, *(position or ()), table=table, sink=sink)
    write_record({"retried" if retry else "skipped": count}, chosen(output))


def remove(source: _Source, table: _Tables = None) -> None:
    """Remove from a database all that captures made in it.

    Slots and publications, or triggers and tables. What the log holds stays; a
    capture that is run again needs --resync.

    \bExamples:
      $ millstream cdc remove sqlite:///shop.sqlite
      $ millstream cdc remove postgresql://localhost/shop
    """
    _capture(source, table).uninstall()
