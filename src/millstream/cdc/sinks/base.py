"""What a follower of a table is: the little that each sink must be, and what a ready-made one is besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..change import Change, SchemaChanged, SnapshotCompleted

if TYPE_CHECKING:
    from ...log import Log, Recorded
    from ...storage.database import Database

Changes = Sequence[tuple["Change", "Recorded"]]
"""Changes with their values as the source holds them, each with its envelope."""

RETRIES = 8
"""How often a change that fails is tried again before it is parked."""


class Sink(Protocol):
    """Something that follows a table.

    What `apply` raises says what happens next:

    - `Rejected`: it can never take this change, which is parked at once. Of several it need not say which.
    - `SinkUnavailable`: the other side is away. The same changes come again, after pauses, for as long as it takes.
    - `SinkGone`: the other side wants no more. The follower ends.
    - `UsageError`: it is set up wrongly. As if it were unavailable, until someone mends it.
    - anything else: the change is tried again, `retries` times, and then parked.

    It may also have what `SinkBase` has: `retries`, `ordered`, `open`, `notice`, `settle` and `close`.
    """

    name: str
    """Names its checkpoint: the same name goes on where it was, another begins at the beginning."""

    size: int
    """How many changes it takes at once, at most. When it fails, some or all of them come again, maybe in parts."""

    transactional: bool
    """Whether `apply` writes only to the database that it is given, and belongs into the checkpoint's commit."""

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Act on changes, in order."""


class SinkBase:
    """A sink with all that it may have; subclass it, and write `apply`.

    Attributes:
        retries: How often a change that fails is tried again before it is parked; None: for ever.
        ordered: Whether a change must wait while an earlier one of its row is parked.
    """

    name: str = ""
    size: int = 1_000
    transactional: bool = False
    retries: int | None = RETRIES
    ordered: bool = True

    def open(self, log: Log, stream: str) -> int | None:
        """Get ready to follow a stream; called before the first `apply`, and again after a failure.

        Returns:
            The position up to which it durably holds the stream's changes, 0 for none: it is given what comes after.
            None for a sink that does not know: the log's own checkpoint then says where to go on.

        Raises:
            ConsumerFenced: Another worker has opened it since it was first opened here.
        """
        return None

    def apply(self, changes: Changes, db: Database | None) -> None:
        """Act on changes, in order; see `Sink`. Positions up to the one that `open` said come only when a parked
        change is tried again."""
        raise NotImplementedError

    def notice(self, event: SchemaChanged | SnapshotCompleted, recorded: Recorded) -> None:
        """Hear what else the table's stream tells, in order between the changes. It is repeated until it succeeds,
        and never parked."""

    def settle(self, *, last: bool = False) -> None:
        """All that the log has was applied: time for what is not to be done for each batch. Called several times a
        second while nothing comes, and once more, with ``last``, before `close`."""

    def close(self) -> None:
        """Let go of files and connections. It may be opened again."""
