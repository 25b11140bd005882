"""Several flows at work on a log, in turns: until told to stop, in this thread or in one of their own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal, Self

from ..errors import UsageError
from ..log.log import check_log
from ..storage.base import Receipt
from ..time import Duration, seconds
from .captured import Table
from .flow import Flow
from .grouped import Grouped, Windowed
from .joining import no_flow
from .pausing import Pauses, set_paused
from .progress import FlowProgress
from .runner import Worker
from .sharing.coordinator import SharedWorker
from .spilling import Spill, size

if TYPE_CHECKING:
    from ..log.log import Log

_TICK = 0.25
"""Seconds after which a waiting worker looks whether it is to stop."""


def _no_flow(given: object) -> UsageError:
    """What is said where something else is given in the place of a flow."""
    if isinstance(given, Grouped | Windowed):
        what = "keys" if isinstance(given, Grouped) else "windows"
        return UsageError(f"{what} alone are no flow", hint="Aggregate them, as in .window(...).agg(n=pl.len())")
    return UsageError(f"{given!r:.60} is no flow", hint="Give flows one by one: run(log, first, second)")


def number_of(processes: int) -> int:
    """How many processes ``processes=`` says.

    Raises:
        UsageError: It says none.
    """
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise UsageError(f"processes={processes!r:.60} is no number of processes", hint="Give 2, or leave it out")
    return processes


class Running:
    """Flows at work on a log, in the background once started; made by `run` and by `start`.

    Args:
        memory: How much of their state the flows hold in memory together; see `run`.
        processes: Of how many processes each flow is the work, by range of keys; see `run`.

    Attributes:
        flows: The flows, by name.
    """

    def __init__(self, log: Log, *flows: Flow, memory: str | int | None = None, processes: int = 1) -> None:
        check_log(log)
        if not flows:
            raise UsageError("there is no flow to run", hint="Name at least one")
        for given in flows:
            if isinstance(given, Table):
                raise no_flow(given)
            if not isinstance(given, Flow):
                raise _no_flow(given)
        self._log = log
        self._processes = number_of(processes)
        self._memory = None if memory is None else size(memory)
        self._spill = None if memory is None else Spill.beside(log, memory)
        self.flows: dict[str, Flow] = {}
        for flow in flows:
            name = flow.sink.name if flow.sink is not None else ""
            if name and name in self.flows:
                raise UsageError(f"two flows are named {name!r}", hint="Name one: .to(stream, type=..., name='...')")
            self.flows[name] = flow
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._workers: list[Worker | SharedWorker] = []
        self._pauses = Pauses(log)

    @property
    def late(self) -> dict[str, int]:
        """How many rows have come late, or had no time, by flow; as of the last commit."""
        return {worker.name: worker.state.late for worker in self._workers}

    def pause(self, *names: str, timeout: Duration | float = 10) -> bool:
        """Have flows wait, by default all: they commit what they have taken in, and take in no more until `resume`.

        It is noted in the log, and holds after a restart too: see `Flow.pause`. False when the time is over before they
        have stopped, or when the flows have failed (see `error`).
        """
        return self._tell(names, True, timeout)

    def resume(self, *names: str, timeout: Duration | float = 10) -> bool:
        """Have flows go on where they were, by default all. False when the time is over before they do."""
        return self._tell(names, False, timeout)

    def _tell(self, names: tuple[str, ...], paused: bool, timeout: Duration | float) -> bool:
        unknown = [name for name in names if name not in self.flows]
        if unknown:
            raise UsageError(f"no flow {unknown[0]!r} is among them", hint=f"They are {', '.join(self.flows)}")
        meant = set(names or self.flows)
        set_paused(self._log, meant, paused)
        deadline = time.monotonic() + seconds(timeout)
        while self._thread is not None and self._error is None:
            workers = [worker for worker in self._workers if worker.name in meant]
            if workers and all(worker.paused is paused for worker in workers):
                break
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return self._error is None

    def progress(self) -> dict[str, FlowProgress]:
        """How each flow is getting on, by name: positions, rates, watermarks, how much it holds."""
        head = self._log.head
        return {worker.name: worker.progress(head) for worker in self._workers}

    def run(self, *, until: Literal["head"] | None = None) -> None:
        """Work in this thread: until stopped, or until the present head of the log."""
        self._workers = []
        try:
            for flow in self.flows.values():
                self._workers.append(self._worker(flow))
            self._work(until)
            for worker in self._workers:
                worker.flush()
        finally:
            for worker in self._workers:
                worker.close()

    def _worker(self, flow: Flow) -> Worker | SharedWorker:
        if self._processes == 1:
            return Worker(self._log, flow, spill=self._spill)
        # Processes cannot lend one another what they do not need: each has the same share.
        memory = None if self._memory is None else max(self._memory // len(self.flows), 1)
        return SharedWorker(self._log, flow, self._processes, memory=memory)

    def _work(self, until: Literal["head"] | None) -> None:
        head = self._log.head
        while not self._stop.is_set():
            if until is None:
                head = self._log.head
            working = self._awake()
            # Each in turn, so that one that is behind does not hold the others up.
            more = [worker.advance(head) for worker in working]
            if any(more):
                continue
            if until is not None:
                break
            if not self._log.wait(head, _TICK) and self._log.head == head:
                self._lag()
                for worker in working:
                    worker.listen(head)

    def _awake(self) -> list[Worker | SharedWorker]:
        """The workers that are not to wait."""
        paused = self._pauses.names()
        for worker in self._workers:
            if worker.name in paused and not worker.paused:
                worker.flush()
            worker.paused = worker.name in paused
        return [worker for worker in self._workers if not worker.paused]

    def _lag(self) -> None:
        for worker in self._workers:
            if worker.lags:
                worker.flush()

    def start(self) -> Self:
        """Work in a thread of its own, until `stop`."""
        if self._thread is not None:
            raise UsageError("the flows are running already", hint="Start them once")
        self._stop.clear()
        self._error = None
        self._thread = threading.Thread(target=self._guarded, name="millstream-flows", daemon=True)
        self._thread.start()
        return self

    def _guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._error = error

    def stop(self, timeout: Duration | float | None = None) -> None:
        """End, after the batch at hand is committed.

        Raises:
            MillstreamError: What made the flows fail in the meantime.
        """
        limit = seconds(timeout)
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(limit)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def error(self) -> BaseException | None:
        """What made the flows fail in the background, if they did; `stop` raises it."""
        return self._error

    def wait(self, position: int | Receipt, timeout: Duration | float | None = None) -> bool:
        """Wait until all flows are done with a position of the log, or an append. False when the time is over."""
        limit = seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        position = position.position if isinstance(position, Receipt) else position
        while not (self._workers and all(worker.position >= position for worker in self._workers)):
            if self._error is not None or (deadline is not None and time.monotonic() >= deadline):
                return False
            time.sleep(0.002)
        return True

    def __enter__(self) -> Self:
        return self if self._thread is not None else self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def run(
    log: Log,
    *flows: Flow,
    until: Literal["head"] | None = None,
    engine: Literal["embedded"] = "embedded",
    memory: str | int | None = None,
    processes: int = 1,
) -> None:
    """Run flows on a log, exactly once: all of its history, then what comes.

    Output, state and checkpoint of a flow are one commit. A flow that was stopped or killed goes on where
    it was. Running a flow that another worker runs takes it over: the other one stops with
    `ConsumerFenced`.

    Args:
        log: The log, to read from and write to.
        flows: Flows that end with `Flow.to`.
        until: ``"head"``: return when all that is in the log now has been taken in. By default run for ever.
        engine: Where to run: ``"embedded"``, on this machine.
        memory: How much of their state the flows hold in memory together, such as ``"512MB"``: what is beyond goes to
            temporary files beside the log (of a log in memory or in PostgreSQL: where temporary files go), what was
            asked for least lately first. It makes no difference to what they give. Without it all is in memory. Batches
            on their way, and the index of sliding windows and patterns, come on top.
            With ``processes``, each has an equal share of it for each flow.
        processes: In how many processes beside this one each flow works on the rows of a range of keys; with 1 all is
            done here. It makes no difference to what comes out, and may be another number next time. It pays where a
            flow has much to compute for each row; see the guide.

    Raises:
        FlowError: A flow has no end, or cannot be shared between processes.
        FlowChanged: The state in the log is of a flow of another shape.
        ConsumerFenced: Another worker has taken a flow over.
        SpillFailed: There is no room on disk for what is beyond ``memory``.

    Example:
        >>> import millstream as ms
        >>> import polars as pl
        >>> log = ms.open()
        >>> counts = ms.stream("clicks").group_by("user").window(ms.tumbling("5m")).agg(clicks=pl.len())
        >>> ms.run(log, counts.to("counts", type="Clicks"), until="head")
    """
    if engine != "embedded":
        raise UsageError(f"engine={engine!r} is not there", hint="Use engine='embedded'")
    if until not in (None, "head"):
        raise UsageError(f"until={until!r} is not known", hint="Use until='head', or leave it out")
    Running(log, *flows, memory=memory, processes=processes).run(until=until)


def start(log: Log, *flows: Flow, memory: str | int | None = None, processes: int = 1) -> Running:
    """Run flows in the background; `Running.stop` ends them. The same promises, and options, as of `run`."""
    return Running(log, *flows, memory=memory, processes=processes).start()
