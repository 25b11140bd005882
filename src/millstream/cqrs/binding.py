"""What a handler function asks for: its parameters and their types, strings resolved."""

from __future__ import annotations

import inspect
from types import FrameType, FunctionType
from typing import Any

from ..log.handlers import InvalidHandler, Parameter, resolve


def parameters(function: Any, frame: FrameType, *, coroutines: bool = False) -> list[Parameter]:
    """The parameters of a handler function, in order.

    Args:
        function: The function.
        frame: Where it is defined, for annotations that are strings and name what is local there.
        coroutines: Whether it may be a coroutine function.

    Raises:
        InvalidHandler: It is not a plain function.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not isinstance(function, FunctionType):
        raise InvalidHandler(name, "it is not a function", hint="Put the decorator on a def")
    if inspect.iscoroutinefunction(function) and not coroutines:
        raise InvalidHandler(name, "it is a coroutine function", hint="Write it with a plain def")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidHandler(name, "it is a generator, which does nothing by itself", hint="Write it without yield")
    names = {**frame.f_globals, **frame.f_locals}
    return [
        Parameter(
            p.name,
            resolve(function.__annotations__.get(p.name), function.__globals__, names),
            p.default is p.empty,
        )
        for p in inspect.signature(function).parameters.values()
    ]


def message_type(function: Any, found: list[Parameter], base: type) -> tuple[str, type[Any]]:
    """The parameter that takes the command or query, and its type.

    Raises:
        InvalidHandler: None does, or several do.
    """
    messages = [p for p in found if isinstance(p.annotation, type) and issubclass(p.annotation, base)]
    if len(messages) != 1 or messages[0].annotation is base:
        kind = base.__name__.lower()
        raise InvalidHandler(
            function.__qualname__,
            f"it must have one parameter that is annotated with its {kind}'s class",
            hint=f"Write def {function.__name__}({kind}: Some{base.__name__}, …)",
        )
    return messages[0].name, messages[0].annotation


def named(annotation: Any, name: str) -> bool:
    """Whether an annotation is the class of that name, or a text that says so."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return str(text).rpartition(".")[2] == name
