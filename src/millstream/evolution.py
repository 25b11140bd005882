"""Evolution of events: upcasters, which make data of an older shape into data of a newer one, and what they lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FunctionType
from typing import Any, TypeVar

import msgspec

from .errors import InvalidEvent, InvalidUpcaster
from .events import Event, defined, event_class, in_module, place, present_name, shape, type_name
from .marks import mark

Function = TypeVar("Function", bound=Callable[[dict[str, Any]], Any])


class Upcaster(msgspec.Struct, frozen=True, eq=False):
    """One step of a type's evolution.

    Attributes:
        type: The type's name, as it was given.
        since: The version of the shape that it makes, out of the one before.
        into: The other types that its results may have.
        function: What does it.
    """

    type: str
    since: int
    into: tuple[str, ...]
    function: Callable[[dict[str, Any]], Any]

    @property
    def place(self) -> str:
        """Where it is defined."""
        function: Any = self.function
        # All lambdas of a module have one name.
        line = f":{function.__code__.co_firstlineno}" if function.__qualname__.endswith("<lambda>") else ""
        return place(function) + line


_upcasters: dict[tuple[str, int], Upcaster] = {}


def upcast(
    type: str | type[Event], /, *, since: int, into: Iterable[str | type[Event]] = ()
) -> Callable[[Function], Function]:
    """Declare how stored data of a type is brought to a newer version of its shape. What is stored stays as it is.

    The function gets the data of version ``since - 1`` as a dict of its own, with the values that JSON has (a Decimal
    is text) and `Erased` for personal data that was, and returns that of version ``since``. Functions are chained up to
    the ``schema=`` of the type's class. It must follow from the data alone: it runs whenever an event is read. It may
    return

    - a dict: the data, of the same type;
    - a ``ms.Plain(type, data)``: the event is of another type now, and the data in that one's present shape;
    - a list of these: one stored event is read as several, which share its position, version and time, or as none.

    Versions that need no function (a field with a default was added, or one was removed) may be left out after the
    last one of a chain, not in between. Columns of frames are not upcast.

    Args:
        type: The type's class, its name, or a name that it had.
        since: The version that the function makes, from 2 on.
        into: The other types, classes or names, that it may return: those who read these types are given the results.

    Raises:
        InvalidUpcaster: It makes a version that another function makes already, or an argument cannot be used.

    Example:
        >>> import millstream as ms
        >>> class MeterRead(ms.Event, schema=2):
        ...     watts: int
        >>> @ms.upcast("MeterRead", since=2)
        ... def in_watts(data: dict) -> dict:
        ...     return {"watts": data["kilowatts"] * 1000}
        >>> log = ms.open()
        >>> receipt = log.append("meter-1", ms.Plain("MeterRead", {"kilowatts": 3}, schema=1))
        >>> [e.event for e in log.read("meter-1")]
        [MeterRead(watts=3000)]
    """
    if not isinstance(since, int) or isinstance(since, bool) or since < 2:
        raise InvalidUpcaster(
            f"since={since!r:.60} is no version that an upcaster makes", hint="Use a number from 2 on"
        )
    if isinstance(into, str) or not isinstance(into, Iterable):
        raise InvalidUpcaster(f"into={into!r:.60} is no list", hint="Give a list of event classes or type names")
    try:
        name, others = type_name(type), tuple(type_name(each) for each in into)
    except InvalidEvent as error:
        raise InvalidUpcaster(error.message, hint="Name the type, or give its class") from error

    def register(function: Function) -> Function:
        if not isinstance(function, FunctionType):
            raise InvalidUpcaster(f"{function!r:.60} is no function", hint="Put @ms.upcast above a def")
        given = Upcaster(name, since, others, function)
        held = _upcasters.get((name, since))
        if held is not None and held.place != given.place and _lasts(held.function) and _lasts(function):
            raise _twice(held, given)
        _upcasters[name, since] = given
        defined()
        return function

    return register


def _lasts(function: Any) -> bool:
    """Whether a function belongs to a module; else the last one counts, as for classes within functions."""
    return in_module(function, getattr(function, "__globals__", {}))


def _twice(first: Upcaster, second: Upcaster) -> InvalidUpcaster:
    return InvalidUpcaster(
        f"{first.place} and {second.place} both make schema {second.since} of {present_name(second.type)!r}",
        hint="Keep one of them",
    )


def steps_of(type: str) -> dict[int, Upcaster]:
    """The upcasters of a type, under its present name and those that it had, by the version that each makes.

    Raises:
        InvalidUpcaster: Two make the same, or one makes a version that the type's class does not have yet.
    """
    found: dict[int, Upcaster] = {}
    for upcaster in list(_upcasters.values()):
        if present_name(upcaster.type) == type:
            if upcaster.since in found:
                raise _twice(found[upcaster.since], upcaster)
            found[upcaster.since] = upcaster
    cls = event_class(type)
    newest = max(found, default=1)
    if cls is not None and newest > cls.__event_schema__:
        raise InvalidUpcaster(
            f"{found[newest].place} makes schema {newest} of {type!r}, and its class has schema {cls.__event_schema__}",
            hint=f"Say which shape the class has: class {cls.__name__}(ms.Event, schema={newest})",
        )
    return found


def stored_names(types: Iterable[str]) -> frozenset[str]:
    """The names under which events may be stored that are read as one of some types.

    Args:
        types: Present names.
    """
    wanted = set(types)
    # What upcasters turn into a wanted type is stored under the names of theirs.
    sources = {u.type for u in list(_upcasters.values()) if not wanted.isdisjoint(map(present_name, u.into))}
    names = wanted | {present_name(source) for source in sources}
    return frozenset(names.union(*(cls.__event_names__ for name in names if (cls := event_class(name)) is not None)))


def definition(cls: type[Event]) -> str:
    """What decides how events of a class are read, as text: its shape, the structs in it, the upcasters to it."""
    name = cls.__event_type__
    parts = [name, *cls.__event_names__, shape(cls)]
    # A field of a type that has no description in JSON has its name, above, alone.
    with suppress(TypeError, NameError, msgspec.MsgspecError):
        parts.append(msgspec.json.encode(_undescribed(msgspec.json.schema(cls)), order="sorted").decode())
    leading = {name, *(u.type for u in list(_upcasters.values()) if name in map(present_name, u.into))}
    for (_, since), upcaster in sorted(_upcasters.items()):
        if present_name(upcaster.type) in {present_name(each) for each in leading}:
            parts.append(f"{present_name(upcaster.type)} {since} {upcaster.into} {mark(upcaster.function)}")
    return "\n".join(parts)


def _undescribed(schema: Any) -> Any:
    """A JSON schema without its texts, which change nothing."""
    if isinstance(schema, dict):
        texts = {key for key in ("description", "title") if isinstance(schema.get(key), str)}
        return {key: _undescribed(value) for key, value in schema.items() if key not in texts}
    return [_undescribed(value) for value in schema] if isinstance(schema, list) else schema
