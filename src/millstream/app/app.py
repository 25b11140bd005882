"""`App`: one log with everything that is built on it, in one process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar, overload

from ..cqrs.errors import DuplicateHandler
from ..cqrs.follower import Follower
from ..cqrs.inline import InlineProjection
from ..cqrs.live import LiveModel
from ..cqrs.lockstep import keep_apart
from ..cqrs.outbox import Outbox
from ..cqrs.partitions import Partitioned, check_names, is_divided
from ..cqrs.past import At
from ..cqrs.process import Process
from ..cqrs.projection import Placement, Projection
from ..cqrs.query import Answer, Asked, Behind, Queries, Query
from ..cqrs.watch import Watch
from ..errors import ConsumerFenced, LogClosed, UsageError
from ..log import Log
from ..log.handlers import InvalidHandler
from ..log.log import check_log
from ..storage.base import Receipt
from ..streams.flow import Flow
from ..time import Duration
from .flows import LiveFlow
from .read_side import ReadSide
from .supervisor import Background, State, Worker, WorkerStatus, limit_of, supervised
from .write import WriteSide

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")

_LOOK_UP = 0.5


class App(WriteSide, ReadSide):
    """Commands, queries, projections, captures and flows on one log.

    Inline projections are level with the log, and the tables of all of them exist, when this returns. The
    workers of asynchronous projections, processes, outboxes, captures and flows run between `start` and `stop`, here or
    in another process. Of several that run a projection, a process or an outbox, one keeps it, and the others stand by;
    a capture or a flow is kept by the last to start it.

    Args:
        log: The log.
        projections: Where each projection is kept: ``Orders.inline()``, ``OrderSummary.into("read.db")``.
        captures: Objects with ``start(log)`` and ``stop()``, such as those that ``ms.capture`` makes.
        flows: Flows of ``ms.stream``, each ended with ``.to(…)``.
        memory: How much of its state each flow holds in memory, such as ``"512MB"``; what is beyond goes to disk, as
            `millstream.run` has it.
        flow_processes: In how many processes beside this one each flow works, as `millstream.run` has ``processes``.
        services: Objects that handlers of commands ask for by their types, `Decision`s among them.
        processes: Classes of process managers.
        outboxes: Where messages to the outside are posted; handlers ask for them as ``mail: ms.Outbox``.

    Raises:
        DuplicateHandler: Two projections have one name.
        UsageError: Two flows or two captures have one name, something given is none of them, ``memory`` is no size,
            or ``flow_processes`` no number.
        FlowError: A flow has no end.
        ReadModelChanged: An inline projection's tables were made by another version of its schema.
        ProjectionFailed: An inline projection's handler raised for an event that is in the log already.

    Example:
        >>> import millstream as ms
        >>> class OrderPlaced(ms.Event):
        ...     customer: str
        >>> class Order(ms.Aggregate):
        ...     customer: str = ""
        ...
        ...     def place(self, customer: str) -> None:
        ...         if self.version:
        ...             raise ms.Rejected("the order was placed before")
        ...         self.record(OrderPlaced(customer=customer))
        ...
        ...     @ms.on
        ...     def placed(self, event: OrderPlaced) -> None:
        ...         self.customer = event.customer
        >>> class PlaceOrder(ms.Command):
        ...     order: ms.Ref[Order]
        ...     customer: str
        >>> app = ms.App(ms.open())
        >>> @app.command
        ... def place_order(command: PlaceOrder, order: Order) -> None:
        ...     order.place(command.customer)
        >>> app.execute(PlaceOrder("order-1", "Ann")).version
        1
    """

    def __init__(
        self,
        log: Log,
        *,
        projections: Sequence[Placement] = (),
        captures: Sequence[Background] = (),
        flows: Sequence[Flow | Background] = (),
        memory: str | int | None = None,
        flow_processes: int = 1,
        services: Sequence[object] = (),
        processes: Sequence[type[Process]] = (),
        outboxes: Sequence[Outbox] = (),
    ) -> None:
        check_log(log)
        super().__init__(
            log,
            _listed("services", services, "[mailer, registration]"),
            _listed("processes", processes, "[Fulfilment]"),
            _listed("outboxes", outboxes, "[ms.Outbox('mail', send)]"),
        )
        projections = _listed("projections", projections, "[Orders.inline(), OrderSummary.into('read.db')]")
        for placement in projections:
            if not isinstance(placement, Placement):
                raise UsageError(
                    f"{placement!r:.60} does not say where it is kept",
                    hint="Write OrderSummary.inline(), .into(), .into('read.db') or .live()",
                )
        captures = _backgrounds("captures", captures, "[ms.capture('sqlite:///shop.sqlite')]")
        _check_names("captures", captures, "Give each once; name one: ms.capture(url, name='…', prefix='…')")
        given = _backgrounds("flows", flows, "[ms.stream('clicks').….to('counts', type='Counted')]")
        live = _live(given, memory, flow_processes)
        _check_names("flows", live, "Give each once; name one: .to(stream, type=…, name='…')")
        self._placements = _distinct(projections)
        keep_apart(self._placements)
        leases = self._leases
        moved = self._moved = threading.Condition()
        watch = self._watch = Watch(log, moved)
        self._inline = [InlineProjection(log, p) for p in projections if p.inline]
        divided = [p for p in self._placements if is_divided(log, p)]
        check_names([p.name for p in self._placements])
        self._followers = {
            p.name: (LiveModel if p.live else Partitioned if p in divided else Follower)(log, p, leases, moved, watch)
            for p in projections
            if not p.inline
        }
        self._keeping = {
            each.placement.kept_as: each for follower in self._followers.values() for each in follower.all_parts
        }
        """Whoever keeps read models, or partitions of them, by the names of their workers."""
        self._queries = Queries(log, self._placements, self._followers, moved)
        self._workers = [
            Worker(name, "projection", f.run, settled=f.settled, outside=lambda f=f: f.is_outside)  # type: ignore[misc]
            for name, f in self._keeping.items()
            if not f.placement.live
        ]
        for number, capture in enumerate(captures, start=1):
            begun = threading.Event()
            name = getattr(capture, "name", "") or f"capture-{number}"
            self._workers.append(Worker(name, "capture", supervised(capture, log, begun), begun=begun))
        for number, flow in enumerate(live, start=1):
            name = getattr(flow, "name", "") or f"flow-{number}"
            self._workers.append(Worker(name, "flow", supervised(flow, log)))
        self._workers += self._write_workers()
        self._flows = {flow.name: flow for flow in live if isinstance(flow, LiveFlow)}
        self._ended = threading.Event()
        for follower in self._followers.values():
            follower.prepare()
        for inline in self._inline:
            inline.attach()
        _apps.add(self)

    def _before_fork(self) -> None:
        for follower in self._followers.values():
            for part in follower.all_parts:
                part.home.fork()

    def _forked(self) -> None:
        """In a forked child: the workers, and all threads, are in the parent, which goes on; locks may be left held."""
        self._moved.__init__()  # type: ignore[misc]  # all that look after read models have this one
        self._ended = threading.Event()
        super()._forked()
        self._watch.begin()
        self._queries.forked()
        for follower in self._followers.values():
            for each in follower.all_parts:
                each.forked()
        for worker in self._workers:
            worker.forked()

    def __repr__(self) -> str:
        names = ", ".join([*(each.placement.name for each in self._inline), *(each.name for each in self._workers)])
        return f"<millstream.App of {self.log.location or 'a log in memory'}{': ' if names else ''}{names}>"

    # --- the read side --------------------------------------------------------------------------------

    @overload
    def query(
        self,
        query: Query[Result],
        /,
        *,
        after: Receipt | int | None = None,
        fresh: bool = False,
        timeout: Duration | float = 10.0,
        behind: Behind = "answer",
        at: At | None = None,
    ) -> Result: ...
    @overload
    def query(self, function: Function, /) -> Function: ...
    @overload
    def query(self, /, *, reads: Sequence[type[Projection]]) -> Callable[[Function], Function]: ...

    def query(
        self,
        given: Any = None,
        /,
        *,
        after: Receipt | int | None = None,
        fresh: bool = False,
        timeout: Duration | float = 10.0,
        behind: Behind = "answer",
        at: At | None = None,
        reads: Sequence[type[Projection]] | None = None,
    ) -> Any:
        """Answer a query, ``app.query(GetOrder("o-1"))``; or have a function answer it, ``@app.query``.

        The function's parameters are filled by type: the query, and ``db: ms.Database``, which is read-only
        and shows the tables of the app's read models, in whichever file they lie, at one moment.

        Args:
            given: The query; or the function.
            after: A receipt (or position): wait until the read models show it. Those that ``reads`` names
                for the handler, or all.
            fresh: Wait until they show all that is in the log now.
            timeout: The longest wait, in seconds or as a duration (``"5s"``).
            behind: When a read model has stopped, lacks parked events, is paused, or is of an older version of its
                code: ``"answer"`` with what is there, or ``"raise"``.
            at: A time, ``ms.Position(…)`` or a receipt: answer from the read models as they stood after it, replayed
                by today's code from the nearest image that was kept.
            reads: The projections whose tables the function reads, and is shown:
                ``@app.query(reads=[OrderSummary])``; by default all of the app.

        Raises:
            UnknownQuery: It has no handler.
            InvalidPosition: ``after`` or ``at`` is no receipt or position of this log.
            UsageError: The handler writes to the read models.
            TimedOut: A read model did not come to the position in time.
            ProjectionFailed: A read model will not: its projection has stopped.
            ReadModelBehind: A read model is behind, and ``behind="raise"``.
            ForeignReadModel, ReadModelChanged: A read model is of another log, or of another version.
            InvalidHandler, DuplicateHandler: The function cannot answer the query, or another one does.
        """
        # That its class is known is found out in a tenth of the time.
        if type(given) in self._queries.handlers or isinstance(given, Query):
            if after is None and not fresh and behind == "answer" and at is None:
                return self._queries.answer(given)
            return self._queries.answer(given, _asked(after, fresh, timeout, behind, at))
        if isinstance(given, type) and issubclass(given, Query):
            raise UsageError(f"{given.__name__} is a class", hint=f"Give a query: app.query({given.__name__}(…))")
        if given is not None and not callable(given):
            hint = "Give a query, of a class derived from millstream.Query; or put the decorator on a def"
            raise InvalidHandler(f"{given!r:.60}", "it is neither a query nor a function", hint=hint)
        frame = sys._getframe(1)

        def register(function: Function) -> Function:
            self._queries.register(function, frame, reads)
            return function

        return register if given is None else register(given)

    def answer(
        self,
        query: Query[Result],
        *,
        after: Receipt | int | None = None,
        fresh: bool = False,
        timeout: Duration | float = 10.0,
        behind: Behind = "answer",
        at: At | None = None,
    ) -> Answer[Result]:
        """Answer a query, and say how fresh the answer is; the arguments and errors are those of `query`."""
        return self._queries.told(query, _asked(after, fresh, timeout, behind, at))

    def queries(self) -> list[type[Query[Any]]]:
        """The classes of the queries that have a handler."""
        return self._queries.known()

    def subscribe(self, query: Query[Result], *, timeout: Duration | float | None = None) -> Iterator[Result]:
        """The answer to a query now, and then each answer that differs from the one before, as the read models move.

        Changes that follow each other closely may be seen as one: the last answer is always seen. Ends when the log is
        closed.

        Args:
            query: The query.
            timeout: End when no other answer came for so long.

        Raises:
            UnknownQuery: It has no handler.
            UsageError: ``timeout`` is no length of time.
        """
        return self._queries.subscribe(query, None if timeout is None else limit_of(timeout))

    # --- running --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers in the background; those that run go on.

        Returns when each capture has begun, as ``Capture.start`` promises it, or has failed to.

        Raises:
            LogClosed: The log was closed.
        """
        if self.log.closed:
            raise LogClosed(self.log.path or ":memory:")
        self._ended.clear()
        for follower in self._followers.values():
            follower.try_again()
        for worker in self._workers:
            worker.start()
        for worker in self._workers:
            worker.wait_until_begun()

    def stop(self, *, timeout: Duration | float = 10.0) -> None:
        """Stop the workers, and return when they have ended. Commands and queries still work.

        Args:
            timeout: The longest wait, in seconds or as a duration, for calls to the outside that are under way: a
                projection's ``perform``, an outbox's ``send``. They are not broken off: one that is not done by then is
                noted when it is, and until then nobody begins what comes after it. If the process ends first, it is
                made again.
        """
        limit = limit_of(timeout)
        self._ended.set()
        # Before the workers: the last to close a file of SQLite's puts its -wal into it, which who reads may not do.
        self._queries.close()
        for worker in self._workers:
            worker.ask_to_stop()
        until = time.monotonic() + limit
        for worker in self._workers:
            worker.join(until)
        self._queries.close()
        for follower in self._followers.values():
            if isinstance(follower, LiveModel):
                follower.close()
            for part in follower.all_parts:
                part.home.let_go()

    def run(self, *, on_failure: Callable[[str, str], object] | None = None) -> None:
        """Run the workers until `stop` is called from another thread, or Ctrl-C or SIGTERM comes.

        Args:
            on_failure: Called with the kind and name of a worker, and what went wrong, when it has failed for good.

        Raises:
            ConsumerFenced: Every worker was taken over by another process: there is nothing left to do here.
        """
        told: set[Worker] = set()
        with _sigterm_as_interrupt():
            try:
                self.start()
                # A signal that comes just before the wait does not end it: look up now and then.
                while not self._ended.wait(_LOOK_UP):
                    for worker in self._workers if on_failure is not None else ():
                        if worker.state in (State.FAILED, State.FENCED) and worker not in told:
                            told.add(worker)
                            on_failure(f"{worker.kind} {worker.name}", worker.describe() or "")  # type: ignore[misc]
                    if self._workers and all(worker.state is State.FENCED for worker in self._workers):
                        raise self._workers[0].error or ConsumerFenced(self._workers[0].name)
            except KeyboardInterrupt:
                pass
            finally:
                self.stop()

    def status(self) -> list[WorkerStatus]:
        """How each projection, process, outbox, capture and flow is."""
        head = self.log.head
        found = []
        for inline in self._inline:
            position = inline.position()
            failed = inline.failure is not None and inline.failure.position > position
            found.append(
                WorkerStatus(
                    inline.placement.name, "projection", State.FAILED if failed else State.RUNNING,
                    error=str(inline.failure) if failed else None, position=position, behind=max(0, head - position),
                )
            )  # fmt: skip
        for name, live in self._followers.items():
            if isinstance(live, LiveModel):
                state = State.RUNNING if live.failure is None else State.FAILED
                at = live.position()
                error = None if live.failure is None else str(live.failure)
                found.append(WorkerStatus(name, "projection", state, 0, error, at, max(0, head - at)))
        for worker in self._workers:
            follower = self._keeping.get(worker.name) if worker.kind == "projection" else None
            held = follower or self._writer(worker)
            reached = held.position() if held is not None else None
            if worker.kind == "flow" and worker.name in self._flows:
                reached = self._flows[worker.name].position(self.log)
            state = worker.state
            if held is not None and state is State.RUNNING:
                failed = follower is not None and follower.failure is not None
                state = State.FAILED if failed else State(held.mode)
            backlog = self._backlog(worker)
            error = worker.describe() or (str(follower.failure) if follower and follower.failure else None)
            found.append(
                WorkerStatus(
                    worker.name, worker.kind, state, worker.restarts, error, reached,
                    None if reached is None else max(0, head - reached),
                    None if backlog is None else backlog.messages, None if backlog is None else backlog.since,
                )
            )  # fmt: skip
        return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


