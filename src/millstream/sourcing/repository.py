"""Repositories: aggregates loaded from the log, changed under optimistic concurrency, seen as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import msgspec

from ..errors import StreamNotFound, UsageError
from ..events import Plain
from ..log import Log
from ..log.positions import Position
from ..log.records import Recorded, Run
from ..log.retry import ATTEMPTS, retrying
from ..log.staging import check_stream
from ..storage.base import Receipt, StagedAppend
from ..time import Moment, to_micros
from .aggregate import Aggregate

A = TypeVar("A", bound=Aggregate)
Root = TypeVar("Root", bound=Aggregate, covariant=True)

_Decode = Callable[[str | bytes], Any]
_Entry = tuple[Callable[..., object] | None, type[Any], _Decode | None]

At = int | Position | Moment
"""A point in an aggregate's life, inclusive: a version, a position of the log, or a time."""


class Step(msgspec.Struct, Generic[Root], frozen=True):
    """An event of an aggregate's history, and the aggregate as it was right after it (read-only)."""

    recorded: Recorded
    state: Root


class Changed(msgspec.Struct, frozen=True):
    """The value of an attribute at two points; None where it had none."""

    before: Any
    after: Any


class Difference(msgspec.Struct, frozen=True):
    """What is different about an aggregate between two points of its life.

    Attributes:
        stream: The aggregate's id.
        before: Its version at the first point.
        after: Its version at the second.
        changes: The attributes that differ.
        events: The events that lie between the two, in order.
    """

    stream: str
    before: int
    after: int
    changes: dict[str, Changed]
    events: tuple[Recorded, ...]


