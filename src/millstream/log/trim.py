"""Trimming: bodies that a rule no longer keeps are dropped; their headers and hashes stay.

Done in small steps beside writers. Each is one transaction that also appends what it did to ``$retention``, so that it
can be killed at any moment, and `verify` can tell what was trimmed from what was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from ..errors import InvalidRetention
from ..storage.base import Encoding, Request
from .bodies import Trim
from .ledger import STREAM, RunsTrimmed, told
from .moving import LINKS, STEP_BYTES, headers, move, sizes
from .records import Run
from .retention import Keep, Task, amount, bound, check_by, check_pattern, once, tasks

if TYPE_CHECKING:
    from .log import Log


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

    def add(self, olds: Iterable[Old]) -> None:
        """Count runs."""
        for old in olds:
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
        plan = once(log, check_pattern(stream), amount(keep), None)
    else:
        plan = tasks(log, ledger.rules, None if stream is None else check_pattern(stream))
    done: list[StreamTrimmed] = []
    kept_elsewhere: list[Task] = []
    for task in plan:
        if task.archive is not None and not dry_run:
            kept_elsewhere.append(task)
            continue
        tally = Tally()
        if dry_run:
            tally.add(old_runs(log, task))
        else:
            for step in _steps(old_runs(log, task)):
                tally.add(drop(log, task, step, who))
        done += _told(log, task, tally)
    if kept_elsewhere:
        from .archive import put_away

        for task, gone in put_away(log, kept_elsewhere, who):
            done += _told(log, task, gone)
    return Trimming(tuple(done), dry_run)


def _told(log: Log, task: Task, tally: Tally) -> list[StreamTrimmed]:
    if not tally.runs:
        return []
    location = None if task.archive is None else log.archives.ledger.archives[task.archive]
    return [
        StreamTrimmed(
            task.stream, task.rule, location, tally.first, tally.last, tally.runs, tally.events, tally.size
        )
    ]  # fmt: skip


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


def _steps(found: Iterator[Old]) -> Iterator[list[Old]]:
    step: list[Old] = []
    size = 0
    for old in found:
        if step and (len(step) == LINKS or size + old.size > STEP_BYTES):
            yield step
            step, size = [], 0
        step.append(old)
        size += old.size
    if step:
        yield step


def drop(log: Log, task: Task, step: list[Old], by: str) -> list[Old]:
    """Trim some runs of a stream in one transaction; those that others have trimmed meanwhile are left out."""
    trim = Trim(task.stream, log.store.now(), by, task.rule)

    def request(left: list[Run]) -> Request:
        taken = {run.position for run in left}
        olds = [old for old in step if old.run.position in taken]
        event = RunsTrimmed(
            stream=task.stream, first=left[0].position, last=left[-1].last, runs=len(left),
            events=sum(run.count for run in left), size=sum(old.size for old in olds), rule=task.rule, by=by,
            floor=step[-1].floor if len(left) == len(step) else 0,
        )  # fmt: skip
        return told(event)

    runs = [old.run for old in step]
    body = msgspec.json.encode(trim)
    moved = move(log, Encoding.TRIMMED, body, runs, [0] * len(runs), request, gone=(Encoding.TRIMMED,))
    taken = {run.position for run in moved}
    return [old for old in step if old.run.position in taken]
