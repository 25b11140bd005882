"""Fingerprints: what a snapshot was made by, so that one of other code or another shape is never used.

The code of classes and functions counts, not its text: comments may change, and code that was typed into a console has
a fingerprint as well. What a handler calls outside its class is beyond it; that is what ``version=`` is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType
from typing import Any

import msgspec

_PLAIN = (int, float, str, bytes, bool, type(None))


def fingerprint(
    subject: Any, root: type | None, hints: Mapping[str, Any], events: Iterable[type[Any]], version: object
) -> str:
    """A digest in hex.

    Args:
        subject: A class, whose bases below ``root`` count too, or a function.
        hints: The types of the state.
        events: The classes of the events that change it.
        version: What its author says.
    """
    parts = [repr(version), *(f"{name}: {hint!r}" for name, hint in hints.items())]
    if isinstance(subject, type):
        for base in subject.__mro__:
            if base is root or base is object:
                break
            parts.append(f"class {base.__qualname__}")
            parts.extend(f"{name} = {_mark(value)}" for name, value in sorted(vars(base).items()) if _counts(name))
    else:
        parts.append(_mark(subject))
    parts.extend(sorted(_event(cls) for cls in events))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _counts(name: str) -> bool:
    """Whether an attribute of a class is its author's, and says something."""
    return not name.startswith(("_Aggregate__", "_abc_")) and name not in (
        "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__slots__", "__firstlineno__",
        "__static_attributes__", "__parameters__", "__orig_bases__",
    )  # fmt: skip


def _event(cls: type[Any]) -> str:
    if not issubclass(cls, msgspec.Struct):
        return cls.__qualname__
    fields = [f"{f.encode_name}: {f.type!r} = {f.default!r}" for f in msgspec.structs.fields(cls)]
    return f"{getattr(cls, '__event_type__', cls.__qualname__)} {getattr(cls, '__event_schema__', '')} {fields}"


def _mark(value: Any, around: tuple[Any, ...] = ()) -> str:
    """The code of a function, the value of a constant, the name of anything else.

    Args:
        around: The functions and containers that the value was found in; what holds itself ends there.
    """
    if any(value is each for each in around):
        return "itself"
    inside = (*around, value)
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        return "property " + " ".join(_mark(each, inside) for each in (value.fget, value.fset, value.fdel))
    if isinstance(value, FunctionType):
        closure = [_mark(cell.cell_contents, inside) for cell in value.__closure__ or () if _is_filled(cell)]
        defaults = [_mark(value.__defaults__, inside), _mark(value.__kwdefaults__, inside)]
        return f"{_code(value.__code__)} {defaults} {closure}"
    if isinstance(value, dict):
        return repr([(_mark(key, inside), _mark(each, inside)) for key, each in value.items()])
    if isinstance(value, list | tuple):
        return repr([_mark(each, inside) for each in value])
    if isinstance(value, set | frozenset):
        return repr(sorted(_mark(each, inside) for each in value))
    if isinstance(value, _PLAIN):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _code(code: CodeType) -> str:
    constants = [_code(each) if isinstance(each, CodeType) else _mark(each) for each in code.co_consts]
    digest = hashlib.sha256(code.co_code).hexdigest()
    return f"{digest} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"
