"""Values that states are made of: their parts, and whether they can be changed."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

UNCHANGING = frozenset({int, float, bool, str, bytes, Decimal, datetime, date, timedelta, UUID, type(None)})
"""Types of values that can be shared."""


def parts_of(value: Any) -> dict[str, Any] | None:
    """The fields of a struct or dataclass, or an object's attributes, by name; None for what has neither."""
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(vars(value)) if hasattr(value, "__dict__") else None


def is_frozen(value: Any) -> bool:
    """Whether a value is a struct or dataclass whose fields cannot be set."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_config__.frozen
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return False
    return bool(getattr(type(value), "__dataclass_params__").frozen)  # noqa: B009 - not known to type checkers
