"""What a projection applies: an event, or many neighbouring ones as a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from ..log.records import Recorded, Run
from ..log.singles import Singles
from ..storage.database import Database
from .batches import cut

if TYPE_CHECKING:
    from .projection import Placement

Apply = Callable[[Any, Database, Recorded | None], object]


class Piece(msgspec.Struct, gc=False):
    """An event that is ready to be applied."""

    position: int
    type: str
    apply: Apply
    event: Any
    recorded: Recorded | None
    run: Run

    def to(self, db: Database) -> None:
        """Apply it."""
        self.apply(self.event, db, self.recorded)

    @property
    def last(self) -> int:
        """The position of its last event, which is its only one."""
        return self.position

    @property
    def count(self) -> int:
        """How many events it holds."""
        return 1

    @property
    def stream(self) -> str:
        """The stream that it is of."""
        return self.run.stream

    @property
    def recorded_at(self) -> int:
        """When it was recorded, in microseconds since 1970."""
        return self.run.recorded

    def halves(self) -> list[Batch]:
        """Itself in two; nothing, where it is one event."""
        return []


class Batch(msgspec.Struct, gc=False):
    """Neighbouring events that one handler takes as a frame."""

    placement: Placement
    runs: Sequence[Run] | Singles
    count: int
    frame: pl.DataFrame | Exception

    @property
    def position(self) -> int:
        """The position of its first event."""
        return self.runs[0].position

    @property
    def last(self) -> int:
        """The position of its last event."""
        return self.runs[-1].last

    @property
    def type(self) -> str:
        """The type of its first event."""
        return self.runs[0].type

    @property
    def stream(self) -> str:
        """The stream of its first event."""
        return self.runs[0].stream

    @property
    def recorded_at(self) -> int:
        """When its first event was recorded, in microseconds since 1970."""
        return self.runs[0].recorded

    def to(self, db: Database) -> None:
        """Apply it."""
        if isinstance(self.frame, Exception):
            raise self.frame
        if self.frame.height == 0:
            return  # all its events are of other partitions
        # Polars holds a lock on a frame that it writes to Python: another thread gets one of its own.
        self.placement.handler_of(self.type)(self.frame.clone(), db, None)

    def halves(self) -> list[Batch]:
        """Itself in two; nothing, where it is one event."""
        if self.count == 1:
            return []
        if len(self.runs) > 1:
            middle = len(self.runs) // 2
            parts: list[Sequence[Run]] = [self.runs[:middle], self.runs[middle:]]
        else:
            run = self.runs[0]
            parts = [[part] for part in cut(run, (run.count + 1) // 2)]
        return [self.placement.batch(part) for part in parts]


def apply_all(pieces: list[Piece | Batch], db: Database, recorded: Recorded | None) -> None:
    """Apply several pieces of one event."""
    for piece in pieces:
        piece.to(db)
