"""Personal data: which fields of an event tell of a person, whose they are, and what stands for what was erased."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from .conversion import ready
from .errors import InvalidEvent

T = TypeVar("T")


class _Mark:
    def __repr__(self) -> str:
        return "personal"


_MARK = _Mark()

Personal = Annotated[T, _MARK]
"""A field of personal data: ``name: ms.Personal[str]``. For type checkers it is the type inside."""


class ErasedText(str):
    """The class of `Erased`, which is its one instance."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ms.Erased"

    def __reduce__(self) -> str:
        return "Erased"  # the global of this module: copies and pickles are the same object


# For type checkers anything, since it stands in fields of any type: `event.born is ms.Erased`.
Erased: Final[Any] = ErasedText("[erased]")
"""What a personal field reads as when the key of its subject was destroyed, whatever its type."""

_TEXT = str.__str__(Erased)
_JSON = f'"{_TEXT}"'
_JSON_BYTES = _JSON.encode()


def plain_text(value: Any) -> Any:
    """What msgspec is to encode for a value that it does not know: `Erased` as its text.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, ErasedText):
        return _TEXT
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


class PersonalShape(msgspec.Struct, frozen=True):
    """What of an event class is personal."""

    subject: str
    """The name, in JSON, of the field that says whose data it is."""
    whose: str
    """Its name in Python."""
    fields: dict[str, str]
    """The personal fields: their names in JSON, sorted, and in Python."""
    textual: frozenset[str]
    """Those, by their names in JSON, whose type takes a text as it is."""


def shape_of(cls: Any) -> PersonalShape | None:
    """What of an event class is personal; None for nothing.

    Raises:
        InvalidEvent: It is declared wrongly, which could not be seen when the class was defined.
    """
    found: PersonalShape | bool | None = getattr(cls, "__event_personal__", None)
    if found is False:
        # A name in its annotations was not there yet; whoever encodes or decodes the class needs all of them.
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except NameError as error:
            raise InvalidEvent(
                f"{cls.__name__} declares a field of a type that is not there: {error}",
                hint="Import it, or define it in the module, before the first event is appended or read",
            ) from error
        found = inspect(cls, hints)
        cls.__event_personal__ = found
    assert not isinstance(found, bool)
    return found


def declared(cls: Any, subject: object) -> PersonalShape | bool | None:
    """The same of a class that is being defined; False when its annotations cannot be understood yet.

    Args:
        subject: What the class says of whose data it is.
    """
    if subject is not None:
        if not isinstance(subject, str) or subject not in cls.__struct_fields__:
            raise InvalidEvent(
                f"subject={subject!r:.60} of {cls.__name__} is none of its fields",
                hint="Name the field that says whose data it is, such as subject='customer'",
            )
        cls.__event_subject__ = subject
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return False
    return inspect(cls, hints)


def inspect(cls: Any, hints: dict[str, Any]) -> PersonalShape | None:
    """What of a class is personal, by the types of its fields."""
    names = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    types = {name: _bare(hints[name]) for name in names if name in hints}
    marked = {name for name, hint in types.items() if _is_marked(hint)}
    for name, hint in types.items():
        if name not in marked and any(_is_marked(part) for part in _parts(hint, set())):
            raise InvalidEvent(
                f"{cls.__name__}.{name} has personal data inside",
                hint="Mark the whole field: ms.Personal[str | None], ms.Personal[list[str]], ms.Personal[Address]",
            )
    subject = cls.__event_subject__
    if not marked:
        return None
    if subject is None:
        raise InvalidEvent(
            f"{cls.__name__}.{min(marked)} is personal, but the class does not say whose it is",
            hint="Name the field that does: class Registered(ms.Event, subject='customer')",
        )
    if subject in marked or _plain(types[subject]) is not str:
        why = "personal itself" if subject in marked else "no str"
        raise InvalidEvent(
            f"{cls.__name__}.{subject} cannot say whose data it is: it is {why}",
            hint="Let it be an id that is a str, always there and not personal itself",
        )
    bad = [names[name] for name in marked if re.search(r"\s", names[name]) or not names[name]]
    if bad:
        raise InvalidEvent(f"{cls.__name__}.{bad[0]} has white space in its name", hint="Rename the field")
    fields = {names[name]: name for name in sorted(marked, key=lambda name: names[name])}
    textual = frozenset(each for each, name in fields.items() if str in {_plain(p) for p in _union(types[name])})
    return PersonalShape(names[subject], subject, fields, textual)


def _is_marked(hint: Any) -> bool:
    return get_origin(hint) is Annotated and _MARK in hint.__metadata__


def _bare(hint: Any) -> Any:
    """A type without the names that were given to it."""
    while hasattr(hint, "__value__"):  # type Email = ms.Personal[str]
        hint = hint.__value__
    return hint


def _plain(hint: Any) -> Any:
    """A type without names, constraints and marks."""
    while True:
        if get_origin(hint) is Annotated:
            hint = hint.__origin__
        elif hasattr(hint, "__value__"):
            hint = hint.__value__
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        else:
            return hint


def _union(hint: Any) -> tuple[Any, ...]:
    plain = _plain(hint)
    return get_args(plain) if get_origin(plain) in (Union, types.UnionType) else (plain,)


def _parts(hint: Any, seen: set[int]) -> Iterator[Any]:
    """All types inside of a type, those of the fields of structs and dataclasses, too."""
    hint = _bare(hint)
    if id(hint) in seen:
        return
    seen.add(id(hint))
    yield hint
    for part in get_args(hint):
        yield from _parts(part, seen)
    if isinstance(hint, type) and (
        issubclass(hint, msgspec.Struct)
        or dataclasses.is_dataclass(hint)
        or typing.is_typeddict(hint)
        or hasattr(hint, "_fields")
    ):
        try:
            inner = typing.get_type_hints(hint, include_extras=True)
        except (NameError, AttributeError, TypeError, SyntaxError):
            return
        for part in inner.values():
            yield from _parts(part, seen)


class ErasableDecoder:
    """Decodes the JSON of a class with personal fields, of which some may be erased: those become `Erased`."""

    def __init__(self, cls: Any, shape: PersonalShape) -> None:
        self._cls = cls
        self._shape = shape
        self._decoder = msgspec.json.Decoder(ready(cls))
        self._rest: msgspec.json.Decoder[Any] | None = None

    def decode(self, line: Any) -> Any:
        """One event."""
        if not (_JSON in line if isinstance(line, str) else _JSON_BYTES in line):
            return self._decoder.decode(line)
        fields = _decode_fields(line)
        gone = [name for name in self._shape.fields if bytes(fields.get(name, b"")) == _JSON_BYTES]
        if not gone:
            return self._decoder.decode(line)
        for name in gone:
            del fields[name]
        if self._rest is None:
            self._rest = msgspec.json.Decoder(ready(_relaxed(self._cls, self._shape)))
        rest = self._rest.decode(_encode_fields(fields))
        values = {name: getattr(rest, name) for name in rest.__struct_fields__}
        values.update((self._shape.fields[name], Erased) for name in gone)
        try:
            return self._cls(**values)
        except Exception as error:  # of its own __post_init__
            raise msgspec.ValidationError(f"{error} (millstream.Erased is its {', '.join(gone)})") from error

    def decode_lines(self, text: bytes) -> list[Any]:
        """Several events, a line each."""
        if _JSON_BYTES not in text:
            return self._decoder.decode_lines(text)
        return [self.decode(line) for line in text.split(b"\n") if line]


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode_fields = msgspec.json.Encoder().encode


def _relaxed(cls: Any, shape: PersonalShape) -> Any:
    """A struct with the fields of a class, of which the personal ones may be missing."""
    personal = set(shape.fields.values())
    fields = []
    for each in msgspec.structs.fields(cls):
        about: dict[str, Any] = {"name": each.encode_name}
        kind = each.type
        if each.default is not msgspec.NODEFAULT:
            about["default"] = each.default
        elif each.default_factory is not msgspec.NODEFAULT:
            about["default_factory"] = each.default_factory
        elif each.name in personal:
            kind, about["default"] = Union[kind, msgspec.UnsetType], msgspec.UNSET  # noqa: UP007 - of values
        fields.append((each.name, kind, msgspec.field(**about)))
    config = cls.__struct_config__
    return msgspec.defstruct(
        cls.__name__,
        fields,
        kw_only=True,
        forbid_unknown_fields=config.forbid_unknown_fields,
        tag=config.tag,
        tag_field=config.tag_field,
    )
