"""Trimming: bodies that a rule no longer keeps are dropped; their headers and hashes stay.

Done in small steps beside writers. Each is one transaction that also appends what it did to ``$retention``, so that it
can be killed at any moment, and `verify` can tell what was trimmed from what was lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from ...errors import InvalidRetention
from ...storage.base import Encoding, Request
from ..bodies import Trim
from ..images import drop_images
from ..records import Run
from .ledger import STREAM, RunsTrimmed, TrimmedPart, told
from .relink import headers, relink, sizes, steps
from .rules import Keep, Task, amount, bound, check_by, check_known, once, tasks

if TYPE_CHECKING:
    from ..log import Log


class StreamTrimmed(msgspec.Struct, frozen=True):
    """What was, or would be, trimmed of a stream.

    Attributes:
        stream: Its name.
        rule: What is kept, in words.
        archive: The location that its events went to; None when they were dropped.
        first: Position of the first event.
        last: Position of the last one.
        runs: How many runs.
        events: How many events.
        size: How many bytes of bodies in the log.
    """

    stream: str
    rule: str
    archive: str | None
    first: int
    last: int
    runs: int
    events: int
    size: int


class Trimming(msgspec.Struct, frozen=True):
    """What a trim did, or would do: stream by stream."""

    streams: tuple[StreamTrimmed, ...]
    dry_run: bool = False

    @property
    def events(self) -> int:
        """How many events."""
        return sum(each.events for each in self.streams)

    @property
    def size(self) -> int:
        """How many bytes of bodies."""
        return sum(each.size for each in self.streams)


class Tally(msgspec.Struct):
    """The runs of a stream that have gone, counted: of so many runs as there may be, none is kept."""

    first: int = 0
    last: int = 0
    runs: int = 0
    events: int = 0
    size: int = 0

    def add(self, old: Old) -> None:
        """Count a run."""
        self.first = self.first or old.run.position
        self.last = max(self.last, old.run.last)
        self.runs += 1
        self.events += old.run.count
        self.size += old.size


class Old(msgspec.Struct, frozen=True):
    """A run that a task no longer keeps, and its body at a glance."""

    run: Run
    size: int
    floor: int
    """The position up to which nothing of the stream is left once it has gone; 0 when something is."""


def trim(
    log: Log, stream: str | None = None, *, keep: Keep | None = None, dry_run: bool = False, by: str | None = None
) -> Trimming:
    """See `Log.trim`."""
    ledger = log.archives.ledger.refresh()
    who = check_by(by)
    if keep is not None:
        if stream is None:
            raise InvalidRetention("keep= is given without a stream", hint="Name the stream or category to trim")
        plan = once(log, check_known(log, stream), amount(keep), None)
    else:
        plan = tasks(log, dict(ledger.rules), None if stream is None else check_known(log, stream))
    done: list[tuple[Task, Tally]] = []
    kept_elsewhere: list[Task] = []

    def going() -> Iterator[tuple[Task, Old, Tally]]:
        for task in plan:
            if task.archive is not None and not dry_run:
                kept_elsewhere.append(task)
                continue
            done.append((task, Tally()))
            for old in old_runs(log, task):
                yield task, old, done[-1][1]

    if dry_run:
        for _, old, tally in going():
            tally.add(old)
    else:
        for step in steps(going(), lambda each: each[1].size):
            for _, same in groupby(step, lambda each: each[0].rule):
                _drop(log, list(same), who)
        for forget in tuple(log.store.on_stale):
            forget()
        if gone := {task.stream for task, tally in done if tally.runs}:
            drop_images(log, gone)  # they hold what was made of it
    if kept_elsewhere:
        from .archive import put_away

        done += put_away(log, kept_elsewhere, who)
    return Trimming(tuple(_told(log, task, tally) for task, tally in done if tally.runs), dry_run)


def _told(log: Log, task: Task, tally: Tally) -> StreamTrimmed:
    location = None if task.archive is None else log.archives.ledger.archives[task.archive]
    return StreamTrimmed(
        task.stream, task.rule, location, tally.first, tally.last, tally.runs, tally.events, tally.size
    )


def old_runs(log: Log, task: Task) -> Iterator[Old]:
    """The runs, whole, that a task no longer keeps, and that still have what it would take."""
    if task.stream == STREAM:
        return
    until = bound(log, task)
    trims = log.archives.ledger.trims.get(task.stream)
    floor = trims.floor if trims is not None else 0
    whole = True
    for runs in headers(log, task.stream, floor, until):
        found = sizes(log, runs)
        for run in runs:
            encoding, size = found[run.position]
            if encoding == Encoding.TRIMMED:
                floor = run.last if whole else floor
            elif (task.archive is not None and encoding == Encoding.ARCHIVED) or (
                task.frames_only and not run.is_frame
            ):
                whole = False
            else:
                floor = run.last if whole else floor
                yield Old(run, size, floor if whole else 0)


def _drop(log: Log, step: list[tuple[Task, Old, Tally]], by: str) -> None:
    """Trim some runs in one transaction, and count them; those that others have trimmed meanwhile are left out."""
    rule = step[0][0].rule
    body = msgspec.json.encode(Trim(log.store.now(), by, rule))
    runs = [old.run for _, old, _ in step]

    def request(left: list[Run]) -> Request:
        taken = {run.position for run in left}
        parts: dict[str, TrimmedPart] = {}
        for task, old, _ in step:
            if old.run.position not in taken:
                continue
            part = parts.setdefault(task.stream, TrimmedPart(stream=task.stream, first=old.run.position))
            part.last, part.floor = old.run.last, old.floor
            part.runs += 1
            part.events += old.run.count
            part.size += old.size
        return told(RunsTrimmed(rule=rule, by=by, parts=list(parts.values())))

    moved = relink(log, Encoding.TRIMMED, body, runs, [0] * len(runs), request, gone=(Encoding.TRIMMED,))
    taken = {run.position for run in moved}
    for _, old, tally in step:
        if old.run.position in taken:
            tally.add(old)
