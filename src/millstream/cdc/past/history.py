"""The history of one row: every change of it, whatever its key was at the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import UsageError
from ...log.paging import END
from ..change import Change, Operation, Row
from ..shape import Shape, shape_of
from ..values import Unchanged, decode_row, decoder, encode_value
from .state import TYPES

if TYPE_CHECKING:
    from ...log import Log, Run

Key = tuple[Any, ...]


class RowChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of one row.

    Attributes:
        operation: As in `Change`.
        key: The row's key after it (before it, of a DELETE), with the columns' names.
        before: The row before it. What the source does not tell is taken from the change before; None for the first.
        after: The row after it; None when it is gone.
        position: The change's position in the log.
        version: Its version within the table's stream.
        timestamp: When it happened at the source.
        recorded: When it came into the log.
        metadata: What the source said of its run, such as the transaction.
    """

    operation: Operation
    key: dict[str, Any]
    before: Row | None
    after: Row | None
    position: int
    version: int
    timestamp: datetime
    recorded: datetime
    metadata: dict[str, Any]


class _Found(msgspec.Struct):
    """A change of a row that may be the one."""

    run: Run
    index: int
    change: Change
    names: tuple[str, ...]
    was: Key | None
    now: Key | None


def row_history(log: Log, stream: str, key: Any, until: int = END) -> list[RowChange]:
    """See `millstream.cdc.row_history`.

    The text of each run is searched for the key before anything is decoded. A change of the key leads to another
    key, which is looked for in another pass; mostly there is none.
    """
    shape = _newest_shape(log, stream)
    if not shape.key:
        raise UsageError(
            f"the rows of {stream!r} have no key, so that none can be followed",
            hint="Give the table a primary key; or look through log.read(…)",
        )
    wanted = {_given(key, shape)}
    known: set[Key] = set()
    found: list[_Found] = []
    while wanted - known:
        known = set(wanted)
        found = list(_search(log, stream, known, until))
        for each in found:
            wanted.update(k for k in (each.was, each.now) if k is not None)
    return _lives(found, _given(key, shape))


def _given(key: Any, shape: Shape) -> Key:
    names = shape.key
    if isinstance(key, Mapping):
        if set(key) != set(names):
            given = ", ".join(sorted(map(str, key)))
            raise UsageError(f"the key has the columns {', '.join(names)}, not {given}", hint="Name each of them")
        return _known(tuple(key[name] for name in names), shape)
    values = tuple(key) if isinstance(key, tuple | list) else (key,)
    if len(values) != len(names):
        raise UsageError(
            f"the key has {len(names)} columns ({', '.join(names)}), not {len(values)}",
            hint="Give a tuple of their values, or a dict",
        )
    return _known(values, shape)


def _known(values: Key, shape: Shape) -> Key:
    """A key whose values may be given as text, such as a UUID's, with the values that rows have."""
    kinds = {column.name: column.kind for column in shape.columns}
    return tuple(_value(value, kinds.get(name, "any")) for name, value in zip(shape.key, values, strict=True))


def _value(value: Any, kind: str) -> Any:
    decode = int if kind in ("int", "uint") else decoder(kind)
    if not isinstance(value, str) or decode is None or kind in ("text", "any"):
        return value
    try:
        return decode(value)
    except ValueError as error:
        raise UsageError(
            f"{value!r:.60} is no value of kind {kind}", hint="Give the key's value as rows have it"
        ) from error


def _newest_shape(log: Log, stream: str) -> Shape:
    for recorded in log.read(stream, types=TYPES, backwards=True):
        if (shape := shape_of(recorded.run.schema)) is not None:
            return shape
    return Shape(())


def _search(log: Log, stream: str, keys: set[Key], until: int) -> Iterator[_Found]:
    for run in log.runs(stream, types=TYPES, until_position=until, trimmed="raise"):
        shape = shape_of(run.schema)
        if run.type != "Change" or shape is None or not shape.key:
            continue
        text = run.text()
        hits = _hits(text, keys, shape)
        if not hits and b'"TRUNCATE"' not in text:
            continue
        for index, line in enumerate(text.split(b"\n")):
            truncated = b'"TRUNCATE"' in line
            if not truncated and not any(needle in line for needle in hits):
                continue
            change = _decode(line)
            if change.operation == "TRUNCATE":
                yield _Found(run, index, change, shape.key, None, None)
                continue
            before = change.before and decode_row(change.before, shape)
            after = change.after and decode_row(change.after, shape)
            was, now = _key_of(before, shape), _key_of(after, shape)
            if was is None and change.operation == "UPDATE":
                was = now
            if was in keys or now in keys:
                change = msgspec.structs.replace(change, before=before, after=after)
                yield _Found(run, index, change, shape.key, was, now)


