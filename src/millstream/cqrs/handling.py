"""Handlers of commands: how they are bound, and how they are called with what they ask for."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from datetime import datetime
from types import FrameType
from typing import Any

import msgspec

from ..errors import UsageError
from ..events import Draft, Event, Plain
from ..log import Log
from ..log.handlers import InvalidHandler, Parameter
from ..time import Clock
from .attempt import Aggregates, Attempt
from .binding import message_type, named, parameters
from .command import Command
from .context import Context
from .errors import DuplicateHandler, UnknownCommand
from .services import Services

Filler = Callable[[Attempt], Any]

_LOOK = 0.5
"""How often, in seconds, whoever waits for a coroutine looks whether its loop is there."""


class Handler(msgspec.Struct, frozen=True):
    """A function that decides one kind of command.

    Attributes:
        function: The function.
        name: How errors call it.
        command: The parameter that takes the command.
        fillers: What each of the other parameters is filled by.
        in_commit: It works on the log's database: it runs inside the transaction that commits it.
        is_async: It is a coroutine function.
    """

    function: Callable[..., object]
    name: str
    command: str
    fillers: dict[str, Filler]
    in_commit: bool
    is_async: bool

    def __call__(self, attempt: Attempt, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have it decide. A coroutine runs on the loop that awaits it, or else on one of its own."""
        arguments = {name: fill(attempt) for name, fill in self.fillers.items()}
        arguments[self.command] = attempt.context.command
        result: Any = self.function(**arguments)
        if not self.is_async:
            self._check(result)
            return
        if loop is not None:
            self._check(self._awaited(result, loop))
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._check(asyncio.run(result))
            return
        result.close()
        raise UsageError(f"{self.name} is a coroutine function", hint="Write await app.aexecute(command) inside a loop")

    def _awaited(self, coroutine: Coroutine[Any, Any, object], loop: asyncio.AbstractEventLoop) -> object:
        """What a coroutine gives on a loop; nothing ever comes of one whose loop was closed before it had ended."""
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        while True:
            try:
                return future.result(_LOOK)
            except TimeoutError:
                if future.done():
                    return future.result()  # or else what it has raised
                if loop.is_closed():
                    raise UsageError(
                        f"the event loop was closed before {self.name} had ended; nothing was written",
                        hint="Await what was begun, as asyncio.run() does",
                    ) from None

    def _check(self, result: Any) -> None:
        """Refuse events that are given back in the belief that they are appended."""
        for each in result if isinstance(result, list | tuple) else (result,):
            if isinstance(each, Event | Plain | Draft):
                raise UsageError(
                    f"{self.name} gave {each!r:.60}, which nobody appends",
                    hint="Record it on an aggregate: self.record(…) in a method that the handler calls",
                )


class Handlers:
    """The handlers of an app's commands, by their classes."""

    def __init__(self, log: Log, aggregates: Aggregates, services: Services) -> None:
        self._log = log
        self._aggregates = aggregates
        self._services = services
        self._handlers: dict[type[Command], Handler] = {}

    def of(self, command: Command) -> Handler:
        """The one that decides a command.

        Raises:
            UnknownCommand: There is none.
        """
        handler = self._handlers.get(type(command))
        if handler is None and not isinstance(command, Command):
            given: Any = command
            what = f"{given.__name__} is a class" if isinstance(given, type) else f"{given!r:.60} is no command"
            raise UsageError(what, hint="Give a command, of a class derived from millstream.Command")
        if handler is None:
            raise UnknownCommand(type(command).__name__)
        return handler

    def known(self) -> list[type[Command]]:
        """The commands that have handlers, in the order of their names."""
        return sorted(self._handlers, key=lambda command: command.__name__)

    def named(self, name: str) -> type[Command]:
        """The command's class of that name.

        Raises:
            UnknownCommand: No handler takes one of that name.
        """
        for command in self._handlers:
            if command.__name__ == name:
                return command
        raise UnknownCommand(name, [command.__name__ for command in self._handlers])

    def register(self, function: Callable[..., object], frame: FrameType) -> None:
        """Have a function handle the command that its annotation names.

        Raises:
            InvalidHandler: A parameter cannot be filled by its type.
            DuplicateHandler: The command has a handler already.
        """
        found = parameters(function, frame, coroutines=True)
        name, command = message_type(function, found, Command)
        if command in self._handlers:
            raise DuplicateHandler(command.__name__, self._handlers[command].name)
        called = getattr(function, "__qualname__", repr(function))
        fillers = {
            p.name: filler for p in found if p.name != name and (filler := self._filler(called, p, command)) is not None
        }
        in_commit = any(filler is _database for filler in fillers.values())
        is_async = inspect.iscoroutinefunction(function)
        if in_commit and is_async:
            raise InvalidHandler(
                called,
                "it is a coroutine that asks for the database: all other writers would wait while it awaits",
                hint="Write it with a plain def, or leave the rows to an inline projection",
            )
        self._handlers[command] = Handler(function, called, name, fillers, in_commit, is_async)

    def _filler(self, handler: str, parameter: Parameter, command: type[Command]) -> Filler | None:
        """What fills a parameter, by its type; None leaves it to its default."""
        annotation = parameter.annotation
        if self._aggregates.accepts(annotation):
            field = _field(handler, parameter, command)
            return lambda attempt: attempt.load(annotation, getattr(attempt.context.command, field))
        if named(annotation, "Database") or (annotation is None and parameter.name == "db"):
            return _database
        if annotation is Context:
            return lambda attempt: attempt.context
        if annotation is datetime:
            return lambda attempt: self._log.now()
        if annotation == Clock:
            return lambda attempt: self._log.now
        if annotation is Log:
            return lambda attempt: self._log
        service = self._services.find(handler, annotation, parameter.name)
        if service is not None:
            enlist: Any = getattr(service, "enlisted", None)
            if callable(enlist):
                return lambda attempt: enlist(self._log, attempt.extra.append, attempt.about)
            return lambda attempt: service
        if not parameter.required:
            return None
        what = "has no annotation" if annotation is None else f"is annotated with {annotation!r:.60}"
        raise InvalidHandler(
            handler,
            f"parameter {parameter.name!r} {what}, which a command cannot give",
            hint="Ask for the command, aggregates that its Ref fields name, db: ms.Database, now: datetime, or "
            "services: ms.App(log, services=[…]) or app.provide(…), before the handler",
        )


def _database(attempt: Attempt) -> Any:
    return attempt.db


def _field(handler: str, parameter: Parameter, command: type[Command]) -> str:
    """The field that names the stream of the aggregate that a parameter asks for."""
    cls = parameter.annotation
    fields = [f for f, target in command.__refs__.items() if target is cls or target == cls.__name__]
    if parameter.name in fields:
        return parameter.name
    if len(fields) == 1:
        return fields[0]
    raise InvalidHandler(
        handler,
        f"{command.__name__} has {len(fields) or 'no'} fields that name a {cls.__name__} "
        f"and none of them is {parameter.name!r}",
        hint=f"Give the command a field {parameter.name}: ms.Ref[{cls.__name__}]",
    )
