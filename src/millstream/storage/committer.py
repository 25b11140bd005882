"""Group commit: every change of a log goes through one queue, and those that wait share one commit.

A caller that is alone commits itself: a hand-over to a writer thread would cost a third of its rate. Callers
that come while a commit is under way queue; when it is done, one of them leads all of them into the next.
Coroutines never lead on their loop's thread: a helper thread leads for them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from queue import SimpleQueue

from ..errors import LogClosed, LogLocked, MillstreamError, UsageError
from .arrivals import Arrivals
from .base import Receipt, Request
from .line import Waiter, line_up, wake

MAX_BATCH = 4_096

APART = 32
"""For so many commits after one in which a request has failed, each request has a savepoint of its own, by which it
alone is undone: that costs a good part of what a commit of many takes."""


class Undone(Exception):
    """One of several requests failed after it had done something: all are undone, to be done anew one by one."""


class Job:
    """A request in the queue, and what became of it."""

    __slots__ = ("error", "future", "leads", "loop", "owns", "receipt", "request", "waiter")

    def __init__(self, request: Request | None) -> None:
        self.request = request
        """None stands for a caller that wants the writer for itself."""
        self.receipt: Receipt | None = None
        self.error: BaseException | None = None
        self.waiter: Waiter | None = None
        """Its thread, if it has to wait."""
        self.leads = False
        """It was made the leader after it had to wait."""
        self.owns = False
        """Its thread has the lead, and must pass it on."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Receipt] | None = None

    def result(self) -> Receipt:
        if self.error is not None:
            raise self.error
        assert self.receipt is not None
        return self.receipt

    def outcome(self) -> Receipt | MillstreamError:
        """The receipt, or the error if it is one of the library's; others are raised."""
        if isinstance(self.error, MillstreamError):
            return self.error
        return self.result()


def unsay(jobs: Sequence[Job]) -> None:
    """Take back the answers of a transaction that is undone: one may be a conflict with what is undone, too."""
    for job in jobs:
        job.receipt = job.error = None


