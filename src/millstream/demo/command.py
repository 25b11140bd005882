"""``millstream demo``: January 2013 at New York's airports, through all four patterns."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..errors import UsageError


def demo(
    out: Annotated[
        str,
        typer.Option("--out", metavar="DIR", help="The folder for its files; a folder of an earlier demo is reused."),
    ] = "./demo-out",
    log: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Option(
            "--log",
            metavar="URL",
            help="Keep the log in PostgreSQL, in a schema of the demo's own. One of an earlier demo is made anew.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Option(
            "--data", metavar="FILE", help="Other flights, such as the year's flights-2013.parquet.", show_default=False
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="After the first day, go on live, until Ctrl-C or the end of the data.")
    ] = False,
    speed: Annotated[
        float, typer.Option("--speed", metavar="N", help="With --follow: so many seconds of 2013 in a second.")
    ] = 600.0,
    quick: Annotated[bool, typer.Option("--quick", help="Play the first three days only.")] = False,
) -> None:
    """Play January 2013 at New York's airports through one log.

    27,004 real flights, as they became known, and what each of the four
    patterns makes of them: aircraft as they were at any moment (event
    sourcing), the changes that another program makes to its database (change
    data capture), a command and the departures board (CQRS), departures in
    five-minute windows and alerts (stream processing).

    It takes less than a minute, and ends with commands to look further.
    Ctrl-C ends it at any time and leaves a sound log; the exit code is then
    130, as of every command, with --follow too.

    \b
    Examples:
      $ millstream demo
      $ millstream demo --follow --speed 600
      $ millstream demo --data flights-2013.parquet --out year
      $ millstream demo --log postgresql://postgres@localhost/postgres
    """
    if not 0 < speed <= 1_000_000:
        raise UsageError(f"--speed {speed:g} is out of range", hint="Give a number from 1 to 1000000, such as 600")
    from .run import run

    if run(out, data, follow=follow, speed=speed, quick=quick, log=log):
        raise typer.Exit(130)
