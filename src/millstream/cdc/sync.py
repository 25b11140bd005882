"""Followers of a table: each change of it, in order, to something outside.

What a follower is promised. Every sink has its own checkpoint in the log, moved after the sink has done its work.
A sink outside the log cannot be part of that commit, so it gets every change *at least once*: after a crash, the
last few changes (at most `STEP`) come again, in the same order. Each change carries its position in the log, by
which a sink tells a repeat from a new one. A callback that asks for ``db`` runs inside the commit that moves its
checkpoint: what it writes to that database is there *exactly once*.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..errors import ConsumerFenced, UsageError
from ..log.checkpoints import Checkpoint, advance, take
from .capture import stream_of
from .change import Change, decode_change

if TYPE_CHECKING:
    from ..log import Log, Recorded, Run
    from ..storage.base import Receipt
    from ..storage.database import Database

STEP = 256
"""How many changes a sink handles between two commits of its checkpoint."""

_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Sink(Protocol):
    """Something that follows a table."""

    name: str
    """Names its checkpoint: the same name goes on where it was, another begins at the beginning."""

    size: int
    """How many changes it takes at once; when it fails, all of them come again."""

    transactional: bool
    """Whether `apply` writes only to the database that it is given, and belongs into the checkpoint's commit."""

    def apply(self, changes: Sequence[tuple[Change, Recorded]], db: Database | None) -> None:
        """Act on changes, in order. A failure leaves the checkpoint before the first of them."""


class Callback:
    """A function as a follower.

    Args:
        function: Called with each `Change`, in order, its values as the source holds them. It may also ask, by
            the names of its parameters, for ``recorded`` (the envelope: ``recorded.position`` tells a repeat)
            and for ``db`` (the log's database: the call then happens inside the checkpoint's commit, maybe
            twice or on another thread, and must have no other effects).
        name: Names its checkpoint; by default the function's module and qualified name.

    Example:
        >>> import millstream as ms
        >>> from millstream.cdc import Callback
        >>> Callback(print, name="printer").name
        'printer'
    """

    size = 1

    def __init__(self, function: Callable[..., object], *, name: str | None = None) -> None:
        if not callable(function):
            raise UsageError(f"{function!r:.60} cannot be called", hint="Give a function of one change")
        self.function = function
        self.name = name or _name_of(function)
        wants = _parameters(function)
        self.transactional = "db" in wants
        self._recorded = "recorded" in wants

    def apply(self, changes: Sequence[tuple[Change, Recorded]], db: Database | None) -> None:
        """Call the function for each change."""
        for change, recorded in changes:
            extra: dict[str, Any] = {}
            if self._recorded:
                extra["recorded"] = recorded
            if self.transactional:
                extra["db"] = db
            self.function(change, **extra)


def _name_of(function: Callable[..., object]) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def _parameters(function: Callable[..., object]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin without a signature takes the change alone
        return set()


def sync(log: Log, table: str, *sinks: Sink | Callable[..., object], prefix: str = "", start: bool = True) -> Sync:
    """Let sinks follow a captured table, from the beginning of its stream.

    Args:
        table: The table's name, as its capture gives it.
        sinks: Functions (each is wrapped in a `Callback`) and sinks.
        prefix: As in `capture`.
        start: Follow in the background at once. With False, call `Sync.catch_up`, `Sync.run` or `Sync.start`.

    Returns:
        The followers, to stop or to wait for; also a context manager that stops them.

    Raises:
        UsageError: There is no sink, or two have one name.
    """
    made = [_as_sink(sink) for sink in sinks]
    if not made:
        raise UsageError("there is nothing to sync to", hint="Give a function, or a sink")
    names = [sink.name for sink in made]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two sinks have one name: {', '.join(sorted(names))}", hint="Give each a name: Callback(f, name='mail')"
        )
    result = Sync(log, prefix + stream_of(table), made)
    if start:
        result.start()
    return result


def _as_sink(sink: Sink | Callable[..., object]) -> Sink:
    return cast(Sink, sink) if hasattr(sink, "apply") else Callback(sink)


