"""What a flow refuses, each by name, before or while it runs."""

from __future__ import annotations

from difflib import get_close_matches
from typing import ClassVar

from ..errors import Conflict, MillstreamError, UsageError


class FlowError(UsageError):
    """A flow is put together in a way that has no meaning."""

    code: ClassVar[str] = "flow"


class UnsupportedExpression(FlowError):
    """An expression depends on more than the row (or the group) that it is given.

    Attributes:
        expression: The expression, as Polars prints it.
        where: The verb that it was given to.
    """

    code = "unsupported-expression"

    def __init__(self, expression: str, where: str, reason: str, *, hint: str) -> None:
        super().__init__(f"{where} cannot use {expression}: {reason}", hint=hint)
        self.expression = expression
        self.where = where
        self.reason = reason


class UnsupportedPattern(FlowError):
    """A pattern uses what is not supported, or what has no meaning.

    Attributes:
        pattern: The pattern as given.
        part: What in it is refused.
    """

    code = "unsupported-pattern"

    def __init__(self, pattern: str, part: str, reason: str, *, hint: str) -> None:
        super().__init__(f"pattern {pattern!r}: {part}: {reason}", hint=hint)
        self.pattern = pattern
        self.part = part
        self.reason = reason


_WHERE_FROM = "Check the name, or add the column with with_columns"


class MissingColumn(FlowError):
    """A flow asks for a column that its rows do not have.

    Attributes:
        column: The column's name.
        where: The verb that asks for it.
        columns: The columns that there are.
        source: The source whose rows lack it; None where it was lost, or misspelt, on the way.
    """

    code = "missing-column"

    def __init__(self, column: str, where: str, columns: list[str], source: object = None) -> None:
        close = get_close_matches(column, columns, 1)
        super().__init__(
            f"{where} needs column {column!r}; there are {', '.join(map(repr, columns)) or 'none'}",
            hint=f"Write {close[0]!r}, if that is meant" if close else _WHERE_FROM,
        )
        self.source = source
        self.column = column
        self.where = where
        self.columns = columns


class FlowChanged(Conflict):
    """The state that the log keeps under this name belongs to a flow of another shape.

    Attributes:
        name: The flow's name.
        stored: The shape that the state belongs to.
        given: The shape of the flow that was to go on with it.
    """

    code = "flow-changed"

    def __init__(self, name: str, stored: str, given: str) -> None:
        super().__init__(
            f"flow {name!r} keeps state as [{stored}] and cannot go on as [{given}]",
            hint="flow.compatible(log) says what has changed. Give the changed flow another name: .to(stream, type=...,"
            " name='...'); or fork it: flow.fork(log)",
        )
        self.name = name
        self.stored = stored
        self.given = given


class CannotCheck(FlowError):
    """A part of a flow whose meaning cannot be said in SQL, so that no referee can confirm it.

    Attributes:
        part: The part.
        reason: Why not.
    """

    code = "cannot-check"

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(
            f"{part} cannot be checked: {reason}",
            hint="Check the flow up to there: it is a flow of its own, without to(...)",
        )
        self.part = part
        self.reason = reason


class SpillFailed(MillstreamError):
    """State beyond a flow's limit of memory could not be written to disk. The flow is as its last commit left it.

    Attributes:
        folder: Where it was to go.
        size: How many bytes there was no room for.
        reason: What the system says.
    """

    code: ClassVar[str] = "spill-failed"
    http_status = 507

    def __init__(self, folder: str, size: int, reason: str) -> None:
        super().__init__(
            f"{size} bytes of a flow's state cannot be written to {folder}: {reason}",
            hint="Make room there, or raise memory=, and run the flow again: it goes on where it was",
        )
        self.folder = folder
        self.size = size
        self.reason = reason
