"""The log for asyncio: the same verbs, awaited. A thin face over `millstream.log`; appends join its group commits.

Example:
    >>> import asyncio
    >>> import millstream as ms
    >>> import millstream.aio
    >>> async def main():
    ...     async with ms.aio.open() as log:
    ...         receipt = await log.append("audit", ms.Plain("Login", {"user": 7}))
    ...         return receipt.position, [e.type async for e in log.read("audit")]
    >>> asyncio.run(main())
    (1, ['Login'])
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .errors import LogClosed, MillstreamError
from .events import Draft, Event, Plain
from .log import Log as SyncLog
from .log import Recorded, Run
from .log import open as open_sync
from .log.handlers import check_plain
from .storage.base import Receipt, StagedAppend, StreamInfo
from .time import Duration, seconds

if TYPE_CHECKING:
    from .app.app import App as SyncApp
    from .cqrs.command import Command
    from .cqrs.query import Answer, Query

T = TypeVar("T")
_BATCH = 500
_LOOK = 1.0
"""Seconds after which a waiting thread looks up, to see whether anyone still waits for it."""


def open(path: str | None = None, **options: Any) -> Log:
    """Open a log for asyncio; the arguments are those of `millstream.open`."""
    return Log(open_sync(path, **options))


class Log:
    """A log whose verbs are awaited. ``log.sync`` is the log under it, which may be used beside it."""

    def __init__(self, log: SyncLog) -> None:
        self.sync = log
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="millstream-aio")

    async def append(self, stream: str, events: object, **options: Any) -> Receipt:
        """Append events; see `millstream.Log.append`. Many coroutines that append at once share commits."""
        if isinstance(events, Event | Plain | Draft):
            request = self.sync.request(stream, events, **options)
        else:
            # What may be large is encoded beside the loop.
            request = await self.call(lambda: self.sync.request(stream, events, **options))
        receipt: Receipt = await self.sync.store.commit_soon(request, asyncio.get_running_loop())
        return receipt

    async def head(self) -> int:
        """Position of the last event; 0 when the log is empty."""
        return await self.call(lambda: self.sync.head)

    def read(self, stream: str | None = None, **options: Any) -> AsyncIterator[Recorded]:
        """Events in order; see `millstream.Log.read`. The loop stays free while pages are read."""
        return self._iterate(self.sync.read(stream, **options))

    def read_until(self, time: Any, stream: str | None = None, **options: Any) -> AsyncIterator[Recorded]:
        """All that was recorded before a moment; see `millstream.Log.read_until`."""
        return self._iterate(self.sync.read_until(time, stream, **options))

    async def _iterate(self, events: Iterator[Recorded]) -> AsyncIterator[Recorded]:
        while batch := await self.call(lambda: list(islice(events, _BATCH))):
            for event in batch:
                yield event

    async def follow(self, stream: str | None = None, **options: Any) -> AsyncIterator[Recorded]:
        """History, then what comes; see `millstream.Log.follow`. Each follower has a thread of its own that waits."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[list[Run] | BaseException | None] = asyncio.Queue()
        room = threading.Semaphore(4)
        stopped = threading.Event()

        def wait() -> None:
            ending: BaseException | None = None
            try:
                for batch in self._waking(stopped, stream, options):
                    room.acquire()
                    if stopped.is_set():
                        return
                    loop.call_soon_threadsafe(queue.put_nowait, batch)
            except BaseException as error:
                ending = error
            if not stopped.is_set():
                with suppress(RuntimeError):  # the loop has ended without waiting for its followers
                    loop.call_soon_threadsafe(queue.put_nowait, ending)

        threading.Thread(target=wait, name="millstream-follow", daemon=True).start()
        try:
            while (got := await queue.get()) is not None:
                if isinstance(got, BaseException):
                    raise got
                for run in got:
                    for event in run:
                        yield event
                room.release()
        finally:
            stopped.set()
            room.release()

    def _waking(self, stopped: threading.Event, stream: str | None, options: dict[str, Any]) -> Iterator[list[Run]]:
        """Runs as they come; looks up now and then whether anyone still listens."""
        options = dict(options)
        limit = seconds(options.pop("timeout", None))
        after = options.pop("after", 0)
        quiet_since = time.monotonic()
        while not stopped.is_set() and not self.sync.closed:
            left = _LOOK if limit is None else min(_LOOK, limit - (time.monotonic() - quiet_since))
            if left <= 0:
                return
            for batch in self.sync.follow_runs(stream, after=after, timeout=left, **options):
                yield batch
                after, quiet_since = batch[-1].last, time.monotonic()

    async def transaction(self, work: Callable[[Any], T], *, id: str | None = None) -> Receipt:
        """Run ``work(tx)`` inside `millstream.Log.transaction`, on another thread.

        Returns:
            The receipt of the whole.
        """

        check_plain(work)

        def run() -> Receipt:
            with self.sync.transaction(id=id) as tx:
                work(tx)
            return tx.receipt

        return await self.call(run)

    async def scan(self, stream: str, **options: Any) -> Any:
        """A stream as a frame (collected; see `millstream.Log.scan` for a lazy one)."""
        return await self.call(lambda: self.sync.scan(stream, **options).collect())

    async def sql(self, query: str) -> Any:
        """See `millstream.Log.sql`."""
        return await self.call(lambda: self.sync.sql(query))

    async def verify(self, **options: Any) -> Any:
        """See `millstream.Log.verify`."""
        return await self.call(lambda: self.sync.verify(**options))

    async def backup(self, path: str) -> None:
        """See `millstream.Log.backup`."""
        await self.call(lambda: self.sync.backup(path))

    async def compact(self, stream: str | None = None) -> Any:
        """See `millstream.Log.compact`."""
        return await self.call(lambda: self.sync.compact(stream))

    async def forget(self, subject: str) -> Any:
        """See `millstream.Log.forget`."""
        return await self.call(lambda: self.sync.forget(subject))

    async def retain(self, stream: str, keep: Any, **options: Any) -> None:
        """See `millstream.Log.retain`."""
        await self.call(lambda: self.sync.retain(stream, keep, **options))

    async def rules(self) -> Any:
        """See `millstream.Log.rules`."""
        return await self.call(self.sync.rules)

    async def trim(self, stream: str | None = None, **options: Any) -> Any:
        """See `millstream.Log.trim`."""
        return await self.call(lambda: self.sync.trim(stream, **options))

    async def archive(self, stream: str | None = None, **options: Any) -> Any:
        """See `millstream.Log.archive`."""
        return await self.call(lambda: self.sync.archive(stream, **options))

    async def export(self, path: str, stream: str | None = None, **options: Any) -> int:
        """See `millstream.Log.export`."""
        return await self.call(lambda: self.sync.export(path, stream, **options))

    async def import_(self, path: str, stream: str | None = None, **options: Any) -> int:
        """See `millstream.Log.import_`."""
        return await self.call(lambda: self.sync.import_(path, stream, **options))

    async def commit(self, appends: Sequence[StagedAppend | None] = (), **options: Any) -> Receipt:
        """See `millstream.Log.commit`."""
        return await self.call(lambda: self.sync.commit(appends, **options))

    async def stream(self, name: str) -> StreamInfo:
        """See `millstream.Log.stream`."""
        return await self.call(lambda: self.sync.stream(name))

    async def wait(self, after: int | Receipt, timeout: Duration | float | None = None) -> bool:
        """See `millstream.Log.wait`. A wait without a time limit is made of short ones, so that it can be cancelled."""
        limit = seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            left = _LOOK if deadline is None else min(_LOOK, max(deadline - time.monotonic(), 0.0))
            if await self.call(lambda left=left: self.sync.wait(after, left)):  # type: ignore[misc]
                return True
            if self.sync.closed or (deadline is not None and time.monotonic() >= deadline):
                return False

    def now(self) -> datetime:
        """See `millstream.Log.now`."""
        return self.sync.now()

    def confirm_clock(self) -> None:
        """See `millstream.Log.confirm_clock`."""
        self.sync.confirm_clock()

    async def version(self, stream: str) -> int:
        """See `millstream.Log.version`."""
        return await self.call(lambda: self.sync.version(stream))

    async def position_at(self, time: Any) -> int:
        """See `millstream.Log.position_at`."""
        return await self.call(lambda: self.sync.position_at(time))

    async def streams(self, pattern: str = "*") -> list[Any]:
        """See `millstream.Log.streams`."""
        return await self.call(lambda: list(self.sync.streams(pattern)))

    async def close_stream(self, stream: str, **options: Any) -> Receipt:
        """See `millstream.Log.close_stream`."""
        return await self.call(lambda: self.sync.close_stream(stream, **options))

    async def call(self, work: Callable[[], T]) -> T:
        """Run anything on the log's threads, so that the loop stays free."""
        check_plain(work)
        loop = asyncio.get_running_loop()
        try:
            done = loop.run_in_executor(self._threads, work)
        except RuntimeError as error:
            raise LogClosed(self.sync.path or ":memory:") from error  # its threads have ended with it
        return await done

    async def close(self) -> None:
        """Close the log. Idempotent."""
        if not self.sync.closed:
            await self.call(self.sync.close)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self.sync).replace("millstream.Log", "millstream.aio.Log", 1)


