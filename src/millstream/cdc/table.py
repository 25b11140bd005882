"""A captured table as it stood at a moment: its nearest image, and the changes after that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl

from ..errors import InvalidPosition, MillstreamError, NotCapturedYet, ReadOnlyLog, StreamNotFound, UsageError
from ..log.images import drop_images, images_of
from ..log.paging import END
from ..log.positions import At, Position
from ..storage.base import Receipt
from ..time import iso, to_micros
from .capture import stream_of
from .past import images
from .past.difference import difference
from .past.history import RowChange
from .past.history import row_history as _row_history
from .past.moments import last_not_after
from .past.state import TYPES, TableState
from .worker import captured_streams

if TYPE_CHECKING:
    from ..log import Log, Run

Keep = Literal["last", "all"]


def table(
    log: Log,
    name: str,
    *,
    at: At | None = None,
    position: int | Receipt | None = None,
    prefix: str = "",
    use_images: bool = True,
) -> pl.DataFrame:
    """A captured table as it stood at a moment of the source, or at a position of the log.

    A moment is the time of changes at the source: all changes up to the last one, in the log's order, that is not
    after it. Columns have the types of the source's (`millstream.cdc.values` lists the kinds): whole numbers, reals,
    booleans, text, bytes, decimals, dates, times, durations and lists of them. A column that holds a value which its
    Polars type cannot hold, such as an infinite date or a decimal of 50 digits, is text throughout; so are UUIDs, JSON,
    intervals and ranges. A column of SQLite has the type that all its values have, and is text when it mixes them.

    Where much had to be replayed, an image of the table is kept for the next time (see `image`).

    Args:
        name: The table's name, as its capture gives it.
        at: The moment, inclusive; by default the present. A `Position` or a receipt is as ``position=``.
        position: Instead of a moment: up to and with this position of the log.
        prefix: As in `capture`.
        use_images: Use images, and keep new ones. Without them, each change is replayed: the answer is the same.

    Returns:
        The rows, in the order of the key if there is one.

    Raises:
        StreamNotFound: There is no stream of this table.
        InvalidPosition: The position is not one of a log.
        NotCapturedYet: The table's snapshot was not complete then.
        Trimmed: Changes that make up the table were trimmed.
    """
    stream, until = moment_of(log, name, at, position, prefix)
    state = state_at(log, stream, until, use_images=use_images)
    _check_complete(state, name, at, until)
    return state.frame()


class Kept(NamedTuple):
    """An image of a table that is kept in the log."""

    stream: str
    position: int
    rows: int


def image(
    log: Log, name: str, *, at: At | None = None, position: int | Receipt | None = None, prefix: str = ""
) -> Kept:
    """Keep an image of a table in the log's own database, so that it is shown fast from there on.

    On the way there further ones are kept, evenly over the past, up to `millstream.cdc.past.images.KEPT` in all.
    An image is only a cache: to lose one changes no answer.

    Args:
        name, at, position, prefix: As in `table`.

    Raises:
        StreamNotFound, InvalidPosition, Trimmed: As in `table`.
        ReadOnlyLog: The log was opened to be read.
        UsageError: It has personal columns, which an image would hold in the clear.
    """
    stream, until = moment_of(log, name, at, position, prefix)
    if log.store.readonly:
        raise ReadOnlyLog(log.location)
    if images.holds_sealed(log, stream):
        raise UsageError(
            f"no image is kept of {name!r}: its personal values would be in the clear",
            hint="Read the table without one; or capture it once more, under another name, without these columns",
        )
    state = state_at(log, stream, until, keep="all")
    if all(known.position != until for known in images_of(log, stream)):
        images.keep(log, stream, until, state)
    return Kept(stream, until, state.height)


def row_history(
    log: Log,
    name: str,
    key: Any,
    *,
    at: At | None = None,
    position: int | Receipt | None = None,
    prefix: str = "",
) -> list[RowChange]:
    """Every change of one row of a captured table, in order.

    A row is followed through changes of its key: backwards from the key that is asked for to those that it had before,
    and forwards to those that it has got since. Where several rows had the key, one after the other, all are told.

    Args:
        name: The table's name, as its capture gives it.
        key: The key's value; of a key of several columns a tuple of them, or a dict by their names.
        at, position: Only what had happened by then; see `table`.
        prefix: As in `capture`.

    Returns:
        The changes, with the row before and after; none when there never was such a row.

    Raises:
        StreamNotFound, InvalidPosition, Trimmed: As in `table`.
        UsageError: The table has no key, or this is not one.
    """
    stream, until = moment_of(log, name, at, position, prefix)
    return _row_history(log, stream, key, until + 1)


def diff(
    log: Log,
    name: str,
    before: At | int,
    after: At | int | None = None,
    *,
    prefix: str = "",
) -> pl.DataFrame:
    """What differs between a captured table at two moments, or positions of the log.

    Args:
        name: The table's name, as its capture gives it.
        before, after: A moment, as in `table`, or a position; ``after`` is the present by default.
        prefix: As in `capture`.

    Returns:
        A row for each row that was added, removed or changed: the key's columns (and in their order), ``_change``
        (``added``, ``removed`` or ``changed``), ``_columns`` (a list of those that have another value), ``_before`` and
        ``_after`` (the whole row, a struct; null where there is none). Rows without a key are only added and removed.

    Raises:
        StreamNotFound, InvalidPosition, NotCapturedYet, Trimmed: As in `table`.
    """
    first, second = (_complete(log, name, moment, prefix) for moment in (before, after))
    return difference(first, second)


def _complete(log: Log, name: str, moment: At | int | None, prefix: str) -> TableState:
    position = moment if isinstance(moment, int) else None
    at = None if isinstance(moment, int) else moment
    stream, until = moment_of(log, name, at, position, prefix)
    state = state_at(log, stream, until)
    _check_complete(state, name, at, until)
    return state


def _check_complete(state: TableState, name: str, at: At | None, until: int) -> None:
    if not state.about.complete:
        when = f"at position {until}" if at is None or isinstance(at, int | Receipt) else f"at {iso(to_micros(at))}"
        raise NotCapturedYet(
            f"table {name!r} was not captured completely {when}",
            hint="Ask for a later moment; a table can be seen from the end of its snapshot on",
        )


def drop_table_images(log: Log, name: str, *, prefix: str = "") -> int:
    """Remove all images of a table; how many there were. The next `table` replays the log."""
    return drop_images(log, [prefix + stream_of(name)])


def moment_of(log: Log, name: str, at: At | None, position: int | Receipt | None, prefix: str = "") -> tuple[str, int]:
    """The stream of a table, and the position of the log that a moment or a position means.

    Raises:
        StreamNotFound, InvalidPosition: As in `table`.
    """
    if at is not None and position is not None:
        raise UsageError("both at= and position= are given", hint="Give one of them")
    if isinstance(at, Position):
        position, at = int(at), None
    elif isinstance(at, Receipt):
        position, at = at.position, None
    elif isinstance(position, Receipt):
        position = position.position
    if position is not None and (not isinstance(position, int) or position < 0):
        raise InvalidPosition(f"position={position!r} is not a position", hint="Give a whole number from 0 on")
    stream = prefix + stream_of(name)
    if not log.version(stream):
        raise _not_found(log, stream)
    until = log.head if position is None else min(position, log.head)
    if at is not None:
        until = last_not_after(log, stream, to_micros(at), until)
    return stream, until


def state_at(log: Log, stream: str, until: int, *, use_images: bool = True, keep: Keep = "last") -> TableState:
    """The rows of a table as of a position of the log.

    Args:
        use_images: Begin at the nearest image, and keep new ones.
        keep: One at the end, if many changes were replayed; or some on the way, too.
    """
    found = images.nearest(log, stream, until) if use_images else None
    position, state = found if found is not None else (0, TableState())
    keeping = use_images and not log.store.readonly
    distance = END if keep == "last" else max(images.AT_LEAST, log.version(stream) // images.KEPT)
    # A table without the changes that were trimmed would be a wrong one.
    runs = log.runs(stream, types=TYPES, after=position, until_position=until + 1, trimmed="raise")
    while True:
        stretch = _Stretch(runs, position, distance)
        state.add(stretch)
        position = stretch.last
        if keeping and state.about.complete and images.is_due(stretch.count, state.height):
            _keep(log, stream, until if stretch.at_end else position, state, needed=keep == "all")
        if stretch.at_end:
            return state


def _keep(log: Log, stream: str, position: int, state: TableState, *, needed: bool) -> None:
    try:
        images.keep(log, stream, position, state)
    except MillstreamError:
        if needed:
            raise  # else who may only read, or a full disk, keeps nobody from an answer


class _Stretch:
    """Runs until they hold so many changes."""

    def __init__(self, runs: Iterator[Run], last: int, most: int) -> None:
        self._runs = runs
        self._most = most
        self.last = last
        self.count = 0
        self.at_end = False

    def __iter__(self) -> Iterator[Run]:
        while self.count < self._most:
            run = next(self._runs, None)
            if run is None:
                self.at_end = True
                return
            yield run
            self.count += run.count
            self.last = run.last


def _not_found(log: Log, stream: str) -> StreamNotFound:
    error = StreamNotFound(stream)
    captured = ", ".join(map(repr, captured_streams(log)))
    error.hint = f"Captured tables are in the streams {captured}" if captured else "No table was captured into this log"
    return error
