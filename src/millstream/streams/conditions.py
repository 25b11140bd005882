"""Conditions that look back at the rows of a match: what of them can be said of each row alone is computed by Polars,
in columns; the rest, row by row, by functions made of the expression.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from .errors import UnsupportedExpression, UnsupportedPattern
from .matched import reference_of, references_in


class Trail:
    """A match under way: its first row, and the variables that it took its rows for.

    Attributes:
        values: The values of the key's rows.
        start: Which of them is the first.
        taken: The number of the variable of each row of the match.
    """

    __slots__ = ("start", "taken", "values")

    def __init__(self, values: list[tuple[Any, ...]]) -> None:
        self.values = values
        self.start = 0
        self.taken: list[int] = []


Value = Callable[[Trail, int], Any]
"""A value as the row at an index of the trail's values sees it."""


class Columns:
    """The columns that conditions and measures need of each row: expressions over the row alone."""

    def __init__(self) -> None:
        self.expressions: list[pl.Expr] = []

    def place(self, expression: pl.Expr) -> int:
        """The number of the column that holds an expression."""
        for number, known in enumerate(self.expressions):
            if known.meta.eq(expression):
                return number
        self.expressions.append(expression)
        return len(self.expressions) - 1


def split_condition(condition: pl.Expr) -> tuple[pl.Expr | None, pl.Expr | None]:
    """What of a condition is of the row alone, and what looks back: both must hold."""
    if not references_in(condition):
        return condition, None
    inputs = condition.meta.pop()
    if len(inputs) == 2 and condition.meta.eq(inputs[1] & inputs[0]):
        halves = [split_condition(each) for each in (inputs[1], inputs[0])]
        return _both(halves[0][0], halves[1][0]), _both(halves[0][1], halves[1][1])
    return None, condition


def _both(one: pl.Expr | None, other: pl.Expr | None) -> pl.Expr | None:
    if one is None or other is None:
        return one if other is None else other
    return one & other


def value_of(expression: pl.Expr, pattern: str, variables: tuple[str, ...], columns: Columns) -> Value:
    """A function for an expression that looks back.

    Raises:
        UnsupportedExpression: It uses something that is not supported beside a value of a matched row.
        UnsupportedPattern: It names a variable that the pattern has not.
    """
    return _node(expression.meta.undo_aliases(), expression, pattern, variables, columns)


def _node(node: pl.Expr, whole: pl.Expr, pattern: str, variables: tuple[str, ...], columns: Columns) -> Value:
    names = references_in(node)
    if node.meta.is_literal():
        constant = pl.select(node).item()
        return lambda trail, at: constant
    if not names:
        number = columns.place(node)
        return lambda trail, at: trail.values[at][number]
    if node.meta.is_column():
        return reference(names[0], pattern, variables, columns)
    try:
        inputs = node.meta.pop()
    except PolarsError:
        inputs = []
    made = [_node(each, whole, pattern, variables, columns) for each in inputs] if len(inputs) <= 2 else []
    if len(inputs) == 1:
        for unary, function in _UNARY:
            if node.meta.eq(unary(inputs[0])):
                return _applied(function, made[0])
        for dtype, function in _CASTS.items():
            if node.meta.eq(inputs[0].cast(dtype)):
                return _applied(_of_some(function), made[0])
    if len(inputs) == 2:
        right, left = made
        for combine, function2 in _BINARY:
            if node.meta.eq(combine(inputs[1], inputs[0])):
                return _combined(function2, left, right)
    raise UnsupportedExpression(
        str(whole).replace("\0", ""),
        "match",
        f"{str(node)!r} is not supported beside a value of a matched row".replace("\0", ""),
        hint="Use arithmetic, comparisons, & | ~, is_null, fill_null and abs there; other verbs on columns of the row",
    )


def _applied(function: Callable[[Any], Any], inner: Value) -> Value:
    return lambda trail, at: function(inner(trail, at))


