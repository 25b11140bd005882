"""States as bytes: JSON by the types that they declare, and only where it gives back the very same state."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, TypeVar, get_origin

import msgspec

from ..conversion import ready
from ..log.handlers import alternatives
from ..marks import mark
from ..personal import Erased, plain_text
from .fingerprint import hints_of, shapes
from .root import Root
from .values import is_frozen, parts_of

R = TypeVar("R", bound=Root)

_encode = msgspec.json.Encoder(enc_hook=plain_text).encode
_ERASED = _encode(Erased)
_RawFields = dict[str, msgspec.Raw]
_LEAVES = (str, int, float, bytes, Decimal, datetime, date, type(None))


class NotStorable(Exception):
    """A state cannot be kept as bytes: what is decoded would not be what was encoded."""


class HoldsErased(NotStorable):
    """A state holds what was erased where a text cannot stand for it."""


class Codec(ABC, Generic[R]):
    """How the states of one kind of aggregate are written and read."""

    def dump(self, root: R) -> bytes:
        """The state of an aggregate.

        Raises:
            NotStorable: It could not be read back as it is.
        """
        state = self._get(root)
        data = b""
        try:
            data = self._encode(state)
            again = self._decode(data)
        except Exception as error:
            raise (HoldsErased if _ERASED in data else NotStorable)(str(error)) from error
        if _ERASED in data:
            again = _erased(again)
        if not same(state, again):
            if _ERASED in data:
                raise HoldsErased
            raise NotStorable(f"{state!r:.80} would be read back as {again!r:.80}")
        if _shares(state, set()):
            raise NotStorable(f"{state!r:.80} has one object in two places, which would be read back as two")
        return data

    def load(self, root: R, data: bytes) -> None:
        """Give an aggregate a state that was written. Raises whatever a state that does not decode raises."""
        state = self._decode(data)
        self._set(root, _erased(state) if _ERASED in data else state)

    def mark(self) -> str:
        """What is known of the states beyond their kind, for the fingerprint."""
        return ""

    @abstractmethod
    def _get(self, root: R) -> Any: ...
    @abstractmethod
    def _set(self, root: R, state: Any) -> None: ...
    @abstractmethod
    def _encode(self, state: Any) -> bytes: ...
    @abstractmethod
    def _decode(self, data: bytes) -> Any: ...


class AttributesCodec(Codec[Any]):
    """The attributes of an aggregate class, by their annotations; those without one as plain JSON values."""

    def __init__(self, hints: Mapping[str, Any]) -> None:
        self._fields = _Fields(hints)

    def _get(self, root: Any) -> dict[str, Any]:
        return dict(root.__dict__)

    def _set(self, root: Any, state: dict[str, Any]) -> None:
        root.__dict__.clear()
        root.__dict__.update(state)

    def _encode(self, state: dict[str, Any]) -> bytes:
        return _encode(state)

    def _decode(self, data: bytes) -> dict[str, Any]:
        return self._fields.decode(data)


class StateCodec(Codec[Any]):
    """The state of a decider: a value of one of the classes that it is known to have."""

    def __init__(self, initial: Any, declared: Any) -> None:
        found = [type(initial), *(part for part in alternatives(declared) if part is not None)]
        self._types: dict[str, Any] = {}
        for each in found:
            name = getattr(get_origin(each) or each, "__qualname__", str(each))
            # A declared list[str] says more than the list that the first state is.
            self._types[name] = each
        self._initial = initial
        self._plain: dict[type, _Fields] = {}

    def mark(self) -> str:
        """What is known of the states: their classes' fields, and the first of them."""
        names = [f"{name}: {each!r}" for name, each in sorted(self._types.items())]
        first = vars(self._initial) if self._is_plain(type(self._initial)) else self._initial
        return "\n".join([*names, *shapes(self._types.values()), mark(first)])

    def _get(self, root: Any) -> Any:
        return root.state

    def _set(self, root: Any, state: Any) -> None:
        root.state = state

    def _encode(self, state: Any) -> bytes:
        cls = type(state)
        if cls.__qualname__ not in self._types:
            raise NotStorable(f"{cls.__qualname__} is none of the declared states: {', '.join(self._types)}")
        value = vars(state) if self._is_plain(cls) else state
        return _encode([cls.__qualname__, value])

    def _decode(self, data: bytes) -> Any:
        name, raw = msgspec.json.decode(data, type=tuple[str, msgspec.Raw])
        declared = self._types[name]
        cls = get_origin(declared) or declared
        if not self._is_plain(cls):
            return msgspec.json.decode(raw, type=ready(declared))
        fields = self._plain.setdefault(cls, _Fields(hints_of(cls)))
        state = cls.__new__(cls)
        state.__dict__.update(fields.decode(raw))
        return state

    @staticmethod
    def _is_plain(cls: Any) -> bool:
        """Whether it is a class that msgspec has no name for, so that its attributes stand for it."""
        return (
            isinstance(cls, type)
            and cls.__module__ != "builtins"
            and not issubclass(cls, msgspec.Struct)
            and not dataclasses.is_dataclass(cls)
            and bool(getattr(cls, "__dictoffset__", 0))
            and not issubclass(cls, tuple | str | int | float | bytes | dict | list)
        )


