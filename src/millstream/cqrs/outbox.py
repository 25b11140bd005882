"""Outboxes: messages to the outside, kept in the commit that decides on them, and sent after it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from ..errors import UsageError
from ..events import Plain
from ..log import Log
from ..log.handlers import check_plain
from ..log.staging import check_stream
from ..storage.base import Matching, StagedAppend

POSTED = "OutboxMessage"
"""The type of the events that are messages."""


class Message(msgspec.Struct, frozen=True):
    """A message on its way out.

    Attributes:
        id: The same each time that it is sent, and of no other message: who receives it can tell a repeat by it.
        body: What it says: values as JSON has them.
        key: Messages of one key are sent in order; empty for one that stands alone.
        position: Its position in the log.
        time: When it was recorded (UTC).
        correlation: The conversation that it belongs to.
    """

    id: str
    body: Any
    key: str
    position: int
    time: datetime
    correlation: str | None


class Outbox:
    """Sends messages to the outside, at least once each, and those of one key in order.

    A message is an event of the log, in the stream ``outbox-<name>``, appended in the commit of the command that posts
    it: both happen, or neither. A worker of the app sends it then, and notes that in the log; when it dies in between,
    the message is sent again with the same `Message.id`.

    One that cannot be sent is tried again, after pauses that grow from 0.1 s to a minute, and others go on meanwhile;
    but those of its key wait behind it. After ``attempts`` it is parked, and its key with it, until someone has it
    tried again or skipped (`millstream.cqrs.delivery`). `SinkUnavailable` is not held against a message: all wait.

    Args:
        name: Names it, and its stream.
        send: Called with each `Message`, in the worker's thread; it has been sent when this returns.
        attempts: How often a message is tried before it is parked; None: for ever.

    Example:
        >>> import millstream as ms
        >>> sent = []
        >>> mail = ms.Outbox("mail", lambda message: sent.append(message.body))
        >>> class Greet(ms.Command):
        ...     who: str
        >>> app = ms.App(ms.open(), outboxes=[mail])
        >>> @app.command
        ... def greet(command: Greet, mail: ms.Outbox) -> None:
        ...     mail.post({"to": command.who}, key=command.who)
        >>> app.execute(Greet("ann")).stream
        'outbox-mail'
    """

    def __init__(self, name: str, send: Callable[[Message], object], *, attempts: int | None = 10) -> None:
        check_stream(stream_of(name))
        if not callable(send):
            raise UsageError(f"send={send!r:.60} is no function", hint="Give a function that takes a ms.Message")
        check_plain(send)
        if attempts is not None and (type(attempts) is not int or attempts < 1):
            raise UsageError(f"attempts={attempts!r:.40} is not a whole number from 1 on", hint="Give an int, or None")
        self.name = name
        self.send = send
        self.attempts = attempts
        self._commit: tuple[Log, Callable[[StagedAppend], None]] | None = None

    def post(self, body: Any, *, key: str = "") -> None:
        """Put a message in, in the commit of the command that is being executed.

        Args:
            body: What it says: JSON-like values, structs, Decimals, times.
            key: Messages of one key are sent in order.

        Raises:
            UsageError: It was not given by an app to a handler.
        """
        if self._commit is None:
            raise UsageError(
                f"the outbox {self.name!r} is not part of a command here",
                hint="Ask for it in a handler of a command: mail: ms.Outbox",
            )
        log, add = self._commit
        add(staged_message(log, self.name, body, key))

    def enlisted(
        self, log: Log, add: Callable[[StagedAppend], None], about: Callable[[Matching], None] | None = None
    ) -> Outbox:
        """The same, as part of a command: what is posted goes where that says. It reads nothing, and asks nobody."""
        enlisted = copy.copy(self)
        enlisted._commit = (log, add)
        return enlisted

    def __repr__(self) -> str:
        return f"<millstream.Outbox {self.name}>"


def stream_of(outbox: str) -> str:
    """The stream of an outbox's messages."""
    return f"outbox-{outbox}"


def staged_message(
    log: Log, outbox: str, body: Any, key: str = "", metadata: Mapping[str, Any] | None = None
) -> StagedAppend:
    """A message, ready to be committed."""
    try:
        plain = msgspec.to_builtins(body)
    except (TypeError, NotImplementedError) as error:
        raise UsageError(f"a message cannot be written as JSON: {error}", hint="Post JSON-like values") from error
    return log.stage(stream_of(outbox), Plain(POSTED, {"key": key, "body": plain}), metadata=metadata)
