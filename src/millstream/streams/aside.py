"""Rows that wait to be read once more, in memory or in a file."""

from __future__ import annotations

import polars as pl

from ..frames import decode_frame, encode_frame
from .rooms import Room, Span


class Aside:
    """Rows that are put aside.

    Attributes:
        height: How many they are.
        schema: Their columns.
    """

    __slots__ = ("_filed", "_frame", "height", "schema")

    def __init__(self, frame: pl.DataFrame, room: Room | None = None) -> None:
        self._frame: pl.DataFrame | None = frame
        self._filed: tuple[Span, int] | None = None
        self.height = frame.height
        self.schema = frame.schema
        if room is not None:
            self.spill(room)

    @property
    def frame(self) -> pl.DataFrame:
        """The rows; read anew where they are in a file."""
        if self._frame is not None:
            return self._frame
        assert self._filed is not None
        span, size = self._filed
        return decode_frame(span.bytes(0, size))

    @property
    def size(self) -> int:
        """How many bytes they take in a file; 0 in memory."""
        return 0 if self._filed is None else self._filed[1]

    def spill(self, room: Room) -> None:
        """Put them into a file, unless they are in one.

        Raises:
            SpillFailed: There is no room for them; they stay where they are.
        """
        if self._frame is not None:
            body = encode_frame(self._frame)
            span, _ = room.put([body])
            self._filed, self._frame = (span, len(body)), None
