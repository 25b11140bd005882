"""What changes come to for the rows of a table: the last state of each row, so that a target is told once.

A table with a key is told in `Net` steps, which need no order within themselves. What needs one is a step of its own: a
row that moves to another key and keeps values that nobody has told (`Move`), and rows without a key (`Exact`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ...errors import Rejected
from ..change import Change, Row
from ..shape import Shape, shape_of
from ..values import Unchanged, Undecodable
from .base import Changes

if TYPE_CHECKING:
    from ...log import Recorded

Key = tuple[Any, ...]


class Net(msgspec.Struct):
    """The net effect of changes on rows that a key tells from each other.

    Attributes:
        truncate: First, all rows that were there go.
        rows: By key: the row as it is now. One of `partial` has only the columns that were told.
        gone: Keys of rows that are no more. None is in `rows`.
        partial: Keys of rows that were there before, and keep what `rows` does not tell of them.
    """

    truncate: bool = False
    rows: dict[Any, tuple[Key, Row]] = {}
    gone: dict[Any, Key] = {}
    partial: set[Any] = set()

    @property
    def whole(self) -> list[Row]:
        """The rows that are told wholly."""
        return [row for address, (_, row) in self.rows.items() if address not in self.partial]

    @property
    def parts(self) -> list[tuple[Key, Row]]:
        """The rows that are told partly, with their keys."""
        return [self.rows[address] for address in self.partial]


class Move(msgspec.Struct):
    """A row whose key changes, and that keeps the values of the columns that `row` does not tell."""

    old: Key
    new: Key
    row: Row


class Exact(msgspec.Struct):
    """Rows without a key: some come, and of each that goes, one that equals it. First all come, then all go; which of
    equal rows it is makes no difference.
    """

    come: list[Row] = []
    gone: list[Row] = []


Step = Net | Move | Exact


def by_shape(changes: Changes) -> Iterator[tuple[Shape, list[tuple[Change, Recorded]]]]:
    """Neighbouring changes whose rows have one shape.

    Raises:
        Rejected: They carry no shape, as nothing does that a capture has written.
    """
    for schema, some in groupby(changes, key=lambda pair: pair[1].run.schema):
        shape = shape_of(schema)
        if shape is None:
            raise Rejected("the change does not say which columns its table has")
        yield shape, list(some)


def steps(changes: Iterable[Change], key: Sequence[str]) -> list[Step]:
    """What changes of rows of one shape come to.

    Args:
        key: The columns of the key; none for a table without one.

    Raises:
        Rejected: A change does not tell which row it is about.
    """
    found: list[Step] = []
    fold(found, changes, key)
    return found


def fold(found: list[Step], changes: Iterable[Change], key: Sequence[str]) -> None:
    """Add what changes come to to what others before them came to; as in `steps`."""
    for change in changes:
        if change.operation == "TRUNCATE":
            found[:] = [Net(truncate=True)]
            continue
        before, after = change.before, change.after
        if key and _keyed(before, key) and _keyed(after, key):
            _keyed_change(found, before, after, key)
        else:
            _exact_change(found, change)


def address_of(key: Key) -> Any:
    """Something that is equal for equal keys alone, and can be hashed."""
    return tuple([_hashable(value) for value in key])


def _hashable(value: Any) -> Any:
    kind = type(value)
    if kind is int or kind is str:
        return value
    if kind is Undecodable:
        return "text", bytes(value)
    if kind is list:
        return "list", repr(value)
    return value


def key_of(row: Row, key: Sequence[str]) -> Key:
    """The values of a row's key.

    Raises:
        Rejected: The row does not have them.
    """
    try:
        return tuple([row[name] for name in key])
    except KeyError as error:
        raise Rejected(f"the change does not tell column {error.args[0]!r}, which is in the key") from None


def _keyed(row: Row | None, key: Sequence[str]) -> bool:
    """Whether the key tells the row from others: SQLite lets many rows have NULL in one."""
    return row is None or all(row.get(name) is not None for name in key)


def _keyed_change(found: list[Step], before: Row | None, after: Row | None, key: Sequence[str]) -> None:
    old = key_of(before, key) if before is not None else None
    if after is None:
        if old is None:
            raise Rejected("the change tells no row")
        _go(_net(found), old)
        return
    new = key_of(after, key)
    moved = old is not None and address_of(old) != address_of(new)
    told = {name: value for name, value in after.items() if value is not Unchanged}
    if len(told) < len(after) and before is not None:
        for name in after:
            if name not in told and before.get(name, Unchanged) is not Unchanged:
                told[name] = before[name]
    net = _net(found)
    if moved:
        assert old is not None
        if len(told) < len(after):
            known = net.rows.get(address_of(old))
            if known is None or address_of(old) in net.partial:
                found.append(Move(old, new, told))
                return
            told = {**known[1], **told}
        _go(net, old)
    _come(net, new, told, whole=len(told) == len(after))


def _net(found: list[Step]) -> Net:
    if not found or not isinstance(found[-1], Net):
        found.append(Net())
    return cast(Net, found[-1])


def _go(net: Net, key: Key) -> None:
    address = address_of(key)
    net.rows.pop(address, None)
    net.partial.discard(address)
    net.gone[address] = key


def _come(net: Net, key: Key, row: Row, *, whole: bool) -> None:
    address = address_of(key)
    known = net.rows.get(address)
    if whole:
        net.partial.discard(address)
    elif known is not None:
        row = {**known[1], **row}
    else:
        net.partial.add(address)
    net.rows[address] = key, row
    net.gone.pop(address, None)


def _exact_change(found: list[Step], change: Change) -> None:
    before, after = change.before, change.after
    if before is None and change.operation in ("UPDATE", "DELETE"):
        raise Rejected("the change does not tell which row it is about: its table has no key, and sends no old rows")
    if not found or not isinstance(found[-1], Exact):
        found.append(Exact())
    step = cast(Exact, found[-1])
    if after is not None:
        if before is not None:
            after = {n: before.get(n, v) if v is Unchanged else v for n, v in after.items()}
        if any(value is Unchanged for value in after.values()):
            raise Rejected("the change leaves out a value, and its table has no key to find the row by")
    if before is not None:
        step.gone.append(before)
    if after is not None:
        step.come.append(after)
