"""Which transactions a snapshot of PostgreSQL sees."""

from __future__ import annotations

from typing import Any

import msgspec

from .replication import parse_lsn


class Visibility(msgspec.Struct, frozen=True):
    """What ``pg_current_snapshot()`` says, and where the server's log was a moment later.

    Attributes:
        first: All transactions before it have ended.
        beyond: It and all after it are not seen.
        running: Those between the two that are not seen.
        high: Every transaction that is seen was committed before this position of the server's log.
    """

    first: int
    beyond: int
    running: frozenset[int]
    high: int

    def sees(self, xid: int) -> bool:
        """Whether a transaction, by the 32 bits of its number that the stream tells, is seen."""
        if _before(xid, self.first):
            return True
        return _before(xid, self.beyond) and xid not in self.running


def parse_snapshot(row: dict[str, Any]) -> Visibility:
    """What a row says whose ``snapshot`` is the server's text, ``10:20:10,14``, and ``high`` a place in its log."""
    first, beyond, running = row["snapshot"].split(":")
    return Visibility(
        int(first) & 0xFFFFFFFF,
        int(beyond) & 0xFFFFFFFF,
        frozenset(int(xid) & 0xFFFFFFFF for xid in running.split(",") if xid),
        parse_lsn(row["high"]),
    )


def _before(a: int, b: int) -> bool:
    """Whether a transaction's number comes before another's: they begin anew after 32 bits."""
    return ((a - b) & 0xFFFFFFFF) >= 1 << 31
