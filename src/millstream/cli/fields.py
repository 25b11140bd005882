"""The fields of commands and queries, as they are given on a command line: as FIELD=VALUE, or as one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import UsageError

_EXAMPLE = '{"order": "order-1"}'


def given(words: Sequence[str]) -> dict[str, Any]:
    """What some words say: each one field and its value, or one of them all as JSON.

    Raises:
        UsageError: They are neither, or say a field twice.
    """
    if len(words) == 1 and words[0].lstrip().startswith(("{", "[")):
        return _object(words[0])
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r:.80} is not a field and its value", hint=f"Write order=order-1, or '{_EXAMPLE}'")
        if name in values:
            raise UsageError(f"the field {name!r:.60} is given twice", hint="Give a list as JSON")
        values[name] = value
    return values


def from_stdin() -> dict[str, Any]:
    """The JSON object that stdin holds.

    Raises:
        UsageError: It holds none.
    """
    return _object(sys.stdin.buffer.read())


def check_known(cls: type[Any], values: dict[str, Any]) -> None:
    """Refuse a field that a class does not have: one that may be left out would be passed over, misspelt."""
    names = [field.encode_name for field in msgspec.structs.fields(cls)]
    for name in values:
        if name not in names:
            raise UsageError(
                f"{cls.__name__} has no field {name!r:.60}", hint=f"Its fields: {', '.join(names) or 'none'}"
            )


def fields_of(cls: type[Any]) -> str:
    """The fields of a class in one text; those that may be left out have a ``?``."""
    found = msgspec.structs.fields(cls)
    return ", ".join(field.encode_name if field.required else f"{field.encode_name}?" for field in found)


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"it is no JSON: {error}", hint=f"Give an object, such as '{_EXAMPLE}'") from error
    if not isinstance(found, dict):
        raise UsageError(f"{found!r:.60} is no JSON object", hint=f"Give one, such as '{_EXAMPLE}'")
    return found
