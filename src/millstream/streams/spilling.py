"""A limit for what flows hold in memory: what was asked for least lately goes to disk beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from ..errors import UsageError
from ..sizes import parsed_size
from .aside import Aside
from .rooms import Room

if TYPE_CHECKING:
    from ..log.log import Log
    from .bodies import Body

_HINT = "Give a size such as '512MB' or '2GiB', or a number of bytes"

_REST = 0.75
"""The share of the limit that is held after some went to disk, so that this does not happen for each row."""


def size(memory: str | int) -> int:
    """How many bytes ``memory=`` says.

    Raises:
        UsageError: It says nothing that is understood, or none.
    """
    found = None
    if isinstance(memory, int) and not isinstance(memory, bool):
        found = memory
    elif isinstance(memory, str) and (parsed := parsed_size(memory)) is not None:
        found = parsed[0]
    if found is None:
        raise UsageError(f"memory={memory!r:.60} is not a size", hint=_HINT)
    if found <= 0:
        raise UsageError(f"memory={memory!r:.60} leaves no room at all", hint=_HINT)
    return found


class Sizes(msgspec.Struct, frozen=True):
    """Bytes of state: in memory, and on disk beyond the limit."""

    held: int
    spilled: int


class Spill:
    """Keeps what some flows hold together within a limit.

    Args:
        limit: So many bytes of state stay in memory.
        folder: Where what is beyond goes.
    """

    def __init__(self, limit: int, folder: str) -> None:
        self.limit = limit
        self._room = Room(folder)
        self._held: dict[Hashable, dict[int, Body]] = {}
        self._read = self._passed = 0

    @classmethod
    def beside(cls, log: Log, memory: str | int) -> Spill:
        """With files in the folder of the log; those of a log that is in none are where temporary files go."""
        return cls(size(memory), str(Path(log.path).resolve().parent) if log.path else tempfile.gettempdir())

    def keep(self, owner: Hashable, bodies: Iterable[Body]) -> None:
        """What one of the flows holds now: all of it together is brought below the limit.

        Raises:
            SpillFailed: There is no room on disk; what did not go there is in memory still.
        """
        self._held[owner] = {id(body): body for body in bodies}
        self._limit()

    def add(self, owner: Hashable, body: Body) -> None:
        """More of what a flow holds; as `keep` otherwise."""
        self._held.setdefault(owner, {})[id(body)] = body
        self._read += body.size
        if self._read > self.limit * (1 - _REST):
            self._read = 0
            self._limit()

    def _limit(self) -> None:
        every = {key: body for held in self._held.values() for key, body in held.items()}
        here = [body for body in every.values() if not body.spilled]
        total = sum(body.size for body in here)
        if total > self.limit:
            for body in sorted(here, key=lambda body: body.used):
                body.spill(self._room)
                total -= body.size
                if total <= self.limit * _REST:
                    break
        if sum(body.size for body in every.values() if body.spilled) > self.limit:
            self._room.let_go()
        self._room.tidy()

    def put_aside(self, frame: pl.DataFrame) -> Aside:
        """Rows in a file, whatever the limit: they are not held, and wait only until they are given.

        Raises:
            SpillFailed: There is no room for them.
        """
        aside = Aside(frame, self._room)
        self._passed += aside.size
        if self._passed > self.limit / 4:
            # What was read in turn, too, need not stay in memory.
            self._passed = 0
            self._room.let_go()
        return aside

    def forget(self, owner: Hashable) -> None:
        """A flow that holds nothing any more."""
        self._held.pop(owner, None)
        self._room.tidy()


def sizes(bodies: Iterable[Body]) -> Sizes:
    """How much some bodies take."""
    held = spilled = 0
    for body in {id(body): body for body in bodies}.values():
        if body.spilled:
            spilled += body.size
        else:
            held += body.size
    return Sizes(held, spilled)
