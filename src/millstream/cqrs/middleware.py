"""Middleware that most applications want: who may, how long, once more, and a line in the program's own log.

Each function makes one; give them to `App.middleware`, the outermost first. Middleware of one's own is a function of
the command's context and of what has it executed::

    def traced(context, execute):
        with tracer.span(type(context.command).__name__):
            return execute()
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from ..errors import Deadlocked, LogLocked, MillstreamError, Rejected, UsageError
from ..log.retry import Contended
from ..storage.base import Receipt
from ..time import Duration, seconds
from .context import Context
from .execution import Middleware

Execute = Callable[[], Receipt]


def authorise(allowed: Callable[[Context], bool | str]) -> Middleware:
    """Refuse commands that are not allowed.

    Args:
        allowed: Says whether a command is: True, or False, or why not in words.

    Example:
        >>> import millstream as ms
        >>> from millstream.cqrs.middleware import authorise
        >>> app = ms.App(ms.open())
        >>> app.middleware(authorise(lambda context: context.metadata.get("user") == "ann" or "only Ann may"))
    """

    def authorising(context: Context, execute: Execute) -> Receipt:
        answer = allowed(context)
        if answer is not True:
            raise Forbidden(type(context.command).__name__, answer if isinstance(answer, str) else "")
        return execute()

    return authorising


class Forbidden(Rejected):
    """Whoever sent the command may not."""

    code = "forbidden"
    http_status = 403

    def __init__(self, command: str, reason: str = "") -> None:
        super().__init__(reason or f"{command} is not allowed")
        self.command = command


def time_limit(limit: Duration | float) -> Middleware:
    """Give up a command that is not decided in time: nothing of it is written, and `TimedOut` is raised.

    A handler is not broken off; the clock is looked at before each commit, so that waiting for others and deciding
    again after conflicts end in time.

    Args:
        limit: Seconds, or a duration such as ``"2s"``.
    """
    most = seconds(limit) or 0.0

    def limiting(context: Context, execute: Execute) -> Receipt:
        context.limit(most)
        return execute()

    return limiting


def retry(attempts: int = 3, on: tuple[type[MillstreamError], ...] = (Contended, LogLocked, Deadlocked)) -> Middleware:
    """Have a command executed again when it failed for want of luck, after pauses that grow from 10 ms.

    Args:
        attempts: How often in all.
        on: The errors after which it is worth it.
    """
    if type(attempts) is not int or attempts < 1:
        raise UsageError(f"attempts={attempts!r:.40} is not a whole number from 1 on", hint="Give an int as attempts")

    def retrying(context: Context, execute: Execute) -> Receipt:
        for attempt in range(attempts - 1):
            try:
                return execute()
            except on:
                context.check_time()
                time.sleep(random.uniform(0.5, 1.0) * 0.01 * 2**attempt)
        return execute()

    return retrying


def logged(logger: logging.Logger | None = None) -> Middleware:
    """A line for each command: what it was, how it went, how long it took. Refusals are warnings, faults errors.

    Args:
        logger: Default: the one named ``millstream.commands``.
    """
    to = logger or logging.getLogger("millstream.commands")

    def logging_(context: Context, execute: Execute) -> Receipt:
        began = time.monotonic()
        name = type(context.command).__name__
        try:
            receipt = execute()
        except Exception as error:
            level = logging.WARNING if isinstance(error, MillstreamError) else logging.ERROR
            took = 1e3 * (time.monotonic() - began)
            to.log(level, "%s %s: %s after %.1f ms: %s", name, context.cause, type(error).__name__, took, error)
            raise
        took = 1e3 * (time.monotonic() - began)
        to.info("%s %s: %d events at %d in %.1f ms", name, context.cause, receipt.count, receipt.position, took)
        return receipt

    return logging_
