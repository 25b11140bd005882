"""Given a past, when something is asked, then this happens: tests of what aggregates, deciders and decisions decide."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from difflib import SequenceMatcher
from typing import Any, Protocol, Self

import msgspec

from ..errors import InvalidEvent, Rejected, UsageError
from ..events import Draft, Event, Plain, decoder, encode, type_name
from ..log import Log, Recorded, open
from ..sourcing.aggregate import Aggregate
from ..sourcing.decider import Decider
from ..sourcing.decision import Decision
from ..sourcing.repository import Repository
from ..time import Clock, from_micros, to_micros
from .clock import FakeClock

AnyDraft = Event | Plain | Draft
Events = AnyDraft | Iterable[AnyDraft] | Mapping[str, Any]
"""One event, several, or several by their streams; a `Draft` says their tags, metadata and effective time too."""


def given(
    events: Events = (),
    *,
    of: type[Aggregate] | Decider[Any, Any, Any] | Decision[Any, Any],
    stream: str = "given-1",
    clock: Clock | None = None,
) -> Scenario:
    """Begin a test from a past. Nothing is asked yet; each ``when`` begins from the same past, in a log of its own.

    The events go through a log in memory and come back from it, so that handlers, encoding and upcasts are those
    that will run.

    Args:
        events: What has happened: events, or a mapping of streams' names to events.
        of: What is tested: an aggregate's class, a decider, or a decision.
        stream: Where the events are when no stream is named: the id of the aggregate.
        clock: The clock of the log. The past is recorded at the time that it shows now. Default: one that stands still.

    Example:
        >>> import millstream as ms
        >>> class Deposited(ms.Event):
        ...     amount: int
        >>> class Account(ms.Aggregate):
        ...     balance: int = 0
        ...
        ...     def withdraw(self, amount: int) -> None:
        ...         if amount > self.balance:
        ...             raise ms.Rejected("there is not enough money")
        ...         self.record(Deposited(amount=-amount))
        ...
        ...     @ms.on
        ...     def deposited(self, event: Deposited) -> None:
        ...         self.balance += event.amount
        >>> rich = ms.testing.given([Deposited(amount=100)], of=Account)
        >>> outcome = rich.when(lambda account: account.withdraw(30)).then(Deposited(amount=-30))
        >>> outcome = rich.when(lambda account: account.withdraw(300)).rejects(ms.Rejected, match="not enough")
    """
    return Scenario(_by_stream(events), of, stream, clock or FakeClock())


class Scenario:
    """A past that something is asked of; made by `given`."""

    def __init__(self, events: dict[str | None, list[Any]], of: Any, stream: str, clock: Clock) -> None:
        self._events, self._stream, self._clock = events, stream, clock
        self._past = clock()
        self._subject = _subject(of, stream)

    def when(self, command: Any) -> Outcome:
        """Ask for something, and see what comes of it.

        Args:
            command: The command of a decider or a decision; for an aggregate, a function that calls its methods.
        """
        clock = _Switched(self._past)
        with open(clock=clock) as log:
            for stream, events in self._events.items():
                log.append(stream or self._stream, events)
            head = log.head
            clock.now = self._clock
            error: Exception | None = None
            try:
                self._subject.ask(log, command)
            except Exception as raised:
                error = raised
            found = list(log.read(after=head))
            recorded = [(each.stream, _draft(each)) for each in found]
            try:
                state = self._subject.state(log, command)
            except Exception:
                if error is None:
                    raise
                state = None  # what is wrong with the past is said already
        return Outcome(recorded, state, error)


class Outcome:
    """What came of a command: what was recorded and the state afterwards, or the error."""

    def __init__(self, recorded: list[tuple[str, Draft]], state: Any, error: Exception | None) -> None:
        self._recorded, self._error, self._awaited = recorded, error, False
        self.state = state
        """The state afterwards; when the command was refused, as it was, or None if there can be none."""

    @property
    def events(self) -> list[Event | Plain]:
        """What was recorded."""
        return [draft.event for _, draft in self._recorded]

    def then(self, *events: Events) -> Self:
        """Exactly these events were recorded, in this order; without any, none was.

        Type and fields are compared; for a `Draft` what it says besides, and for a mapping the streams.

        Raises:
            AssertionError: It was otherwise; says how they differ.
        """
        expected = [pair for each in events for pair in _pairs(each)]
        self._refuse_error(f"expected {_counted(len(expected))}")
        text = _difference(expected, self._recorded)
        if text is not None:
            raise AssertionError(text)
        return self

    def then_state(self, check: Callable[[Any], object] | None = None, /, **fields: Any) -> Self:
        """The state afterwards has these values, or passes a check.

        Args:
            check: Called with the state; what is false fails (but not None), and so does an ``assert`` in it.
            fields: Attributes (or keys) and their values.

        Raises:
            AssertionError: It has not; says which differ.
        """
        self._refuse_error("expected a state")
        passed = None if check is None else check(self.state)
        if passed is not None and not passed:
            raise AssertionError(f"the state does not pass the check: {self.state!r}")
        lines = [
            f"! {name}: expected {value!r}, was {found!r}"
            for name, value in fields.items()
            if (found := _field(self.state, name)) != value
        ]
        if lines:
            raise AssertionError("\n".join([f"the state is not as expected: {self.state!r}", *lines]))
        return self

    def rejects(self, error: type[Exception] | Exception | str = Rejected, *, match: str | None = None) -> Self:
        """The command was refused with this error, and nothing was recorded.

        Args:
            error: Its class, an error equal to it (class and message), or a part of its message.
            match: A regular expression that is found in its message.

        Raises:
            AssertionError: It was not, or with another one.
        """
        if not isinstance(error, str | Exception) and not (isinstance(error, type) and issubclass(error, Exception)):
            raise UsageError(f"{error!r:.60} is no error", hint="Give its class, an instance, or a part of its message")
        wanted = _wanted(error, match)
        found = self._error
        if found is None:
            raise AssertionError("\n".join([f"expected {wanted}, but it was accepted", *_listed(self._recorded)]))
        if isinstance(error, str):
            fits = isinstance(found, Rejected) and error in str(found)
        elif isinstance(error, Exception):
            fits = type(found) is type(error) and str(found) == str(error)
        else:
            fits = isinstance(found, error)
        if not fits or (match is not None and re.search(match, str(found)) is None):
            raise AssertionError(f"expected {wanted}, but it was {_named(found)}") from found
        if self._recorded:
            raise AssertionError("\n".join(["it was rejected and recorded all the same", *_listed(self._recorded)]))
        self._awaited = True
        return self

    def _refuse_error(self, expected: str) -> None:
        if self._error is not None and not self._awaited:
            verb = "was rejected" if isinstance(self._error, Rejected) else "failed"
            raise AssertionError(f"{expected}, but the command {verb}: {_named(self._error)}") from self._error


# --- what is tested ---------------------------------------------------------------------------------------


class _Subject(Protocol):
    def ask(self, log: Log, command: Any) -> object: ...
    def state(self, log: Log, command: Any) -> Any: ...


def _subject(of: Any, stream: str) -> _Subject:
    if isinstance(of, Decision):
        return _OfDecision(of)
    if isinstance(of, Decider) or (isinstance(of, type) and issubclass(of, Aggregate)):
        return _OfRepository(of, stream)
    raise UsageError(f"of={of!r:.60} decides nothing", hint="Give an Aggregate's class, a Decider, or a Decision")


class _OfRepository:
    def __init__(self, kind: Any, stream: str) -> None:
        self._kind, self._stream = kind, stream

    def ask(self, log: Log, command: Any) -> object:
        repository = Repository(log, self._kind)
        if isinstance(self._kind, Decider):
            return repository.decide(self._stream, command, attempts=1)
        if not callable(command):
            raise UsageError(
                f"{command!r:.60} is no function",
                hint="Give one that calls the aggregate: lambda account: account.close()",
            )
        return repository.update(self._stream, command, attempts=1)

    def state(self, log: Log, command: Any) -> Any:
        found: Any = Repository(log, self._kind).load(self._stream)
        return found.state if isinstance(self._kind, Decider) else found


class _OfDecision:
    def __init__(self, decision: Decision[Any, Any]) -> None:
        self._decision = decision

    def ask(self, log: Log, command: Any) -> object:
        return self._decision(log, command, attempts=1)

    def state(self, log: Log, command: Any) -> Any:
        return self._decision.state(log, command)


class _Switched:
    """A clock that shows the time of the past until it is given another one."""

    def __init__(self, past: datetime) -> None:
        self.now: Clock = lambda: past

    def __call__(self) -> datetime:
        return self.now()


# --- events, and how they differ --------------------------------------------------------------------------


def _by_stream(events: Events) -> dict[str | None, list[Any]]:
    found: dict[str | None, list[Any]] = {}
    for name, draft in _pairs(events):
        found.setdefault(name, []).append(draft)
    return found


def _pairs(events: Any) -> list[tuple[str | None, Any]]:
    """Events with their streams, where these are named."""
    if isinstance(events, Mapping):
        return [(stream, event) for stream, each in events.items() for _, event in _pairs(each)]
    if isinstance(events, Event | Plain | Draft):
        return [(None, events)]
    if isinstance(events, str) or not isinstance(events, Iterable):
        raise UsageError(f"{events!r:.60} is no event", hint="Give events, drafts, or {stream: events}")
    return [pair for each in events for pair in _pairs(each)]


def _draft(recorded: Recorded) -> Draft:
    return Draft(recorded.event, recorded.tags, recorded.metadata or None, recorded.effective)


def _difference(expected: list[tuple[str | None, Any]], recorded: list[tuple[str, Draft]]) -> str | None:
    """What was expected beside what was recorded, or None when they are alike."""
    lines: list[str] = []
    alike = True
    number = 0
    matcher = SequenceMatcher(None, [_type(e) for _, e in expected], [_type(d) for _, d in recorded], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            for (stream, event), (at, draft) in zip(expected[a:b], recorded[c:d], strict=True):
                number += 1
                faults = _faults(stream, event, at, draft)
                alike = alike and not faults
                lines.append(f"{'!' if faults else ' '} {number}  {draft.event!r}")
                lines += [f"       {fault}" for fault in faults]
            continue
        alike = False
        for sign, word, events in (("-", "missing", expected[a:b]), ("+", "not expected", recorded[c:d])):
            for _, event in events:
                number += 1
                lines.append(f"{sign} {number}  {_bare(event)!r}  ({word})")
    if alike:
        return None
    counts = f"expected {_counted(len(expected))}, recorded {len(recorded) or 'none'}"
    return "\n".join([f"{counts} (! differs, - missing, + not expected)", *lines])


def _faults(stream: str | None, expected: Any, at: str, recorded: Draft) -> list[str]:
    """In what a recorded event differs from the expected one of its type."""
    pairs: list[tuple[str, Any, Any]] = []
    event, found = _bare(expected), recorded.event
    if isinstance(event, Plain) and not isinstance(found, Plain):
        with suppress(InvalidEvent, msgspec.MsgspecError):
            event = decoder(type(found)).decode(encode(event))
    if isinstance(event, Plain) or isinstance(found, Plain):
        left, right = _data(event), _data(found)
        pairs += [(name, left.get(name, _NOTHING), right.get(name, _NOTHING)) for name in {**left, **right}]
    elif type(event) is not type(found):
        pairs.append(("class", _class(event), _class(found)))
    else:
        pairs += [(name, getattr(event, name), getattr(found, name)) for name in event.__struct_fields__]
    if isinstance(expected, Draft):
        pairs.append(("tags", sorted(set(expected.tags)), list(recorded.tags)))
        if expected.metadata is not None:
            pairs.append(("metadata", dict(expected.metadata), dict(recorded.metadata or {})))
        if expected.effective is not None:
            pairs.append(("effective", from_micros(to_micros(expected.effective)), recorded.effective))
    if stream is not None:
        pairs.append(("stream", stream, at))
    return [f"{name}: expected {a!r}, was {b!r}" for name, a, b in pairs if a != b]


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Missing()


def _data(event: Event | Plain) -> dict[str, Any]:
    return event.data if isinstance(event, Plain) else msgspec.structs.asdict(event)


def _bare(event: Any) -> Any:
    return event.event if isinstance(event, Draft) else event


def _type(event: Any) -> str:
    return type_name(_bare(event))


def _field(state: Any, name: str) -> Any:
    return state.get(name, _NOTHING) if isinstance(state, Mapping) else getattr(state, name, _NOTHING)


def _class(event: object) -> str:
    return f"{type(event).__module__}.{type(event).__qualname__}"


def _counted(count: int) -> str:
    return "no event" if not count else "1 event" if count == 1 else f"{count} events"


def _listed(recorded: list[tuple[str, Draft]]) -> list[str]:
    return [f"+ {number}  {draft.event!r}" for number, (_, draft) in enumerate(recorded, start=1)] or ["(no event)"]


def _named(error: Exception) -> str:
    return f"{type(error).__qualname__}: {error}"


def _wanted(error: type[Exception] | Exception | str, match: str | None) -> str:
    if isinstance(error, str):
        wanted = f"a rejection that says {error!r}"
    else:
        wanted = _named(error) if isinstance(error, Exception) else error.__qualname__
    return wanted if match is None else f"{wanted} that matches {match!r}"


__all__ = ["Outcome", "Scenario", "given"]