class Repository(Generic[A]):
    """The aggregates of one class in a log, each in the stream that its id names.

    Args:
        log: Where their events are.
        aggregate: Their class.

    Example:
        >>> import millstream as ms
        >>> class Deposited(ms.Event):
        ...     amount: int
        >>> class Account(ms.Aggregate):
        ...     balance: int = 0
        ...
        ...     def deposit(self, amount: int) -> None:
        ...         self.record(Deposited(amount=amount))
        ...
        ...     @ms.on
        ...     def deposited(self, event: Deposited) -> None:
        ...         self.balance += event.amount
        >>> accounts = ms.Repository(ms.open(), Account)
        >>> receipt = accounts.update("account-1", lambda account: account.deposit(5))
        >>> receipt = accounts.update("account-1", lambda account: account.deposit(7))
        >>> accounts.get("account-1").balance, accounts.get("account-1", at=1).balance
        (12, 5)
    """

    def __init__(self, log: Log, aggregate: type[A]) -> None:
        self._log = log
        self._class = aggregate
        self._handlers = aggregate._handlers()
        # By the number that the log gives a type: one look-up per run instead of two names'.
        self._known: dict[int, _Entry] = {}

    def __contains__(self, id: str) -> bool:
        """Whether anything was ever appended to the aggregate's stream."""
        return self._log.version(check_stream(id)) > 0

    def get(self, id: str, *, at: At | None = None) -> A:
        """The aggregate as it is, or as it was: to be read, not to be changed.

        Args:
            id: Its stream.
            at: The version, position or time to show it at, inclusive. Before its first event (or at 0) it is
                as every new one is.

        Raises:
            StreamNotFound: Nothing was ever appended to the stream.
            Trimmed: Events that make up its state were trimmed.
        """
        version, position = self._resolve(at)
        aggregate = self._replayed(id, version=version, position=position)
        if not aggregate.version and id not in self:
            raise StreamNotFound(id)
        aggregate._sealed = _PRESENT if at is None else _PAST
        return aggregate

    def update(self, id: str, change: Callable[[A], object], *, attempts: int = ATTEMPTS) -> Receipt:
        """Load the aggregate, change it, and append what it recorded; again, if another came first.

        An aggregate without events yet is a new one at version 0. When ``change`` raises, nothing is written.

        Args:
            id: Its stream.
            change: Calls methods of the aggregate; runs once per attempt, so it must have no other effects.
            attempts: How often to try, with pauses that grow to 0.1 s.

        Returns:
            Where the events stand. When none was recorded, nothing is written, ``count`` is 0 and
            ``position`` is the log's head.

        Raises:
            Contended: Others changed the stream first, each time.
        """

        def once() -> Receipt:
            aggregate = self._replayed(id)
            change(aggregate)
            return self._save(aggregate)

        return retrying(once, attempts=attempts)

    def create(self, id: str, change: Callable[[A], object]) -> Receipt:
        """Make a new aggregate, change it, and append what it recorded.

        Raises:
            VersionConflict: The stream has events already.
        """
        aggregate = self._class(id)
        change(aggregate)
        return self._save(aggregate)

    @contextmanager
    def edit(self, id: str) -> Iterator[A]:
        """The aggregate, to be changed in the body of a ``with``, and saved at its end.

        When the body raises, nothing is appended. The body runs once: use ``update`` to have it repeated.

        Raises:
            VersionConflict: Another changed the stream in the meantime.
        """
        aggregate = self._replayed(id)
        yield aggregate
        self._save(aggregate)

    def history(self, id: str) -> Iterator[Step[A]]:
        """Each event of the aggregate, oldest first, with the aggregate as it was after it.

        Raises:
            StreamNotFound: Nothing was ever appended to the stream.
        """
        aggregate = self._class(id)
        aggregate._sealed = _PAST
        for recorded in self._log.read(check_stream(id), trimmed="raise"):
            handler = self._handlers.get(recorded.type)
            if handler is not None:
                event = _plain(recorded) if handler.event is Plain else recorded.decode(handler.event)
                handler.function(aggregate, event)
            aggregate.version = recorded.version
            aggregate._position = recorded.position
            yield Step(recorded, aggregate._copy())
        if not aggregate.version:
            raise StreamNotFound(id)

    def diff(self, id: str, a: At, b: At) -> Difference:
        """What is different about the aggregate at ``b`` from what it was at ``a``, and through which events.

        Raises:
            StreamNotFound: Nothing was ever appended to the stream.
        """
        before, after = self.get(id, at=a), self.get(id, at=b)
        old, new = vars(before), vars(after)
        changes = {
            name: Changed(old.get(name), new.get(name))
            for name in (*old, *(name for name in new if name not in old))
            if old.get(name) != new.get(name)
        }
        first, last = sorted((before.version, after.version))
        events = (
            self._log.read(check_stream(id), since_version=first + 1, until_version=last + 1) if first < last else ()
        )
        return Difference(id, before.version, after.version, changes, tuple(events))

    def load(self, id: str) -> A:
        """The aggregate as it is, to be changed and then staged; a new one when it has no events.

        Most code wants ``update`` or ``edit``. This and ``stage`` serve those who commit more than one
        aggregate at once with ``log.commit``.
        """
        return self._replayed(id)

    def stage(self, aggregate: A) -> StagedAppend | None:
        """What the aggregate has recorded, ready for ``log.commit`` at the version it was loaded at."""
        if not aggregate._pending:
            return None
        expect = aggregate.version - len(aggregate._pending)
        return self._log.stage(aggregate.id, aggregate._pending, expect=expect)

    def _save(self, aggregate: A) -> Receipt:
        staged = self.stage(aggregate)
        receipt = self._log.commit([staged] if staged is not None else [])
        aggregate._pending.clear()
        aggregate._sealed = _SAVED
        return receipt

    def _replayed(self, id: str, *, version: int | None = None, position: int | None = None) -> A:
        aggregate = self._class(id)
        end = None if position is None else position + 1
        # A state without what was trimmed would be a wrong one.
        runs = self._log.runs(check_stream(id), until_position=end, trimmed="raise")
        self._advance(aggregate, runs, version)
        return aggregate

    def _advance(self, aggregate: A, runs: Iterator[Run], until: int | None) -> None:
        """Apply runs to an aggregate, from wherever it stands, up to a version."""
        aggregate._sealed = _REPLAY
        version = aggregate.version
        known = self._known
        for run in runs:
            count = run.count
            if until is not None:
                count = min(count, until - run.version + 1)
                if count <= 0:
                    break
            entry = known.get(run.kind_id)
            if entry is None:
                entry = known[run.kind_id] = self._entry(run.type)
            function, cls, decode = entry
            if function is None:
                version += count
            else:
                for event in _events(run, cls, decode, count):
                    aggregate.version = version
                    function(aggregate, event)
                    version += 1
            aggregate._position = run.position + count - 1
        aggregate.version = version
        aggregate._sealed = None

    def _entry(self, name: str) -> _Entry:
        """How a type's events are applied and decoded."""
        handler = self._handlers.get(name)
        if handler is None:
            return None, Plain, None
        if handler.event is Plain:
            return handler.function, Plain, None
        return handler.function, handler.event, msgspec.json.Decoder(handler.event).decode

    def _resolve(self, at: At | None) -> tuple[int | None, int | None]:
        """The version and the position to stop after."""
        if at is None:
            return None, None
        if isinstance(at, Position):
            return None, int(at)
        if isinstance(at, int):
            if isinstance(at, bool) or at < 0:
                raise UsageError(f"at={at} is not a version", hint="Versions start at 1; 0 is before the first event")
            return at, None
        # position_at is exclusive, and at= is not; the log's times are whole microseconds.
        return None, self._log.store.position_at(to_micros(at) + 1)


_PRESENT = ("was loaded to be read", "Change it in repository.update(id, …) or with repository.edit(id)")
_PAST = ("is of the past", "Change the present one in repository.update(id, …)")
_SAVED = ("was saved", "Change it again in repository.update(id, …) or with repository.edit(id)")
_REPLAY = ("is being rebuilt", "Record in methods; handlers only change the state")


def _events(run: Run, cls: type[Any], decode: _Decode | None, count: int) -> Sequence[Any]:
    if decode is None:
        events: list[Any] = [Plain(run.type, data) for data in run.data()]
    elif run.body is not None:
        try:
            return (decode(run.body),)
        except msgspec.MsgspecError:
            return run.events(cls)  # says what does not fit, and where
    else:
        events = run.events(cls)
    return events if count == len(events) else events[:count]


def _plain(recorded: Recorded) -> Plain:
    return Plain(recorded.type, recorded.data)


__all__ = ["At", "Changed", "Difference", "Repository", "Step"]