class Sync:
    """Sinks that follow one table; made by `sync`. One failing sink does not hold up the others."""

    def __init__(self, log: Log, stream: str, sinks: Sequence[Sink]) -> None:
        self.stream = stream
        self._followers = [_Follower(log, stream, sink) for sink in sinks]
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def errors(self) -> dict[str, Exception]:
        """What each sink last failed with, by its name, as long as it has not succeeded since."""
        return {f.sink.name: f.error for f in self._followers if f.error is not None}

    @property
    def positions(self) -> dict[str, int]:
        """The last position of the log that each sink is done with, by its name."""
        return {f.sink.name: f.position for f in self._followers}

    def catch_up(self) -> int:
        """Bring every sink up to the head of the log, and return how many changes were applied.

        Raises:
            ConsumerFenced: Another worker has taken a sink over.
            Exception: What a sink failed with; its checkpoint stands before the change at fault.
        """
        return sum(follower.catch_up(None) for follower in self._followers)

    def run(self) -> None:
        """Follow until `stop` is called from another thread. A failing sink is tried again, after pauses that
        grow to 30 seconds; no change is skipped."""
        self.start()
        for thread in list(self._threads):
            thread.join()

    def start(self) -> None:
        """Follow in the background."""
        if any(thread.is_alive() for thread in self._threads):
            raise UsageError("these sinks are following already", hint="Stop them first")
        self._stopping.clear()
        self._threads = [
            threading.Thread(
                target=follower.follow,
                args=(self._stopping,),
                name=f"millstream-sync-{follower.sink.name}",
                daemon=True,
            )
            for follower in self._followers
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the followers after the changes at hand.

        Raises:
            ConsumerFenced: Another worker had taken a sink over.
        """
        self._stopping.set()
        threads, self._threads = self._threads, []
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        for follower in self._followers:
            if isinstance(follower.error, ConsumerFenced):
                raise follower.error

    def __enter__(self) -> Sync:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Follower:
    """One sink and its checkpoint."""

    def __init__(self, log: Log, stream: str, sink: Sink) -> None:
        self.log = log
        self.stream = stream
        self.sink = sink
        self.error: Exception | None = None
        self._checkpoint: Checkpoint | None = None
        self._seen = 0  # beyond the checkpoint, where nothing of this stream was found
        self._moved_at = 0.0

    @property
    def position(self) -> int:
        return max(self._seen, self._checkpoint.position) if self._checkpoint is not None else 0

    def follow(self, stopping: threading.Event) -> None:
        failures = 0
        self._checkpoint = None
        while not stopping.is_set():
            try:
                self.catch_up(stopping)
                self.error, failures = None, 0
            except ConsumerFenced as error:
                self.error = error
                return
            except Exception as error:  # a sink may fail in any way, and is to be tried again
                self.error = error
                stopping.wait(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
                continue
            while not stopping.is_set() and not self.log.wait(self.position, 0.2):
                if self.log.closed:
                    return

    def catch_up(self, stopping: threading.Event | None) -> int:
        """Apply what is there; how many changes."""
        if self._checkpoint is None or stopping is None:
            self._checkpoint, self._seen = self._take(), 0
        head, count = self.log.head, 0
        for run in self.log.runs(self.stream, types=(Change,), after=self.position, until_position=head + 1):
            for first in range(0, run.count, STEP):
                if stopping is not None and stopping.is_set():
                    return count
                part = run.cut(run.position + first - 1, run.position + first + STEP)
                assert part is not None
                self._apply(part)
                count += part.count
        if self.position < head:
            # In a log that is busy with other streams this would be a commit for each of theirs.
            if stopping is None or time.monotonic() - self._moved_at >= 1.0:
                self._advance(head, None)
            self._seen = head
        return count

    def _apply(self, run: Run) -> None:
        changes = [
            (decode_change(event, run.schema), recorded)
            for event, recorded in zip(run.events(Change), run, strict=True)
        ]
        if self.sink.transactional:
            self._advance(run.last, lambda db: self.sink.apply(changes, db))
            return
        done = run.position - 1
        try:
            for first in range(0, len(changes), self.sink.size):
                some = changes[first : first + self.sink.size]
                self.sink.apply(some, None)
                done = some[-1][1].position
        finally:
            if done >= run.position:
                self._advance(done, None)

    def _take(self) -> Checkpoint:
        found: list[Checkpoint] = []
        name = f"sync:{self.stream}:{self.sink.name}"
        self.log.commit(work=lambda db, receipt: found.append(take(db, name)))
        return found[-1]

    def _advance(self, position: int, work: Callable[[Database], None] | None) -> None:
        checkpoint = self._checkpoint
        assert checkpoint is not None

        def commit(db: Database, receipt: Receipt) -> None:
            advance(db, checkpoint, position)
            if work is not None:
                work(db)

        self.log.commit(work=commit)
        self._checkpoint = Checkpoint(checkpoint.name, position, checkpoint.epoch)
        self._moved_at = time.monotonic()
