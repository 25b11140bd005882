"""Which inline handlers a commit calls, and which it must have, whichever store it is made in.

A handler that guards what is written guards nothing when another process appends without it. So a log keeps a register
of those that every writer must have, by a fingerprint; a writer that lacks one is refused when it appends a type that
the handler is called for. The register is one value among the facts about the log, read again only when it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from ..conversion import ready
from ..errors import InlineMissing
from .base import InlineHandler, Placed, Receipt, Request, StagedAppend
from .database import Database

KEY = "inline"
"""Names the register among the facts about a log."""


TABLE = "millstream_commits"
TABLES = {TABLE: "first bigint primary key, last bigint not null"}
"""The table of the commits of several events that more than one registered handler was called for: its columns."""


class Attached(NamedTuple):
    """A handler that this process has."""

    types: frozenset[str] | None
    """The types that it is called for; None: all."""
    call: InlineHandler
    fingerprint: str | None
    """What it is registered by, if it is."""
    across: bool
    """Whether it is called once for several requests, when all of them were placed."""


Handlers = dict[str, Attached]
"""By name."""


class Registered(msgspec.Struct, frozen=True):
    """A handler that all writers must have.

    Attributes:
        fingerprint: What tells it from others of its name.
        types: The types that it is called for; None: all.
    """

    fingerprint: str
    types: tuple[str, ...] | None


class _Value(msgspec.Struct):
    counter: int = 0
    """Raised by each change."""
    handlers: dict[str, Registered] = {}


class Register:
    """What a process knows of the register, and what it lacks.

    Attributes:
        counter: Which state of the register is known; 0 when nothing was ever registered.
        refused: By type, the handler that this process lacks; under ``*`` one that is called for all.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._own = handlers
        self._text: str | None = None
        self._value = _Value()
        self.counter = 0
        self.refused: dict[str, str] = {}

    @property
    def handlers(self) -> dict[str, Registered]:
        """What is registered, by name."""
        return dict(self._value.handlers)

    def load(self, text: str | None) -> None:
        """Learn what the log's register holds now."""
        if text == self._text:
            return
        self._text = text
        self._value = _Value() if text is None else msgspec.json.decode(text, type=ready(_Value))
        self.counter = self._value.counter
        self.compare()

    def compare(self) -> None:
        """Find out what this process lacks: after the register or its own handlers have changed."""
        refused: dict[str, str] = {}
        for name, registered in self._value.handlers.items():
            own = self._own.get(name)
            same = own is not None and own.fingerprint == registered.fingerprint
            for type in ("*",) if registered.types is None else registered.types:
                if own is None or not same or (own.types is not None and type not in own.types):
                    refused[type] = name
        self.refused = refused

    def check(self, append: StagedAppend) -> None:
        """See that this process may append this.

        Raises:
            InlineMissing: A handler is registered for its type that this process lacks.
        """
        for run in append.runs:
            name = self.refused.get(run.type) or self.refused.get("*")
            if name is not None:
                raise InlineMissing(name, run.type)

    def refusal(self, request: Request) -> InlineMissing | None:
        """Why this process may not append a request's events; None when it may."""
        try:
            for append in request.appends:
                self.check(append)
        except InlineMissing as error:
            return error
        return None

    def changed(self, name: str, registered: Registered | None) -> str:
        """The register's next value, with a handler put in, or taken out."""
        handlers = {**self._value.handlers}
        if registered is None:
            handlers.pop(name, None)
        else:
            handlers[name] = registered
        return msgspec.json.encode(_Value(self.counter + 1, handlers)).decode()


def wanted(handlers: Handlers, appends: Sequence[StagedAppend]) -> list[str]:
    """The names of the handlers that want any of the types that are appended."""
    return [
        name
        for name, own in list(handlers.items())
        if own.types is None or any(_wants(own.types, append) for append in appends)
    ]


def takes_many(handlers: Handlers, names: Iterable[str]) -> bool:
    """Whether each of the handlers of these names is called once for several requests."""
    return all(own.across for name in names if (own := handlers.get(name)) is not None)


class Waiting:
    """Requests of a transaction for which handlers are still to be called.

    A single handler that takes many of them at once is called so. But what one handler has done for a request, the next
    is to see before either comes to the request after it.

    Args:
        ready: Called before handlers are: sees that what was appended can be read.
    """

    def __init__(self, handlers: Handlers, database: Database, ready: Callable[[], None] = lambda: None) -> None:
        self._handlers = handlers
        self._database = database
        self._ready = ready
        self._names: list[str] = []
        self._appends: list[Placed] = []

    def add(self, appends: Sequence[StagedAppend], receipt: Receipt, names: list[str] | None = None) -> None:
        """Have handlers called, now or later, for a request that was placed as its receipt says.

        Args:
            names: Those that are `wanted`, where the caller knows.
        """
        if names is None:
            names = wanted(self._handlers, appends)
        if names != self._names:
            self.call()
            self._names = names
        position = receipt.first
        for append in appends:
            self._appends.append((append, position))
            position += append.count
        if len(names) > 1 or not takes_many(self._handlers, names):
            self.call()

    def call(self) -> None:
        """Call them for all that wait."""
        appends, self._appends = self._appends, []
        if not appends:
            return
        self._ready()
        called: set[str] = set()
        for name in self._names:
            own = self._handlers.get(name)
            if own is None:
                continue  # another thread has taken it out meanwhile
            own.call(self._database, [each for each in appends if _wants(own.types, each[0])])
            if own.fingerprint is not None:
                called.add(name)
        first, last = appends[0][1], appends[-1][1] + appends[-1][0].count - 1
        if len(called) > 1 and last > first and self._database.has_table(TABLE):
            # One had all of the events before the next had any: to show that again, it has to be known which they were.
            self._database.execute(f"insert into {self._database.own(TABLE)} values (?, ?)", (first, last))


def _wants(types: frozenset[str] | None, append: StagedAppend) -> bool:
    return types is None or any(run.type in types for run in append.runs)
