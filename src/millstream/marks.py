"""Marks: texts that tell whether a function, a class attribute or a constant is still what it was.

The code counts, not its text: comments may change, and what was typed into a console has a mark as well. What a
function calls is beyond its mark.
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any
from uuid import UUID

import msgspec

_PLAIN = (int, float, str, bytes, bool, type(None), Decimal, date, time, timedelta, UUID)


def mark(value: Any, around: tuple[Any, ...] = ()) -> str:
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
        return "property " + " ".join(mark(each, inside) for each in (value.fget, value.fset, value.fdel))
    if isinstance(value, FunctionType):
        closure = [mark(cell.cell_contents, inside) for cell in value.__closure__ or () if _is_filled(cell)]
        defaults = [mark(value.__defaults__, inside), mark(value.__kwdefaults__, inside)]
        return f"{_code(value.__code__)} {defaults} {closure}"
    if isinstance(value, MethodType):
        return f"{mark(value.__func__, inside)} of {mark(value.__self__, inside)}"
    if isinstance(value, partial):
        return f"partial {[mark(each, inside) for each in (value.func, value.args, value.keywords)]}"
    if isinstance(value, dict):
        return repr([(mark(key, inside), mark(each, inside)) for key, each in value.items()])
    if isinstance(value, list | tuple):
        return repr([mark(each, inside) for each in value])
    if isinstance(value, set | frozenset):
        return repr(sorted(mark(each, inside) for each in value))
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name} {value.value!r}"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, msgspec.Struct):
        return f"{type(value).__qualname__} {[mark(getattr(value, n), inside) for n in value.__struct_fields__]}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__qualname__} {[mark(getattr(value, f.name), inside) for f in dataclasses.fields(value)]}"
    if callable(value) and isinstance(called := type(value).__call__, FunctionType):
        return f"{type(value).__qualname__} {mark(called, inside)}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _code(code: CodeType) -> str:
    constants = [_code(each) if isinstance(each, CodeType) else mark(each) for each in code.co_consts]
    digest = hashlib.sha256(code.co_code).hexdigest()
    return f"{digest} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"