def _combined(function: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    return lambda trail, at: function(left(trail, at), right(trail, at))


def _of_some(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same of values that are there; null where one is not."""

    def apply(*values: Any) -> Any:
        return None if None in values else function(*values)

    return apply


def _divide(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return None
    try:
        return left / right
    except ZeroDivisionError:
        return float("nan") if not left or left != left else float("inf") if left > 0 else float("-inf")


def _whole(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Of whole numbers; by zero it is null."""

    def apply(left: Any, right: Any) -> Any:
        return None if left is None or not right else function(left, right)

    return apply


def _and(left: Any, right: Any) -> Any:
    if left is False or right is False:
        return False
    return None if left is None or right is None else left and right


def _or(left: Any, right: Any) -> Any:
    if left is True or right is True:
        return True
    return None if left is None or right is None else left or right


_BINARY: tuple[tuple[Callable[[pl.Expr, pl.Expr], pl.Expr], Callable[[Any, Any], Any]], ...] = (
    (operator.gt, _of_some(operator.gt)),
    (operator.ge, _of_some(operator.ge)),
    (operator.lt, _of_some(operator.lt)),
    (operator.le, _of_some(operator.le)),
    (operator.eq, _of_some(operator.eq)),
    (operator.ne, _of_some(operator.ne)),
    (operator.add, _of_some(operator.add)),
    (operator.sub, _of_some(operator.sub)),
    (operator.mul, _of_some(operator.mul)),
    (operator.truediv, _divide),
    (operator.floordiv, _whole(operator.floordiv)),
    (operator.mod, _whole(operator.mod)),
    (operator.and_, _and),
    (operator.or_, _or),
    (lambda left, right: left.fill_null(right), lambda left, right: right if left is None else left),
)
_UNARY: tuple[tuple[Callable[[pl.Expr], pl.Expr], Callable[[Any], Any]], ...] = (
    (operator.neg, _of_some(operator.neg)),
    (operator.invert, _of_some(operator.not_)),
    (lambda inner: inner.is_null(), lambda value: value is None),
    (lambda inner: inner.is_not_null(), lambda value: value is not None),
    (lambda inner: inner.abs(), _of_some(abs)),
)
_CASTS: Mapping[Any, Callable[[Any], Any]] = {pl.Float64: float, pl.Int64: int}


# --- values of matched rows ---------------------------------------------------------------------------


def reference(name: str, pattern: str, variables: tuple[str, ...], columns: Columns) -> Value:
    """A function for what a name stands for."""
    found = reference_of(name)
    assert found is not None
    kind, variable, column = found
    if variable not in variables:
        raise UnsupportedPattern(
            pattern, repr(variable), f"{name[1:]} asks for it, and it is no variable", hint="Name one of the pattern"
        )
    bit = variables.index(variable)
    if column is None:
        return lambda trail, at: trail.taken.count(bit)
    number = columns.place(pl.col(column))
    if kind == "last":
        return lambda trail, at: _last(trail, bit, number)
    if kind == "first":
        return lambda trail, at: _first(trail, bit, number)
    fold = _FOLDS[kind]

    def folded(trail: Trail, at: int) -> Any:
        start = trail.start
        values = [trail.values[start + i][number] for i, taken in enumerate(trail.taken) if taken == bit]
        return fold([value for value in values if value is not None])

    return folded


def _last(trail: Trail, bit: int, number: int) -> Any:
    taken = trail.taken
    for i in range(len(taken) - 1, -1, -1):
        if taken[i] == bit:
            return trail.values[trail.start + i][number]
    return None


def _first(trail: Trail, bit: int, number: int) -> Any:
    taken = trail.taken
    return trail.values[trail.start + taken.index(bit)][number] if bit in taken else None


_FOLDS: dict[str, Callable[[list[Any]], Any]] = {
    "count": len,
    "sum": lambda values: sum(values) if values else 0,
    "mean": lambda values: sum(values) / len(values) if values else None,
    "min": lambda values: min(values, default=None),
    "max": lambda values: max(values, default=None),
}
