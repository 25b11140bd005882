"""Handlers of events: ``@on`` marks a method, and a class's table says which method takes which type.

Aggregates and projections both dispatch through such a table. It is made once per class, so that applying an
event costs one look-up by type name and one call.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, Union, get_args, get_origin, overload

import msgspec

from ..errors import UsageError
from ..events import Event, Plain, event_class, type_name

Method = TypeVar("Method", bound=Callable[..., Any])

_MARK = "__millstream_on__"
_SUSPENDED = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_IDLE = "it is a coroutine or a generator, which does nothing by itself"


class InvalidHandler(UsageError):
    """A method or function that is to be a handler cannot be used as one."""

    code = "invalid-handler"

    def __init__(self, handler: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{handler} cannot be a handler: {reason}", hint=hint)
        self.handler = handler
        self.reason = reason


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a handler beyond the event.

    Attributes:
        name: Its name.
        annotation: Its type; the text of it where it names something that cannot be found; None without one.
        required: Whether it has no default.
    """

    name: str
    annotation: Any
    required: bool


class Handler(msgspec.Struct, frozen=True):
    """One method, for one type of event.

    Attributes:
        handles: The type's name in the log.
        event: The class to decode with: an event class, or ``Plain``.
        method: The method's name; looked up on the class, so that a subclass may override it.
        function: The function that the class has under that name.
        parameters: What it takes after the event.
        batch: Whether it takes a frame of many events.
    """

    handles: str
    event: type[Any]
    method: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    batch: bool = False


class _Mark(msgspec.Struct):
    given: tuple[Any, ...]
    annotations: dict[str, Any]
    batch: bool = False


@overload
def on(event: type[Event] | str, /, *more: type[Event] | str) -> Callable[[Method], Method]: ...
@overload
def on(method: Method, /) -> Method: ...


def on(*given: Any) -> Any:
    """Mark a method as the handler of a type of event.

    The type is taken from the annotation of the first parameter (``A | B`` handles both), or given:
    ``@on(MoneyDeposited)``, or ``@on("Login")`` for events that have no class here. Annotations may be
    strings (``from __future__ import annotations``) and may name classes that are local to a function or
    defined further down. Subclasses inherit handlers, and may override a method or handle a type by another.

    Args:
        given: The method itself, or the types of event that it handles.

    Raises:
        InvalidHandler: It takes no event, is a coroutine or a generator, or (when the table is first used) its type
            cannot be told.

    Example:
        >>> import millstream as ms
        >>> class Opened(ms.Event):
        ...     owner: str
        >>> class Account(ms.Aggregate):
        ...     owner: str = ""
        ...
        ...     @ms.on
        ...     def opened(self, event: Opened) -> None:
        ...         self.owner = event.owner
    """
    body = sys._getframe(1)
    if len(given) == 1 and isinstance(given[0], types.FunctionType):
        return _mark(given[0], (), body)
    _check_given("on", given)
    return lambda function: _mark(function, given, body)


def on_batch(*given: type[Event] | str) -> Callable[[Method], Method]:
    """Mark a projection's method that takes many events at once, as a Polars frame: ``@ms.on_batch(OrderPlaced)``.

    The frame has a column for each field, and ``_position``, ``_stream``, ``_version``, ``_type``, ``_time`` (UTC). It
    holds neighbouring events of the types named, in the order of the log; an event of a type that another handler takes
    ends it, so that the order between types is kept. One method that names several types gets them in one frame, null
    where a type lacks a field. Nothing is promised of how many events a frame holds: at least one.

    Args:
        given: The types of event that it handles: classes, or type names.

    Raises:
        InvalidHandler: It names no type, or (when the table is first used) it is not a projection's.

    Example:
        >>> import millstream as ms
        >>> import polars as pl
        >>> class Clicked(ms.Event):
        ...     user: int
        >>> class ClicksPerUser(ms.Projection):
        ...     schema = "create table clicks (user integer primary key, n integer not null)"
        ...
        ...     @ms.on_batch(Clicked)
        ...     def clicked(self, frame: pl.DataFrame, db: ms.Database) -> None:
        ...         db.upsert("clicks", frame.group_by("user").agg(n=pl.len()), key="user", add=["n"])
    """
    body = sys._getframe(1)
    _check_given("on_batch", given)
    return lambda function: _mark(function, given, body, batch=True)


def _check_given(decorator: str, given: tuple[Any, ...]) -> None:
    for item in given:
        if not isinstance(item, str) and not (isinstance(item, type) and issubclass(item, Event)):
            raise InvalidHandler(
                f"@{decorator}({item!r:.60})",
                "it is neither an event class nor a type's name",
                hint=f"Write @{decorator}(SomeEvent)",
            )
    if not given:
        raise InvalidHandler(f"@{decorator}()", "it names no type", hint=f"Write @{decorator}(SomeEvent)")


