"""What there is to know of a command that is being executed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import InvalidEvent, TimedOut
from ..log.staging import encode_metadata
from ..storage.base import StagedAppend
from .command import Command

_encode = msgspec.json.encode


class Context:
    """A command on its way through the middleware to its handler; handlers may ask for it by its type.

    Attributes:
        command: The command, checked.
        id: The id that it was given to take effect once; None without one.
        cause: What its events carry as ``causation``: what was given, or the command's own id, made up for one
            without.
        correlation: What its events carry as ``correlation``: the conversation that it belongs to; by default, it
            begins one.
        metadata: What else its events carry. Middleware may add to it.
        values: Whatever middleware wants to hand on to handlers: the user who is logged in, for example.
    """

    __slots__ = ("_deadline", "_stamp", "cause", "command", "correlation", "id", "metadata", "values")

    def __init__(
        self,
        command: Command,
        *,
        id: str | None = None,
        correlation: str | None = None,
        causation: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        for name, given in (("correlation", correlation), ("causation", causation)):
            if given is not None:
                _check_cause(name, given)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidEvent(f"metadata is {metadata!r:.60}", hint="Give a dict")
        self.command = command
        self.id = id
        self.cause = causation or id or secrets.token_hex(8)
        self.correlation = correlation or self.cause
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.values: dict[str, Any] = {}
        self._deadline: float | None = None
        self._stamp: bytes | None = None

    def limit(self, seconds: float) -> None:
        """Give the command up when it is not to be committed within so many seconds from now."""
        deadline = time.monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def check_time(self) -> None:
        """See that there is time left.

        Raises:
            TimedOut: There is not.
        """
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimedOut(
                f"{type(self.command).__name__} was not decided in time; nothing was written",
                hint="Send it again with the same id, or give it more time",
            )

    def stamp(self, appends: list[StagedAppend]) -> None:
        """Have events say what caused them and what they belong to."""
        for append in appends:
            for run in append.runs:
                if run.metadata is None and not self.metadata:
                    if self._stamp is None:
                        cause, of = _encode(self.cause), _encode(self.correlation)
                        self._stamp = b'{"causation":%b,"correlation":%b}' % (cause, of)
                    run.metadata = self._stamp
                else:
                    own = msgspec.json.decode(run.metadata) if run.metadata is not None else {}
                    causes = {"causation": self.cause, "correlation": self.correlation}
                    run.metadata = encode_metadata({**causes, **self.metadata, **own})


def _check_cause(name: str, given: object) -> None:
    try:
        if isinstance(given, str):
            given.encode()
            return
    except UnicodeEncodeError:
        pass
    raise InvalidEvent(f"{name}={given!r:.60} is no text that can be stored", hint="Give a short printable text")
