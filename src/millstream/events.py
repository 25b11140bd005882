"""Event types: what a user declares, how it is named, and how it becomes bytes and comes back."""

from __future__ import annotations

import copy
import inspect
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache, lru_cache, partial
from itertools import repeat
from typing import Any, ClassVar, Self, dataclass_transform, get_args

import msgspec

from .conversion import ready
from .errors import DuplicateType, InvalidEvent
from .personal import ErasableDecoder, ErasedText, PersonalShape, declared, plain_text, shape_of
from .readback import changed
from .time import Moment

_registry: dict[str, type[Event]] = {}
_renamed: dict[str, type[Event]] = {}
"""By an old name, the class that has taken it over; it counts only while the class is the one of its own name."""
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
        names: Iterable[str] = (),
        subject: str | None = None,
        **config: Any,
    ) -> Any:
        for field in namespace.get("__annotations__", ()):
            default = namespace.get(field)
            if isinstance(default, list | dict | set) and default:
                namespace[field] = msgspec.field(default_factory=partial(copy.deepcopy, default))
        _check_class(name, type, schema, namespace, config)
        namespace["__event_names__"] = _old_names(name, names)
        namespace.setdefault("__event_type__", name if type is None else type)
        namespace.setdefault("__event_schema__", 1 if schema is None else schema)
        config.setdefault("frozen", True)
        config.setdefault("kw_only", True)
        # Events are immutable, so they cannot hold themselves, and millions of them need not be traced.
        config.setdefault("gc", False)
        cls = super().__new__(mcls, name, bases, namespace, **config)
        if namespace["__module__"] != __name__:
            cls.__event_personal__ = declared(cls, subject)  # type: ignore[attr-defined]
            _register(cls, lasting=in_module(cls, sys._getframe(1).f_globals))  # type: ignore[arg-type]
        return cls


def _register(cls: type[Event], *, lasting: bool) -> None:
    """Make a class the one of its names.

    Args:
        lasting: It is defined in a module, not within a function, where the last definition counts.

    Raises:
        DuplicateType: Another class, of another place and another shape, has one of them.
    """
    for name in (cls.__event_type__, *cls.__event_names__):
        other = event_class(name)
        if other is None or place(other) == place(cls) or not (lasting and stands(other)):
            continue  # there is no other, or this one takes its place
        same_name = name == cls.__event_type__ == other.__event_type__
        if not (same_name and shape(cls) == shape(other)):
            raise DuplicateType(name, place(other), place(cls))
    for name in (cls.__event_type__, *cls.__event_names__):
        _renamed.pop(name, None)
        if name != cls.__event_type__:
            _registry.pop(name, None)
    _registry[cls.__event_type__] = cls
    for name in cls.__event_names__:
        _renamed[name] = cls
    defined()


def place(made: Any) -> str:
    """Where a class or function is defined."""
    return f"{made.__module__}.{made.__qualname__}"


def in_module(made: Any, globals: dict[str, Any]) -> bool:
    """Whether a class or function is being defined as part of a module, rather than by a function or by ``exec``."""
    module = sys.modules.get(made.__module__)
    return module is not None and vars(module) is globals and "<locals>" not in made.__qualname__


def stands(made: Any) -> bool:
    """Whether a class or function is what its module has under its name: not deleted, nor defined anew."""
    found: Any = sys.modules.get(made.__module__)
    for name in made.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is made


_MODULES = re.compile(r"(?:[A-Za-z_]\w*[.])+(?=[A-Za-z_])")
"""What stands before a name in a type's text: it means the same with its module and without it."""


def shape(cls: type[Event]) -> str:
    """The shape of a class as text: its schema, and its fields with their types and defaults."""
    fields = []
    for field, default in zip(reversed(cls.__struct_fields__), _defaults(cls), strict=False):
        kind = next(hints[field] for b in cls.__mro__ if field in (hints := inspect.get_annotations(b)))
        text = kind if isinstance(kind, str) else kind.__qualname__ if isinstance(kind, type) else repr(kind)
        fields.append(f"{field}: {_MODULES.sub('', text)}{default}")
    return f"schema {cls.__event_schema__}; " + ", ".join(reversed(fields))


def _defaults(cls: type[Event]) -> Iterator[str]:
    """The defaults of the fields as text, the last field's first; empty for a field without one."""
    for value in reversed(cls.__struct_defaults__):
        if value is msgspec.NODEFAULT:
            yield ""
            continue
        factory = getattr(value, "factory", None)
        if isinstance(factory, partial):
            factory = factory.args
        text = getattr(factory, "__qualname__", repr(factory)) if factory is not None else repr(value)
        yield " = " + re.sub(r" at 0x[0-9a-f]+", "", text)
    yield from repeat("")