_decode = msgspec.json.Decoder(Change).decode


def _hits(text: bytes, keys: set[Key], shape: Shape) -> list[bytes]:
    """What lines of one of the keys contain, of such texts as are there at all."""
    return [needle for needle in {each for key in keys for each in _needles(key, shape)} if needle in text]


def _needles(key: Key, shape: Shape) -> list[bytes]:
    """Pieces of JSON of which one stands in every change of a row: a column of its key, with the value where that can
    be written in one way only."""
    kinds = {column.name: column.kind for column in shape.columns}
    found: list[list[bytes]] = []
    for name, value in zip(shape.key, key, strict=True):
        head, kind = msgspec.json.encode(name) + b":", kinds.get(name, "any")
        if isinstance(value, int) and not isinstance(value, bool) and kind in ("int", "uint", "any"):
            # In a column of any values, 1.0 is the same number.
            ends = (b",", b"}", b".") if kind == "any" else (b",", b"}")
            found.append([head + b"%d" % value + end for end in ends])
        elif isinstance(value, str) and kind in ("text", "any") and value.isascii() and value.isprintable():
            if not set(value) & _ESCAPED:
                found.append([head + b'"%b"' % value.encode()])
        elif kind == "uuid":
            found.append([head + msgspec.json.encode(encode_value(value, kind))])
    return max(found, key=lambda needles: len(needles[0]), default=[msgspec.json.encode(shape.key[0]) + b":"])


_ESCAPED = frozenset("\"\\/<>&'")
"""What may be written in JSON in more than one way, by whoever writes it."""


def _key_of(row: Row | None, shape: Shape) -> Key | None:
    if row is None or any(row.get(name) is None for name in shape.key):
        return None
    return tuple(row[name] for name in shape.key)


class _Life(msgspec.Struct):
    """A row from its coming to its going, and its changes."""

    found: list[tuple[_Found, Row | None, Row | None]] = []
    row: Row | None = None
    keys: set[Key] = set()


def _lives(found: list[_Found], key: Key) -> list[RowChange]:
    """The changes of every row that ever had a key, out of those of all rows that are connected with it."""
    alive: dict[Key, _Life] = {}
    lives: list[_Life] = []

    def begin() -> _Life:
        lives.append(_Life())
        return lives[-1]

    for each in found:
        change = each.change
        if change.operation == "TRUNCATE":
            for life in alive.values():
                life.found.append((each, life.row, None))
            alive.clear()
            continue
        was = each.was if change.operation != "READ" else each.now
        known = alive.pop(was, None) if was is not None else None
        life = known or begin()
        before, after = _told(change.before, life.row), _told(change.after, life.row)
        if before is None and change.operation != "INSERT":
            before = life.row
        life.found.append((each, before, after))
        life.row = after
        life.keys.update(k for k in (each.was, each.now) if k is not None)
        if each.now is not None:
            alive[each.now] = life
    chosen = [step for life in lives if key in life.keys for step in life.found]
    chosen.sort(key=lambda step: step[0].run.position + step[0].index)
    return [_row_change(*step) for step in chosen]


def _told(row: Row | None, known: Row | None) -> Row | None:
    """A row with what the source left out, as far as it is known from before."""
    if row is None or known is None:
        return row
    return {
        **{name: value for name, value in known.items() if name not in row},
        **{name: known.get(name, value) if value is Unchanged else value for name, value in row.items()},
    }


def _row_change(each: _Found, before: Row | None, after: Row | None) -> RowChange:
    change, run = each.change, each.run
    row = after or before or {}
    return RowChange(
        operation=change.operation,
        key={name: row.get(name) for name in each.names},
        before=before,
        after=after,
        position=run.position + each.index,
        version=run.version + each.index,
        timestamp=change.timestamp,
        recorded=run.time,
        metadata=run.metadata,
    )
