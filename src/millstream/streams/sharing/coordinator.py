"""The process that holds a shared flow: it has others work on ranges of keys, and commits what comes of all.

It gives out stretches of the log. For each group of runs every process tells what came of its rows; put together they
are what one process would have given. Where a stretch ends, all tell how their state has changed. Rows, state and
checkpoint are then one commit, as ever: so a process that dies, this one too, leaves nothing half done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ...errors import SchemaConflict, UsageError
from ...events import event_classes
from ..committing import Committer
from ..compatible import check_held, tell
from ..errors import FlowChanged, FlowError
from ..flow import Flow
from ..idle import Listener
from ..late import in_log
from ..progress import FlowProgress, Meter, told
from ..replay import BATCH
from ..runner import COMMIT_EVERY, OUTPUT, SLICE, Worker
from ..spilling import Sizes
from ..steps import FlowState
from ..store import info_of, load, sources_told
from .processes import Process, Working
from .ranges import Range, SharedPipeline, merged
from .share import Made, Reached
from .split import Split, SplitChange, split_of
from .wire import Ask, Failed, Ready, Start, Waits, Work, packed_flow

if TYPE_CHECKING:
    from ...log.log import Log

_TRIES = 3
"""So often processes that end by themselves are started again without a commit in between."""


_PATIENCE = 1.0
"""Seconds after which a process that is asked is waited for anew."""


class _Ended(Exception):
    """A process has ended by itself."""

    def __init__(self, process: Working) -> None:
        self.process = process


class _Apart(Exception):
    """The processes have not read the same: what they would have read has been trimmed between two of them."""


class _Done:
    """What all processes have done since the last commit, up to the end of a stretch."""

    def __init__(self, position: int, change: SplitChange) -> None:
        self.position = position
        self.change = change
        self.outputs: list[pl.DataFrame] = []
        self.late: list[pl.DataFrame] = []
        self.rows = 0
        self.began = time.monotonic()

    @property
    def given(self) -> int:
        return sum(output.height for output in self.outputs)


class SharedWorker(Committer):
    """One flow on one log, in several processes; otherwise like `Worker`.

    Args:
        processes: How many there are besides this one.
        rows: The most rows of a group of runs. It makes no difference to the output.
        commit_every: Seconds of work in a commit when there is much to catch up with.
        memory: So many bytes of its state stay in the memory of all processes together, as much in each; None for all.
        begin: Starts one of the processes.

    Raises:
        FlowError: The flow cannot be shared, and why; or it cannot be sent to other processes.
        UsageError: The log is in memory.
    """

    def __init__(
        self,
        log: Log,
        flow: Flow,
        processes: int,
        *,
        rows: int = BATCH,
        commit_every: float = COMMIT_EVERY,
        memory: int | None = None,
        begin: Callable[[Start, int], Working] = Process,
    ) -> None:
        super().__init__(log, flow)
        if log.store.address is None:
            raise UsageError(
                "a log in memory is seen by one process alone", hint="Open a file, or run the flow with processes=1"
            )
        self.pipeline = SharedPipeline(flow, Range(0, processes))
        self._count = processes
        self._begin_process = begin
        self._group = rows
        self._memory = None if memory is None else max(memory // processes, 1)
        self._commit_every = commit_every
        # What is done with the rows is done here, by functions that need not go anywhere.
        self._packed = packed_flow(msgspec.structs.replace(flow, sink=None))
        by = {str(number): list(columns) for number, columns in self.pipeline.plan.held.items()}
        self._split = Split(processes, by)
        self._processes: list[Working] = []
        self._failures = 0
        self._meter = Meter([*(source.stream for source in self.pipeline.sources), ""])
        self._under_way: tuple[Future[SplitChange], _Done] | None = None
        self._stretch = 4 * rows
        """About so many rows are taken in between two changes of the state that are told."""
        self._since = 0.0
        self._held: tuple[int, ...] = (0,) * len(self.pipeline.operators)
        self._sizes = Sizes(0, 0)
        self._listens = any(source.idle is not None for source in self.pipeline.sources)
        self._listener = Listener(log, self.pipeline, self._waits)
        self._heard = log.head if self._listens else 0
        self._take_over()
        self._recover()

    # --- the flow ---------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Become the holder, and learn what is stored."""
        with self.log.transaction() as tx:
            self._take(tx.db)
            if info_of(tx.db, self.name) is None:
                load(tx.db, self.name, self.pipeline)
            check_held(tx.db, self.pipeline, self.name)
            tell(tx.db, self.pipeline, self.name)
        self._seen = self.checkpoint.position
        self._learn()

    def _learn(self) -> None:
        """See how far the flow is by what is stored of it; nothing counts that was done since."""
        with self.log.connect() as database:
            info = info_of(database, self.name)
        assert info is not None
        if info["shape"] != self.pipeline.shape:
            raise FlowChanged(self.name, info["shape"], self.pipeline.shape)
        self.state = FlowState(sources_told(info), info["late"], self.pipeline.start().operators)
        self._is_split = split_of(info["columns"]) == self._split
        self._late = self.state.late
        self._messages: list[deque[Any]] = [deque() for _ in range(self._count)]
        self._made: list[tuple[Made, list[pl.DataFrame], list[pl.DataFrame]]] = []
        self._open = 0
        self._done = self._nothing()

    def _nothing(self) -> _Done:
        return _Done(self._seen, SplitChange(self.name, self._split, anew=not self._is_split))

    @property
    def position(self) -> int:
        """The last position of the log that it is done with."""
        return self._seen

    @property
    def pids(self) -> list[int]:
        """The numbers of its processes, while there are any."""
        return [process.pid for process in self._processes]

    def progress(self, head: int) -> FlowProgress:
        """How it is getting on. May be called from another thread."""
        found = told(self.pipeline, self.state, self._meter, self._seen, head, self.paused)
        return msgspec.structs.replace(found, held=self._held, memory=self._sizes.held, spilled=self._sizes.spilled)

    def listen(self, head: int) -> None:
        """Have the log say which sources are silent, when all up to its head is taken in and results wait for them."""
        if not self._listens or self._open or self._is_something or self._seen < head:
            return
        if self._heard != head:
            # The rows went by in other processes.
            self._listener.look()
            self._heard = head
        try:
            self._listener.tell(self.state)
        except _Ended as ended:
            self._begin_anew(ended)

    def _waits(self, state: FlowState, sources: list[int]) -> bool:
        """Whether a result waits in any of the processes for the time of some sources to go on."""
        self._start()
        for process in self._processes:
            process.tell(Ask(sources))
        # All of them answer, whatever the first ones say.
        answers = [self._answer(process) for process in self._processes]
        return any(answers)

    def _answer(self, process: Working) -> bool:
        while True:
            try:
                message = process.get(_PATIENCE)
            except Empty:
                continue
            if isinstance(message, Failed):
                raise message.error
            if isinstance(message, Waits):
                return message.some
            if not isinstance(message, Ready):
                raise _Ended(process)

    def close(self) -> None:
        """End the processes; what was not committed is done anew by whoever goes on."""
        self._committer.shutdown()
        self._end()

    # --- its work ---------------------------------------------------------------------------------

    def advance(self, head: int) -> bool:
        """Take in what the log holds up to a position: for a while; see `Worker.advance`."""
        try:
            if not self._open and self._done.position >= head:
                return self._rest(head)
            return self._go_on(head)
        except _Ended as ended:
            self._begin_anew(ended)
            return True
        except _Apart:
            self._settle()
            self._failures += 1
            self._stop()
            if self._failures >= _TRIES:
                raise FlowError(
                    f"the processes of flow {self.name!r} read the log differently, again and again",
                    hint="Run it with processes=1 while events are trimmed",
                ) from None
            return True
        except BaseException:
            try:
                self._settle()
            finally:
                self._stop()
            raise

    def _begin_anew(self, ended: _Ended) -> None:
        """A process has ended by itself: have all begin with the last commit, unless that goes on and on."""
        self._settle()
        self._failures += 1
        code = ended.process.ended()
        self._stop()
        if self._failures >= _TRIES:
            raise FlowError(
                f"a process of flow {self.name!r} ends by itself, again and again (exit code {code})",
                hint="Look at what it has written to the standard error; there may be too little memory",
            ) from None

    def _go_on(self, head: int) -> bool:
        until = time.monotonic() + min(SLICE, self._commit_every)
        self._start()
        while True:
            self._order(head)
            if not self._open:
                return self._rest(head)
            reached = self._receive(max(until - time.monotonic(), 0.01))
            if reached is not None and reached.drifted:
                self._cross(head)
                return True
            if reached is not None and self._is_enough and (self._open or self._done.position < head):
                self._settle()
                self._begin()
            if time.monotonic() >= until and (self._open or self._done.position < head):
                return True

    @property
    def _is_something(self) -> bool:
        """Whether anything was done that is to be committed."""
        done = self._done
        return bool(done.rows or done.given) or not done.change.is_empty or done.change.moves(self.state.sources)

    @property
    def _is_enough(self) -> bool:
        done = self._done
        return done.given >= OUTPUT or time.monotonic() - done.began >= self._commit_every

    def _rest(self, head: int) -> bool:
        """All up to a position is taken in: commit it, if it is time; there is no more to do."""
        self._settle()
        done = self._done
        if not self._is_something:
            # Nothing was for this flow. The checkpoint need not follow each step of others.
            done.position = self._seen = max(self._seen, head)
            if time.monotonic() - self._committed >= 1.0:
                self.flush()
        elif self.is_due or done.given >= OUTPUT:
            self._commit()
        return False

    def _order(self, head: int) -> None:
        """Have the processes go on, with one stretch in hand while there is much to do."""
        ahead = 2 if self._commit_every and head - self._done.position > 2 * self._stretch else 1
        while self._open < ahead and (self._open or self._done.position < head):
            rows = self._stretch if self._commit_every else 1
            for process in self._processes:
                process.tell(Work(head, rows))
            self._open += 1

    def _receive(self, timeout: float) -> Reached | None:
        """Take in the next message of all processes, if it comes in time; what they have reached, if it says that."""
        for process, messages in zip(self._processes, self._messages, strict=True):
            try:
                while not messages:
                    message = process.get(timeout)
                    if isinstance(message, Failed):
                        raise message.error
                    if isinstance(message, Made | Reached):
                        messages.append(message)
                    elif not isinstance(message, Ready):
                        raise _Ended(process)
            except Empty:
                return None
        row = [messages.popleft() for messages in self._messages]
        if any(_read(message) != _read(row[0]) for message in row):
            raise _Apart
        if isinstance(row[0], Made):
            self._gather(row)
            return None
        self._close_stretch(row)
        reached: Reached = row[0]
        return reached

    def _gather(self, row: list[Made]) -> None:
        sliced = not self.pipeline.plan.by and len(self.pipeline.plan.cuts) == 1
        outputs = [merged(self.flow, each, sliced=sliced) for each in zip(*(made.outputs for made in row), strict=True)]
        late = in_log([frame for made in row for frame in made.late])
        self._made.append((row[0], [output for output in outputs if output.height], late))
        self._meter.add(*row[0].heights, sum(output.height for output in outputs))

    def _close_stretch(self, row: list[Reached]) -> None:
        done, taken, given = self._done, 0, 0
        for made, outputs, late in self._made:
            taken += sum(made.heights)
            given += sum(output.height for output in outputs)
            done.outputs += outputs
            done.late += late
        self._made = []
        self._open -= 1
        done.position = row[0].position
        done.rows += taken
        done.change.add(row, self._late + sum(each.late for each in row))
        self._held = tuple(map(sum, zip(*(each.held for each in row), strict=True)))
        self._sizes = Sizes(sum(each.sizes.held for each in row), sum(each.sizes.spilled for each in row))
        self._measure(taken, given)

    def _measure(self, taken: int, given: int) -> None:
        """Have the next stretches be about a commit."""
        now = time.monotonic()
        took, self._since = max(now - self._since, 0.001), now
        if taken >= self._group:
            rows = min(taken / took * self._commit_every, taken * OUTPUT / max(given, 1))
            self._stretch = max(self._group, int(min(rows, 4 * self._stretch)))

    # --- commits ----------------------------------------------------------------------------------

    def _commit(self) -> None:
        done = self._done
        self._write(done.position, done.outputs, done.late, done.change)
        self._note(done)
        self._finish()
        self._done = self._nothing()

    def _begin(self) -> None:
        """Commit beside the work that follows."""
        done = self._done
        if self._delivery is not None:
            self._commit()
            return
        under_way = self._write_beside(done.position, done.outputs, done.late, lambda: done.change)
        if under_way is None:
            self._commit()
            return
        self._under_way = under_way, done
        self._done = _Done(done.position, SplitChange(self.name, self._split, anew=False))

    def _settle(self) -> None:
        """Wait for the commit that is under way."""
        if self._under_way is None:
            return
        (under_way, done), self._under_way = self._under_way, None
        try:
            under_way.result()
        except SchemaConflict:
            self._write(done.position, done.outputs, done.late, done.change)
        else:
            self._moved(done.position)
        self._note(done)

    def _note(self, done: _Done) -> None:
        """What was done is committed."""
        self._seen = done.position
        self._failures = 0
        if done.change.has_states:
            self._is_split = True
            self.state = FlowState(done.change.sources, done.change.late, self.state.operators)

    def flush(self) -> None:
        """Commit what was done, and the checkpoint where it lags behind what was seen.

        Work on a stretch that has not come to its end is given up, and done anew when the flow goes on.
        """
        self._settle()
        interrupted = self._open > 0
        if self._is_something or self._seen > self.checkpoint.position:
            self._commit()
        if interrupted:
            self._stop()

    # --- processes --------------------------------------------------------------------------------

    def warm_up(self, timeout: float = 60) -> None:
        """Begin the processes, and wait until they have taken up the state; else they begin with the first rows."""
        self._start()
        for process in self._processes:
            message = process.get(timeout)
            if isinstance(message, Failed):
                raise message.error
            if not isinstance(message, Ready):
                raise _Ended(process)

    def _start(self) -> None:
        if self._processes:
            return
        classes = event_classes()
        for index in range(self._count):
            start = Start(
                self._packed,
                self.log.store.address or "",
                self.log.given_keys,
                sorted({each.__module__ for each in classes.values()} - {"__main__"}),
                frozenset(classes),
                index,
                self._count,
                self._group,
                self._memory,
                self.name,
                self._seen,
                self.state.sources,
                self._is_split,
            )
            self._processes.append(self._begin_process(start, self._count))
        self._since = time.monotonic()

    def _stop(self) -> None:
        """End the processes, and forget what was not committed."""
        self._end()
        self._learn()

    def _end(self) -> None:
        processes, self._processes = self._processes, []
        for process in processes:
            process.stop()

    def _cross(self, head: int) -> None:
        """Take in rows from which on the columns that tell rows apart are of other types: here, and not shared.

        The state that is held for a key then is of the new type as well, and is split by it anew.
        """
        self.flush()
        self._stop()
        position = self._seen
        alone = Worker(self.log, self.flow, rows=self._group, commit_every=0)
        try:
            while alone.position <= position and alone.advance(head):
                pass
            alone.flush()
        finally:
            alone.close()
        self._take_over()


def _read(message: Made | Reached) -> tuple[int, list[int] | None, int]:
    """What of the log a process has read for a message; in all of them it has to be the same."""
    if isinstance(message, Made):
        return message.position, message.heights, len(message.outputs)
    return message.position, None, message.drifted
