"""Debezium's envelope: a recorded change as Debezium would have said it, for consumers that were written for it.

A pure view. Values are what Debezium's JSON converter writes, without schemas, under these of its settings:

| setting | value | so that |
|---|---|---|
| decimal.handling.mode | string; its default is ``precise`` | ``"12.50"`` instead of base64 of unscaled bytes |
| time.precision.mode | its default | days since 1970; times without a zone in milliseconds or microseconds |
| binary.handling.mode | bytes, its default | base64 |
| interval.handling.mode | numeric, its default | microseconds, a month being 365.25 / 12 days |
| unavailable.value.placeholder | its default | ``__debezium_unavailable_value`` for what an update did not tell |

Times with a zone are ISO 8601 in UTC. What neither has a number for (a date BC, an infinite date) is the source's text.
"""

from __future__ import annotations

import re
from base64 import b64encode
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..time import to_micros
from .change import Change, Row, decoded
from .shape import Column, Shape, shape_of
from .values import Interval, Unchanged, encode_any, encode_value

if TYPE_CHECKING:
    from ..log import Recorded

UNAVAILABLE = "__debezium_unavailable_value"
"""Stands for a value that an update did not tell."""

_OPERATIONS = {"INSERT": "c", "UPDATE": "u", "DELETE": "d", "READ": "r", "TRUNCATE": "t"}

_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_DAYS_OF_A_MONTH = 365.25 / 12
_NO_NUMBERS = {"NaN": "NAN", "Infinity": "POSITIVE_INFINITY", "-Infinity": "NEGATIVE_INFINITY"}
_INFINITIES = {"infinity": 9223372036825200000, "-infinity": -9223372036832400000}


def debezium(recorded: Recorded) -> dict[str, Any]:
    """A recorded change in Debezium's envelope.

    ``source`` has what the source has told: ``txId`` and ``lsn`` of PostgreSQL (the transaction's commit, which all its
    rows share), ``file``, ``pos`` and ``gtid`` of MySQL; and ``log_position``, which no other event has. ``ts_ms`` in
    it is the time of the change at the source; beside it, when the log recorded it.

    An update that changes a row's key is one envelope here. Debezium says it in two: see `debezium_events`.

    Raises:
        UsageError: It is no change of a captured table.

    Example:
        >>> import millstream as ms
        >>> from datetime import UTC, datetime
        >>> log = ms.open()
        >>> now = datetime(2024, 1, 15, tzinfo=UTC)
        >>> change = ms.Change(operation="INSERT", table="users", before=None, after={"id": 1}, timestamp=now)
        >>> receipt = log.append("users", change)
        >>> envelope = ms.cdc.debezium(next(log.read("users")))
        >>> envelope["op"], envelope["after"], envelope["source"]["ts_ms"]
        ('c', {'id': 1}, 1705276800000)
    """
    change, shape = _change(recorded)
    return _envelope(recorded, change, shape, _OPERATIONS[change.operation], change.before, change.after)


def debezium_events(recorded: Recorded) -> list[dict[str, Any]]:
    """The events that Debezium would make of a recorded change: of an update that changes the row's key two, the
    deletion of the old row and the creation of the new one; else one.

    Raises:
        UsageError: It is no change of a captured table.
    """
    change, shape = _change(recorded)
    before, after = change.before, change.after
    key = shape.key if shape is not None else ()
    if not key or before is None or after is None or all(before.get(name) == after.get(name) for name in key):
        return [debezium(recorded)]
    return [
        _envelope(recorded, change, shape, "d", before, None),
        _envelope(recorded, change, shape, "c", None, after),
    ]


def _change(recorded: Recorded) -> tuple[Change, Shape | None]:
    return decoded(recorded), shape_of(recorded.run.schema)


def _envelope(
    recorded: Recorded, change: Change, shape: Shape | None, op: str, before: Row | None, after: Row | None
) -> dict[str, Any]:
    micros = recorded.run.recorded
    return {
        "before": _row(before, shape),
        "after": _row(after, shape),
        "source": _source(recorded, change),
        "op": op,
        "ts_ms": micros // 1_000,
        "ts_us": micros,
        "ts_ns": micros * 1_000,
        "transaction": None,
    }


