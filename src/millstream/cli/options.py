"""Arguments and options that several commands share, and how they open a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..errors import NotFound, StreamNotFound, UsageError
from ..time import seconds
from .output import Output

if TYPE_CHECKING:
    from ..log import Log
    from ..log.moving import Segments

LogPath = Annotated[
    str,
    typer.Argument(metavar="LOG", help="The log: the path of its file, or a postgresql:// URL.", show_default=False),
]

Pattern = Annotated[
    Optional[str],  # noqa: UP045 - read at run time
    typer.Argument(
        metavar="STREAM",
        help="A stream, or a category such as 'account-*'. Default: the whole log.",
        show_default=False,
    ),
]

PLACES = """
Places and ranges:
  120                 just before the event at position 120; the first has 1
  @2013-01-15T12:00Z  just before the first event recorded at or after that
                      time, which has Z or an offset
  @-1h                the same for a time so long ago: @-90s, @-1h30m, @-7d
  end                 just after the last event that is there now
  120:200             a range: from one place up to another, positions 120 to
                      199; never what stands at the second place
  120:                from a place on; a place alone is the same: 120, @-1h
  :200                all before a place
"""
"""The grammar of positions, for the help of the commands that take one; see `millstream.log.positions`."""

RangeText = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--range", "-r", metavar="RANGE", help="Only this range of positions; see above.", show_default=False),
]

Types = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--type", "-t", metavar="TYPE", help="Only events of this type. Repeatable.", show_default=False),
]

Modules = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--import",
        "-i",
        metavar="MODULE",
        help="A module that defines event classes and upcasters. Repeatable.",
        show_default=False,
    ),
]

Tags = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--tag", metavar="TAG", help="A label for all events. Repeatable.", show_default=False),
]

OutputFormat = Annotated[
    Optional[Output],  # noqa: UP045
    typer.Option(
        "--output",
        "-o",
        metavar="table|ndjson|json|csv",
        help="How to answer. Default: a table on a terminal, ndjson in a pipe.",
        show_default=False,
        case_sensitive=False,
    ),
]

KeysFile = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--keys",
        metavar="FILE",
        help="The file of the log's keys. Default: the log's path with -keys added.",
        show_default=False,
    ),
]

By = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--by", metavar="NAME", help="Who does it. Default: the system's user.", show_default=False),
]

ConfirmClock = Annotated[
    bool,
    typer.Option("--confirm-clock", help="Accept the machine's clock though it is behind the log's last event."),
]


def open_to_read(path: str, *, keys: str | None = None) -> Log:
    """Open a log that is there, never to write it. ``keys``: the file of its keys, if it is not beside the log."""
    _check(path)
    from ..log import open

    return open(path, readonly=True, keys=keys)


def open_to_write(path: str, *, create: bool, confirm_clock: bool = False, keys: str | None = None) -> Log:
    """Open a log for writing.

    Args:
        path: The file, or a URL.
        create: Make a new log when there is none.
        confirm_clock: Accept the clock as it is.
        keys: The file of its keys, if it is not beside the log.
    """
    _check(path, must_exist=not create)
    from ..log import open

    if not create or (os.path.exists(file := _file(path)) and os.path.getsize(file)):
        # Opening for writing puts lock files beside the file, and its journal mode into it, before it looks what it is;
        # and a schema into a database.
        open(path, readonly=True).close()
    log = open(path, keys=keys)
    if confirm_clock:
        log.confirm_clock()
    return log


def is_depot(place: str) -> bool:
    """See `millstream.log.depots.is_depot`."""
    from ..log.depots import is_depot

    return is_depot(place)


@contextmanager
def open_source(place: str, *, writing: bool = False) -> Iterator[Log | Segments]:
    """Open what a copy or a restore is made of: a log, or the segments of one in a depot."""
    if is_depot(place):
        from ..log.moving import open_segments

        yield open_segments(place)
        return
    with open_to_write(place, create=False) if writing else open_to_read(place) as log:
        yield log


@contextmanager
def open_target(place: str) -> Iterator[Log | Segments]:
    """Open what a copy goes to: a log, made if it is not there, or segments in a depot."""
    if is_depot(place):
        from ..log.moving import Segments

        yield Segments(place)
        return
    with open_to_write(place, create=True) as log:
        yield log


def check_stream(log: Log, stream: str | None, places: str = "") -> None:
    """See that a stream that is named is there; a category may have none.

    Args:
        places: The option for places in the log, for those who write one where the stream stands.

    Raises:
        NotFound: It is not.
    """
    if stream is not None and not stream.endswith("*") and not log.version(stream):
        from ..log.positions import is_range

        if places and is_range(stream):
            raise NotFound(f"there is no stream {stream!r}", hint=f"For a place in the log, write {places} {stream}")
        raise StreamNotFound(stream)


def _check(path: str, *, must_exist: bool = True) -> None:
    if path == ":memory:":
        raise UsageError("a log in memory is of no use to a command", hint="Give the path of a file")
    file = _file(path)
    if must_exist and "://" not in file and not os.path.exists(file):
        raise NotFound(f"there is no log {file}", hint="Check the path; `millstream append` makes a new log")


def _file(path: str) -> str:
    return path.removeprefix("sqlite:///")


def limit_of(text: str) -> float:
    """A time limit in seconds, given as a number of them or as a duration.

    Raises:
        InvalidTime: It is neither.
    """
    try:
        limit = float(text)
    except ValueError:
        return seconds(text)
    return limit if limit >= 0 else seconds(text)  # also refuses what is not a number


def import_modules(names: list[str] | None) -> None:
    """Import the modules that define classes of events; the current folder is looked in, too.

    Raises:
        UsageError: One cannot be imported.
    """
    for name in names or []:
        _import(name)


def _import(name: str) -> None:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"module {name} needs {error.name}, which is not there", hint="Install it") from error
        raise UsageError(
            f"there is no module {name}", hint="Give a name such as shop.events, in the folder where it is found"
        ) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name!r:.80} cannot be imported: {error}", hint="Give a name such as shop.events") from error
