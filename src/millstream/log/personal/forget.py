"""A subject is forgotten: their key is destroyed, and all that was sealed with it is unreadable, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ...errors import ReadOnlyLog, StorageError, Trimmed
from ...events import Event, sealed_fields, sealed_in_rows
from ...frames import sealed_columns
from ...storage.base import Request, Scope
from ..checkpoints import TABLE
from ..images import drop_images
from ..staging import PRIVACY, stage
from .keys import SNAPSHOT, check_subject, sealed_types
from .sealing import subjects_of

if TYPE_CHECKING:
    from ..log import Log
    from ..reading import Reader
    from ..records import Run

_PAGE = 1_000
_END = 1 << 62


class SubjectForgottenEvent(Event, type="$SubjectForgotten"):
    """The key of a subject was destroyed: for readers and copies that do not have the keys."""

    subject: str


class ForgottenStream(msgspec.Struct, frozen=True):
    """What of a stream became unreadable."""

    stream: str
    events: int
    """How many events have personal data of the subject."""
    first: int
    """Position of the first of them."""
    last: int


class Forgotten(msgspec.Struct, frozen=True):
    """What `millstream.Log.forget` has made unreadable.

    Attributes:
        subject: Who was forgotten.
        events: How many events hold their personal data.
        first: Position of the first of these; 0 when there is none.
        last: Position of the last.
        streams: The same, stream by stream.
        models: The consumers that have a checkpoint in the log's database at or beyond ``first``: read models, sinks
            and flows that may hold copies. Those with a checkpoint elsewhere, such as in a read model's own file,
            are not known here.
    """

    subject: str
    events: int
    first: int
    last: int
    streams: tuple[ForgottenStream, ...]
    models: tuple[str, ...]


def forget(log: Log, subject: str) -> Forgotten:
    """See `Log.forget`."""
    check_subject(subject)
    if log.store.readonly:
        raise ReadOnlyLog(log.location)
    # Snapshots first: once the key is gone, nobody may find in one of them what it has sealed, even if the rest fails.
    found: dict[str, tuple[int, int, int]] = {}
    head = log.head
    unread = _lose_snapshots(log, subject, 0, head, found)
    log.keys.forget(subject)
    log.tail.forget()
    told = stage(PRIVACY, SubjectForgottenEvent(subject=subject), own=True)
    log.store.commit(Request([told], f"$forgotten:{subject}", subject.encode()))
    # Again: one may have been made meanwhile, from events that came meanwhile, too.
    unread = _lose_snapshots(log, subject, head, log.head, found) or unread
    if unread is not None:
        unread.add_note(f"The key of {subject!r} is destroyed. What of theirs there was is told when asked again.")
        raise unread
    drop_images(log, found)
    streams = [ForgottenStream(stream, *seen) for stream, seen in sorted(found.items())]
    first = min((each.first for each in streams), default=0)
    return Forgotten(
        subject,
        sum(each.events for each in streams),
        first,
        max((each.last for each in streams), default=0),
        tuple(streams),
        _consumers(log, first) if streams else (),
    )


def _lose_snapshots(
    log: Reader, subject: str, after: int, until: int, found: dict[str, tuple[int, int, int]]
) -> StorageError | None:
    """Destroy the keys of the snapshots that may hold data of a subject, by the events up to a position.

    Args:
        found: By stream, how many events after the one position and up to the other hold sealed data of the subject,
            and the first and the last position; is added to.

    Returns:
        Why some of these events could not be looked into, if so.
    """
    unread: StorageError | None = None
    # What was trimmed, or cannot be read now, may have been the subject's and be in a snapshot.
    doubtful: set[str] = set()
    needle = msgspec.json.encode(subject)[1:]
    for run in sealed_runs(log, after, until):
        try:
            rows = _rows_of(run, subject, needle)
        except (Trimmed, StorageError) as error:
            doubtful.add(run.stream)
            if isinstance(error, StorageError):
                unread = unread or error
            continue
        for index in rows:
            position = run.position + index
            count, first, _ = found.get(run.stream, (0, position, 0))
            found[run.stream] = (count + 1, first, position)
    for stream in doubtful.union(found):
        log.keys.discard(SNAPSHOT + stream)
    return unread


def _rows_of(run: Run, subject: str, needle: bytes) -> list[int]:
    """Which events of a run hold sealed data of a subject."""
    if run.is_frame:
        frame = run.frame(sorted({column for column, _ in sealed_columns(run.schema).values()}))
        return [row for row, whose in enumerate(frame.rows()) if subject in whose]
    lines = (line if isinstance(line, bytes) else line.encode() for line in run.lines())
    fields, columns = sealed_fields(run.schema), sealed_in_rows(run.schema)
    return [row for row, line in enumerate(lines) if needle in line and subject in subjects_of(line, fields, columns)]


def sealed_runs(log: Reader, after: int, until: int) -> Iterator[Run]:
    """The runs of kinds with sealed fields after a position and up to another, as they are stored."""
    from ..records import Run

    types = sealed_types(log.store)
    while types and (rows := log.store.page(Scope(types=types), after, until + 1, _PAGE)):
        runs = [Run(log, *row) for row in rows]
        after = runs[-1].last
        yield from (run for run in runs if sealed_fields(run.schema))
        if len(rows) < _PAGE:
            return


def _consumers(log: Reader, first: int) -> tuple[str, ...]:
    """The consumers that are done with a position, by their checkpoints."""
    with log.connect() as db:
        if not db.has_table(TABLE):
            return ()
        rows = db.query(f"select name from {db.own(TABLE)} where position >= ? order by name", (first,))
    return tuple(row["name"] for row in rows if not row["name"].startswith("capture:"))


def told_forgotten(log: Reader, after: int, until: int) -> list[str]:
    """Who was forgotten, by what the log says of itself between two positions, the second included."""
    events = log.read(PRIVACY, since_position=after + 1, until_position=until + 1)
    return [event.decode(SubjectForgottenEvent).subject for event in events if event.type == "$SubjectForgotten"]