def _source(recorded: Recorded, change: Change) -> dict[str, Any]:
    about = recorded.metadata
    micros = to_micros(change.timestamp)
    schema, _, table = change.table.rpartition(".")
    source: dict[str, Any] = {
        "version": _version(),
        "connector": _connector(about),
        "name": about.get("name") or about.get("slot") or about.get("database") or recorded.stream,
        "ts_ms": micros // 1_000,
        "snapshot": "true" if change.operation == "READ" else "false",
        "db": about.get("database", ""),
        "sequence": None,
        "ts_us": micros,
        "ts_ns": micros * 1_000,
        "table": change.table,
        "log_position": recorded.position,
    }
    match source["connector"]:
        case "postgresql":
            lsn = about.get("lsn")
            source |= {
                "schema": about.get("schema") or schema or "public",
                "table": table,
                "sequence": f'[null,"{lsn}"]' if lsn is not None else None,
                "txId": about.get("xid"),
                "lsn": lsn,
                "xmin": None,
                "origin": None,
                "origin_lsn": None,
            }
        case "mysql":
            file, offset = about.get("position") or (None, None)
            source |= {
                "server_id": about.get("server_id", 0),
                "gtid": about.get("gtid"),
                "file": file,
                "pos": offset,
                "row": 0,
                "thread": None,
                "query": None,
            }
    return source


def _connector(about: dict[str, Any]) -> str:
    if "lsn" in about or "database" in about:
        return "postgresql"
    if "position" in about:
        return "mysql"
    return "sqlite" if "changes" in about else "millstream"


@cache
def _version() -> str:
    try:
        return version("millstream")
    except PackageNotFoundError:
        return "0"


# --- values -----------------------------------------------------------------------------------------------


def _row(row: Row | None, shape: Shape | None) -> dict[str, Any] | None:
    if row is None:
        return None
    if shape is None:
        return {name: _any(value) for name, value in row.items()}
    # A row of which only the key was told has all columns, as Debezium's schema wants it.
    return {column.name: _value(row.get(column.name), column) for column in shape.columns}


def _value(value: Any, column: Column) -> Any:
    if value is None:
        return None
    if value is Unchanged:
        return b64encode(UNAVAILABLE.encode()).decode() if column.kind == "bytes" else UNAVAILABLE
    if column.kind == "any":
        return _any(value)
    return _of_kind(value, column.kind, column.type)


def _of_kind(value: Any, kind: str, type: str) -> Any:
    if isinstance(value, list):
        return [None if item is None else _of_kind(item, kind.removesuffix("[]"), type) for item in value]
    match value:
        case datetime() if kind == "timestamptz":
            digits = _digits(type)
            text = value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
            return f"{text[: 20 + digits] if digits else text[:19]}Z"
        case datetime():
            micros = (value - _EPOCH) // _MICROSECOND
            return micros // 1_000 if _digits(type) <= 3 else micros
        case date():
            return value.toordinal() - _EPOCH.toordinal()
        case time() if kind == "timetz":
            return _utc_time(value)
        case time():
            micros = ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
            return micros // 1_000 if _digits(type) <= 3 and not _is_mysql(type) else micros
        case timedelta():
            return value // _MICROSECOND
        case Interval():
            days = value.months * _DAYS_OF_A_MONTH + value.days
            return int(days * 86_400_000_000 + value.microseconds)
        case Decimal():
            return format(value, "f") if value.is_finite() else _NO_NUMBERS[str(value)]
        case str() if kind == "timestamp" and value in _INFINITIES:
            return _INFINITIES[value]
    return encode_value(value, kind)


def _any(value: Any) -> Any:
    if value is Unchanged:
        return UNAVAILABLE
    if isinstance(value, bytes):
        return b64encode(value).decode()
    told = encode_any(value)
    return told["$real"] if isinstance(told, dict) and "$real" in told else told


def _utc_time(value: time) -> str:
    shifted = (datetime.combine(date(2000, 1, 2), value)).astimezone(UTC).time()
    text = shifted.isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


_PRECISION = re.compile(r"\((\d)\)")


def _digits(type: str) -> int:
    """How many digits of a second a type has."""
    found = _PRECISION.search(type)
    if found is not None:
        return int(found[1])
    return 0 if _is_mysql(type) else 6


def _is_mysql(type: str) -> bool:
    # PostgreSQL's say whether they have a zone, or are called timestamptz.
    return type.startswith("datetime") or (type.startswith("timestamp") and "zone" not in type and "tz" not in type)
