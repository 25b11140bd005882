"""Followers of a table: each change of it, in order, to something outside.

What a follower is promised. Every sink has its own checkpoint in the log, moved after the sink has done its work.
A sink outside the log cannot be part of that commit, so it gets every change *at least once*: after a crash, the
last few changes (at most `STEP`, or as many as it takes at once) come again, in the same order. Each change carries
its position in the log, by which a sink tells a repeat from a new one. A callback that asks for ``db`` runs inside
the commit that moves its checkpoint, and a sink that keeps its own position beside its data goes by that: what they
write is there *exactly once*.

A change that a sink cannot take is tried again, with growing pauses, and then parked (`millstream.cdc.parking`): the
changes of other rows go on. A sink that cannot be reached is waited for, and nothing is parked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from ..errors import ConsumerFenced, SinkGone, UsageError
from ..log.log import check_log
from . import parking
from .capture import stream_of
from .follower import STEP, Follower
from .parking import Parked
from .sinks.base import Sink
from .sinks.callback import Callback

if TYPE_CHECKING:
    from ..log import Log


def sync(log: Log, table: str, *sinks: Sink | Callable[..., object], prefix: str = "", start: bool = True) -> Sync:
    """Let sinks follow a captured table, from the beginning of its stream.

    Args:
        table: The table's name, as its capture gives it.
        sinks: Functions (each is wrapped in a `Callback`) and sinks. One object follows one table.
        prefix: As in `capture`.
        start: Follow in the background at once. With False, call `Sync.catch_up`, `Sync.run` or `Sync.start`.

    Returns:
        The followers, to stop or to wait for; also a context manager that stops them.

    Raises:
        UsageError: There is no sink, or two have one name.
    """
    check_log(log)
    if not isinstance(table, str):
        raise UsageError(f"{table!r:.60} is no table's name", hint='Write sync(log, "users", function)')
    made = [_as_sink(sink) for sink in sinks]
    if not made:
        raise UsageError("there is nothing to sync to", hint="Give a function, or a sink")
    names = [sink.name for sink in made]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two sinks have one name: {', '.join(sorted(names))}", hint="Give each a name: Callback(f, name='mail')"
        )
    result = Sync(log, table, made, prefix=prefix)
    if start:
        result.start()
    return result


def _as_sink(sink: Sink | Callable[..., object]) -> Sink:
    return cast(Sink, sink) if hasattr(sink, "apply") else Callback(sink)


class Sync:
    """Sinks that follow one table; made by `sync`. One failing sink does not hold up the others."""

    def __init__(self, log: Log, table: str, sinks: Sequence[Sink], *, prefix: str = "") -> None:
        self.log = log
        self.table = table
        self.prefix = prefix
        self.stream = prefix + stream_of(table)
        self._followers = [Follower(log, self.stream, sink) for sink in sinks]
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def __repr__(self) -> str:
        return f"<millstream.cdc.Sync of {self.stream}: {', '.join(self.positions)}>"

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

        Nothing is waited for: a change that fails is tried once. It is parked when it has failed in as many calls
        as the sink's `retries` allow.

        Raises:
            ConsumerFenced: Another worker has taken a sink over.
            Exception: What the first of the failing sinks failed with, after all had their turn; its checkpoint
                stands before the change at fault.
        """
        count = 0
        failure: Exception | None = None
        for follower in self._followers:
            try:
                count += follower.catch_up()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return count

    def run(self) -> None:
        """Follow until `stop` is called from another thread. A failing sink is tried again, after pauses that
        grow to 30 seconds; a change that goes on failing is parked."""
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
            SinkGone: A sink had said that it wants no more.
        """
        self._stopping.set()
        threads, self._threads = self._threads, []
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        for follower in self._followers:
            if isinstance(follower.error, ConsumerFenced | SinkGone):
                raise follower.error

    # --- what was parked ----------------------------------------------------------------------------------

    def parked(self, sink: str | None = None) -> list[Parked]:
        """The changes that sinks could not take, in order of sink and position; see `millstream.cdc.parked`."""
        return parking.parked(self.log, self.table, sink, prefix=self.prefix)

    def retry(self, *positions: int, sink: str | None = None) -> int:
        """Have parked changes tried again, by the running followers or the next `catch_up`; all by default.

        Returns:
            How many are to be tried.
        """
        return parking.retry(self.log, *positions, table=self.table, sink=sink, prefix=self.prefix)

    def skip(self, *positions: int, sink: str | None = None) -> int:
        """Give up parked changes at these positions. What waits behind them follows.

        Returns:
            How many were given up.
        """
        return parking.skip(self.log, *positions, table=self.table, sink=sink, prefix=self.prefix)

    def __enter__(self) -> Sync:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


__all__ = ["STEP", "Callback", "Sink", "Sync", "sync"]
