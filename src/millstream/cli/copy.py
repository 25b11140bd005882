"""``millstream copy`` and ``millstream promote``: the log to another home."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Optional

import typer

from ..errors import UsageError
from ..time import seconds
from .options import LogPath, OutputFormat, is_depot, open_source, open_target, open_to_write
from .output import chosen, write_record
from .progress import moving

PlaceName = Annotated[
    str,
    typer.Argument(
        metavar="TO",
        help="A log, new or an earlier copy; or a depot: a folder, with a / at its end, or s3://bucket/prefix.",
        show_default=False,
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Walk the target afterwards, bodies and all, up to the source's hash.")
]


def copy(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="The log, or a depot that one was copied to.", show_default=False)
    ],
    target: PlaceName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="When level, go on with what comes, until Ctrl-C.")
    ] = False,
    switch: Annotated[
        bool, typer.Option("--switch", help="When level, make TO the home: FROM takes no more appends, TO does.")
    ] = False,
    every: Annotated[
        Optional[str],  # noqa: UP045 - read at run time
        typer.Option(
            "--every",
            metavar="DURATION",
            help="With --follow: the recovery point. Default: 1s to a depot, 20ms to a log.",
            show_default=False,
        ),
    ] = None,
    verify: Verify = False,
    output: OutputFormat = None,
) -> None:
    """Copy a log to another home as it is, while it is in use.

    Positions, versions, times, append ids and hashes stay; each header is
    compared with its hash on the way. Ended at any moment, the same command
    goes on where it was. The copy takes no appends of its own; with --switch,
    or by `millstream promote`, it becomes a log like any other.

    With --follow the copy stays behind its source by no more than --every: what
    is lost if the machine is. In a depot it consists of segments, each whole or
    not there at all, which `millstream restore` makes a log of.

    \bExamples:
      $ millstream copy shop.db depot/
      $ millstream copy shop.db moved.db --verify
      $ millstream copy shop.db moved.db --switch
    """
    from ..log.moving import Segments
    from ..log.moving import copy as copying
    from ..log.moving import switch as switching

    if switch and follow:
        raise UsageError("a switch ends a copy, --follow does not", hint="Give one of them")
    if every is not None and not follow:
        raise UsageError("--every is for --follow", hint="Add --follow, or leave it out")
    with ExitStack() as stack:
        origin = stack.enter_context(open_source(source, writing=switch))
        if switch:
            if isinstance(origin, Segments) or is_depot(target):
                raise UsageError("only a log can switch to a log", hint="For a depot: millstream restore")
            home = stack.enter_context(open_to_write(target, create=True))
            report = stack.enter_context(moving("copying"))
            done = switching(origin, home, verify=verify, progress=report)
            record = {"position": done.position, "hash": done.hash, "pause": round(done.pause, 3)}
        else:
            end = stack.enter_context(open_target(target))
            report = stack.enter_context(moving("copying", follow=follow))
            stop = stack.enter_context(_until_told() if follow else _never())
            pause = seconds(every)
            found = copying(origin, end, follow=follow, every=pause, verify=verify, progress=report, stop=stop)
            record = {"position": found.position, "hash": found.hash, "events": found.events}
            record["seconds"] = round(found.seconds, 3)
    write_record(record, chosen(output))


def promote(
    log: LogPath,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the copy was cut short, or its captures and flows lag behind.")
    ] = False,
    output: OutputFormat = None,
) -> None:
    """Make a copy a log that takes appends, without its source.

    For when the source is lost: `millstream copy --switch` is for when it is
    not. There is one log, and it may have one home: never promote a copy whose
    source still takes appends. Also takes back a switch, on the log that moved.

    \bExamples:
      $ millstream copy shop.db standby.db && millstream promote standby.db
      $ millstream copy shop.db b.db && millstream promote b.db --force
    """
    from ..log.moving import promote as promoting

    with open_to_write(log, create=False) as target:
        done = promoting(target, force=force)
    write_record({"position": done.position, "state_at": done.state_at}, chosen(output))


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set: a page under way is finished first."""
    told = threading.Event()
    before = {each: signal.signal(each, lambda *_: told.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _never() -> Iterator[None]:
    yield None
