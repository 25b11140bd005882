"""The state of a shared flow in the store: whose its parts are, and what a commit of all processes does to them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import polars as pl

from ...frames import schema_text
from ...storage.database import Database
from ..steps import SourceState
from ..store import Change, forget_parts
from .ranges import SPACE
from .share import Reached

Key = tuple[int, int]


class Split(msgspec.Struct, frozen=True):
    """How a state is split.

    Attributes:
        count: Into how many ranges.
        by: By which columns each operator's state is.
    """

    count: int
    by: dict[str, list[str]]


def split_of(text: str) -> Split | None:
    """How a state is split, by what ``flow_info`` says of its sources; None where it is in one piece."""
    held = msgspec.json.decode(text)
    if not isinstance(held, dict) or "split" not in held:
        return None
    return msgspec.convert(held["split"], Split)


def told_split(sources: Sequence[SourceState], split: Split) -> tuple[int, str]:
    """What ``flow_info`` says of the sources of a state that is split: their greatest time, and a text."""
    held = [{"high": source.high, "columns": schema_text(pl.Schema(source.columns))} for source in sources]
    return max(source.high for source in sources), msgspec.json.encode({"sources": held, "split": split}).decode()


class SplitChange:
    """What a commit does to the stored state of a shared flow; gathered from what its processes have reached."""

    def __init__(self, name: str, split: Split, *, anew: bool) -> None:
        self.name = name
        self.split = split
        self.anew = anew
        """Whether what is stored goes first, since it was split in another way."""
        self.sources: tuple[SourceState, ...] = ()
        self.late = 0
        self._gone: dict[Key, None] = {}
        self._new: dict[Key, tuple[str, int, int, int, int, bytes]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether it leaves all parts as they are."""
        return not (self._gone or self._new)

    @property
    def has_states(self) -> bool:
        """Whether any states were taken in; without, nothing is known of them."""
        return bool(self.sources)

    def moves(self, sources: Sequence[SourceState]) -> bool:
        """Whether time has gone on since the sources were like this, be it without a row."""
        return any(mine.high != theirs.high for mine, theirs in zip(self.sources, sources, strict=False))

    def add(self, reached: Sequence[Reached], late: int) -> None:
        """Take in how the states of all ranges have changed.

        Args:
            reached: Of each range.
            late: How many rows have come late, ever.
        """
        self.sources, self.late = reached[0].sources, late
        for index, each in enumerate(reached):
            low = index * SPACE
            for operator, number in each.gone:
                if self._new.pop((operator, number + low), None) is None:
                    self._gone[operator, number + low] = None
            for operator, number, least, most, body in each.new:
                key = operator, number + low
                self._new[key] = (self.name, *key, least, most, body)

    def apply(self, database: Database) -> None:
        """Write it, in the transaction of the rows and the checkpoint."""
        if not self.sources:
            return
        if self.anew:
            forget_parts(database, self.name)
        high, text = told_split(self.sources, self.split)
        gone = [(self.name, *key) for key in self._gone]
        Change(gone, list(self._new.values()), (high, self.late, text, self.name), frozenset()).apply(database)
