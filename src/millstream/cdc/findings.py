"""What is found about a source: settings that are wrong, and what it keeps for a capture."""

from __future__ import annotations

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """Something about a source that a capture cannot live with, or had better not.

    Attributes:
        level: ``error``: it cannot be captured; ``warning``: it may go wrong one day; ``note``: good to know.
        about: What was found.
        mend: The statement, or the deed, that mends it.
    """

    level: Literal["error", "warning", "note"]
    about: str
    mend: str


class Backlog(msgspec.Struct, frozen=True):
    """What a source keeps because a capture has not taken it yet.

    Attributes:
        holder: What keeps it: the slot's name.
        active: A capture is reading it now; None where the source cannot tell.
        kept: What the source cannot let go of: bytes of its log, or changes in a table of its own.
        behind: How much of that is not in the log yet.
        unit: What the two count.
        rate: How fast the source's log grows: units a second.
        room: How much more it may keep: what the disk has free, or what the source allows; None if unknown.
    """

    holder: str
    active: bool | None
    kept: int
    behind: int
    unit: str
    rate: float = 0.0
    room: int | None = None

    @property
    def full_in(self) -> float | None:
        """Seconds until there is no room left, should the capture stop now; None when that is not in sight."""
        return self.room / self.rate if self.room is not None and self.rate > 0 else None
