"""Event types: what a user declares, how it is named, and how it becomes bytes and comes back."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Self, dataclass_transform

import msgspec

from .errors import InvalidEvent
from .personal import ErasableDecoder, PersonalShape, declared, plain_text, shape_of
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
        subject: str | None = None,
        **config: Any,
    ) -> Any:
        for field in namespace.get("__annotations__", ()):
            default = namespace.get(field)
            if isinstance(default, list | dict | set) and default:
                namespace[field] = msgspec.field(default_factory=partial(copy.deepcopy, default))
        _check_class(name, type, schema, namespace, config)
        namespace.setdefault("__event_type__", name if type is None else type)
        namespace.setdefault("__event_schema__", 1 if schema is None else schema)
        config.setdefault("frozen", True)
        config.setdefault("kw_only", True)
        # Events are immutable, so they cannot hold themselves, and millions of them need not be traced.
        config.setdefault("gc", False)
        cls = super().__new__(mcls, name, bases, namespace, **config)
        if namespace["__module__"] != __name__:
            cls.__event_personal__ = declared(cls, subject)  # type: ignore[attr-defined]
            global _defined
            _defined += 1
            _registry[namespace["__event_type__"]] = cls  # type: ignore[assignment]
        return cls


def _check_class(name: str, type: Any, schema: Any, namespace: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse what could be declared but not be stored."""
    if type is not None and (not isinstance(type, str) or not type or len(type) > 200 or not type.isprintable()):
        raise InvalidEvent(f"type={type!r:.60} of {name} is no type name", hint="Use a short printable text")
    if schema is not None and (not isinstance(schema, int) or isinstance(schema, bool) or schema < 1):
        raise InvalidEvent(f"schema={schema!r:.60} of {name} is no version", hint="Use a number from 1 on")
    if config.get("array_like"):
        raise InvalidEvent(f"{name} is array_like, but events are objects", hint="Leave array_like out")
    hidden = ENVELOPE_NAMES.intersection(namespace.get("__annotations__", ()))
    if hidden:
        raise InvalidEvent(f"{name}.{min(hidden)} has a name of the log's own", hint="Rename the field")


ENVELOPE_NAMES = frozenset({"_position", "_stream", "_version", "_type", "_time"})
"""What a scan calls the place, stream, version, type and time of an event."""


class Event(msgspec.Struct, metaclass=EventMeta):
    """Base class of domain events: immutable, keyword-only, typed.

    A type is known in the log by its name, not by its module, so classes can move. ``type=`` gives another
    name than the class's own, ``schema=`` the version of its shape (default 1). Fields may be of any type
    that msgspec encodes: numbers, ``str``, ``bool``, ``bytes``, ``Decimal``, ``datetime``, ``date``, ``UUID``,
    enums, lists, dicts, optionals, nested structs. Mutable defaults are copied for each event.

    Fields of `Personal` data are encrypted in the log, and ``subject=`` names the field, a ``str``, that says whose
    data it is; see `millstream.Log.forget`. Subclasses have both from their bases.

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
    __event_subject__: ClassVar[str | None] = None
    __event_personal__: ClassVar[PersonalShape | bool | None] = None
    """What of it is personal; False when that is not known yet; see `millstream.personal.shape_of`."""

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

_SEALED = " sealed "


def schema_version(text: str) -> int:
    """The version of a type's shape, from the schema text that the log keeps of JSON events."""
    return int(text.partition(" ")[0])


@cache
def sealed_fields(text: str) -> tuple[str, ...]:
    """The fields, as JSON names them, or columns that are sealed in events with a schema text; none, mostly."""
    if text[:1] == "[":
        if '["sealed",' not in text:
            return ()
        return tuple(name for name, kind in _decode(text) if isinstance(kind, list) and kind[0] == "sealed")
    return tuple(text.partition(_SEALED)[2].split()) if _SEALED in text else ()


def schema_text(cls: type[Event]) -> str:
    """The schema text of a class: the version of its shape, and the names of its personal fields."""
    shape = shape_of(cls)
    version = str(cls.__event_schema__)
    return version if shape is None else version + _SEALED + " ".join(shape.fields)


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
def decoder(cls: Any) -> msgspec.json.Decoder[Any] | ErasableDecoder:
    """The JSON decoder of a class, made once."""
    shape = shape_of(cls)
    return msgspec.json.Decoder(cls) if shape is None else ErasableDecoder(cls, shape)


_encoder = msgspec.json.Encoder(enc_hook=plain_text)


_decode = msgspec.json.Decoder().decode
_decode_lines = msgspec.json.Decoder().decode_lines


def holds_non_finite(value: Any) -> bool:
    """Whether NaN or an infinity is somewhere in plain data: JSON would make it null."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(holds_non_finite(each) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(holds_non_finite(each) for each in value)
    if isinstance(value, msgspec.Struct):
        return any(holds_non_finite(getattr(value, name)) for name in value.__struct_fields__)
    return False


def encode(event: AnyEvent) -> bytes:
    """The JSON object of an event's data, as it is stored: on one line, and readable again.

    Raises:
        InvalidEvent: A value cannot be written as JSON, does not fit the event's class, or the data is no object.
    """
    try:
        if isinstance(event, Plain):
            if not isinstance(event.data, dict):
                raise InvalidEvent(
                    f"the data of a plain {event.type!r} event is {type(event.data).__name__}",
                    hint="Give a dict with string keys",
                )
            if not ENVELOPE_NAMES.isdisjoint(event.data):
                raise InvalidEvent(
                    f"a plain {event.type!r} event has a field with a name of the log's own", hint="Rename the field"
                )
            body = _encoder.encode(event.data)
            _decode(body)
        else:
            body = _encoder.encode(event)
            # The class does not check its values, and what cannot be read back must not get into the log.
            decoder(type(event)).decode(body)
        if b"\n" in body:
            body = msgspec.json.format(body, indent=-1)  # raw JSON of the caller's own layout
        if b"null" in body and holds_non_finite(event.data if isinstance(event, Plain) else event):
            raise InvalidEvent(
                f"an event of type {type_name(event)!r} holds NaN or an infinity, which JSON has not",
                hint="Use None, text, or a frame",
            )
        return body
    except msgspec.ValidationError as error:
        raise InvalidEvent(
            f"an event of type {type_name(event)!r} does not fit its class: {error}",
            hint="Give each field a value of its declared type",
        ) from error
    except (msgspec.DecodeError, TypeError, ValueError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidEvent(
            f"an event of type {type_name(event)!r} cannot be encoded: {error}",
            hint="Use JSON-like values, Decimal, datetime, date, UUID, bytes, enums and structs",
        ) from error


def encode_many(events: Sequence[AnyEvent], cls: type[Any]) -> bytes:
    """The JSON objects of several events of one class, a line each, without a last newline.

    Raises:
        InvalidEvent: As `encode`.
    """
    try:
        if cls is Plain:
            rows = [event.data for event in events if isinstance(event, Plain)]
            if all(isinstance(row, dict) and ENVELOPE_NAMES.isdisjoint(row) for row in rows):
                body = _encoder.encode_lines(rows)
                read = len(_decode_lines(body))
            else:
                read = -1
        else:
            body = _encoder.encode_lines(events)
            read = len(decoder(cls).decode_lines(body))  # type: ignore[arg-type]
        # All at once where nothing is special; what is, is told or put right one by one.
        if read == len(events) == body.count(b"\n") and b"null" not in body:
            return body[:-1]
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        pass
    return b"\n".join([encode(event) for event in events])
