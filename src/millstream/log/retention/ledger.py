"""What was decided and done about the log's past: the events of the stream ``$retention``, and what follows from them.

Rules, the places of archives, and each act of archiving, trimming and restoring are events like any other, in the chain
of hashes and in the transaction of what they tell of. So a body is never gone without an event that names it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from typing import Any

import msgspec

from ...conversion import ready
from ...errors import DamagedLog, InvalidEvent
from ...events import Event
from ...storage.base import Request
from ...storage.contract import Store
from ...storage.forked import lock
from ..paging import END
from ..reading import Reader
from ..staging import RETENTION, stage

STREAM = RETENTION
"""Where these events are. The stream itself is never trimmed or archived."""


class RetentionSet(Event, type="$RetentionSet"):
    """A rule was made or changed, or removed (``keep`` is None)."""

    pattern: str
    keep: str | None
    by: str
    archive: str | None = None
    """The archive that takes what is beyond it."""


class ArchiveAdded(Event, type="$ArchiveAdded"):
    """A place is used as an archive from now on."""

    archive: str
    location: str
    by: str


class ArchiveMoved(Event, type="$ArchiveMoved"):
    """An archive is at another location now."""

    archive: str
    location: str
    by: str


class RunsArchived(Event, type="$RunsArchived"):
    """A file was put into an archive, and runs are read from it from now on."""

    archive: str
    file: str
    sha256: str
    size: int
    """In bytes."""
    stream: str
    """The stream, or the beginning of the names of its streams, followed by ``*``."""
    kind: str
    """The events' type."""
    layout: str
    first: int
    """Position of the first event."""
    last: int
    rows: int
    """How many events."""
    runs: int
    by: str


class TrimmedPart(msgspec.Struct):
    """What was trimmed of one stream."""

    stream: str
    first: int
    """Position of the first event."""
    last: int = 0
    runs: int = 0
    events: int = 0
    size: int = 0
    """How many bytes the bodies had in the log."""
    floor: int = 0
    """The position up to which nothing of the stream is left; 0 when that is not known."""


class RunsTrimmed(Event, type="$RunsTrimmed"):
    """Bodies of runs were trimmed."""

    rule: str
    by: str
    parts: list[TrimmedPart]


class RunsRestored(Event, type="$RunsRestored"):
    """Bodies of runs of a stream were put back into the log."""

    stream: str
    first: int
    last: int
    runs: int
    events: int
    by: str


class ArchiveCleaned(Event, type="$ArchiveCleaned"):
    """Files that no run is read from were deleted."""

    archive: str
    files: list[str]
    by: str


class Trims(msgspec.Struct):
    """What was trimmed of a stream."""

    floor: int = 0
    """The position up to which nothing is left."""
    events: int = 0
    ranges: list[tuple[int, int]] = []
    """First and last positions, sorted; they do not overlap, but for what different rules have taken."""

    def add(self, first: int, last: int) -> None:
        """Take in that runs between two positions were trimmed."""
        if self.ranges and self.ranges[-1][0] <= first <= self.ranges[-1][1] + 1:
            self.ranges[-1] = (self.ranges[-1][0], max(self.ranges[-1][1], last))
        else:
            insort(self.ranges, (first, last))

    def takes_in(self, first: int, last: int) -> bool:
        """Whether there is a range that reaches from at or before the first position to the last or beyond."""
        at = bisect_right(self.ranges, (first, END))
        # Ranges of different rules may lie inside one another: a longer one can begin before the nearest.
        return any(self.ranges[i][1] >= last for i in range(at - 1, -1, -1))


_CLASSES: dict[str, type[Event]] = {
    cls.__event_type__: cls
    for cls in (
        RetentionSet, ArchiveAdded, ArchiveMoved, RunsArchived, RunsTrimmed, RunsRestored, ArchiveCleaned,
    )
}  # fmt: skip


class Ledger:
    """What all those events come to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader = Reader(store)
        self._mutex = lock()
        self._reset()
        store.on_stale.append(self._reset)

    def _reset(self) -> None:
        self._seen = 0
        self.rules: dict[str, RetentionSet] = {}
        self.archives: dict[str, str] = {}
        """The location of each archive."""
        self.files: dict[tuple[str, str], RunsArchived] = {}
        """By archive and name."""
        self.cleaned: set[tuple[str, str]] = set()
        """Files that were deleted."""
        self.trims: dict[str, Trims] = {}

    def refresh(self) -> Ledger:
        """Take in what was added since."""
        with self._mutex:
            for recorded in self._reader.read(STREAM, after=self._seen):
                cls = _CLASSES.get(recorded.type)
                if cls is not None:
                    try:
                        event = recorded.decode(cls)
                    except InvalidEvent as error:
                        raise DamagedLog(recorded.position, f"it is no {recorded.type} ({error.message})") from error
                    _APPLY[cls](self, event)
                self._seen = recorded.position
        return self

    def floor(self, stream: str) -> int:
        """The position up to which nothing of a stream is left, as far as it was told."""
        trims = self.refresh().trims.get(stream)
        return trims.floor if trims is not None else 0

    def _set(self, event: RetentionSet) -> None:
        if event.keep is None:
            self.rules.pop(event.pattern, None)
        else:
            self.rules[event.pattern] = event

    def _place(self, event: ArchiveAdded | ArchiveMoved) -> None:
        self.archives[event.archive] = event.location

    def _archived(self, event: RunsArchived) -> None:
        self.files[event.archive, event.file] = event

    def _trimmed(self, event: RunsTrimmed) -> None:
        for part in event.parts:
            trims = self.trims.setdefault(part.stream, Trims())
            trims.floor = max(trims.floor, part.floor)
            trims.events += part.events
            trims.add(part.first, part.last)

    def _cleaned(self, event: ArchiveCleaned) -> None:
        for file in event.files:
            self.files.pop((event.archive, file), None)
            self.cleaned.add((event.archive, file))

    def tell(self, *events: Event) -> None:
        """Append events, all in one commit."""
        self._store.commit(told(*events))
        self.refresh()


_APPLY: dict[type[Event], Callable[[Ledger, Any], None]] = {
    RetentionSet: Ledger._set,
    ArchiveAdded: Ledger._place,
    ArchiveMoved: Ledger._place,
    RunsArchived: Ledger._archived,
    RunsTrimmed: Ledger._trimmed,
    RunsRestored: lambda ledger, event: None,
    ArchiveCleaned: Ledger._cleaned,
}


def told(*events: Event) -> Request:
    """The request that appends events, for the transaction of what they tell of."""
    return Request([stage(STREAM, events if len(events) > 1 else events[0], own=True)])


def decoded(type: str, text: bytes) -> Event | None:
    """An event of these, of its JSON; None when it is none."""
    cls = _CLASSES.get(type)
    return None if cls is None else msgspec.json.decode(text, type=ready(cls))
