"""Decisions that span streams: made on what a query finds, and appended only if that is still all there is."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast, overload

from ..errors import UsageError
from ..events import AnyEvent, Draft, Event, Plain
from ..log import Log
from ..log.once import digest_of, once
from ..log.retry import ATTEMPTS, retrying
from ..storage.base import Matching, Receipt, StagedAppend
from .decider import Decided, annotation_of, begun, evolved, listed
from .errors import InvalidDecision

C = TypeVar("C")
S = TypeVar("S")

Outcome = Decided | Mapping[str, Decided]
"""What `decide` returns: events for the decision's stream, or for several streams by their names."""


class Decision(Generic[C, S]):
    """A decision on the events that a query finds, wherever they stand; called with a log and a command.

    A call reads what the query matches, folds it into a state, decides, and appends what was decided under the
    guard that nothing else came that the query matches. If something did, it is made again on what is there then.
    So a rule over several things (a course and a student), or over all of them (a unique address), holds without an
    aggregate around them. The events must carry the tags that the query asks for: return `Draft`s.

    Args:
        query: From the command to what is to be read. Its ``after`` is where reading begins.
        decide: From the state and the command to the events to append: for the stream of ``stream=``, or a mapping
            of streams' names to events. It raises ``ms.Rejected`` for what the rules forbid. It may run several
            times, so it must have no other effects.
        initial: The state before any event, or a function (or class) that makes it.
        evolve: From the state and an event to the next state. Without both, the state is the list of events.
        stream: Where the events go: a name, or a function from the command to one.
        name: What tells it from other decisions, where a call has an id; default: the name of ``decide``.

    Raises:
        InvalidDecision: It is not put together as it must be.

    Example:
        >>> import millstream as ms
        >>> class Registered(ms.Event):
        ...     email: str
        >>> def register(taken: list[ms.Event], email: str) -> ms.Draft:
        ...     if taken:
        ...         raise ms.Rejected(f"{email} is taken")
        ...     return ms.Draft(Registered(email=email), tags=[f"email:{email}"])
        >>> registration = ms.Decision(
        ...     query=lambda email: ms.Matching(tags=[f"email:{email}"]), decide=register, stream="users"
        ... )
        >>> log = ms.open()
        >>> registration(log, "ann@example.org").position
        1
        >>> registration(log, "ann@example.org")
        Traceback (most recent call last):
        ...
        millstream.errors.Rejected: ann@example.org is taken
    """

    @overload
    def __init__(
        self: Decision[C, list[AnyEvent]],
        *,
        query: Callable[[C], Matching],
        decide: Callable[[list[Any], C], Outcome],
        stream: str | Callable[[C], str] | None = None,
        name: str | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        query: Callable[[C], Matching],
        decide: Callable[[S, C], Outcome],
        initial: Callable[[], S] | S,
        evolve: Callable[[S, Any], S],
        stream: str | Callable[[C], str] | None = None,
        name: str | None = None,
    ) -> None: ...

    def __init__(
        self,
        *,
        query: Callable[[C], Matching],
        decide: Callable[[Any, C], Outcome],
        initial: Any = None,
        evolve: Callable[[Any, Any], Any] | None = None,
        stream: str | Callable[[C], str] | None = None,
        name: str | None = None,
    ) -> None:
        self.name: str = name or str(getattr(decide, "__qualname__", type(decide).__qualname__))
        for what, function in (("query", query), ("decide", decide), ("evolve", evolve)):
            if not callable(function) and (what != "evolve" or function is not None):
                raise InvalidDecision(self.name, f"{what}={function!r:.60} is no function", hint="Give a function")
        if (initial is None) != (evolve is None):
            raise InvalidDecision(
                self.name,
                "it has only one of initial= and evolve=",
                hint="Give both, or neither: the state is the list of events then",
            )
        self.query, self.decide, self.initial, self.evolve, self.stream = query, decide, initial, evolve, stream
        self._commit: tuple[Log, Callable[[StagedAppend], None], Callable[[Matching], None] | None] | None = None
        # Names that are local to a function are at hand only now.
        self._declared = evolve and annotation_of(evolve, "return", sys._getframe(1).f_locals)

    def __call__(self, log: Log, command: C, *, id: str | None = None, attempts: int = ATTEMPTS) -> Receipt:
        """Decide a command, and append what was decided: all of it, or nothing.

        Args:
            log: Where to read and append.
            command: What is asked for.
            id: Names this request. The same command with the same id takes effect once, and gives the same receipt,
                also when nothing was decided; it is looked up before anything is read.
            attempts: How often to try, with pauses that grow to 0.1 s.

        Returns:
            Where the events stand. When there are none, ``count`` is 0 and ``position`` is the log's head.

        Raises:
            Contended: Others appended what the query matches first, each time.
            IdReused: The id stands for another command.
            InvalidDecision: ``query`` or ``decide`` gave something else than it must.
            Rejected: The rules forbid it; nothing is written.
        """
        query = self._query(command)
        digest = digest_of(command, self.name) if id is not None else None

        def attempt() -> Receipt:
            # Fixed before reading: what comes meanwhile and matches, fails the guard, read or not.
            head = log.head
            state = self._state(log, query, head)
            return log.commit(self._staged(log, state, command, query.since(head)), id=id, digest=digest)

        def decided() -> Receipt:
            return retrying(attempt, attempts=attempts, rivals=query.any_of[0])

        return decided() if id is None or digest is None else once(log, id, digest, decided)

    def record(self, command: C) -> None:
        """Decide a command as part of the one that is being executed: what is decided goes into its commit.

        A handler of an app's command that asks for a `Decision` is given one that can do this. When others append what
        its query matches first, the whole command is decided again.

        Raises:
            UsageError: It was not given by an app to a handler.
            Rejected: The rules forbid it.
        """
        if self._commit is None:
            raise UsageError(
                f"{self!r} is not part of a command here", hint="Call it with a log, or ask for it in a handler"
            )
        log, add, about = self._commit
        query = self._query(command)
        if about is not None:
            about(query)
        head = log.head
        for staged in self._staged(log, self._state(log, query, head), command, query.since(head)):
            add(staged)

    def enlisted(
        self, log: Log, add: Callable[[StagedAppend], None], about: Callable[[Matching], None] | None = None
    ) -> Decision[C, S]:
        """The same, as part of a command: what it `record`s goes where that says.

        Args:
            about: Told of what it reads before it does.
        """
        enlisted = copy.copy(self)
        enlisted._commit = (log, add, about)
        return enlisted

    def state(self, log: Log, command: C) -> S:
        """The state that the command would be decided on now."""
        return cast(S, self._state(log, self._query(command), log.head))

    def _query(self, command: C) -> Matching:
        query = self.query(command)
        if not isinstance(query, Matching):
            raise InvalidDecision(
                self.name, f"its query gave {query!r:.60}", hint="Return a millstream.Matching from query="
            )
        return query

    def _state(self, log: Log, query: Matching, head: int) -> Any:
        # A decision without what was trimmed would be a wrong one.
        found = log.read(matching=query, until_position=head + 1, trimmed="raise")
        if self.evolve is None:
            return [recorded.event for recorded in found]
        state = begun(self.initial)
        for recorded in found:
            state = evolved(self.evolve, self._declared, state, recorded.event)
        return state

    def _staged(self, log: Log, state: Any, command: C, unless: Matching) -> list[StagedAppend]:
        outcome = self.decide(state, command)
        if not isinstance(outcome, Mapping):
            events = self._events(outcome)
            if not events:
                return []
            if self.stream is None:
                raise InvalidDecision(
                    self.name,
                    "it decided on events without saying where they go",
                    hint="Give stream=, or return {stream: events} from decide=",
                )
            outcome = {self.stream(command) if callable(self.stream) else self.stream: events}
        staged: list[StagedAppend] = []
        for stream, each in outcome.items():
            events = self._events(each)
            if events:
                # All conditions are checked before anything is placed: one guard holds for the whole commit.
                staged.append(log.stage(stream, events, unless=None if staged else unless))
        return staged

    def _events(self, decided: object) -> list[Event | Plain | Draft]:
        events = listed(decided)
        if events is None:
            raise InvalidDecision(
                self.name,
                f"it decided on {decided!r:.60}, which is no event",
                hint="Return events, drafts, a list of them, {stream: events}, or None",
            )
        return events

    def __repr__(self) -> str:
        return f"<millstream.Decision {self.name}>"


__all__ = ["Decision"]