def _mark(function: Any, given: tuple[Any, ...], body: types.FrameType, *, batch: bool = False) -> Any:
    name = getattr(function, "__qualname__", repr(function))
    if not isinstance(function, types.FunctionType):
        raise InvalidHandler(name, "it is not a plain method", hint="Put @on directly above the def")
    if is_suspended(function):
        raise InvalidHandler(name, _IDLE, hint="Write it with a plain def, without yield")
    if len(_positional(function)) < 2:
        raise InvalidHandler(name, "it takes no event", hint="Write def handler(self, event: SomeEvent)")
    # The names that string annotations mean are at hand only now, while the class body runs: those of the
    # body, and of the function around it. What is not defined yet is looked up when the table is made.
    around = body.f_back
    names = {**(around.f_locals if around else {}), **body.f_locals}
    found = {key: resolve(value, function.__globals__, names) for key, value in function.__annotations__.items()}
    setattr(function, _MARK, _Mark(given, found, batch))
    return function


def _positional(function: types.FunctionType) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def resolve(annotation: Any, globals: dict[str, Any], names: Mapping[str, Any]) -> Any:
    """What a string annotation means, given the names around it; the string itself when it means nothing."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, globals, dict(names))
    except Exception:
        return annotation


def is_suspended(function: object) -> bool:
    """Whether a function is a coroutine's or a generator's: nothing happens when it is called."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _SUSPENDED)


@contextmanager
def class_options(cls: type, what: str, known: str, options: Mapping[str, object]) -> Iterator[None]:
    """Names an option of a class that no class it is derived from takes; while these are given what is not its own.

    Args:
        what: What such classes are, for the error.
        known: The options that there are.
        options: Those that are passed on.

    Raises:
        UsageError: There is one.
    """
    try:
        yield
    except TypeError as error:
        if not options:
            raise
        raise UsageError(
            f"{cls.__qualname__}: {what} has no class option {next(iter(options))}=", hint=f"There are {known}"
        ) from error


def check_plain(function: object) -> None:
    """See that a function does its work when it is called.

    Raises:
        UsageError: It is a coroutine's or a generator's.
    """
    if is_suspended(function):
        raise UsageError(
            f"{function!r:.60} cannot be used: {_IDLE}",
            hint="Write it with a plain def, without yield; in it, asyncio.run(…) runs a coroutine",
        )


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union; any other annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def handler_table(cls: type, *, batches: bool = False) -> dict[str, Handler]:
    """The handlers of a class by type name, its bases' included; what a subclass defines wins.

    Args:
        batches: Whether handlers may take frames.

    Raises:
        InvalidHandler: The type of a handler cannot be told, or one class handles a type twice.
    """
    table: dict[str, Handler] = {}
    for base in reversed(cls.__mro__):
        own: dict[str, Handler] = {}
        for name, function in vars(base).items():
            mark = getattr(function, _MARK, None)
            if mark is None:
                continue
            if mark.batch and not batches:
                raise InvalidHandler(
                    f"{cls.__qualname__}.{name}",
                    "only projections take events by the frame",
                    hint="Write @on for one event at a time",
                )
            # A method defined anew handles what it says now, not what its namesake in a base handled.
            table = {type: handler for type, handler in table.items() if handler.method != name}
            for handler in _handlers(cls, name, function, mark):
                if handler.handles in own:
                    raise InvalidHandler(
                        f"{base.__qualname__}.{name}",
                        f"{own[handler.handles].method} handles {handler.handles!r} already",
                        hint="Handle each type in one method",
                    )
                own[handler.handles] = handler
        table |= own
    return table


def _handlers(cls: type, name: str, function: types.FunctionType, mark: _Mark) -> list[Handler]:
    _, event, *rest = _positional(function)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY]
    parameters = tuple(
        Parameter(p.name, resolve(mark.annotations.get(p.name), function.__globals__, {}), p.default is p.empty)
        for p in (*rest, *keywords)
    )
    annotated = resolve(mark.annotations.get(event.name), function.__globals__, {})
    return [
        Handler(type, decode_as, name, getattr(cls, name), parameters, mark.batch)
        for type, decode_as in _types(function.__qualname__, annotated, mark.given)
    ]


def _types(handler: str, annotated: Any, given: tuple[Any, ...]) -> list[tuple[str, type[Any]]]:
    """The types a handler takes, each with the class to decode it with."""
    if given:
        known = annotated if isinstance(annotated, type) and issubclass(annotated, Event | Plain) else None
        return [
            (type_name(item), (known or event_class(item) or Plain) if isinstance(item, str) else item)
            for item in given
        ]
    if annotated is None:
        raise InvalidHandler(
            handler, "its event has no annotation", hint="Annotate it, or name the type: @on(SomeEvent)"
        )
    found = []
    for part in alternatives(annotated):
        if isinstance(part, str):
            # Imported for type checkers only, or local to a function further out: known by its name.
            part = event_class(part.rpartition(".")[2]) or part
        if not (isinstance(part, type) and issubclass(part, Event)) or part is Event:
            raise InvalidHandler(
                handler,
                f"{part!r:.60} is not a type of event that can be found",
                hint="Annotate the event with its class, or name the type: @on(SomeEvent)",
            )
        found.append((type_name(part), part))
    return found
