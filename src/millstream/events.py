"""Event types: what a user declares, how it is named, and how it becomes bytes and comes back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any, ClassVar, Self, dataclass_transform

import msgspec

from .errors import InvalidEvent
from .time import Moment

_registry: dict[str, type[Event]] = {}
_defined = 0


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=True, field_specifiers=(msgspec.field,))
class EventMeta(msgspec.StructMeta):
    """Makes each event class an immutable, keyword-only msgspec struct and registers it by its name."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        type: str | None = None,
        schema: int | None = None,
        **config: Any,
    ) -> Any:
        for field in namespace.get("__annotations__", ()):
            default = namespace.get(field)
            if isinstance(default, list | dict | set) and default:
                namespace[field] = msgspec.field(default_factory=partial(copy.deepcopy, default))
        namespace.setdefault("__event_type__", type or name)
        namespace.setdefault("__event_schema__", schema or 1)
        config.setdefault("frozen", True)
        config.setdefault("kw_only", True)
        # Events are immutable, so they cannot hold themselves, and millions of them need not be traced.
        config.setdefault("gc", False)
        cls = super().__new__(mcls, name, bases, namespace, **config)
        if namespace["__module__"] != __name__:
            global _defined
            _defined += 1
            _registry[namespace["__event_type__"]] = cls  # type: ignore[assignment]
        return cls


class Event(msgspec.Struct, metaclass=EventMeta):
    """Base class of domain events: immutable, keyword-only, typed.

    A type is known in the log by its name, not by its module, so classes can move. ``type=`` gives another
    name than the class's own, ``schema=`` the version of its shape (default 1). Fields may be of any type
    that msgspec encodes: numbers, ``str``, ``bool``, ``bytes``, ``Decimal``, ``datetime``, ``date``, ``UUID``,
    enums, lists, dicts, optionals, nested structs. Mutable defaults are copied for each event.

    Example:
        >>> from decimal import Decimal
        >>> import millstream as ms
        >>> class MoneyDeposited(ms.Event):
        ...     amount: Decimal
        >>> MoneyDeposited(amount=Decimal(5))
        MoneyDeposited(amount=Decimal('5'))
    """

    __event_type__: ClassVar[str]
    __event_schema__: ClassVar[int]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Plain(msgspec.Struct, frozen=True):
    """An event without a class: a type name and plain data. Events of unknown types are read as these."""

    type: str
    data: dict[str, Any]


class Draft(msgspec.Struct, frozen=True):
    """An event to append together with what belongs to it alone.

    Args:
        event: The event.
        tags: Labels to find it by, such as ``"course:c1"``; see ``unless=`` of ``log.append``.
        metadata: JSON-like data that describes the event, such as who caused it.
        effective: When it was true in the world, if that is not when it was recorded.
    """

    event: Event | Plain
    tags: Iterable[str] = ()
    metadata: Mapping[str, Any] | None = None
    effective: Moment | None = None


AnyEvent = Event | Plain


def type_name(event: AnyEvent | type[Event] | str) -> str:
    """The name by which the log knows a type, from an event, a class or the name itself."""
    if isinstance(event, str):
        return event
    if isinstance(event, Plain):
        return event.type
    try:
        return event.__event_type__
    except AttributeError:
        raise InvalidEvent(
            f"{event!r:.80} is not an event",
            hint="Derive its class from millstream.Event, or use millstream.Plain",
        ) from None


def event_class(type: str) -> type[Event] | None:
    """The class last defined under this type name in this process, if any."""
    return _registry.get(type)


def definitions() -> int:
    """How many event classes were defined so far: what was learnt of them before another one may be out of date."""
    return _defined


@cache
def decoder(cls: Any) -> msgspec.json.Decoder[Any]:
    """The JSON decoder of a class, made once."""
    return msgspec.json.Decoder(cls)


_encoder = msgspec.json.Encoder()


def encode(event: AnyEvent) -> bytes:
    """The JSON object of an event's data, as it is stored.

    Raises:
        InvalidEvent: A value cannot be written as JSON, or the data is not an object.
    """
    try:
        if isinstance(event, Plain):
            if not isinstance(event.data, dict):
                raise InvalidEvent(
                    f"the data of a plain {event.type!r} event is {type(event.data).__name__}",
                    hint="Give a dict with string keys",
                )
            return _encoder.encode(event.data)
        body = _encoder.encode(event)
        # The class does not check its values, and what cannot be read back must not get into the log.
        decoder(type(event)).decode(body)
        return body
    except msgspec.ValidationError as error:
        raise InvalidEvent(
            f"an event of type {type_name(event)!r} does not fit its class: {error}",
            hint="Give each field a value of its declared type",
        ) from error
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidEvent(
            f"an event of type {type_name(event)!r} cannot be encoded: {error}",
            hint="Use JSON-like values, Decimal, datetime, date, UUID, bytes, enums and structs",
        ) from error
