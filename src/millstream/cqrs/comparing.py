"""Whether a read model holds what its projection would make of the log today: built again apart, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..log import Log
from ..log.checkpoints import reached
from ..storage.database import Database
from ..storage.frames import quoted_column
from . import versions
from .building import NEVER
from .effects import NONE
from .homes import Home
from .keeping import Keeper
from .places import Target
from .projection import Placement

_SHOWN = 5


class TableDifference(msgspec.Struct, frozen=True):
    """A table of a read model that is not what a replay of the log makes.

    Attributes:
        table: Its name.
        missing: How many rows the read model lacks.
        surplus: How many rows it has that it should not have.
        examples: Some of them: whether it is missing or surplus, and the row.
    """

    table: str
    missing: int
    surplus: int
    examples: list[tuple[str, dict[str, Any]]]


class Comparison(msgspec.Struct, frozen=True):
    """A read model beside a replay of the log.

    Attributes:
        name: The projection's name.
        position: The position that both show.
        rows: How many rows were compared.
        differences: The tables that differ.
    """

    name: str
    position: int
    rows: int
    differences: list[TableDifference]

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not self.differences


def compare(log: Log, placement: Placement, home: Home, target: Target, parts: Sequence[Placement] = ()) -> Comparison:
    """Replay the log apart, up to where a read model stands, and compare what both hold, row by row.

    The order of rows does not count, nor do the rowids of tables without a primary key.

    Args:
        parts: Its partitions, if it has any: each is replayed up to where it stands.
    """
    with target.reading() as db, db.snapshot():
        names = versions.tables_of(placement.schema, db.dialect)
        positions = [reached(db, part.consumer) for part in parts or [placement]]
        kept = {name: _content(db, name) for name in names}
    with home.apart() as fresh:
        for part, position in zip(parts or [placement], positions, strict=True):
            replay(log, part, fresh, position)
        with fresh.reading() as db, db.snapshot():
            made = {name: _content(db, name) for name in names}
    differences = [found for name in names if (found := _difference(name, kept[name], made[name])) is not None]
    return Comparison(placement.name, min(positions), sum(len(rows) for rows in made.values()), differences)


def replay(log: Log, placement: Placement, target: Target, position: int) -> None:
    """Make the read model in a file of its own, or carry it on there, up to a position."""
    with target.kept_open() as kept:
        keeper = Keeper(log, placement, kept, lambda _: None, trimmed="raise", held=NONE)
        keeper.take()
        keeper.catch_up(position, NEVER)
        keeper.commit()


def _content(db: Database, table: str) -> dict[str, tuple[int, dict[str, Any]]]:
    """The rows of a table: a text that stands for each, how often it occurs, the row."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    if db.find_table(table) is None:
        return found
    for row in db.query(f"select * from {quoted_column(table)}"):
        text = repr(list(row.items()))
        found[text] = (found[text][0] + 1 if text in found else 1, row)
    return found


def _difference(
    table: str, kept: dict[str, tuple[int, dict[str, Any]]], made: dict[str, tuple[int, dict[str, Any]]]
) -> TableDifference | None:
    missing = surplus = 0
    examples: list[tuple[str, dict[str, Any]]] = []
    for text in sorted(kept.keys() | made.keys()):
        more = kept.get(text, (0,))[0] - made.get(text, (0,))[0]
        missing += max(-more, 0)
        surplus += max(more, 0)
        if more and len(examples) < _SHOWN:
            row = (kept if more > 0 else made)[text][1]
            examples.append(("surplus" if more > 0 else "missing", row))
    return TableDifference(table, missing, surplus, examples) if missing or surplus else None
