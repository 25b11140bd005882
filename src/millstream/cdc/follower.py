"""One sink and its checkpoint: what it is given, when it is given it again, and what is put aside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConsumerFenced, Rejected, SinkGone
from ..log.checkpoints import Checkpoint, advance, take
from ..time import now_micros
from .attempts import is_about_changes, items_of, parts_of, pause
from .change import Change, SchemaChanged, SnapshotCompleted
from .parking import EVERY_ROW, TABLE, TABLES, Place, Shelf, error_text, keys_of
from .shape import shape_of
from .sinks.base import RETRIES, Sink

if TYPE_CHECKING:
    from ..log import Log, Run
    from ..storage.base import Receipt
    from ..storage.database import Database
    from .attempts import Item

STEP = 256
"""How many changes a sink that takes fewer at once handles between two commits of its checkpoint."""

_SOONER = 1.0
"""Seconds after which a slow sink's checkpoint is committed although the step is not complete."""

_LOOK = 0.5
"""Seconds between two looks at what is parked, which someone may want to be tried again."""


class Follower:
    """Gives a stream's changes to one sink, in the thread that calls `follow` or `catch_up`."""

    def __init__(self, log: Log, stream: str, sink: Sink) -> None:
        self.log = log
        self.stream = stream
        self.sink = sink
        self.error: Exception | None = None
        self.shelf = Shelf(stream, sink.name)
        self._retries: int | None = getattr(sink, "retries", RETRIES)
        self._ordered: bool = getattr(sink, "ordered", True)
        self._hooks: dict[str, Callable[..., Any] | None] = {
            name: getattr(sink, name, None) for name in ("open", "notice", "settle", "close")
        }
        notices = (SchemaChanged, SnapshotCompleted) if self._hooks["notice"] is not None else ()
        self._types = (Change, *notices)
        self._step = max(STEP, sink.size)
        self._checkpoint: Checkpoint | None = None
        self._open = False
        self._done = 0
        """All up to here was given to the sink or parked."""
        self._seen = 0
        """Beyond that, up to here nothing of the stream was found."""
        self._committed_at = float("-inf")
        self._pending: list[Place] = []
        """Parked, and not committed yet."""
        self._looked = False
        """Whether what was found parked was tried, as far as it is to be."""
        self._look_at = 0.0
        self._failed = (0, 0)
        """The position of the last change that failed, and how often it has."""

    @property
    def position(self) -> int:
        """The last position of the log that the sink is done with."""
        return max(self._seen, self._done)

    def follow(self, stopping: threading.Event) -> None:
        """Until told to stop, or until nothing more can be done."""
        failures = 0
        self._checkpoint = None
        try:
            while not stopping.is_set():
                before = self._done
                try:
                    self._catch_up(stopping)
                    self.error, failures = None, 0
                    self.log.wait(self.position, 0.2)
                except (ConsumerFenced, SinkGone) as error:
                    self.error = error
                    return
                except Exception as error:  # a sink may fail in any way, and is to be tried again
                    self.error = error
                    failures = 1 if self._done > before else failures + 1
                    stopping.wait(pause(failures, error))
                if self.log.closed:
                    return
        finally:
            self._close()

    def catch_up(self) -> int:
        """Take the sink over, and give it all there is; how many changes it took.

        Raises:
            Exception: What it failed with, before `retries` were used up.
        """
        self._checkpoint = None
        try:
            count = self._catch_up(None)
            self.error = None
            return count
        except Exception as error:
            self.error = error
            raise
        finally:
            self._close()

    # --- a visit ------------------------------------------------------------------------------------------

    def _catch_up(self, stopping: threading.Event | None) -> int:
        try:
            self._prepare()
            count, head = 0, self.log.head
            if self.position < head:
                count += self._read(head, stopping)
            # Then only: a sink that keeps its own position moves it past what it takes, and past all before that.
            if self.position >= head:
                count += self._take_up()
            settle = self._hooks["settle"]
            if settle is not None and not (stopping is not None and stopping.is_set()):
                settle()
            return count
        except BaseException:
            # What was noted in memory may not have been committed, and a connection may be broken.
            self._open, self._pending = False, []
            raise

    def _prepare(self) -> None:
        """See that checkpoint, shelf and sink are at hand."""
        if self._checkpoint is None:
            self._checkpoint = self._take()
            self._done, self._seen, self._open = self._checkpoint.position, 0, False
        if self._open:
            return
        opener = self._hooks["open"]
        held = opener(self.log, self.stream) if opener is not None else None
        self._done = self._checkpoint.position if held is None else held
        self._seen = 0
        with self.log.connect() as db:
            self.shelf.load(db)
        self._open, self._looked, self._look_at = True, False, 0.0

    def _close(self) -> None:
        settle, close = self._hooks["settle"], self._hooks["close"]
        try:
            if settle is not None and self._open and self.error is None:
                settle(last=True)
        except Exception as error:
            self.error = error
        self._open = False
        if close is not None:
            close()

    def _take(self) -> Checkpoint:
        found: list[Checkpoint] = []

        def work(db: Database, receipt: Receipt) -> None:
            db.ensure_table(TABLE, TABLES[TABLE])
            found.append(take(db, f"sync:{self.stream}:{self.sink.name}"))

        self.log.commit(work=work)
        return found[-1]

    def _read(self, head: int, stopping: threading.Event | None) -> int:
        """Give the sink what came up to a head. Neighbouring runs, however small, are joined."""
        count = 0
        group: list[Item] = []
        for run in self.log.runs(self.stream, types=self._types, after=self.position, until_position=head + 1):
            if run.type != Change.__event_type__:
                count += self._group(group)
                group = []
                self._notice(run)
                continue
            for part in parts_of(run, self._step):
                group += items_of(part)
                if len(group) >= self._step:
                    count += self._group(group)
                    group = []
                    if stopping is not None and stopping.is_set():
                        return count
        count += self._group(group)
        if self._done < head:
            # In a log that is busy with other streams this would be a commit for each of theirs.
            self._seen = head
            if stopping is None or time.monotonic() - self._committed_at >= _SOONER:
                self._commit(head)
                self._done = head
        return count

    def _notice(self, run: Run) -> None:
        notice = self._hooks["notice"]
        assert notice is not None
        for event, recorded in zip(run.events(), run, strict=True):
            notice(event, recorded)
            self._done = recorded.position
        self._commit(self._done)

    # --- changes ------------------------------------------------------------------------------------------

    def _group(self, items: Sequence[Item]) -> int:
        """Give the sink changes, as many at once as it takes; then commit its checkpoint. How many it took."""
        if not items:
            return 0
        size = len(items) if self.sink.transactional else self.sink.size
        count, begun = 0, time.monotonic()
        try:
            for first in range(0, len(items), size):
                count += self._give(items[first : first + size])
                if (now := time.monotonic()) - begun >= _SOONER:
                    self._commit(self._done)
                    begun = now
        finally:
            assert self._checkpoint is not None
            if self._done != self._checkpoint.position:
                self._commit(self._done)
        return count

    def _give(self, items: Sequence[Item]) -> int:
        """Give the sink some changes at once, but park those that would overtake a parked one. If they fail, halve
        them down to the change at fault."""
        free = [item for item in items if not self._held_up(item)]
        count = len(free)
        if free:
            try:
                self._hand_over(free)
            except Exception as error:
                if not is_about_changes(error):
                    raise
                if len(free) == 1:
                    self._fault(free[0], error)
                    count = 0
                else:
                    half = len(free) // 2
                    count = self._give(free[:half]) + self._give(free[half:])
        self._done = max(self._done, items[-1][1].position)
        return count

    def _hand_over(self, items: Sequence[Item]) -> None:
        if self.sink.transactional:
            self._commit(items[-1][1].position, lambda db: self.sink.apply(items, db))
        else:
            self.sink.apply(items, None)

    def _held_up(self, item: Item) -> bool:
        """Whether a change must wait; it is parked then. One that is parked already is passed over."""
        change, recorded = item
        if not self.shelf.places:
            return False
        if recorded.position in self.shelf.places:
            return True
        if not self._ordered:
            return False
        keys = keys_of(change, shape_of(recorded.run.schema))
        if self.shelf.holds(keys):
            self._park(Place(recorded.position, keys, "waiting", since=now_micros()))
            return True
        return False

    def _fault(self, item: Item, error: Exception) -> None:
        """A single change failed: raise, for it to be tried again, or park it when that was done often enough."""
        change, recorded = item
        position, failures = self._failed
        failures = failures + 1 if position == recorded.position else 1
        self._failed = (recorded.position, failures)
        if not isinstance(error, Rejected) and (self._retries is None or failures <= self._retries):
            raise error
        keys = keys_of(change, shape_of(recorded.run.schema)) if self._ordered else ()
        self._park(Place(recorded.position, keys, "parked", error_text(error), failures, now_micros()))

    def _park(self, place: Place) -> None:
        self.shelf.add(place)
        self._pending.append(place)

    def _commit(self, position: int, work: Callable[[Database], None] | None = None, taken: Sequence[int] = ()) -> None:
        """Move the checkpoint; with it, park what was put aside before, and forget what was taken after all."""
        checkpoint = self._checkpoint
        assert checkpoint is not None
        parked = [place for place in self._pending if place.position <= position]

        def commit(db: Database, receipt: Receipt) -> None:
            advance(db, checkpoint, position)
            if parked:
                self.shelf.write(db, parked)
            if taken:
                self.shelf.erase(db, taken)
            if work is not None:
                work(db)

        self.log.commit(work=commit)
        self._pending = [place for place in self._pending if place.position > position]
        self._checkpoint = Checkpoint(checkpoint.name, position, checkpoint.epoch)
        self._committed_at = time.monotonic()

    # --- what was parked ----------------------------------------------------------------------------------

    def _take_up(self) -> int:
        """Try again what is to be tried again, and what waited for nothing more. How many changes it took."""
        shelf = self.shelf
        if not shelf.places or time.monotonic() < self._look_at:
            return 0
        self._look_at = time.monotonic() + _LOOK
        with self.log.connect() as db:
            if self._looked and not shelf.differs(db):
                return 0
            shelf.load(db)
        self._looked = True
        count = 0
        while places := self._ready():
            count += self._again(places)
        return count

    def _ready(self) -> list[Place]:
        """Some of the changes that nothing holds up, in order."""
        found: list[Place] = []
        blocked: set[str] = set()
        for place in sorted(self.shelf.places.values(), key=lambda place: place.position):
            every = EVERY_ROW in place.keys
            stuck = EVERY_ROW in blocked or bool(blocked if every else blocked.intersection(place.keys))
            if place.state == "parked" or stuck:
                blocked.update(place.keys)
            elif len(found) < self._step:
                found.append(place)
        return found

    def _again(self, places: Sequence[Place]) -> int:
        """Give the sink parked changes again. One that fails is parked as before, and what waits for it waits on."""
        wanted = {place.position for place in places}
        items: list[Item] = []
        for run in self.log.runs(
            self.stream, types=(Change,), after=places[0].position - 1, until_position=places[-1].position + 1
        ):
            if wanted.isdisjoint(range(run.position, run.last + 1)):
                continue
            items += [item for item in items_of(run) if item[1].position in wanted]
        found = {recorded.position for _, recorded in items}
        for place in places:
            if place.position not in found:
                self._put_back(place, "the change is no longer in the log: it was trimmed")
        count = 0
        size = len(items) if self.sink.transactional else self.sink.size
        for first in range(0, len(items), max(size, 1)):
            count += self._give_again(items[first : first + size])
        return count

    def _give_again(self, items: Sequence[Item]) -> int:
        stuck = {key for place in self.shelf.places.values() if place.state == "parked" for key in place.keys}
        free = [
            item
            for item in items
            if EVERY_ROW not in stuck and stuck.isdisjoint(self.shelf.places[item[1].position].keys)
        ]
        if not free:
            return 0
        positions = [recorded.position for _, recorded in free]
        checkpoint = self._checkpoint
        assert checkpoint is not None
        try:
            if self.sink.transactional:
                self._commit(checkpoint.position, lambda db: self.sink.apply(free, db), positions)
            else:
                self.sink.apply(free, None)
                self._commit(checkpoint.position, None, positions)
        except Exception as error:
            if not is_about_changes(error):
                raise
            if len(free) > 1:
                half = len(free) // 2
                return self._give_again(free[:half]) + self._give_again(free[half:])
            self._put_back(self.shelf.places[positions[0]], error_text(error))
            return 0
        for position in positions:
            self.shelf.drop(position)
        return len(free)

    def _put_back(self, place: Place, error: str) -> None:
        place.state, place.error, place.attempts = "parked", error, place.attempts + 1
        self._pending.append(place)
        assert self._checkpoint is not None
        self._commit(self._checkpoint.position)
