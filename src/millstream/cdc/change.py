"""A change of a row, as it stands in the log, and what else a captured table's stream tells."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..errors import UsageError
from ..events import Event
from .shape import shape_of
from .values import decode_row

if TYPE_CHECKING:
    from ..log import Recorded

Operation = Literal["INSERT", "UPDATE", "DELETE", "READ", "TRUNCATE"]
"""What happened. READ is a row found by a snapshot; TRUNCATE says that every row known before is gone."""

Row = dict[str, Any]


class Change(Event):
    """A row of a captured table changed.

    Attributes:
        operation: INSERT, UPDATE or DELETE; READ for a row found by a snapshot; TRUNCATE for the whole table.
        table: The table's name in the source.
        before: The row before; None for INSERT, READ and TRUNCATE.
        after: The row after; None for DELETE and TRUNCATE.
        timestamp: When it happened at the source: the commit's time where the source tells it; of SQLite,
            the time of the statement (to the millisecond, by the clock of the writer's machine).

    Example:
        >>> from millstream.cdc import Change
        >>> from datetime import UTC, datetime
        >>> now = datetime.now(UTC)
        >>> change = Change(operation="INSERT", table="users", before=None, after={"id": 1}, timestamp=now)
        >>> change.after
        {'id': 1}
    """

    operation: Operation
    table: str
    before: Row | None
    after: Row | None
    timestamp: datetime


class SnapshotCompleted(Event):
    """All rows of a table are in the log: from here on, its changes applied in order give the table."""

    table: str
    columns: list[str]
    rows: int
    timestamp: datetime


class SchemaChanged(Event):
    """A table's columns changed. Rows before it are of the old shape, rows after it of the new one.

    Attributes:
        columns: All columns from here on.
        added: The new ones, each with the value that rows have which were there before.
        dropped: Those that are gone.
        renamed: Old names with the new ones.
        retyped: Those of another type, with the type's name in the source.
    """

    table: str
    columns: list[str]
    added: Row
    timestamp: datetime
    dropped: list[str] = []
    renamed: dict[str, str] = {}
    retyped: dict[str, str] = {}


def decoded(recorded: Recorded) -> Change:
    """A recorded change with its values as the source holds them: decimals, times, bytes (see `Column`).

    Raises:
        UsageError: It is no change of a captured table.
    """
    event = recorded.event
    if not isinstance(event, Change):
        raise UsageError(
            f"the event at position {recorded.position} is a {recorded.type}, no change",
            hint="Read a captured table with types=[ms.Change]",
        )
    return decode_change(event, recorded.run.schema)


def decode_change(change: Change, schema: str) -> Change:
    """A change with its values as the source holds them, by the schema of its run."""
    shape = shape_of(schema)
    before = change.before and decode_row(change.before, shape)
    after = change.after and decode_row(change.after, shape)
    if before is change.before and after is change.after:
        return change
    return msgspec.structs.replace(change, before=before, after=after)
