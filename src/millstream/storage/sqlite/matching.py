"""Queries by types and tags: the positions of the runs that one matches, in order, by index.

A query names several sorted lists of positions (a tag's, a kind's, a stream's) and wants what is in all of them. The
search goes in steps. In each, it looks how far so many entries of every list reach; the one whose entries reach
farthest is the rarest here, and leads: its entries are looked up in the others. So the cost follows the rarest list,
stretch by stretch, whatever the others hold, and nothing needs statistics.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_STEP = 64
_LONGEST_STEP = 65_536


class Source(NamedTuple):
    """Positions in order, from an index."""

    table: str
    where: str
    """What rows ``l`` of the table it takes."""
    params: tuple[Any, ...] = ()
    order: str = "l.position"
    """The column that the index is sorted by."""
    bound: Callable[[int], int] | None = None
    """From a position to a value of that column, when it is another one."""


class Sorted(NamedTuple):
    """A list of positions: the union of some sources, and how to look ``l.position`` up in it (as ``{o}``)."""

    sources: list[Source]
    join: str
    params: tuple[Any, ...] = ()


def tagged(tag: str) -> Sorted:
    """The runs with a tag."""
    join = "cross join tags {o} on {o}.tag = ? and {o}.position = l.position"
    return Sorted([Source("tags", "l.tag = ?", (tag,))], join, (tag,))


def of_kinds(kinds: Sequence[int]) -> Sorted:
    """The runs of some kinds."""
    sources = [Source("runs", "l.kind = ?", (kind,)) for kind in kinds]
    return Sorted(
        sources, f"cross join runs {{o}} on {{o}}.position = l.position and {{o}}.kind in ({','.join(map(str, kinds))})"
    )


def of_stream(stream: int, version_at: Callable[[int], int]) -> Sorted:
    """The runs of a stream. ``version_at``: the version of its first run at or after a position."""
    join = "cross join runs {o} on {o}.position = l.position and {o}.stream = ?"
    return Sorted([Source("runs", "l.stream = ?", (stream,), "l.version", version_at)], join, (stream,))


EVERYTHING = Sorted([Source("runs", "true")], "")


def positions(
    connection: sqlite3.Connection, lists: Sequence[Sorted], inside: str, params: Sequence[Any],
    low: int, until: int, limit: int, backwards: bool = False,
) -> list[int]:  # fmt: skip
    """The first positions in [low, until) that are in all lists, in order; the last ones, if ``backwards``.

    Args:
        inside: A condition on the run ``r``, such as ``" and r.stream = ?"``, if there is one.
        params: The values in it.
    """
    found: list[int] = []
    step = _STEP
    while low < until and len(found) < limit:
        lead, reach = (0, None) if len(lists) == 1 else _rarest(connection, lists, low, until, step, backwards)
        if reach is None:
            first, last = low, until
        else:
            first, last = (reach, until) if backwards else (low, reach + 1)
        others = [each for number, each in enumerate(lists) if number != lead]
        found += _led(connection, lists[lead], others, inside, params, first, last, limit - len(found), backwards)
        low, until = (low, first) if backwards else (last, until)
        step = min(step * 4, _LONGEST_STEP)
    return found


def _rarest(
    connection: sqlite3.Connection, lists: Sequence[Sorted], low: int, until: int, step: int, backwards: bool
) -> tuple[int, int | None]:
    """Which list is the rarest from here on, and how far so many of its entries reach; None: to the end."""
    order, nearest, farthest = ("desc", max, min) if backwards else ("asc", min, max)
    reaches: list[int] = []
    for number, each in enumerate(lists):
        ends = []
        for source in each.sources:
            where, params = _between(source, low, until)
            row = connection.execute(
                f"select l.position from {source.table} l where {where} order by {source.order} {order}"
                f" limit 1 offset {step - 1}",
                params,
            ).fetchone()
            if row is not None:
                ends.append(row[0])
        if not ends:
            return number, None
        reaches.append(nearest(ends))
    reach = farthest(reaches)
    return reaches.index(reach), reach


def _led(
    connection: sqlite3.Connection, lead: Sorted, others: Sequence[Sorted], inside: str, values: Sequence[Any],
    low: int, until: int, limit: int, backwards: bool,
) -> list[int]:  # fmt: skip
    """The first positions of one list in [low, until) that are in the others too."""
    order = "desc" if backwards else "asc"
    joins = ""
    params: list[Any] = []
    for number, each in enumerate(others):
        joins += " " + each.join.format(o=f"o{number}")
        params += each.params
    if inside:
        joins += f" cross join runs r on r.position = l.position{inside}"
        params += values
    found: list[int] = []
    for source in lead.sources:
        where, bounds = _between(source, low, until)
        # `cross join` holds SQLite to this order.
        rows = connection.execute(
            f"select l.position from {source.table} l{joins} where {where} order by {source.order} {order} limit ?",
            [*params, *bounds, limit],
        )
        found += [row[0] for row in rows]
    if len(lead.sources) > 1:
        # Each source gave its first ones, in order: the first of all of them are among these.
        found = sorted(found, reverse=backwards)[:limit]
    return found


def _between(source: Source, low: int, until: int) -> tuple[str, list[Any]]:
    bounds = [low, until] if source.bound is None else [source.bound(low), source.bound(until)]
    return f"{source.where} and {source.order} >= ? and {source.order} < ?", [*source.params, *bounds]
