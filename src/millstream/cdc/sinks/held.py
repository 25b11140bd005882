"""The position up to which a target holds a stream's changes, kept in the target, in the transaction of its rows."""

from __future__ import annotations

from typing import Protocol
from uuid import uuid4

import msgspec

from ...errors import ConsumerFenced, UsageError


class Held(msgspec.Struct, frozen=True):
    """What a target says of one follower.

    Attributes:
        log: The id of the log whose changes it holds.
        holder: Stands for the worker that has opened it last.
    """

    log: str
    position: int
    holder: str


class Keeper(Protocol):
    """A target that keeps one row for each stream, in whatever way it has. Called inside its transaction."""

    location: str

    def held(self, stream: str) -> Held | None:
        """What it says; None when it has never heard of the stream."""

    def hold(self, stream: str, held: Held) -> None:
        """Say it from now on."""


class Claim:
    """One follower's hold on a target. Another one that opens the target ends it.

    Attributes:
        fresh: Nothing of the stream was ever written to the target.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fresh = False
        self.position = 0
        self._stream = ""
        self._log = ""
        self._holder: str | None = None

    def open(self, keeper: Keeper, log: str, stream: str) -> int:
        """Take the target, or see that it is still held after a failure; the position that it holds."""
        if self._holder is not None and stream != self._stream:
            raise UsageError(f"sink {self.name!r} follows {self._stream!r} already", hint="Make another one")
        held = keeper.held(stream)
        if held is not None and held.log != log:
            raise UsageError(
                f"{keeper.location} holds changes of {stream!r} from another log",
                hint="Give this log a place of its own, or remove what is there to build it anew",
            )
        if self._holder is None:
            self._holder = uuid4().hex
        elif held is not None and held.holder != self._holder:
            raise ConsumerFenced(self.name)
        self._stream, self._log = stream, log
        self.fresh = held is None
        self.position = 0 if held is None else held.position
        if held is not None:
            keeper.hold(stream, Held(log, self.position, self._holder))
        return self.position

    def move(self, keeper: Keeper, position: int) -> None:
        """Say that all up to a position is there, in the transaction that put it there.

        Raises:
            ConsumerFenced: Another worker has taken the target. Roll back.
        """
        assert self._holder is not None
        held = keeper.held(self._stream)
        if held is not None and held.holder != self._holder:
            raise ConsumerFenced(self.name)
        # A parked change that is tried again comes late.
        position = max(position, self.position)
        keeper.hold(self._stream, Held(self._log, position, self._holder))
        self.position = position
        self.fresh = False

    def release(self) -> None:
        """Let go of it."""
        self._holder = None
