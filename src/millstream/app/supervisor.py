"""Supervision: background work that is started again when it crashes, and says how it is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from ..cqrs.errors import ForeignReadModel, ProcessFailed, ProjectionFailed, ReadModelChanged, in_words
from ..errors import ConsumerFenced, MillstreamError, StreamClosed, Trimmed, UsageError
from ..log import Log
from ..streams.errors import FlowChanged
from ..time import Duration, seconds

_LOG = logging.getLogger("millstream.workers")

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0
_STEADY = 60.0
"""After so many seconds without a crash, the next one is taken as the first again."""

_FINAL = (
    ProjectionFailed,
    ProcessFailed,
    ReadModelChanged,
    ForeignReadModel,
    Trimmed,
    UsageError,
    FlowChanged,
    StreamClosed,
)
"""What another start would not change."""

_BRIEF = 0.05
"""How often, in seconds, it is looked whether what is to end waits for the outside."""

_LOOK = 0.2
"""How often, in seconds, background objects are asked whether they have failed."""


def limit_of(timeout: Duration | float) -> float:
    """A limit in seconds, given as a number of them or as a duration.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | str | timedelta) or timeout != timeout:
        raise UsageError(f"timeout={timeout!r:.40} is no number of seconds", hint="Give a number, such as 2.5, or '5s'")
    return seconds(timeout)


class State(StrEnum):
    """How a worker is."""

    STOPPED = "stopped"
    RUNNING = "running"
    STANDBY = "standby"
    PAUSED = "paused"
    BUILDING = "building"
    RESTARTING = "restarting"
    FAILED = "failed"
    FENCED = "fenced"


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker at a glance.

    Attributes:
        name: What it keeps going.
        kind: ``projection``, ``capture``, ``flow``, ``process`` or ``outbox``.
        state: How it is; a failed or fenced one is not started again before the app is.
        restarts: How often it crashed and was started again.
        error: What went wrong last, if anything did.
        position: How far it has come in the log, as of its last checkpoint; None for captures.
        behind: How many positions that is from the log's head.
        waiting: Of an outbox, how many messages have not been sent, by any process; None for others.
        since: When the first of those was posted (UTC); None when there is none.
    """

    name: str
    kind: str
    state: State
    restarts: int = 0
    error: str | None = None
    position: int | None = None
    behind: int | None = None
    waiting: int | None = None
    since: datetime | None = None


class Background(Protocol):
    """A capture or a flow: works in threads of its own between ``start`` and ``stop``.

    One that has an attribute ``error`` says through it that its work has ended, and why.
    """

    def start(self, log: Log) -> object:
        """Begin, in the background."""

    def stop(self) -> object:
        """End, and wait until it has ended."""


class Worker:
    """Keeps one piece of background work going in a thread of its own.

    A crash is followed by a new start, after pauses that grow from 0.1 s to 30 s. Each is told to the logger
    ``millstream.workers``, as is what ends the work. What another start would not change ends it: being fenced by
    another worker where no lease tells who is next, a handler of a projection that fails, a flow that asks for a column
    that is not there.

    Args:
        work: Works until its event is set.
        begun: The work sets it when it has begun; None when there is nothing to wait for.
        settled: Waits until what has ended the work is settled, so that it can begin anew; False when it is to stop.
        outside: Whether it waits for nothing but a call to the outside, which it has made and cannot break off.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        work: Callable[[threading.Event], None],
        *,
        begun: threading.Event | None = None,
        settled: Callable[[threading.Event], bool] | None = None,
        outside: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.state = State.STOPPED
        self.restarts = 0
        self.error: BaseException | None = None
        self._work = work
        self._begun = begun
        self._settled = settled
        self._outside = outside
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Begin, unless it is under way; once it has ended, if it was told to and has not yet."""
        with self._starting:  # of two threads that nobody knows of both, one could not be told to stop
            self._start()

    def _start(self) -> None:
        ending = self._thread if self._thread is not None and self._thread.is_alive() else None
        if ending is not None and not self._stop.is_set():
            return
        self._stop = threading.Event()
        if self._begun is not None:
            self._begun.clear()
        self.state, self.error, self.restarts = State.RUNNING, None, 0
        self._thread = threading.Thread(
            target=self._keep_going,
            args=(self._stop, ending),
            name=f"millstream-{self.kind}-{self.name}",
            daemon=True,
        )
        self._thread.start()

    def forked(self) -> None:
        """In a forked child: its thread is in the parent."""
        self._thread = None
        self._starting = threading.Lock()
        self._stop = threading.Event()
        self.state, self.error, self.restarts = State.STOPPED, None, 0

    def wait_until_begun(self) -> None:
        """Wait until the work has begun, or failed to."""
        # A signal that comes just before the wait does not end it: look up now and then.
        while self._begun is not None and not self._begun.wait(_LOOK):
            pass

    def ask_to_stop(self) -> None:
        """Tell it to end; does not wait."""
        self._stop.set()

    def join(self, until: float) -> None:
        """Wait until it has ended; or only a call to the outside is under way, and the time (monotonic) is up."""
        thread = self._thread  # two may wait at once
        # What it calls may be what stops it: then it ends after that.
        while thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(_BRIEF)
            if self._outside is not None and time.monotonic() >= until and self._outside():
                return

    def _keep_going(self, stop: threading.Event, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
            self.state, self.error = State.RUNNING, None
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                self._work(stop)
                self.state = State.STOPPED
                return
            except ConsumerFenced as error:
                self.state, self.error = State.FENCED, error
                self._tell(logging.WARNING)
                return
            except _FINAL as error:
                self.state, self.error = State.FAILED, error
                self._tell(logging.ERROR)
                if self._settled is None or not self._waited(stop):
                    return
                self.state, self.error = State.RUNNING, None
                continue
            except BaseException as error:  # sys.exit(), and what asyncio cancels, would end this thread unseen
                self.error = error
                self.state = State.RESTARTING
                self._tell(logging.WARNING, "; it starts again")
            finally:
                if self._begun is not None:
                    self._begun.set()
            if time.monotonic() - began > _STEADY:
                pause = _FIRST_PAUSE
            if stop.wait(pause):
                self.state = State.STOPPED
                return
            self.restarts += 1
            self.state = State.RUNNING
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _waited(self, stop: threading.Event) -> bool:
        """Wait until what has ended the work is settled."""
        assert self._settled is not None
        while not stop.is_set():
            try:
                return self._settled(stop)
            except Exception:
                stop.wait(_LOOK)  # such as a database that cannot be reached just now
        return False

    def _tell(self, level: int, more: str = "") -> None:
        """Have the program's log say what went wrong: who only starts an app would not hear of it."""
        trace = None if isinstance(self.error, MillstreamError) else self.error
        _LOG.log(level, "%s %s: %s%s", self.kind, self.name, self.describe(), more, exc_info=trace)

    def describe(self) -> str | None:
        """What went wrong last, in words."""
        if self.error is None:
            return None
        return str(self.error) if isinstance(self.error, MillstreamError) else in_words(self.error)


def supervised(
    background: Background, log: Log, begun: threading.Event | None = None
) -> Callable[[threading.Event], None]:
    """Work for a `Worker` that starts a background object, watches it, and stops it."""

    def work(stop: threading.Event) -> None:
        background.start(log)
        if begun is not None:
            begun.set()
        try:
            while not stop.wait(_LOOK):
                error: Any = getattr(background, "error", None)
                if isinstance(error, BaseException):
                    raise error
        finally:
            background.stop()

    return work
