"""Pages of runs: what a reader's answers are made of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal

from ..events import type_name
from ..storage.base import PLAIN_VALUES, Matching, Scope
from .present import is_wanted
from .records import Run
from .singles import FIRST, Singles, next_most, singles

if TYPE_CHECKING:
    from .reading import Reader

END = 1 << 62

IfTrimmed = Literal["skip", "raise"]
"""What to do about events that retention has trimmed."""

_PAGES = 16
"""So many pages of runs are read before there is another look whether what comes are single events."""


def pages(
    reader: Reader,
    scope: Scope,
    low: int,
    high: int,
    backwards: bool,
    limit: int | None,
    trimmed: IfTrimmed,
) -> Iterator[list[Run]]:
    """Runs of a scope strictly between two positions, a page at a time; those at the edges are cut."""
    for runs in stored(reader, scope, low, high, backwards, limit, trimmed):
        yield from _presented(reader, runs, scope, backwards)


def spans(reader: Reader, scope: Scope, low: int, high: int, trimmed: IfTrimmed) -> Iterator[list[Run] | Singles]:
    """The same, forwards, with `Singles` where single events stand alike."""
    most = FIRST
    while low < high:
        page = singles(reader, scope, low, high, most)
        if page is not None:
            yield page
            low, most = page.last, next_most(page, most)
            continue
        # What does not stand alike is read by pages; after some of them there is another look.
        count = 0
        for runs in islice(stored(reader, scope, low, high, trimmed=trimmed), _PAGES):
            last = runs[-1].last
            yield from _presented(reader, runs, scope, False)
            low = last
            count += 1
        if count < _PAGES:
            return


def _presented(reader: Reader, runs: list[Run], scope: Scope, backwards: bool) -> Iterator[list[Run]]:
    for shown in reader.present(runs, backwards=backwards):
        if shown is not runs and (scope.shown is not None or scope.matching is not None):
            shown = _asked(shown, scope)
        yield shown


def stored(
    reader: Reader,
    scope: Scope,
    low: int = 0,
    high: int = END,
    backwards: bool = False,
    limit: int | None = None,
    trimmed: IfTrimmed = "skip",
) -> Iterator[list[Run]]:
    """The same, as they are stored: under the names and in the shapes that they had then."""
    most = reader.store.page_runs
    size = most if limit is None else max(1, min(most, limit))
    while True:
        rows = reader.store.page(scope, low, high, size, backwards)
        runs = [Run(reader, *row) for row in rows]
        first, end = (runs[-1].position, runs[-1].last) if runs else (0, 0)
        # All but those at the edges lie inside the bounds whole.
        for edge in {0, len(runs) - 1} if runs else ():
            part = runs[edge].cut(low, high)
            if part is None:
                runs[edge].count = 0
            else:
                runs[edge] = part
        if runs and not (runs[0].count and runs[-1].count):
            runs = [run for run in runs if run.count]
        if scope.matching is not None:
            runs = _cut(runs, scope.matching)
        if runs and len(rows[0]) > PLAIN_VALUES:
            runs = reader.left(runs, trimmed)
            if not runs and scope.stream is not None and not backwards:
                end = max(end, reader.bodies.archived().ledger.floor(scope.stream))
        if runs:
            yield runs
        if len(rows) < size:
            return
        if backwards:
            high = first
        else:
            low = end
        size = min(most, size * 4)


def _asked(runs: list[Run], scope: Scope) -> list[Run]:
    """Of runs as they are read today, what is asked for: the store knows only what they were."""
    if scope.shown is not None:
        runs = [run for run in runs if is_wanted(run, scope.shown)]
    if scope.matching is None:
        return runs
    return _after(runs, [(query, frozenset(map(type_name, query.types))) for query in scope.matching.any_of])


def _cut(runs: list[Run], matching: Matching) -> list[Run]:
    """Of stored runs that a query matches, what is after its position."""
    queries = matching.any_of
    last = max(query.after for query in queries)
    if all(run.position > last for run in runs):
        return runs
    return _after(runs, [(query, frozenset(query.type_names)) for query in queries])


def _after(runs: list[Run], queries: list[tuple[Matching, frozenset[str]]]) -> list[Run]:
    """The parts of runs that are after the position of an alternative that takes them, if any.

    Args:
        queries: The alternatives, each with the names of its types.
    """
    parts = []
    for run in runs:
        edges = [
            query.after
            for query, types in queries
            # What has come here has the tags of an alternative: of the only one, if there is no other.
            if (not types or is_wanted(run, types))
            and (len(queries) == 1 or not query.tags or set(query.tags) <= set(run.tags))
        ]
        if edges and (part := run.cut(min(edges), END)) is not None:
            parts.append(part)
    return parts
