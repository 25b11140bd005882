"""Which operator finds a pattern: the fast one for plain sequences, or the one that knows all of them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ..errors import UsageError
from ..time import Duration, span_micros
from .errors import UnsupportedPattern
from .grammar import compile_pattern, is_simple
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
    looks_back = any(references_in(condition) for condition in define.values())
    simple = is_simple(pattern) and not looks_back and not measures and words[0] == "past"
    if simple and len(define) <= MAX_VARIABLES:
        elements = parse(pattern, define)
        span = _span(pattern, within, any(element.most is None for element in elements))
        return Match(keys, Automaton(elements, tuple(define)), tuple(define.values()), span, relaxed)
    program = compile_pattern(pattern, define, relaxed=relaxed)
    span = _span(pattern, within, any(sign in pattern for sign in ("+", "*", ",}")))
    return Sequences(keys, program, define, span, relaxed, measures, words)


def _span(pattern: str, within: Duration | None, endless: bool) -> int:
    if within is None:
        raise UnsupportedPattern(
            pattern,
            "no within=",
            "its quantifiers let a match grow without end" if endless else "it is not supported without",
            hint="Say how long a match may take: within='10m'",
        )
    return span_micros("within=", within)