class Committer:
    """Turns concurrent requests into few commits.

    Args:
        write: Commits a batch of jobs; sets ``receipt`` or ``error`` of each and never raises.
        path: Names the log in errors.
        timeout: The longest wait, in seconds, behind another caller that holds the writer.
    """

    def __init__(self, write: Callable[[list[Job]], None], path: str, timeout: float) -> None:
        self._write = write
        self._path = path
        self._timeout = timeout
        self._mutex = threading.Lock()
        self._queue: deque[Job] = deque()
        self._busy = False
        self._closed = False
        self._leader = 0
        self._last = 1
        """How many shared the last commit."""
        self._arrivals = Arrivals(self._mutex, self._queue)
        self._helper: SimpleQueue[bool] | None = None

    def submit(self, request: Request) -> Receipt:
        """Commit a request, alone or with others; returns when it is on disk."""
        job = Job(request)
        try:
            if self._enter(job):
                self._lead([job])
        except BaseException:
            self._abandon(job)
            raise
        return job.result()

    def submit_all(self, requests: Sequence[Request]) -> list[Job]:
        """Commit several requests, in this order and in one batch (with others, or in a few when they are many)."""
        jobs = [Job(request) for request in requests]
        try:
            with self._mutex:
                self._check()
                leads = not self._busy and len(jobs) <= MAX_BATCH
                if leads:
                    self._busy = jobs[0].owns = True
                else:
                    for job in jobs:
                        job.waiter = Waiter()
                        self._join(job)
                    start, self._busy = not self._busy, True
            if leads:
                self._lead(list(jobs))
                return jobs
            if start:
                self._pass_on()
            for job in jobs:
                self._await(job)
        except BaseException:
            for job in jobs:
                self._abandon(job)
            raise
        return jobs

    def submit_soon(self, request: Request, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Receipt]:
        """Queue a request for a coroutine; the future is done when it is on disk. Call on the loop's thread."""
        job = Job(request)
        job.loop = loop
        job.future = loop.create_future()
        with self._mutex:
            self._check()
            self._join(job)
            start = not self._busy
            self._busy = True
        if start:
            self._call_helper()
        return job.future

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The writer for the caller alone, on its own thread, until the block ends."""
        job = Job(None)
        try:
            self._enter(job)
            self._leader = threading.get_ident()
        except BaseException:
            self._abandon(job)
            raise
        try:
            yield
        finally:
            self._finish([job])

    def close(self) -> None:
        """Refuse further requests, and wait (no longer than the time limit) until those under way have ended."""
        with self._mutex:
            self._closed = True
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            with self._mutex:
                if not self._busy:
                    break
            time.sleep(0.001)
        if self._helper is not None:
            self._helper.put(False)

    @property
    def is_led_here(self) -> bool:
        """Whether this thread has the writer now."""
        return self._leader == threading.get_ident()

    # --- who leads -----------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._closed:
            raise LogClosed(self._path)
        if self.is_led_here:
            raise UsageError(
                "this thread is inside a transaction of the same log",
                hint="Append through the transaction (tx.append), or after it",
            )

    def _enter(self, job: Job) -> bool:
        """Queue up; True when the caller now leads (with the job alone), False when the job is done."""
        with self._mutex:
            self._check()
            if not self._busy:
                self._busy = job.owns = True
                return True
            job.waiter = Waiter()
            self._join(job)
        return self._await(job)

    def _await(self, job: Job) -> bool:
        """Wait until a job in the queue is done, or leads; True when it has the writer for itself now."""
        assert job.waiter is not None
        if not job.waiter.wait(self._timeout):
            if self._leave(job):
                raise LogLocked(self._path, self._timeout)
            job.waiter.wait_on()
        if job.leads:
            if job.request is None:
                return True
            self._lead(self._take([]))
        return False

    def _join(self, job: Job) -> None:
        """Into the queue, with the mutex held."""
        self._queue.append(job)
        self._arrivals.came()

    def _abandon(self, job: Job) -> None:
        """The caller goes, thrown out by a Ctrl-C perhaps: it must not take the lead away with it."""
        self._leave(job)
        if job.waiter is not None:
            job.waiter.leave()
        if job.owns:
            with self._mutex:
                if job in self._queue:
                    self._queue.remove(job)
            self._finish([job])

    def _leave(self, job: Job) -> bool:
        """Out of the queue again, unless the job is in a commit or leads the next."""
        with self._mutex:
            if job in self._queue and not job.leads:
                self._queue.remove(job)
                return True
            return False

    def _take(self, batch: list[Job]) -> list[Job]:
        """Add the jobs of the next commit to a batch: all in the queue, up to one that wants the writer alone."""
        with self._mutex:
            count = 0
            for job in self._queue:
                if job.request is None or count == MAX_BATCH:
                    break
                count += 1
            # In one step into the batch, and only then out of the queue: an interrupt between loses none.
            batch.extend(islice(self._queue, count))
            for _ in range(count):
                self._queue.popleft()
            return batch

    def _lead(self, batch: list[Job]) -> None:
        try:
            if self._last > 1:
                # Only here: a caller that was alone the last time does not pause.
                self._arrivals.wait(self._last - len(batch))
                self._take(batch)
            self._last = len(batch)
            self._leader = threading.get_ident()
            self._write(batch)
        except BaseException:
            self._put_back(batch)
            raise
        finally:
            self._finish(batch)

    def _put_back(self, batch: list[Job]) -> None:
        """After an interrupt: the others of the batch that have no answer wait for the next leader."""
        with self._mutex:
            for job in reversed(batch[1:]):
                if job.receipt is None and job.error is None:
                    batch.remove(job)
                    if job not in self._queue:
                        self._queue.appendleft(job)

    def _finish(self, batch: list[Job]) -> None:
        """Answer a batch and pass the lead on, come what may: a Ctrl-C must not leave the others without."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._leader = 0
                if len(batch) > 1 or batch[0].loop is not None:
                    self._answer(batch)
                self._pass_on()
                batch[0].owns = False
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _answer(self, batch: list[Job]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        waiters: list[Waiter] = []
        for job in batch:
            if job.loop is not None:
                loops.setdefault(job.loop, []).append(job)
            elif job.waiter is not None and not job.leads:
                waiters.append(job.waiter)
        wake(line_up(waiters))
        for loop, jobs in loops.items():
            with suppress(RuntimeError):  # the loop has ended: nobody waits for these any more
                loop.call_soon_threadsafe(_resolve, jobs)

    def _pass_on(self) -> None:
        """Make the first in the queue the next leader, or nobody."""
        with self._mutex:
            if not self._queue:
                self._busy = False
                return
            job = self._queue[0]
            if job.leads:
                return  # this is the second try, after an interrupt
            if job.waiter is not None:
                job.leads = job.owns = True
                if job.request is None:
                    self._queue.popleft()
                job.waiter.go()
                return
        self._call_helper()

    def _call_helper(self) -> None:
        if self._helper is None:
            self._helper = SimpleQueue()
            threading.Thread(target=self._help, args=(self._helper,), name="millstream-commit", daemon=True).start()
        self._helper.put(True)

    def _help(self, calls: SimpleQueue[bool]) -> None:
        while calls.get():
            batch = self._take([])
            if batch:
                self._lead(batch)
            else:
                self._pass_on()


def _resolve(jobs: list[Job]) -> None:
    for job in jobs:
        future = job.future
        if future is None or future.done():
            continue  # the coroutine was cancelled; the append stands all the same
        if job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(job.result())
