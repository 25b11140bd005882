"""Partitions of a projection: which events each of them takes, by a key that says what belongs together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID
from zlib import crc32

import polars as pl

from ..errors import InvalidEvent, UsageError
from ..events import Event, Plain, type_name
from ..log.handlers import InvalidHandler
from ..personal import shape_of

if TYPE_CHECKING:
    from ..log.singles import Singles
from ..log.records import Run

STREAM = "_stream"
"""Stands for the name of an event's stream."""

MOST = 64
"""The most partitions of one projection: each has a thread and a connection."""

_KNOWN = 1_000_000
"""How many streams are remembered with whether they are taken."""


class Keys:
    """What the events of a projection are divided by.

    Args:
        name: Names the projection in errors.
        by: What its author declared.
        events: The class of the events of each type.

    Raises:
        InvalidHandler: A class of events has no such field, or what is in it may be forgotten.
    """

    def __init__(self, name: str, by: str | Mapping[Any, str], events: dict[str, type[Any]]) -> None:
        self._name = name
        if not isinstance(by, str | Mapping):
            raise InvalidHandler(
                name,
                f"partition_by is {by!r:.40}",
                hint='Name a field, or "_stream"; or one for each class: partition_by = {OrderPlaced: "order"}',
            )
        named = {} if isinstance(by, str) else by_type(name, "partition_by", by, events)
        self._fields = {type: by if isinstance(by, str) else named.get(type, STREAM) for type in events}
        for type, cls in events.items():
            self._check(type, cls)

    def _check(self, type: str, cls: type[Any]) -> None:
        field = self._fields[type]
        if field == STREAM or cls is Plain or not issubclass(cls, Event):
            return
        if field not in cls.__struct_fields__:
            raise InvalidHandler(
                self._name,
                f"it is divided by a field, and events of type {type} have no field {field!r}",
                hint='Name a field, or "_stream"; or one for each class: partition_by = {OrderPlaced: "order"}',
            )
        kind = _kind(cls, field)
        if kind is not None:
            raise InvalidHandler(
                self._name,
                f"it is divided by {field!r} of {type}, which holds {kind}",
                hint="Divide by a field of texts, whole numbers, enums or ids",
            )
        shape = shape_of(cls)
        if shape is not None and field in shape.fields.values():
            raise InvalidHandler(
                self._name,
                f"it is divided by {field!r} of {type}, which is personal, and another key once it is forgotten",
                hint="Name a field that stays, such as the one that says whose data it is",
            )

    @property
    def by_stream(self) -> bool:
        """Whether streams alone say it."""
        return set(self._fields.values()) == {STREAM}

    @property
    def text(self) -> str:
        """What makes them, as a text."""
        return repr(sorted(self._fields.items()))

    def of(self, run: Run, event: Any) -> str:
        """The key of an event.

        Raises:
            UsageError: What the event has in its field cannot be one.
        """
        field = self._fields.get(run.type, STREAM)
        if field == STREAM:
            return run.stream
        return self._plain(run.type, event.data.get(field) if isinstance(event, Plain) else getattr(event, field))

    def among(self, frame: pl.DataFrame, has: Callable[[str], bool]) -> pl.Series:
        """Which events of a frame have keys that are wanted.

        Raises:
            UsageError: What an event has in its field cannot be one.
        """
        found = pl.Series("wanted", [False], dtype=pl.Boolean).new_from_index(0, frame.height)
        for type in frame["_type"].unique():
            field = self._fields[type]
            values = frame[field] if field in frame.columns else pl.Series([None]).new_from_index(0, frame.height)
            if not (values.dtype in (pl.String, pl.Boolean, pl.Null) or values.dtype.is_integer()):
                self._plain(type, values.to_list())
            distinct = values.unique().drop_nulls()
            wanted = distinct.filter([has(self._plain(type, value)) for value in distinct])
            taken = values.is_in(wanted.implode()).fill_null(has(""))
            found = found | ((frame["_type"] == type) & taken)
        return found

    def _plain(self, type: str, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, Enum | UUID):
            value = value.value if isinstance(value, Enum) else str(value)  # as in frames
        if not isinstance(value, str | int):
            raise UsageError(
                f"{self._fields[type]!r} of {type} is {value!r:.60}, which cannot say to which partition it belongs",
                hint="Divide by a field of texts, whole numbers, enums or ids",
            )
        return str(value)


def by_type(name: str, attribute: str, by: Mapping[Any, str], events: Collection[str]) -> dict[str, str]:
    """Fields that were declared for classes of events, by their types.

    Raises:
        InvalidHandler: A class is none of those that the projection handles.
    """
    found: dict[str, str] = {}
    for cls, field in by.items():
        try:
            type = type_name(cls)
        except InvalidEvent:
            type = ""
        if type not in events or not isinstance(field, str):
            raise InvalidHandler(
                name,
                f"{attribute} has {getattr(cls, '__name__', cls)!r:.60}: {field!r:.40}"
                + (", and it handles no such event" if type not in events else ", which names no field"),
                hint=f"Name fields for the classes that it handles: {', '.join(events)}",
            )
        found[type] = field
    return found


def _kind(cls: type[Any], field: str) -> str | None:
    """What a field of events holds that is of no kind that keys are of; None where that cannot be said."""
    try:
        annotation = get_type_hints(cls)[field]
    except Exception:
        return None  # what it holds is seen event by event
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((each.__name__ for each in kinds if each in _KEYLESS), None)


_KEYLESS = {float, Decimal, bytes, datetime, date, time, timedelta, list, dict, set, tuple}
"""Classes of values that say to no partition that they belong to it."""


class Share:
    """One of the partitions of a projection.

    Attributes:
        number: Which of them, from 1.
        count: How many there are.
    """

    def __init__(self, number: int, count: int, keys: Keys | None) -> None:
        self.number = number
        self.count = count
        self._keys = keys
        """None for documents, which have keys of their own."""
        self._streams: dict[int, bool] = {}
        self.by_stream = keys is not None and keys.by_stream
        """Whether whole runs are taken, or not."""

    def has(self, key: str) -> bool:
        """Whether what has this key is in it. The same on each machine, for ever: rows were made by it."""
        return crc32(key.encode()) % self.count == self.number - 1

    def runs(self, page: Sequence[Run] | Singles) -> list[Run]:
        """Those of a list of runs whose streams are in it."""
        known = self._streams
        for run in page:
            if run.stream_id not in known:
                if len(known) >= _KNOWN:
                    known.clear()
                known[run.stream_id] = self.has(run.stream)
        return [run for run in page if known[run.stream_id]]

    def takes(self, run: Run, event: Any) -> bool:
        """Whether an event is in it."""
        return self._keys is None or self.has(self._keys.of(run, event))

    def rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The events of a frame that are in it."""
        if self._keys is None:
            return frame
        return frame.filter(self._keys.among(frame, self.has))
