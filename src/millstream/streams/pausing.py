"""Flows that are told to wait: noted in the log, so that it holds in every process, and after a restart."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .store import TABLES, TOLD

if TYPE_CHECKING:
    from ..log.log import Log
    from ..storage.database import Database

_LOOK = 0.1
"""Seconds after which a running flow looks again whether it is to wait."""


def set_paused(log: Log, names: Iterable[str], paused: bool) -> None:
    """Note that flows are to wait, or to go on."""
    with log.transaction() as tx:
        tx.db.ensure_table(TOLD, TABLES[TOLD])
        for name in names:
            tx.db.execute(
                f"insert into {tx.db.own(TOLD)} as held (flow, declared, paused) values (?, '', ?)"
                " on conflict (flow) do update set paused = excluded.paused",
                (name, int(paused)),
            )


def paused(database: Database) -> frozenset[str]:
    """The names of the flows that are to wait."""
    if not database.has_table(TOLD):
        return frozenset()
    rows = database.query(f"select flow from {database.own(TOLD)} where paused <> 0")
    return frozenset(row["flow"] for row in rows)


class Pauses:
    """Which flows are to wait, as the log said a moment ago."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._looked = float("-inf")
        self._names: frozenset[str] = frozenset()

    def names(self) -> frozenset[str]:
        """The names of the flows that are to wait."""
        if time.monotonic() - self._looked >= _LOOK:
            with self._log.connect() as database:
                self._names = paused(database)
            self._looked = time.monotonic()
        return self._names