_apps: weakref.WeakSet[App] = weakref.WeakSet()


def _before_fork() -> None:
    for app in list(_apps):
        app._before_fork()


def _forked() -> None:
    for app in list(_apps):
        app._forked()


os.register_at_fork(before=_before_fork, after_in_child=_forked)


def _asked(after: Receipt | int | None, fresh: bool, timeout: Duration | float, behind: Behind, at: At | None) -> Asked:
    if behind not in ("answer", "raise"):
        raise UsageError(f"behind={behind!r:.40}", hint='Write "answer" or "raise"')
    if at is not None and (after is not None or fresh):
        raise UsageError("a query is asked of the past or of the present", hint="Leave out at=, or after= and fresh=")
    return Asked(after, fresh, limit_of(timeout), behind, at)


def _listed(what: str, given: Any, example: str) -> list[Any]:
    if not isinstance(given, str):
        try:
            return list(given)
        except TypeError:
            pass
    raise UsageError(f"{what}= takes a list, and got {given!r:.60}", hint=f"Write {what}={example}")


def _backgrounds(what: str, given: Any, example: str) -> list[Any]:
    found = _listed(what, given, example)
    for each in found:
        works = callable(getattr(each, "start", None)) and callable(getattr(each, "stop", None))
        if not works and not isinstance(each, Flow):
            raise UsageError(f"{each!r:.60} is nothing that {what}= takes", hint=f"Write {what}={example}")
    return found


def _live(flows: Sequence[Flow | Background], memory: str | int | None, processes: int) -> list[Background]:
    return [LiveFlow(flow, memory, processes) if isinstance(flow, Flow) else flow for flow in flows]


def _check_names(kind: str, backgrounds: Sequence[Background], hint: str) -> None:
    """Work of one name has one checkpoint: of two in one app, each would take it from the other."""
    seen: set[str | int] = set()
    for background in backgrounds:
        name: str = getattr(background, "name", "")
        key = name or id(background)
        if key in seen:
            raise UsageError(f"two {kind} of this app are named {name!r}" if name else f"two {kind} are one", hint=hint)
        seen.add(key)


def _distinct(placements: Sequence[Placement]) -> list[Placement]:
    seen: dict[str, Placement] = {}
    for placement in placements:
        first = seen.setdefault(placement.name, placement)
        if first is not placement:
            raise DuplicateHandler(f"the name {placement.name!r}", repr(first))
    return list(placements)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does, where handlers can be set: on the main thread.

    To set an event instead could block for ever: its lock may be held by the very code that is interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