def _old_names(name: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidEvent(f"names={names!r:.60} of {name} is no list", hint='Give a list: names=["OldName"]')
    found = tuple(names)
    for each in found:
        _check_type_name(name, "names", each)
    return found


def _check_type_name(name: str, option: str, given: Any) -> None:
    if not isinstance(given, str) or not given or len(given) > 200 or not given.isprintable():
        raise InvalidEvent(f"{option}={given!r:.60} of {name} is no type name", hint="Use a short printable text")


def _check_class(name: str, type: Any, schema: Any, namespace: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse what could be declared but not be stored."""
    if type is not None:
        _check_type_name(name, "type", type)
    if schema is not None and (not isinstance(schema, int) or isinstance(schema, bool) or schema < 1):
        raise InvalidEvent(f"schema={schema!r:.60} of {name} is no version", hint="Use a number from 1 on")
    if config.get("array_like"):
        raise InvalidEvent(f"{name} is array_like, but events are objects", hint="Leave array_like out")
    hidden = ENVELOPE_NAMES.intersection(namespace.get("__annotations__", ()))
    if hidden:
        raise InvalidEvent(f"{name}.{min(hidden)} has a name of the log's own", hint="Rename the field")


ENVELOPE_NAMES = frozenset({"_position", "_stream", "_version", "_type", "_time"})
"""What a scan calls the place, stream, version, type and time of an event."""


MAX_BODY = 900_000_000
"""The most bytes that an event's JSON may have: SQLite and PostgreSQL hold about a gigabyte in one value."""


# Once more on the class: type checkers would ask its base, msgspec's own, before the metaclass.
@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, metaclass=EventMeta):
    """Base class of domain events: immutable, keyword-only, typed.

    A type is known in the log by its name, not by its module, so classes can move. ``type=`` gives another
    name than the class's own, ``schema=`` the version of its shape (default 1; see `millstream.upcast`), ``names=``
    the names that the type had before: what was stored under them is read as this class. A name has one class: another
    one, of another place and shape, is refused while the first is there; within functions the last one counts.

    Fields may be of any type that msgspec encodes: numbers, ``str``, ``bool``, ``bytes``, ``Decimal``, ``datetime``,
    ``date``, ``UUID``, enums, lists, dicts, optionals, nested structs. Mutable defaults are copied for each event.

    Raises:
        InvalidEvent: The class, when it is defined, cannot be stored as it is declared.
        DuplicateType: Another class has one of its names.

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
    __event_names__: ClassVar[tuple[str, ...]]
    __event_subject__: ClassVar[str | None] = None
    __event_personal__: ClassVar[PersonalShape | bool | None] = None
    """What of it is personal; False when that is not known yet; see `millstream.personal.shape_of`."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Plain(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """An event without a class: a type name and plain data. Events of unknown types are read as these.

    Args:
        type: The name of its type.
        data: Its fields.
        schema: The version of its shape; None for that of the type's class, or 1 if it has none here.
    """

    type: str
    data: dict[str, Any]
    schema: int | None = None


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

_SEALED = "sealed "
_SHAPE = "shape "


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
    rest = text.partition(" ")[2]
    if rest.startswith(_SHAPE):
        return ("after", "before") if sealed_in_rows(text) else ()
    return tuple(rest.removeprefix(_SEALED).split()) if rest.startswith(_SEALED) else ()


@lru_cache(maxsize=1024)
def sealed_in_rows(text: str) -> dict[str, bool]:
    """Of the changes of a captured table, by their schema text: the columns that are sealed in the rows before and
    after, each with whether it may hold any text."""
    rest = text.partition(" ")[2]
    if not rest.startswith(_SHAPE) or '"personal":[' not in rest:
        return {}
    shape = _decode(rest.removeprefix(_SHAPE))
    kinds = {name: kind for name, kind, *_ in shape["columns"]}
    return {name: kinds.get(name) in ("any", "text") for name in shape.get("personal", ())}


def schema_text(cls: type[Event]) -> str:
    """The schema text of a class: the version of its shape, and the names of its personal fields."""
    shape = shape_of(cls)
    version = str(cls.__event_schema__)
    return version if shape is None else f"{version} {_SEALED}{' '.join(shape.fields)}"


def type_name(event: AnyEvent | type[Event] | str) -> str:
    """The present name of a type, from an event, a class, or a name that it has or had."""
    if isinstance(event, str):
        return present_name(event)
    if isinstance(event, Plain):
        return present_name(event.type)
    try:
        return event.__event_type__
    except AttributeError:
        raise InvalidEvent(
            f"{event!r:.80} is not an event",
            hint="Derive its class from millstream.Event, or use millstream.Plain",
        ) from None


def event_class(type: str) -> type[Event] | None:
    """The class last defined under this type name in this process, or that once had this name, if any."""
    found = _registry.get(type)
    if found is None:
        found = _renamed.get(type)
        if found is not None and _registry.get(found.__event_type__) is not found:
            return None  # it was defined anew, without that name
    return found


def event_classes() -> dict[str, type[Event]]:
    """All classes of events in this process by the names of their types."""
    return dict(_registry)


def present_name(type: str) -> str:
    """The name that a type has now, of one that it has or had."""
    if type in _registry or type not in _renamed:
        return type
    found = event_class(type)
    return type if found is None else found.__event_type__


def present_schema(type: str) -> int | None:
    """The version of the shape that a type's class has here; None without a class."""
    found = event_class(type)
    return None if found is None else found.__event_schema__


def definitions() -> int:
    """How many event classes and upcasters were defined so far: what was learnt of them may since be out of date."""
    return _defined


def defined() -> None:
    """Note that there is another one."""
    global _defined
    _defined += 1


@cache
def decoder(cls: Any) -> msgspec.json.Decoder[Any] | ErasableDecoder:
    """The JSON decoder of a class, made once."""
    shape = shape_of(cls)
    return msgspec.json.Decoder(ready(cls)) if shape is None else ErasableDecoder(cls, shape)


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
            if _decode(body).keys() != event.data.keys():
                raise InvalidEvent(
                    f"the data of a plain {event.type!r} event has a key that is no text",
                    hint="Give a dict with string keys",
                )
        else:
            body = _encoder.encode(event)
            # The class does not check its values, and what cannot be read back must not get into the log.
            cls = type(event)
            back = decoder(cls).decode(body)
            if back != event:
                _check_same(event, back)
            if _exact_fields(cls):
                _check_exact(event)
        if len(body) > MAX_BODY:
            raise InvalidEvent(
                f"an event of type {type_name(event)!r} has {len(body):,} bytes, more than {MAX_BODY:,}",
                hint="Keep what is large elsewhere, and say in the event where it is",
            )
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
            f"an event of type {type_name(event)!r} does not fit its class: {error}", hint=_FIT
        ) from error
    except (msgspec.DecodeError, TypeError, ValueError, ArithmeticError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidEvent(
            f"an event of type {type_name(event)!r} cannot be encoded: {error}",
            hint="Use JSON-like values, Decimal, datetime, date, UUID, bytes, enums and structs",
        ) from error


_FIT = "Give each field a value of its declared type; in one of type Any or dict, values that JSON has"


def _check_same(event: Event, back: Any) -> None:
    """Refuse an event that would be another one when it is read: a state made of it would not be the same again."""
    found = changed(event, back, _as_it_is)
    if found is not None:
        raise _misfit(event, *found)


def _misfit(event: Event, path: str, given: object, read: object) -> InvalidEvent:
    return InvalidEvent(
        f"an event of type {type_name(event)!r} does not fit its class: {given!r:.60} would be read back as"
        f" {read!r:.60} - at `{path}`",
        hint=_FIT,
    )


@cache
def _exact_fields(cls: type[Event]) -> tuple[str, ...]:
    """The fields that hold Decimals, alone or in lists and dicts, and no floats."""
    held = [(field.name, set(_types_in(field.type))) for field in msgspec.structs.fields(cls)]
    return tuple(name for name, types in held if Decimal in types and float not in types)


def _types_in(declared: Any) -> Iterator[Any]:
    yield declared
    for each in get_args(declared):
        yield from _types_in(each)


def _inexact(event: AnyEvent) -> tuple[str, float] | None:
    """The first float in one of these fields, and where: 0.5 equals the Decimal that is read back, and is another
    thing."""
    for name in _exact_fields(type(event)):
        held = getattr(event, name)
        if type(held) is Decimal:
            continue
        for path, value in _leaves(held, f"$.{name}"):
            if type(value) is float:
                return path, value
    return None


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{path}[{number}]")
    else:
        yield path, value


def _check_exact(event: Event) -> None:
    found = _inexact(event)
    if found is not None:
        path, value = found
        raise _misfit(event, path, value, Decimal(str(value)))


def _as_it_is(value: object) -> bool:
    return isinstance(value, msgspec.Raw | ErasedText) or (isinstance(value, float) and not math.isfinite(value))


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
                back = _decode_lines(body)
                read = len(back) if [row.keys() for row in back] == [row.keys() for row in rows] else -1
            else:
                read = -1
        else:
            body = _encoder.encode_lines(events)
            back = decoder(cls).decode_lines(body)  # type: ignore[arg-type]
            exact = not _exact_fields(cls) or not any(map(_inexact, events))  # type: ignore[arg-type]
            read = len(back) if exact and back == list(events) else -1
        # All at once where nothing is special; what is, is told or put right one by one.
        if read == len(events) == body.count(b"\n") and b"null" not in body and len(body) <= MAX_BODY:
            return body[:-1]
    except (msgspec.MsgspecError, TypeError, ValueError, ArithmeticError, RecursionError):
        pass
    return b"\n".join([encode(event) for event in events])
