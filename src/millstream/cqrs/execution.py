"""Execution of commands: through the middleware to the handler, and in one commit into the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import ConditionFailed, MillstreamError, Rejected, UsageError, VersionConflict
from ..log import Log
from ..log.once import digest_of, once, receipt_of
from ..log.retry import retrying
from ..log.staging import check_label, check_stream
from ..storage.base import Receipt, Request
from .attempt import Aggregates, Attempt, Earlier
from .command import Command
from .context import Context
from .handling import Handler, Handlers
from .validation import checked

Middleware = Callable[[Context, Callable[[], Receipt]], Receipt]
"""Called with a command's context and a function that has it executed; returns what that returns, or raises."""

Outcome = Receipt | MillstreamError

_BATCH = 100
"""How many commands of a batch share a commit when there is middleware: each lies inside of the one before."""


class Execution:
    """Executes commands on a log; see `App.execute`."""

    def __init__(self, log: Log, aggregates: Aggregates, handlers: Handlers) -> None:
        self.log = log
        self._aggregates = aggregates
        self._handlers = handlers
        self.middleware: list[Middleware] = []
        """From the outermost to the innermost."""

    def begin(self, command: Command, **options: Any) -> tuple[Handler, Context]:
        """Find a command's handler, and check the command.

        Raises:
            UnknownCommand: It has no handler.
            Rejected: It does not fit its class.
        """
        handler = self._handlers.of(command)
        if options.get("id") is not None:
            check_label(options["id"], "append id")
        command = checked(command)
        for field in command.__refs__:
            stream = getattr(command, field)
            if isinstance(stream, str):
                _check_ref(field, stream)
        return handler, Context(command, **options)

    def run(self, handler: Handler, context: Context, loop: asyncio.AbstractEventLoop | None = None) -> Receipt:
        """Execute a command, through the middleware."""
        return self._through(context, partial(self._settle, handler, context, loop))

    def _through(self, context: Context, innermost: Callable[[], Receipt]) -> Receipt:
        following = innermost
        for each in reversed(self.middleware):
            following = partial(_given_back, each, context, following)
        return following()

    # --- one command ----------------------------------------------------------------------------------

    def _settle(self, handler: Handler, context: Context, loop: asyncio.AbstractEventLoop | None = None) -> Receipt:
        """Decide and commit, again after each conflict, and once only when it has an id."""
        if context.id is None:
            return retrying(lambda: self._attempt(handler, context, b"", loop))
        digest = digest_of(context.command)
        return once(
            self.log, context.id, digest, lambda: retrying(lambda: self._attempt(handler, context, digest, loop))
        )

    def _attempt(
        self, handler: Handler, context: Context, digest: bytes, loop: asyncio.AbstractEventLoop | None
    ) -> Receipt:
        if handler.in_commit:
            return self._in_commit(handler, context, digest)
        attempt = Attempt(context, self._aggregates)
        handler(attempt, loop)
        appends = attempt.staged(handler.name)
        context.check_time()
        return self.log.commit(appends, id=context.id, digest=digest)

    def _in_commit(self, handler: Handler, context: Context, digest: bytes) -> Receipt:
        """Decide inside the transaction that commits it: all other writers wait until it is done."""
        with self.log.transaction(id=context.id, digest=digest) as tx:
            attempt = Attempt(context, self._aggregates, db=tx.db)
            handler(attempt, None)
            for staged in attempt.staged(handler.name):
                tx.add(staged)
            context.check_time()
        return tx.receipt

    # --- many in one commit ---------------------------------------------------------------------------

    def run_all(
        self,
        begun: Sequence[tuple[Handler, Context] | MillstreamError],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> list[Outcome]:
        """Execute commands in order, in as few commits as can be; each is refused by itself alone."""
        outcomes: list[Outcome | None] = [each if isinstance(each, MillstreamError) else None for each in begun]
        size = _BATCH if self.middleware else len(begun)
        for start in range(0, len(begun), max(size, 1)):
            part = {
                number: each
                for number, each in enumerate(begun[start : start + size], start)
                if not isinstance(each, MillstreamError)
            }
            for number, outcome in Batch(self, part, loop).run().items():
                outcomes[number] = outcome
        assert None not in outcomes
        return [outcome for outcome in outcomes if outcome is not None]


class Batch:
    """Commands that share a commit. With middleware, each runs inside of the one before: all are decided in it.

    Attributes:
        outcomes: Of those that are settled, by their numbers: also when what is raised leaves others unsettled.
    """

    def __init__(
        self,
        execution: Execution,
        part: Mapping[int, tuple[Handler, Context]],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self._execution = execution
        self._loop = loop
        self._part = part
        self.outcomes: dict[int, Outcome] = {}
        self._settled = False

    def run(self) -> dict[int, Outcome]:
        """Execute all of them; the outcome of each."""
        if self._execution.middleware:
            self._nest(list(self._part))
        else:
            self._commit(list(self._part))
        return self.outcomes

    def _nest(self, numbers: list[int], admitted: tuple[int, ...] = ()) -> None:
        """Take the next command through its middleware; inside of it, those after it; innermost, commit all."""
        if not numbers:
            self._commit(list(admitted))
            return
        number, rest = numbers[0], numbers[1:]
        handler, context = self._part[number]
        entered = False

        def innermost() -> Receipt:
            nonlocal entered
            if entered:  # middleware that tries again: this one alone
                return self._execution._settle(handler, context, self._loop)
            entered = True
            self._nest(rest, (*admitted, number))
            outcome = self.outcomes[number]
            if isinstance(outcome, MillstreamError):
                raise outcome
            return outcome

        try:
            self.outcomes[number] = self._execution._through(context, innermost)
        except MillstreamError as error:
            self.outcomes[number] = error
        if not entered:
            self._nest(rest, admitted)

    def _commit(self, numbers: list[int]) -> None:
        """Decide commands, each on what those before it have changed, and commit them together."""
        execution, log = self._execution, self._execution.log
        before = Earlier(execution._aggregates)
        waiting: dict[int, Request] = {}
        ids: set[str | None] = set()
        """Of those that wait."""
        refused: list[int] = []

        def flush() -> None:
            nonlocal before
            found = dict(zip(waiting, log.commit_all(list(waiting.values())), strict=True))
            self.outcomes.update(found)
            # Another writer came first, or one before it in the batch was refused: decided anew, alone.
            anew = [n for n, outcome in found.items() if isinstance(outcome, VersionConflict | ConditionFailed)]
            if any(isinstance(outcome, MillstreamError) for outcome in found.values()):
                # What was refused may have been so for the sake of a command that did not come to be.
                anew += refused
            for number in sorted(anew):
                self.outcomes[number] = self._alone(number)
            waiting.clear()
            ids.clear()
            refused.clear()
            before = Earlier(execution._aggregates)

        def decide(number: int) -> bool:
            """Whether a command could be decided on what is not in the log yet; what it would append waits."""
            handler, context = self._part[number]
            digest = digest_of(context.command) if context.id is not None else b""
            if context.id is not None:
                if context.id in ids:
                    return False  # it may be what is about to be committed: then it is not decided again
                done = receipt_of(log, context.id, digest)
                if done is not None:
                    self.outcomes[number] = done
                    return True
            attempt = Attempt(context, execution._aggregates, before)
            try:
                handler(attempt, self._loop)
            except Exception:
                if attempt.unseen is not None:
                    return False
                raise
            if attempt.unseen is not None:
                return False
            appends = attempt.staged(handler.name)
            context.check_time()
            if attempt.leans(appends):
                return False
            attempt.keep(before, appends)
            waiting[number] = Request(appends, context.id, digest)
            ids.add(context.id)
            return True

        for number in numbers:
            if self._part[number][0].in_commit:
                flush()
                self.outcomes[number] = self._alone(number)
                continue
            try:
                if not decide(number):
                    flush()
                    decide(number)
            except (VersionConflict, ConditionFailed):
                flush()
                self.outcomes[number] = self._alone(number)
            except MillstreamError as error:
                self.outcomes[number] = self._beside(number) or error
                refused.append(number)
        flush()

    def _beside(self, number: int) -> Outcome | None:
        """What stands under a command's id: the same may have been decided beside it, which is why it was refused."""
        context = self._part[number][1]
        if context.id is None:
            return None
        try:
            return receipt_of(self._execution.log, context.id, digest_of(context.command))
        except MillstreamError as error:
            return error

    def _alone(self, number: int) -> Outcome:
        handler, context = self._part[number]
        try:
            return self._execution._settle(handler, context, self._loop)
        except MillstreamError as error:
            return error


def _given_back(middleware: Middleware, context: Context, following: Callable[[], Receipt]) -> Receipt:
    """What middleware gives back, which stands for the command from there on."""
    receipt: Any = middleware(context, following)
    if not isinstance(receipt, Receipt):
        raise UsageError(
            f"middleware {getattr(middleware, '__qualname__', middleware)!s} gave {receipt!r:.40} and no receipt;"
            f" {type(context.command).__name__} may have taken effect",
            hint="Write return execute()",
        )
    return receipt


def _check_ref(field: str, stream: str) -> None:
    try:
        check_stream(stream)
    except UsageError as error:
        raise Rejected(str(error), field=field) from error
