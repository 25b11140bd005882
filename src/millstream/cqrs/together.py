"""Commands that take effect together: one decision, one commit, one refusal for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import MillstreamError, UsageError
from ..log.once import digest_of, once
from ..log.retry import retrying
from ..storage.base import Receipt, StagedAppend
from .attempt import Attempt, Earlier
from .context import Context
from .handling import Handler

if TYPE_CHECKING:
    from .execution import Execution

MOST = 100
"""How many commands may go together through middleware: each lies inside of the one before."""


class Together:
    """Commands that are decided in order, each on what those before it would change, and committed as one.

    Args:
        id: What the commit takes effect once under.
        loop: Where coroutine handlers run.
    """

    def __init__(
        self,
        execution: Execution,
        begun: Sequence[tuple[Handler, Context]],
        id: str | None,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        for handler, _ in begun:
            if handler.in_commit:
                raise UsageError(
                    f"{handler.name} asks for the database, and decides inside a commit of its own",
                    hint="Execute it by itself, or leave the rows to an inline projection",
                )
        if execution.middleware and len(begun) > MOST:
            raise UsageError(
                f"{len(begun)} commands are too many to go through middleware together",
                hint=f"Give at most {MOST} at once",
            )
        self._execution = execution
        self._begun = begun
        self._id = id
        self._loop = loop
        self._receipt: Receipt | None = None
        self._failure: MillstreamError | None = None
        self._told: MillstreamError | None = None
        """The error that says already what it is about."""
        self._entries = [0] * len(begun)
        self._tries: int | None = None
        """The number of the command whose middleware tries again for all."""

    def run(self) -> Receipt:
        """Execute all of them, or none."""
        following: Callable[[], Receipt] = self._settle
        if self._execution.middleware:
            for number, (handler, context) in reversed(list(enumerate(self._begun))):
                inside = partial(self._entered, number, following)
                following = partial(self._blamed, handler.name, partial(self._execution._through, context, inside))
        return following()

    def _entered(self, number: int, following: Callable[[], Receipt]) -> Receipt:
        """Go on from the middleware of one command, which may try again: for all, since those of others then do not.

        Each would otherwise have all those inside of it try as often as it may itself.
        """
        self._entries[number] += 1
        self._entries[number + 1 :] = [0] * (len(self._begun) - number - 1)
        if self._entries[number] > 1 and self._failure is not None:
            if self._tries is not None and self._tries != number:
                raise self._failure
            self._tries = number
        return following()

    def _settle(self) -> Receipt:
        if self._receipt is None:  # middleware that tries again what has succeeded gets what there is
            try:
                self._receipt = self._blamed("", self._commit)
            except MillstreamError as error:
                self._failure = error
                raise
        return self._receipt

    def _commit(self) -> Receipt:
        if self._id is None:
            return retrying(partial(self._attempt, b""), rivals=self._execution.log.id)
        digest = digest_of([(type(c.command).__name__, c.command) for _, c in self._begun])
        return once(
            self._execution.log,
            self._id,
            digest,
            lambda: retrying(partial(self._attempt, digest), rivals=self._execution.log.id),
        )

    def _attempt(self, digest: bytes) -> Receipt:
        before = Earlier(self._execution._aggregates)
        appends: list[StagedAppend] = []
        for handler, context in self._begun:
            attempt = Attempt(context, self._execution._aggregates, before)
            staged = self._blamed(handler.name, partial(self._decided, handler, attempt))
            attempt.keep(before, staged)
            appends += staged
        for handler, context in self._begun:
            self._blamed(handler.name, context.check_time)
        return self._execution.log.commit(appends, id=self._id, digest=digest)

    def _decided(self, handler: Handler, attempt: Attempt) -> list[StagedAppend]:
        """What a command would append, decided on no less than all that those before it would."""
        handler(attempt, self._loop)
        if attempt.unseen is not None:
            raise attempt.unseen
        return attempt.staged(handler.name)

    def _blamed(self, name: str, call: Callable[[], Any]) -> Any:
        """Have an error say which of the commands it is about, once: who has raised it is asked first."""
        try:
            return call()
        except MillstreamError as error:
            if len(self._begun) > 1 and self._told is not error:
                self._told = error
                count = len(self._begun)
                about = f"raised for {name}, one of {count}" if name else f"raised by the commit of {count}"
                error.add_note(f"{about} commands that go together")
            raise
