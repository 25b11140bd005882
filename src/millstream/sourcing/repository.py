"""Repositories: aggregates loaded from the log, changed under optimistic concurrency, seen as they were."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Never, TypeVar, cast, overload

import msgspec

from ..blocks import Block
from ..errors import StreamNotFound, UsageError, VersionConflict
from ..events import Draft
from ..log import Log
from ..log.log import check_log
from ..log.positions import Position
from ..log.records import Recorded
from ..log.retry import ATTEMPTS, retrying
from ..log.staging import check_stream
from ..storage.base import Receipt, StagedAppend
from ..time import Duration, seconds
from .aggregate import Aggregate
from .cache import Cache, Kept
from .decider import Decider, Loaded
from .kinds import as_of
from .merge import NonConflicting, commuting
from .model import Model, model_of
from .past import (
    At,
    Changed,
    Difference,
    Step,
    as_true,
    blame,
    difference,
    effective_bound,
    history,
    resolve,
)
from .replay import Replay
from .root import BROKEN, PAST, PRESENT, SAVED, Root
from .snapshots import Snapshots

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import TypeVar as DefaultTypeVar

    S = DefaultTypeVar("S")
    C = DefaultTypeVar("C", default=Any)
    R = DefaultTypeVar("R", default=Any)
else:
    S, C, R = TypeVar("S"), TypeVar("C"), TypeVar("R")

A = TypeVar("A", bound=Aggregate)
D = TypeVar("D")
Asked = TypeVar("Asked")


class Repository(Generic[S, C, R]):
    """The aggregates of one kind in a log, each in the stream that its id names. Safe to share between threads.

    Aggregates that were used last stay in memory, and are checked against the log at each use. Snapshots are made by
    themselves, and used by `get` with ``at=`` too. Neither changes what is answered.

    Args:
        log: Where their events are.
        kind: An `Aggregate` class or a `Decider`.
        snapshot_every: Keep a snapshot of a state every so many events; None for no snapshots.
        snapshot_after: Keep one as well when rebuilding a state took longer (seconds, or "20ms").
        cache: How many aggregates stay in memory; 0 for none.
        non_conflicting: What may be recorded although another came first: for a type of event, the types that it
            goes together with, or a function ``(mine, theirs) -> bool`` of two events.

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

    @overload
    def __init__(
        self: Repository[A, Never, A],
        log: Log,
        kind: type[A],
        *,
        snapshot_every: int | None = ...,
        snapshot_after: Duration | float | None = ...,
        cache: int = ...,
        non_conflicting: NonConflicting | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Repository[D, Asked, Loaded[D]],
        log: Log,
        kind: Decider[D, Asked, Any],
        *,
        snapshot_every: int | None = ...,
        snapshot_after: Duration | float | None = ...,
        cache: int = ...,
        non_conflicting: NonConflicting | None = ...,
    ) -> None: ...
    def __init__(
        self,
        log: Log,
        kind: Any,
        *,
        snapshot_every: int | None = 1_000,
        snapshot_after: Duration | float | None = 0.02,
        cache: int = 1_024,
        non_conflicting: NonConflicting | None = None,
    ) -> None:
        _check_number("snapshot_every", snapshot_every, 1)
        _check_number("cache", cache, 0)
        check_log(log)
        self._log = log
        self._kind = kind
        self._model: Model[Any] = model_of(kind)
        self._replay = Replay(log, self._model)
        self._slow = seconds(snapshot_after)
        if self._slow is not None and not self._slow >= 0:
            raise UsageError(f"snapshot_after={snapshot_after} is no length of time", hint='Give seconds, or "20ms"')
        self._commutes = commuting(non_conflicting)
        self._cache = Cache(cache)
        self.snapshots = Snapshots(log, self._model, self._replay, snapshot_every)
        """The snapshots of its aggregates: to be counted, rebuilt, deleted."""
        kept, stale = weakref.ref(self._cache), log.store.on_stale

        def forget() -> None:
            if (found := kept()) is not None:
                found.clear()

        # What was read inside a transaction that is undone, as in memory it can be, never came to be; and what was
        # trimmed makes no state any more.
        stale.append(forget)
        weakref.finalize(self._cache, stale.remove, forget).atexit = False

    if not TYPE_CHECKING:

        @classmethod
        def __class_getitem__(cls, given: Any) -> Any:
            # Repository[Account] says enough: what else there is follows from it.
            given = given if isinstance(given, tuple) else (given,)
            return super().__class_getitem__((*given, Any, given[0])[:3])

    def __contains__(self, id: str) -> bool:
        """Whether anything was ever appended to the aggregate's stream."""
        return self._log.version(check_stream(id)) > 0

    # --- the present, and changes of it -----------------------------------------------------------------

    def get(self, id: str, *, at: At | None = None, known: At | None = None) -> S:
        """The aggregate as it is, or as it was: to be read, not to be changed. Of a decider, the state.

        Args:
            id: Its stream.
            at: The version, position or time to show it at, inclusive. Before its first event (or at 0) it is
                as every new one is.
            known: Apart from what was true, what was known: then ``at`` is a time of the world's, by the events'
                effective times (an event without one was true when it was recorded), and only what had been
                recorded up to the version, position or time ``known`` counts, applied in order of those times.

        Raises:
            StreamNotFound: Nothing was ever appended to the stream.
            WrongAggregate, HandlerMissing: The stream, or an event in it, is of another kind.
            Trimmed: Events that make up its state were trimmed.
        """
        check_stream(id)
        root = self._at(id, at, known)
        if not root.version and id not in self:
            raise StreamNotFound(id)
        root._sealed = PRESENT if at is None else PAST
        return cast(S, self._model.state(root))

    def update(self, id: str, change: Callable[[S], object], *, attempts: int = ATTEMPTS) -> Receipt:
        """Load the aggregate, change it, and append what it recorded; again, if another came first.

        An aggregate without events yet is a new one at version 0. When ``change`` raises, nothing is written.

        Args:
            id: Its stream.
            change: Calls methods of the aggregate; for a decider, is given the state and returns events. It runs
                once per attempt, so it must have no other effects.
            attempts: How often to try, with pauses that grow to 0.1 s.

        Returns:
            Where the events stand. When none was recorded, nothing is written, ``count`` is 0,
            ``position`` is the log's head and ``version`` that of the aggregate.

        Raises:
            Contended: Others changed the stream first, each time.
        """
        check_stream(id)
        self._check_change(change)
        with self._cache.turn(id):
            return retrying(lambda: self._once(id, change), attempts=attempts)

    def decide(self, id: str, command: C, *, attempts: int = ATTEMPTS) -> Receipt:
        """Have a decider decide a command on the aggregate's state, and append what follows; as `update`.

        Raises:
            UsageError: The repository is of an aggregate class.
            Contended: Others changed the stream first, each time.
        """
        kind = self._kind
        if not isinstance(kind, Decider):
            raise UsageError(
                f"{self._model.name} has methods, and no function that decides commands",
                hint="Call them in repository.update(id, lambda aggregate: …)",
            )
        return self.update(id, lambda state: kind.decide(state, command), attempts=attempts)

    def create(self, id: str, change: Callable[[S], object]) -> Receipt:
        """Make a new aggregate, change it, and append what it recorded.

        Raises:
            VersionConflict: The stream has events already.
        """
        root = self._model.new(check_stream(id))
        self._check_change(change)
        self._model.take(root, change(self._model.state(root)))
        if not root._pending and (version := self._log.version(id)):
            raise VersionConflict(id, expected=0, actual=version)
        return self._save(root, merge=False)

    def edit(self, id: str) -> AbstractContextManager[R]:
        """The aggregate, to be changed in the body of a ``with``, and saved at its end. Of a decider, a `Loaded`.

        When the body raises, nothing is appended. The body runs once: use ``update`` to have it repeated.

        Raises:
            VersionConflict: Another changed the stream in the meantime, and not all of it is ``non_conflicting``.
        """
        return Block(self._editing(id), "repository.edit(id) as aggregate")

    @contextmanager
    def _editing(self, id: str) -> Iterator[R]:
        root = self.load(id)
        yield root
        self._save(cast(Root, root))

    def load(self, id: str) -> R:
        """The aggregate as it is, to be changed and then staged; a new one when it has no events.

        Most code wants ``update`` or ``edit``. This and ``stage`` serve those who commit more than one
        aggregate at once with ``log.commit``.
        """
        root = self._present(check_stream(id))
        root._sealed = None
        return cast(R, root)

    def stage(self, aggregate: R) -> StagedAppend | None:
        """What the aggregate has recorded, for ``log.commit``, at the version it was loaded at; None for nothing."""
        if not isinstance(aggregate, Root):
            raise UsageError(f"{aggregate!r:.60} is no aggregate", hint="Give what repository.load(id) gave")
        root: Root = aggregate
        return self._staged(root, root.version - len(root._pending))

    # --- the past -----------------------------------------------------------------------------------------

    def history(self, id: str) -> Iterator[Step[S]]:
        """Each event of the aggregate, oldest first, with the state as it was after it.

        The first is read at once, the others as they are asked for.

        Raises:
            StreamNotFound: Nothing was ever appended to the stream.
        """
        steps = history(self._model, self._replay, check_stream(id))
        first = next(steps, None)
        if first is None:
            raise StreamNotFound(id)
        return chain([first], steps)

    def diff(self, id: str, a: At, b: At) -> Difference:
        """What is different about the aggregate at ``b`` from what it was at ``a``, and through which events.

        Raises:
            StreamNotFound: Nothing was ever appended to the stream.
        """
        self._check_found(id)
        return difference(self._log, self._model, self._at(id, a), self._at(id, b))

    def blame(self, id: str, *, at: At | None = None) -> dict[str, Recorded]:
        """For each attribute that is not as it began, the event that changed it last.

        All events are applied one by one, and attributes that can change in place are compared whole.

        Args:
            id: Its stream.
            at: The version, position or time to look from, inclusive.

        Raises:
            StreamNotFound: Nothing was ever appended to the stream.
        """
        self._check_found(id)
        return blame(self._model, self._replay, id, *resolve(self._log, at))

    def as_of(self, at: At | None = None, *, known: At | None = None, streams: str | None = None) -> pl.DataFrame:
        """Every aggregate of the kind as it stood: a row each, with ``id``, ``version`` and its fields, by id.

        The events are read once, in order; no aggregate is loaded by itself.

        Args:
            at: A time or `Position`, inclusive; None for the present.
            known: As in `get`.
            streams: Their names, such as ``"account-*"``. By default the category that holds events of its types.

        Raises:
            UsageError: ``at`` is a version, or ``streams`` is needed.
            WrongAggregate, HandlerMissing: Another kind's events are among them.
        """
        for name, point in (("at", at), ("known", known)):
            if isinstance(point, int) and not isinstance(point, Position):
                raise UsageError(f"{name}={point} is a version, of one stream", hint="Give a time, or ms.Position(n)")
        until = None if known is None else effective_bound(at)
        _, position = resolve(self._log, at if known is None else known)
        head = self._log.head
        position = head if position is None else min(position, head)
        return as_of(self._log, self._model, self._replay, streams, position, until)

    # --- inside -------------------------------------------------------------------------------------------

    def _check_change(self, change: object) -> None:
        if not callable(change):
            raise UsageError(
                f"{change!r:.60} is no function that changes {self._model.name}",
                hint="Have commands decided by repository.decide(id, command); a change is a function of the state"
                if isinstance(self._kind, Decider)
                else "Give a function that calls the aggregate: lambda account: account.close()",
            )

    def _check_found(self, id: str) -> None:
        if id not in self:
            raise StreamNotFound(id)

    def _at(self, id: str, at: At | None, known: At | None = None) -> Root:
        """A copy that is nobody else's, as the aggregate was at a point."""
        if known is not None:
            root = self._replay.begin(id)
            as_true(self._replay, root, effective_bound(at), *resolve(self._log, known))
            return root
        if at is None:
            return self._present(id)
        return self._loaded(id, *resolve(self._log, at)).root

    def _present(self, id: str) -> Root:
        """A copy that is nobody else's, as the aggregate is now."""
        with self._cache.turn(id):
            kept = self._now(id)
            copy = self._model.copy(kept.root)
            self._keep(kept)
        return copy

    def _now(self, id: str) -> Kept:
        """An aggregate as it is now, to go on with."""
        kept = self._taken(id)
        return kept if kept is not None and self._replay.advance(kept.root) else self._loaded(id)

    def _taken(self, id: str) -> Kept | None:
        """An aggregate from the cache, to go on with, if it may be."""
        kept = self._cache.take(id)
        if kept is not None and kept.generation != self.snapshots.privacy.generation():
            return None  # it may hold what was erased since
        return kept

    def _loaded(self, id: str, version: int | None = None, position: int | None = None) -> Kept:
        """An aggregate from its last snapshot and the events after it."""
        begun = time.perf_counter()
        generation = self.snapshots.privacy.generation()
        root = self.snapshots.find(id, version, position)
        if root is None:
            root = self._model.new(id)
        found = root.version
        collected = self.snapshots.advance(root, version, position)
        if not collected.whole:
            # What the snapshot was made of is gone: its events alone count.
            root, found = self._model.new(id), 0
            self._replay.advance(root, version=version, position=position)
        slow = self._slow is not None and time.perf_counter() - begun > self._slow
        if slow and self.snapshots.made and root.version > max(collected.last, found):
            collected.take(root)
            collected.save()
        return Kept(root, collected.last, generation)

    def _keep(self, kept: Kept) -> None:
        """Put an aggregate into the cache, and a snapshot of it beside the log if one is due."""
        root = kept.root
        if self.snapshots.due(root.version, kept.snapshot):
            kept.snapshot = root.version
            row = self.snapshots.row(root)
            if row is not None:
                self.snapshots.save([row])
        self._cache.put(kept)

    def _once(self, id: str, change: Callable[[S], object], *, doubt: bool = False) -> Receipt:
        """One attempt of an update.

        Args:
            doubt: Do not take an aggregate from the cache for the present one until that matters.
        """
        kept = None if doubt else self._taken(id)
        guessed = kept is not None
        if kept is None:
            kept = self._now(id)
        root = kept.root
        root._sealed = None
        began = root.version
        try:
            self._model.take(root, change(self._model.state(root)))
        except Exception:
            if guessed and self._log.version(id) != began:
                return self._once(id, change, doubt=True)
            raise
        if not root._pending and guessed and self._log.version(id) != began:
            return self._once(id, change, doubt=True)
        receipt, merged = self._commit(root, began)
        if not merged:
            # The caller may have kept hold of it, and must not see it change.
            kept.root = self._model.released(root)
            kept.root._sealed = None
            if receipt.count:
                kept.root._position = receipt.position
            self._keep(kept)
        return receipt

    def _save(self, root: Root, *, merge: bool = True) -> Receipt:
        receipt, merged = self._commit(root, root.version - len(root._pending), merge=merge)
        if merged:
            self._model.adopt(root, self._present(root.id))
        return receipt

    def _commit(self, root: Root, expect: int, *, merge: bool = True) -> tuple[Receipt, bool]:
        """Append what was recorded; whether it stands after another's events, which it goes together with."""
        merged = False
        for _ in range(ATTEMPTS):
            try:
                receipt = self._log.commit([self._staged(root, expect)])
                break
            except VersionConflict as conflict:
                level = self._merged(root, expect) if merge and self._commutes is not None else None
                if level is None or level <= expect:
                    raise
                expect, merged, last = level, True, conflict
        else:
            raise last
        if not receipt.count:
            receipt = msgspec.structs.replace(receipt, stream=root.id, version=root.version)
        root._pending.clear()
        root._sealed = SAVED
        return receipt, merged

    def _merged(self, root: Root, version: int) -> int | None:
        """The stream's version now, if all that came after a version goes together with what was recorded."""
        assert self._commutes is not None
        mine = [each.event if isinstance(each, Draft) else each for each in root._pending]
        for recorded in self._log.read(root.id, since_version=version + 1):
            theirs = recorded.event
            if not all(self._commutes(each, theirs) for each in mine):
                return None
            version = recorded.version
        return version

    def _staged(self, root: Root, expect: int) -> StagedAppend | None:
        if root._sealed is BROKEN:
            raise root._refusal()
        if not root._pending:
            return None
        # A single event goes the shorter way.
        events = root._pending if len(root._pending) > 1 else root._pending[0]
        return self._log.stage(root.id, events, expect=expect)


def _check_number(name: str, value: object, least: int) -> None:
    if value is not None and (type(value) is not int or value < least):
        raise UsageError(f"{name}={value!r:.40} is not a whole number from {least} on", hint=f"Give an int as {name}")


__all__ = ["At", "Changed", "Difference", "Repository", "Step"]
