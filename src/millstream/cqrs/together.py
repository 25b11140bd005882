"""Commands that take effect together: one decision, one commit, one refusal for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import MillstreamError, UsageError
from ..log.once import digest_of, once
from ..log.retry import retrying
from ..storage.base import Matching, Receipt, StagedAppend, StagedRun
from .attempt import Attempt, Loaded
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
            return retrying(partial(self._attempt, b""), rivals=self._execution._log.id)
        digest = digest_of([(type(c.command).__name__, c.command) for _, c in self._begun])
        return once(
            self._execution._log,
            self._id,
            digest,
            lambda: retrying(partial(self._attempt, digest), rivals=self._execution._log.id),
        )

    def _attempt(self, digest: bytes) -> Receipt:
        before: Loaded = {}
        appends: list[StagedAppend] = []
        for handler, context in self._begun:
            attempt = Attempt(context, self._execution._aggregates, before)
            appends += self._blamed(handler.name, partial(self._decided, handler, attempt, appends))
            attempt.keep(before)
        for handler, context in self._begun:
            self._blamed(handler.name, context.check_time)
        return self._execution._log.commit(appends, id=self._id, digest=digest)

    def _decided(self, handler: Handler, attempt: Attempt, before: list[StagedAppend]) -> list[StagedAppend]:
        """What a command would append, decided on no less than what its guards say.

        A guard says what must not have been appended since the decision read the log; what commands before this one
        are about to append, it has not read either.
        """
        handler(attempt, self._loop)
        staged = attempt.staged(handler.name)
        for append in staged:
            for run in (run for other in before for run in other.runs):
                if append.unless is not None and _matches(append.unless, run):
                    raise UsageError(
                        f"{handler.name} makes a decision on events that another of the commands that go together is"
                        f" about to append ({run.type}), and has not seen them",
                        hint="Execute them one after the other: app.execute_all",
                    )
        return staged

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


def _matches(query: Matching, run: StagedRun) -> bool:
    """Whether events that are about to be appended, behind any position, are among those that a query is about."""
    return any(
        (not each.types or run.type in each.type_names) and set(each.tags) <= set(run.tags) for each in query.any_of
    )