class App:
    """An app whose commands and queries are awaited: ``ms.aio.App(app)``. ``app.sync`` is the app under it."""

    def __init__(self, app: SyncApp) -> None:
        self.sync = app
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="millstream-aio-app")

    async def execute(self, command: Command, **options: Any) -> Receipt:
        """See `millstream.App.execute`."""
        return await self._call(lambda: self.sync.execute(command, **options))

    async def execute_all(self, commands: Iterable[Command], **options: Any) -> list[Receipt | MillstreamError]:
        """See `millstream.App.execute_all`."""
        return await self.sync.aexecute_all(commands, **options)

    async def execute_together(self, commands: Iterable[Command], **options: Any) -> Receipt:
        """See `millstream.App.execute_together`."""
        return await self.sync.aexecute_together(commands, **options)

    async def query(self, query: Query[T], **options: Any) -> T:
        """See `millstream.App.query`."""
        return await self._call(lambda: self.sync.query(query, **options))

    async def answer(self, query: Query[T], **options: Any) -> Answer[T]:
        """See `millstream.App.answer`."""
        return await self._call(lambda: self.sync.answer(query, **options))

    async def subscribe(self, query: Query[T]) -> AsyncIterator[T]:
        """See `millstream.App.subscribe`. Each subscription has a thread of its own that waits."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()
        room = threading.Semaphore(4)
        stopped = threading.Event()

        def wait() -> None:
            ending: BaseException | None = None
            try:
                last: list[Any] = []
                while not stopped.is_set() and not self.sync.log.closed:
                    # In short waits, so that it is noticed when nobody listens any more.
                    for answer in self.sync.subscribe(query, timeout=_LOOK):
                        if last != [answer]:
                            last = [answer]
                            room.acquire()
                            if stopped.is_set():
                                return
                            loop.call_soon_threadsafe(queue.put_nowait, (True, answer))
            except BaseException as error:
                ending = error
            if not stopped.is_set():
                with suppress(RuntimeError):  # the loop has ended without waiting for its subscriptions
                    loop.call_soon_threadsafe(queue.put_nowait, (False, ending))

        threading.Thread(target=wait, name="millstream-subscribe", daemon=True).start()
        try:
            while True:
                is_answer, got = await queue.get()
                if is_answer:
                    yield got
                    room.release()
                elif got is not None:
                    raise got
                else:
                    return
        finally:
            stopped.set()
            room.release()

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
