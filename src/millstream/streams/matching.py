"""Which operator finds a pattern: the fast one for plain sequences, or the one that knows all of them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
from polars.exceptions import PolarsError

from ..errors import UsageError
from ..time import Duration, span_micros
from .errors import UnsupportedPattern
from .grammar import check_possible, compile_pattern, is_simple
from .match import Match
from .matched import references_in
from .pattern import MAX_VARIABLES, Automaton, parse
from .sequences import Sequences, skip_of


def matching(
    keys: tuple[str, ...],
    pattern: str,
    within: Duration | None,
    define: Mapping[str, pl.Expr],
    relaxed: bool,
    measures: Mapping[str, pl.Expr],
    skip: str,
) -> Match | Sequences:
    """The operator of a pattern; see `Flow.match`."""
    if not isinstance(pattern, str):
        raise UsageError(f"{pattern!r:.60} is no pattern", hint="Write it as text: 'click{3,} purchase'")
    words = skip_of(skip, define) if isinstance(skip, str) else None
    if words is None:
        raise UsageError(
            f"skip={skip!r} is not known",
            hint="Use 'past last row', 'to next row', or 'to first x' and 'to last x' with a variable x",
        )
    never = {name for name, condition in define.items() if never_holds(condition)}
    looks_back = any(references_in(condition) for condition in define.values())
    span = None if within is None else span_micros("within=", within)
    simple = is_simple(pattern) and not looks_back and not measures and words[0] == "past"
    if simple and len(define) <= MAX_VARIABLES:
        elements = parse(pattern, define)
        check_possible(pattern, never)
        if span is not None:
            return Match(keys, Automaton(elements, tuple(define)), tuple(define.values()), span, relaxed)
    program = compile_pattern(pattern, define, relaxed=relaxed)
    check_possible(pattern, never)
    if span is None and (program.endless or program.awaits):
        raise UnsupportedPattern(
            pattern,
            "no within=",
            "its quantifiers let a match grow without end"
            if program.endless
            else f"that no {program.awaits[0]!r} comes is never decided",
            hint="Say how long a match may take: within='10m'",
        )
    return Sequences(keys, program, define, span, relaxed, measures, words)


def never_holds(condition: pl.Expr) -> bool:
    """Whether it can be seen of a condition that no row ever meets it."""
    if not condition.meta.root_names() and not condition.meta.has_multiple_outputs():
        try:
            found = pl.select(condition.alias("x")).to_series()
        except PolarsError:
            return False
        return found.dtype in (pl.Boolean, pl.Null) and len(found) == 1 and found[0] is not True
    inputs = condition.meta.pop()
    if len(inputs) == 2:
        right, left = inputs
        if condition.meta.eq(left & right):
            return never_holds(left) or never_holds(right)
        if condition.meta.eq(left | right):
            return never_holds(left) and never_holds(right)
    return False