class _Fields:
    """Decodes an object's fields, each by its own type."""

    def __init__(self, hints: Mapping[str, Any]) -> None:
        self._hints = hints
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}

    def decode(self, data: bytes | msgspec.Raw) -> dict[str, Any]:
        fields = msgspec.json.decode(data, type=ready(_RawFields))
        return {
            # What was erased stands in fields of any type.
            name: Erased if bytes(raw) == _ERASED else self._decoder(name).decode(raw)
            for name, raw in fields.items()
        }

    def _decoder(self, name: str) -> msgspec.json.Decoder[Any]:
        found = self._decoders.get(name)
        if found is None:
            hint = self._hints.get(name, Any)
            found = self._decoders[name] = msgspec.json.Decoder(ready(Any if isinstance(hint, str) else hint))
        return found


def _erased(value: Any) -> Any:
    """A decoded state with `Erased` itself where its text stands."""
    if isinstance(value, str):
        return Erased if value == Erased else value
    if isinstance(value, dict):
        return {key: _erased(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_erased(each) for each in value]
    if isinstance(value, tuple):
        return tuple(_erased(each) for each in value)
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            msgspec.structs.force_setattr(value, name, _erased(getattr(value, name)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            object.__setattr__(value, field.name, _erased(getattr(value, field.name)))
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for name, each in vars(value).items():
            vars(value)[name] = _erased(each)
    return value


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal and of equal types, all the way down."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a) and _types(a) == _types(b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, set | frozenset):
        return bool(a == b) and {type(each) for each in a} == {type(each) for each in b}
    if isinstance(a, msgspec.Struct) or dataclasses.is_dataclass(a) or _is_compared_by_identity(a):
        return same(parts_of(a), parts_of(b))
    return bool(a == b)


def _is_compared_by_identity(value: Any) -> bool:
    return hasattr(value, "__dict__") and not any("__eq__" in vars(cls) for cls in type(value).__mro__[:-1])


def _shares(value: Any, seen: set[int]) -> bool:
    """Whether something that can be changed is met twice."""
    if isinstance(value, _LEAVES):
        return False
    inside: Iterable[Any] = ()
    changes = True
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inside, changes = value, not isinstance(value, tuple | frozenset)
    elif isinstance(value, Enum) or (parts := parts_of(value)) is None:
        return False
    else:
        inside, changes = parts.values(), not is_frozen(value)
    if changes:
        if id(value) in seen:
            return True
        seen.add(id(value))
    return any(_shares(each, seen) for each in inside)


def _types(keys: dict[Any, Any]) -> set[tuple[type, Any]]:
    return {(type(key), key) for key in keys}
