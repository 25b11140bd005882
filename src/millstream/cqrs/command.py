"""Commands: what is asked of the write side, who decides it, and that it takes effect once."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Protocol,
    TypeVar,
    dataclass_transform,
    get_args,
)

import msgspec

from ..errors import UsageError
from ..log import Log
from ..log.handlers import InvalidHandler, Parameter, resolve
from ..log.once import digest_of, once
from ..log.retry import retrying
from ..storage.base import Receipt, StagedAppend
from .binding import message_type, parameters
from .errors import DuplicateHandler, UnknownCommand

Target = TypeVar("Target")


class RefTo(msgspec.Struct, frozen=True):
    """The mark of a field that names a stream: whose aggregate it is of (a class, or its name)."""

    target: Any


if TYPE_CHECKING:

    class Reference(str, Generic[Target]):
        """A stream's name that says which aggregate is meant."""

    Ref = str | Reference[Target]
else:

    class Ref:
        """The type of a command's field that names an aggregate's stream: ``order: ms.Ref[Order]``.

        At run time it is a plain string; the class says which aggregate a command handler is given.
        """

        def __class_getitem__(cls, target: Any) -> Any:
            return Annotated[str, RefTo(target)]


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes each command or query class an immutable msgspec struct, and notes its references."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> Any:
        refs: dict[str, Any] = {}
        for base in reversed(bases):
            refs |= getattr(base, "__refs__", {})
        refs |= _references(namespace.get("__annotations__", {}), sys._getframe(1))
        namespace["__refs__"] = refs
        config.setdefault("frozen", True)
        return super().__new__(mcls, name, bases, namespace, **config)


def _references(annotations: dict[str, Any], frame: FrameType) -> dict[str, Any]:
    found = {}
    for field, annotation in annotations.items():
        # Strings are resolved here, where the names around the class are at hand.
        resolved = resolve(annotation, frame.f_globals, frame.f_locals)
        if isinstance(resolved, str):
            match = re.search(r"\bRef\[\s*['\"]?([\w.]+)", resolved)
            if match is not None:
                found[field] = match[1].rpartition(".")[2]
            continue
        for mark in get_args(resolved):
            if isinstance(mark, RefTo):
                found[field] = mark.target
    return found


class Command(msgspec.Struct, metaclass=MessageMeta):
    """Base class of commands: immutable, typed requests to change something.

    Example:
        >>> import millstream as ms
        >>> class Order(ms.Aggregate):
        ...     pass
        >>> class CancelOrder(ms.Command):
        ...     order: ms.Ref[Order]
        ...     reason: str = ""
        >>> CancelOrder(order="order-1")
        CancelOrder(order='order-1', reason='')
    """

    __refs__: ClassVar[dict[str, Any]]


class Aggregates(Protocol):
    """What command handlers change: how it is loaded and what it recorded. The application provides it."""

    def accepts(self, cls: Any) -> bool:
        """Whether a class is of this kind."""

    def load(self, cls: type[Any], stream: str) -> Any:
        """One of the class, as its stream says, ready to be changed."""

    def stage(self, aggregate: Any) -> StagedAppend | None:
        """What it has recorded, to be appended at the version that it was loaded at."""


class _Handler(msgspec.Struct, frozen=True):
    function: Callable[..., object]
    command: str
    """Name of the parameter that takes the command."""
    aggregates: dict[str, tuple[type[Any], str]]
    """Parameter → class of the aggregate, field of the command that names its stream."""


class Commands:
    """The handlers of commands, and their execution against a log."""

    def __init__(self, log: Log, aggregates: Aggregates) -> None:
        self._log = log
        self._aggregates = aggregates
        self._handlers: dict[type[Command], _Handler] = {}

    def register(self, function: Callable[..., object], frame: FrameType) -> None:
        """Have a function handle the command that its annotation names.

        Raises:
            InvalidHandler: A parameter cannot be filled by its type.
            DuplicateHandler: The command has a handler already.
        """
        found = parameters(function, frame)
        name, command = message_type(function, found, Command)
        if command in self._handlers:
            first = self._handlers[command].function
            raise DuplicateHandler(command.__name__, getattr(first, "__qualname__", repr(first)))
        aggregates = {
            p.name: (p.annotation, self._field(function, p, command))
            for p in found
            if p.name != name and (p.required or self._aggregates.accepts(p.annotation))
        }
        self._handlers[command] = _Handler(function, name, aggregates)

    def _field(self, function: Any, parameter: Parameter, command: type[Command]) -> str:
        """The field that names the stream of the aggregate that a parameter asks for."""
        cls = parameter.annotation
        if not self._aggregates.accepts(cls):
            raise InvalidHandler(
                function.__qualname__,
                f"parameter {parameter.name!r} is annotated with {cls!r:.60}, which a command cannot give",
                hint="Ask for the command and for aggregates that its Ref fields name",
            )
        fields = [f for f, target in command.__refs__.items() if target is cls or target == cls.__name__]
        if parameter.name in fields:
            return parameter.name
        if len(fields) == 1:
            return fields[0]
        raise InvalidHandler(
            function.__qualname__,
            f"{command.__name__} has {len(fields) or 'no'} fields that name a {cls.__name__} "
            f"and none of them is {parameter.name!r}",
            hint=f"Give the command a field {parameter.name}: ms.Ref[{cls.__name__}]",
        )

    def execute(self, command: Command, *, id: str | None = None) -> Receipt:
        """Have a command decided, and append what its aggregates recorded: all of it or nothing.

        See ``App.execute``.
        """
        handler = self._handlers.get(type(command))
        if handler is None:
            raise UnknownCommand(type(command).__name__)
        if id is None:
            return retrying(lambda: self._once(handler, command, None, b""))
        digest = digest_of(command)
        return once(self._log, id, digest, lambda: retrying(lambda: self._once(handler, command, id, digest)))

    def _once(self, handler: _Handler, command: Command, id: str | None, digest: bytes) -> Receipt:
        loaded: dict[tuple[type[Any], str], Any] = {}
        arguments: dict[str, Any] = {handler.command: command}
        for parameter, (cls, field) in handler.aggregates.items():
            key = (cls, getattr(command, field))
            if key not in loaded:
                loaded[key] = self._aggregates.load(*key)
            arguments[parameter] = loaded[key]
        handler.function(**arguments)
        appends: Sequence[StagedAppend] = [
            staged for a in loaded.values() if (staged := self._aggregates.stage(a)) is not None
        ]
        streams = [staged.stream for staged in appends]
        for stream in streams:
            if streams.count(stream) > 1:
                kinds = " and ".join(cls.__name__ for cls, of in loaded if of == stream)
                raise UsageError(
                    f"{handler.function.__qualname__} records on stream {stream!r} as {kinds}, which cannot both be"
                    " at its next version",
                    hint="Give aggregates of different classes streams of their own",
                )
        return self._log.commit(appends, id=id, digest=digest)
