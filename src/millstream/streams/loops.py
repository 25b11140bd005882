"""Loops over rows that are compiled. Only `compiled.loops` imports this module: it needs Numba.

They are compiled when they are first imported, which takes some seconds, and kept in a file for the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit, types

from .keys import Ints

F = TypeVar("F", bound=Callable[..., Any])

_READ = types.Array(types.int64, 1, "C", readonly=True)
_WRITTEN = types.Array(types.int64, 1, "C")


def _compiled(*arguments: Any) -> Callable[[F], F]:
    """Compile a function for these types of arguments; kept in a file where that can be."""

    def compile(function: F) -> F:
        signature = types.void(*arguments)
        try:
            made: F = njit(signature, nogil=True, boundscheck=True, cache=True)(function)
        except Exception:
            # There is no folder, it is full, or what was kept there is broken.
            made = njit(signature, nogil=True, boundscheck=True)(function)
        return made

    return compile


_SIDE = (_READ, _READ, _READ)


@_compiled(*_SIDE, *_SIDE, types.int64, types.boolean, types.int64, _WRITTEN, _WRITTEN)
def balance(
    ids: Ints,
    at: Ints,
    values: Ints,
    gone_ids: Ints,
    gone_at: Ints,
    gone_values: Ints,
    size: int,
    inclusive: bool,
    low: int,
    balances: Ints,
    found: Ints,
) -> None:
    """What each row sees: what its key comes to with all rows up to its time, and without those that are gone by then.

    Args:
        ids, at, values: The rows that came, by time; without values each counts as one.
        gone_ids, gone_at, gone_values: Those that the span passes meanwhile, by time.
        size: The span.
        inclusive: Whether a row of exactly the span's length ago counts.
        low: The least key.
        balances: What each key comes to, from the least on; afterwards what it comes to then.
        found: Takes what each row sees.
    """
    weighted = len(values) > 0
    passed = 0
    row = 0
    while row < len(at):
        now = at[row]
        gone = now - size if not inclusive else now - size - 1
        while passed < len(gone_at) and gone_at[passed] <= gone:
            balances[gone_ids[passed] - low] -= gone_values[passed] if weighted else 1
            passed += 1
        # Rows of one time see each other.
        end = row
        while end < len(at) and at[end] == now:
            balances[ids[end] - low] += values[end] if weighted else 1
            end += 1
        while row < end:
            found[row] = balances[ids[row] - low]
            row += 1
    while passed < len(gone_at):
        balances[gone_ids[passed] - low] -= gone_values[passed] if weighted else 1
        passed += 1
