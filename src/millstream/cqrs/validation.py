"""Commands are checked on their way in: types and ranges as declared, then what the command says of itself."""

from __future__ import annotations

import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from ..conversion import ready
from ..errors import Rejected, UsageError

_AS_THEY_ARE = (bytes, bytearray, memoryview, date, datetime, time, timedelta, Decimal, uuid.UUID)


def checked(command: Any) -> Any:
    """The command with its values as its fields declare them.

    Values that stand for a declared one become it: a text for a Decimal or a time, a list for a tuple.

    Raises:
        Rejected: Values do not fit; names each field at fault. Or its own ``check`` refuses it.
        UsageError: An annotation of its class cannot be resolved.
    """
    try:
        found = msgspec.convert(_plain(command), ready(type(command)), dec_hook=_same)
    except msgspec.ValidationError as error:
        raise _rejected(type(command), _plain(command), error, strict=True) from error
    except (NameError, TypeError) as error:
        raise UsageError(
            f"the fields of {type(command).__qualname__} cannot be checked: {error}",
            hint="Import what its annotations name where the class is defined, not for type checkers alone",
        ) from error
    found.check()
    return found


def parsed(cls: type[Any], data: bytes | str | dict[str, Any]) -> Any:
    """A command from JSON, or from a dict of JSON-like values, checked.

    Raises:
        Rejected: It is no JSON object, or does not fit the class.
        UsageError: It is nothing that JSON comes in.
    """
    if not isinstance(data, dict | bytes | str):
        raise UsageError(f"{data!r:.60} is no command's data", hint="Give JSON, as text or bytes, or a dict")
    try:
        plain = data if isinstance(data, dict) else msgspec.json.decode(data)
        found = msgspec.convert(plain, ready(cls), strict=False)
    except msgspec.ValidationError as error:
        raise _rejected(cls, plain, error, strict=False) from error
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise Rejected(f"it is no JSON: {error}") from error
    found.check()
    return found


def _plain(command: Any) -> Any:
    try:
        return msgspec.to_builtins(command, builtin_types=_AS_THEY_ARE)
    except (TypeError, NotImplementedError, OverflowError):
        # It carries an object that only this process knows: its own fields are checked, and what is in them is not.
        return {
            field.encode_name: getattr(command, field.name) for field in msgspec.structs.fields(type(command))
        }  # fmt: skip


def _same(declared: Any, value: Any) -> Any:
    if not isinstance(declared, type) or isinstance(value, declared):
        return value
    raise ValueError(f"Expected `{declared.__name__}`, got `{type(value).__name__}`")


def _rejected(cls: type[Any], plain: Any, first: msgspec.ValidationError, *, strict: bool) -> Rejected:
    """All that is wrong, field by field: who fills a form wants to know at once."""
    problems: dict[str, str] = {}
    for field in msgspec.structs.fields(cls) if isinstance(plain, dict) else ():
        if field.encode_name not in plain:
            if field.required:
                problems[field.name] = "it is missing"
            continue
        try:
            msgspec.convert(plain[field.encode_name], ready(field.type), strict=strict, dec_hook=_same)
        except msgspec.ValidationError as error:
            path, reason = _where(str(error))
            inside = "" if path is None else path if path.startswith("[") else f".{path}"
            problems[field.name + inside] = reason
    if not problems:
        path, reason = _where(str(first))
        return Rejected(reason, field=path, problems={path: reason} if path else None)
    field_name = next(iter(problems))
    return Rejected(problems[field_name], field=field_name, problems=problems)


def _where(message: str) -> tuple[str | None, str]:
    """The path to the value at fault, and what is wrong with it."""
    reason, at, path = message.rpartition(" - at `$")
    if not at:
        return None, message
    return path.removesuffix("`").removeprefix(".") or None, reason
