"""A whole kind as it stood: every aggregate's state, from one pass over the events of all."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
import polars as pl

from ..errors import UsageError
from ..log import Log
from ..log.objects import plain_value, series_of
from ..log.reading import scope_of
from ..log.records import Run
from ..personal import Erased
from ..storage.base import PLAIN_VALUES, Scope, last_of
from .model import Model
from .replay import Replay
from .root import Root

_PAGE = 2_000
_SHARE = 4
"""From one event in so many on, those of a category are found sooner in the whole log than by the index."""

_Row = tuple[Any, ...]


def as_of(
    log: Log, model: Model[Any], replay: Replay, streams: str | None, position: int, until: int | None
) -> pl.DataFrame:
    """Every aggregate of a kind as it stood, a row each.

    Args:
        streams: Their names, such as ``account-*``; None for the one category that has events of their types.
        position: The last position that counts.
        until: Not None: events are applied in the order in which they were true, up to this time (microseconds).
    """
    scope = scope_of(_category(log, model) if streams is None else streams, None)
    if until is None:
        folded = _fold(log, model, replay, scope, position)
    else:
        folded = _true(log, model, replay, scope, position, until)
    return _frame(model, sorted(folded, key=lambda root: root.id))


def _fold(log: Log, model: Model[Any], replay: Replay, scope: Scope, position: int) -> Collection[Root]:
    """The aggregates of a scope after the events up to a position, in the order of the log."""
    roots: dict[int, Root] = {}
    wanted = frozenset(log.store.kinds(scope))
    quick = replay.quick()
    for rows in _pages(log, scope, wanted, position):
        plain = len(rows[0]) == PLAIN_VALUES
        for row in rows:
            kind = row[3]
            if kind not in wanted:
                continue
            root = roots.get(row[1])
            if root is None:
                root = roots[row[1]] = replay.begin(log.store.stream_name(row[1]))
            entry = (quick[kind] if kind in quick else replay.learn(kind)) if plain else None
            if entry is not None:
                apply, decode = entry
                try:
                    event = decode(row[5]) if apply is not None else None
                except msgspec.MsgspecError:
                    entry = None  # by the long way, which says what does not fit
            if entry is None:
                _apply(log, replay, root, row, position)
                continue
            if apply is not None:
                apply(root, event)
            root.version = row[2]
    return roots.values()


def _pages(log: Log, scope: Scope, wanted: Collection[int], position: int) -> Iterator[list[_Row]]:
    """Headers of a scope up to a position; where they are many of the log's, among all others."""
    whole = scope.stream is None and scope.further is None
    everything = Scope()
    low = 0
    while True:
        rows = log.store.page(everything if whole else scope, low, position + 1, _PAGE)
        if rows:
            yield rows
        if len(rows) < _PAGE:
            return
        low = last_of(rows[-1])
        if whole and sum(row[3] in wanted for row in rows) * _SHARE < len(rows):
            whole = False


def _apply(log: Log, replay: Replay, root: Root, row: _Row, position: int) -> None:
    """Apply the events of any header up to a position."""
    run = Run(log, *row).cut(0, position + 1)
    if run is None:
        return
    for shown in log.present(log.left([run], "raise")):
        for each in shown:
            replay.apply(root, each)
    # What is read no more counts as well.
    root.version = run.version + run.count - 1


def _true(log: Log, model: Model[Any], replay: Replay, scope: Scope, position: int, until: int) -> Collection[Root]:
    """The aggregates of a scope after the events known at a position, in the order in which they were true."""
    known: dict[int, list[Run]] = {}
    for page in log.pages(scope, 0, position + 1, False, None, "raise"):
        for run in page:
            if run.when <= until:
                known.setdefault(run.stream_id, []).append(run)
    roots = []
    for runs in known.values():
        root = replay.begin(runs[0].stream)
        apply_as_true(replay, root, runs)
        roots.append(root)
    return roots


def apply_as_true(replay: Replay, root: Root, runs: list[Run]) -> None:
    """Apply runs in the order in which they were true; those of one time by version."""
    last = root.version
    # Sorting is stable: runs of one time keep their order.
    for run in sorted(runs, key=lambda run: run.when):
        replay.apply(root, run)
        last = max(last, root.version)
    root.version = last


def _category(log: Log, model: Model[Any]) -> str:
    types = model.types
    kinds = log.store.kinds(scope_of(None, types)) if types is not None else []
    found = sorted({log.store.kind(kind).category for kind in kinds})
    if len(found) == 1:
        return f"{found[0]}*" if found[0].endswith("-") else found[0]
    what = f"are in {', '.join(found[:5])}" if found else "are nowhere in the log"
    raise UsageError(
        f"which streams are of {model.name} cannot be told: its events {what}",
        hint="Say it: repository.as_of(time, streams='account-*')",
    )


def _frame(model: Model[Any], roots: list[Root]) -> pl.DataFrame:
    """States as a frame: ``id``, ``version``, and a column for each field."""
    states = [model.fields(root) for root in roots]
    begin = model.fields(model.new(""))
    names = dict.fromkeys(name for state in (begin, *states) for name in state)
    columns = [
        pl.Series("id", [root.id for root in roots], dtype=pl.String),
        pl.Series("version", [root.version for root in roots], dtype=pl.Int64),
    ]
    for name in names:
        if name not in ("id", "version"):
            values = _erasable([state.get(name) for state in states], begin.get(name))
            columns.append(series_of(name, [plain_value(value) for value in values]))
    return pl.DataFrame(columns)


def _erasable(values: list[Any], begin: Any) -> list[Any]:
    """A column in which what was erased is null, unless it is one of text."""
    if any(value is Erased for value in values):
        rest = [value for value in (*values, begin) if value is not None and value is not Erased]
        if not rest or not all(isinstance(value, str) for value in rest):
            return [None if value is Erased else value for value in values]
    return values
