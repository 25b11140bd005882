"""The write side of an app: commands, what goes around them, and what their handlers are given."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, overload

import msgspec

from ..cqrs.command import Command
from ..cqrs.context import Context
from ..cqrs.crowd import Crowd
from ..cqrs.deciding import Deciding
from ..cqrs.delivery import Backlog, Delivery
from ..cqrs.errors import DuplicateHandler
from ..cqrs.execution import Execution, Middleware, Outcome
from ..cqrs.gathering import Gathering
from ..cqrs.handling import Handler, Handlers
from ..cqrs.lease import Leases
from ..cqrs.outbox import Outbox
from ..cqrs.process import Process
from ..cqrs.reactor import Reactor
from ..cqrs.services import Services
from ..cqrs.together import Together
from ..cqrs.validation import parsed
from ..errors import MillstreamError, UsageError
from ..log import Log
from ..log.handlers import InvalidHandler
from ..storage.base import Receipt
from .aggregates import LoadedAggregates
from .supervisor import Worker

Function = TypeVar("Function", bound=Callable[..., Any])

_THREADS = 64
"""How many commands of coroutines are under way at once."""


class WriteSide:
    """What an `App` does with commands."""

    def __init__(
        self,
        log: Log,
        services: Iterable[object] = (),
        processes: Iterable[type[Process]] = (),
        outboxes: Iterable[Outbox] = (),
    ) -> None:
        self.log = log
        outboxes = [_checked("outboxes", each, isinstance(each, Outbox)) for each in outboxes]
        processes = [
            _checked("processes", each, isinstance(each, type) and issubclass(each, Process)) for each in processes
        ]
        aggregates = LoadedAggregates(log)
        self._services = Services([*services, *outboxes])
        self._handlers = Handlers(log, aggregates, self._services)
        self._execution = Execution(log, aggregates, self._handlers)
        self._begin()
        leases = self._leases = Leases(log)
        self._reactors = _by_name("process", [Reactor(log, each, self._by_process, leases) for each in processes])
        self._deliveries = _by_name("outbox", [Delivery(log, each, leases) for each in outboxes])
        if not log.store.readonly:
            for reactor in self._reactors.values():
                reactor.prepare()
            for delivery in self._deliveries.values():
                delivery.prepare()

    def _forked(self) -> None:
        """In a forked child: the workers are in the parent, which goes on."""
        self._begin()
        self._leases.begin()
        for each in (*self._reactors.values(), *self._deliveries.values()):
            each.forked()

    def _begin(self) -> None:
        """Have no threads yet: also in a forked child, where those of the parent are not."""
        self._deciding = Deciding(self._execution)
        self._gathering = Gathering(self._deciding, lambda work: self._beside().submit(work))
        self._crowd = Crowd(self._deciding)
        self._threads: ThreadPoolExecutor | None = None
        self._making = threading.Lock()

    @overload
    def command(self, function: Function, /) -> Function: ...
    @overload
    def command(self, /) -> Callable[[Function], Function]: ...

    def command(self, function: Any = None, /) -> Any:
        """Have a function decide a command: ``@app.command``, or ``@app.command()``.

        Its parameters are filled by type: the command; aggregates, each loaded from the stream that the command's
        ``ms.Ref`` field of the same name (or the only one of that class) holds; ``now: datetime`` by the log's clock;
        ``context: ms.Context``; ``log: ms.Log``; and services of the app. What aggregates, decisions and outboxes
        record is appended in one commit. The function may run again after a conflict: no other effects in it.

        Commands that several threads execute at once may be decided on one of them, each with the context variables of
        its caller: the function must not lean on thread-locals, nor wait for what its caller holds.

        With ``db: ms.Database`` it runs inside the transaction that commits it, and changes rows of the log's
        database in it; all other writers wait for it then.

        It may be a coroutine function: see `aexecute`.

        Raises:
            InvalidHandler: A parameter cannot be filled.
            DuplicateHandler: The command has a handler already.
        """
        frame = sys._getframe(1)

        def register(function: Function) -> Function:
            self._handlers.register(function, frame)
            return function

        return register if function is None else register(function)

    def provide(self, service: object, *, as_: Any = None) -> None:
        """Give handlers that are registered from here on one more service; see ``App(services=[…])``.

        Args:
            service: The object. Of several of one type, its attribute ``name`` says which parameter it is for.
            as_: What handlers annotate it with, when that is not its class or a base of it.
        """
        self._services.add(service, as_)

    def middleware(self, *middleware: Middleware) -> None:
        """Have commands go through functions around their handlers: the first given is the outermost.

        Each is called with the command's `Context` and a function that has it executed; it returns that one's
        receipt, or raises. It goes around the retries of a conflict.

        Raises:
            InvalidHandler: One is no function that is called so.
        """
        for each in middleware:
            name = getattr(each, "__qualname__", repr(each))
            if not callable(each) or inspect.iscoroutinefunction(each):
                raise InvalidHandler(
                    name, "it is no plain function", hint="Write def around(context, execute): return execute()"
                )
            self._execution.middleware.append(each)

    def execute(
        self,
        command: Command,
        *,
        id: str | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Have a command checked and decided, and what it leads to written, all of it or nothing.

        When another writer came first, the command is decided again on what is there then.

        Args:
            command: The command.
            id: Names this request. The same command with the same id takes effect once, and gives the same
                receipt, also from another process, after a crash, or when nothing was recorded.
            correlation: The conversation that it belongs to, which its events carry; by default it begins one.
            causation: What caused it, which its events carry; by default, the command's id (made up without one).
            metadata: What else its events carry.

        Returns:
            Where the events stand; give it to a query as ``after=``. ``count`` is 0 when there are none.

        Raises:
            UnknownCommand: It has no handler.
            Rejected: It does not fit its class, or the handler refused it. Nothing is left, and the id may be used
                again.
            ConstraintViolated: An inline projection's table refused it. Nothing is left.
            IdReused: The id stands for another command.
            Contended: Others changed the aggregate first, again and again.
        """
        handler, context = self._execution.begin(
            command, id=id, correlation=correlation, causation=causation, metadata=metadata
        )
        return self._crowd.run(handler, context)

    async def aexecute(
        self,
        command: Command,
        *,
        id: str | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """The same, awaited: a coroutine handler runs on the loop, all else in threads beside it.

        Commands of many coroutines share commits; those whose handlers are quick are decided one after the other on
        one thread, too, unless there is middleware. To cancel it does not take back what is under way.
        """
        loop = asyncio.get_running_loop()
        handler, context = self._execution.begin(
            command, id=id, correlation=correlation, causation=causation, metadata=metadata
        )
        if self._deciding.takes(handler):
            return await self._gathering.submit(handler, context)
        run = partial(contextvars.copy_context().run, self._deciding.alone, handler, context, loop)
        return await loop.run_in_executor(self._beside(), run)

    def execute_all(
        self,
        commands: Iterable[Command],
        *,
        ids: Sequence[str] | None = None,
        correlation: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Outcome]:
        """Have many commands decided in order, each on what those before it have changed, in one commit.

        Each takes effect, or is refused, by itself: a constraint that one violates undoes that one alone. (Commands
        whose handlers ask for the database get commits of their own; one that only reads an aggregate which those
        before it change, or makes a `Decision` on their events, begins another commit.) An error that is not of this
        library leaves, and what was decided before it in the same commit is not written.

        Args:
            commands: The commands.
            ids: An id for each; see `execute`.
            correlation, metadata: As of `execute`, for all of them.

        Returns:
            For each command its receipt, or the error that `execute` would have raised.

        Example:
            >>> import millstream as ms
            >>> class Counted(ms.Event):
            ...     n: int
            >>> class Counter(ms.Aggregate):
            ...     @ms.on
            ...     def counted(self, event: Counted) -> None: ...
            >>> class Count(ms.Command):
            ...     counter: ms.Ref[Counter]
            ...     n: int
            >>> app = ms.App(ms.open())
            >>> @app.command
            ... def count(command: Count, counter: Counter) -> None:
            ...     counter.record(Counted(n=command.n))
            >>> [type(each).__name__ for each in app.execute_all([Count("c-1", 1), Count("c-1", "two")])]
            ['Receipt', 'Rejected']
        """
        return self._execution.run_all(self._all_begun(commands, ids, correlation, metadata))

    async def aexecute_all(
        self,
        commands: Iterable[Command],
        *,
        ids: Sequence[str] | None = None,
        correlation: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Outcome]:
        """`execute_all`, awaited: coroutine handlers run on the loop, all else in a thread beside it."""
        loop = asyncio.get_running_loop()
        begun = self._all_begun(commands, ids, correlation, metadata)
        run = partial(contextvars.copy_context().run, self._execution.run_all, begun, loop)
        return await loop.run_in_executor(self._beside(), run)

    def execute_together(
        self,
        commands: Iterable[Command],
        *,
        id: str | None = None,
        correlation: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Have commands decided in order, each on what those before it would change, and commit all of them or none.

        When another writer came first, all are decided again. Middleware goes around each, and around the commit.

        Args:
            commands: The commands; none whose handler asks for the database.
            id: Names the request: the same commands with the same id take effect once. Their events carry it as
                ``causation``.
            correlation, metadata: As of `execute`, for all of them.

        Returns:
            Where the events of all of them stand.

        Raises:
            Rejected, ConstraintViolated: One was refused, and so all are; a note on the error names it. Nothing is
                left, and the id may be used again.
            UsageError: The handler of one asks for the database.
            Unseen: A `Decision` is about what commands before it would append, or one of theirs appends to the stream
                of an aggregate.
            IdReused: The id stands for other commands.
            Contended: Others came first, again and again.
        """
        return Together(self._execution, self._begun(commands, id, correlation, metadata), id, None).run()

    async def aexecute_together(
        self,
        commands: Iterable[Command],
        *,
        id: str | None = None,
        correlation: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """`execute_together`, awaited: coroutine handlers run on the loop, all else in a thread beside it."""
        loop = asyncio.get_running_loop()
        together = Together(self._execution, self._begun(commands, id, correlation, metadata), id, loop)
        return await loop.run_in_executor(self._beside(), partial(contextvars.copy_context().run, together.run))

    def _begun(
        self,
        commands: Iterable[Command],
        id: str | None,
        correlation: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> list[tuple[Handler, Context]]:
        listed = _commands(commands)
        if correlation is None and len(listed) > 1:
            correlation = id or uuid.uuid4().hex  # what goes together is one conversation
        return [
            self._execution.begin(each, correlation=correlation, causation=id, metadata=metadata) for each in listed
        ]

    def _all_begun(
        self,
        commands: Iterable[Command],
        ids: Sequence[str] | None,
        correlation: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> list[tuple[Handler, Context] | MillstreamError]:
        listed = _commands(commands)
        if ids is not None and (not isinstance(ids, list | tuple) or len(ids) != len(listed)):
            raise UsageError(f"ids= are not one for each of {len(listed)} commands", hint="Give a list of as many")
        begun: list[tuple[Handler, Context] | MillstreamError] = []
        for number, command in enumerate(listed):
            id = ids[number] if ids is not None else None
            try:
                begun.append(self._execution.begin(command, id=id, correlation=correlation, metadata=metadata))
            except MillstreamError as error:
                begun.append(error)
        return begun

    def commands(self) -> dict[str, tuple[str, ...]]:
        """The commands that have handlers: by name, their fields; those that may be left out have a ``?``."""
        return {
            command.__name__: tuple(
                field.name if field.required else f"{field.name}?" for field in msgspec.structs.fields(command)
            )
            for command in self._handlers.known()
        }

    def parse(self, name: str, data: bytes | str | dict[str, Any]) -> Command:
        """A command by the name of its class, from JSON or a dict, checked.

        Raises:
            UnknownCommand: No handler takes one of that name.
            Rejected: The data does not fit it; names the fields.
        """
        command: Command = parsed(self._handlers.named(name), data)
        return command

    def _by_process(self, name: str, data: dict[str, Any], id: str, correlation: str) -> Receipt:
        return self.execute(self.parse(name, data), id=id, correlation=correlation or None)

    def _write_workers(self) -> list[Worker]:
        """The workers of processes and outboxes."""
        workers = [Worker(name, "process", reactor.run) for name, reactor in self._reactors.items()]
        return workers + [
            Worker(name, "outbox", each.run, outside=lambda each=each: each.is_outside)  # type: ignore[misc]
            for name, each in self._deliveries.items()
        ]

    def _writer(self, worker: Worker) -> Reactor | Delivery | None:
        """What a worker of a process or an outbox runs; None for other workers."""
        if worker.kind == "process":
            return self._reactors[worker.name]
        return self._deliveries[worker.name] if worker.kind == "outbox" else None

    def _backlog(self, worker: Worker) -> Backlog | None:
        """What is still to be sent of an outbox; None for other workers."""
        return self._deliveries[worker.name].backlog() if worker.kind == "outbox" else None

    def _beside(self) -> ThreadPoolExecutor:
        with self._making:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="millstream-command")
            return self._threads


def _commands(given: Iterable[Command]) -> list[Command]:
    try:
        return list(given)
    except TypeError as error:
        raise UsageError(f"{given!r:.60} is no list of commands", hint="Give a list; one alone to execute") from error


Kept = TypeVar("Kept", Reactor, Delivery)


def _checked(what: str, given: Any, fits: bool) -> Any:
    if not fits:
        raise UsageError(f"{given!r:.60} is nothing that {what}= takes", hint=f"See ms.App: {what}=[…]")
    return given


def _by_name(kind: str, workers: Iterable[Kept]) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    for worker in workers:
        if worker.name in found:
            raise DuplicateHandler(f"the name {worker.name!r}", f"another {kind}")
        found[worker.name] = worker
    return found
