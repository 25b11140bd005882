"""Deciders: event sourcing with pure functions, the state a value of any class."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from ..errors import UsageError
from ..events import Draft, Event, Plain, event_class, type_name
from ..log.handlers import alternatives, check_plain, resolve
from ..log.reading import type_names
from .errors import HandlerMissing
from .root import Root

S = TypeVar("S")
C = TypeVar("C")
E = TypeVar("E")

Decided = Event | Plain | Draft | Iterable[Event | Plain | Draft] | None
"""What a decision gives: an event, several, or none."""


class Decider(Generic[S, C, E]):
    """How a kind of aggregate decides and changes, as two pure functions over a state.

    Args:
        initial: The state before the first event, or a function without parameters that makes it.
        decide: Given the state and a command, gives the events that follow: one, several, or none. Raises
            ``ms.Rejected`` to refuse.
        evolve: Given the state and an event, gives the state after it; it must follow from the two alone, and should
            give a new value rather than change the old one. When the event's annotation names classes
            (``event: Opened | Deposited``), an event of another type in a stream is an error; else it gets all,
            those without a class as ``ms.Plain``.
        name: What it is called in errors; by default the name of the state's class.
        ignore: Types of events to pass over.
        version: To be raised when a function that ``evolve`` calls has changed; see `Aggregate`.

    Example:
        >>> import millstream as ms
        >>> class Deposited(ms.Event):
        ...     amount: int
        >>> def decide(balance: int, amount: int) -> Deposited:
        ...     if amount <= 0:
        ...         raise ms.Rejected("deposit must be positive")
        ...     return Deposited(amount=amount)
        >>> def evolve(balance: int, event: Deposited) -> int:
        ...     return balance + event.amount
        >>> accounts = ms.Repository(ms.open(), ms.Decider(0, decide, evolve))
        >>> accounts.decide("account-1", 5).version
        1
        >>> accounts.get("account-1")
        5
    """

    def __init__(
        self,
        initial: S | Callable[[], S],
        decide: Callable[[S, C], Decided],
        evolve: Callable[[S, E], S],
        *,
        name: str | None = None,
        ignore: Iterable[str | type[Event]] | str = (),
        version: object = 0,
    ) -> None:
        for what, function in (("decide", decide), ("evolve", evolve)):
            if not callable(function):
                raise UsageError(f"{what}={function!r:.60} is no function", hint=f"Give a function as {what}")
        check_plain(evolve)
        self.initial = initial
        self.decide = decide
        self.evolve = evolve
        self.version = version
        self._ignored = frozenset(type_names(ignore) or ())
        # Names that are local to a function are at hand only now.
        around = sys._getframe(1).f_locals
        self._events = _event_classes(evolve, around)
        self.state_type = annotation_of(evolve, "return", around)
        """What ``evolve`` says that it returns."""
        self.name = name or type(self.begin()).__name__

    def begin(self) -> S:
        """A new state, as it is before the first event."""
        return begun(self.initial)

    def takes(self, type: str) -> bool | None:
        """Whether ``evolve`` takes events of a type; None when it passes them over."""
        if type in self._ignored or "*" in self._ignored:
            return None
        return self._events is None or type in self._events

    def event_class(self, type: str) -> type[Any]:
        """The class that events of a type are given to ``evolve`` as: what it declares, or else the type's own."""
        return (self._events or {}).get(type) or event_class(type) or Plain

    @property
    def types(self) -> frozenset[str] | None:
        """The types of events that ``evolve`` declares; None when it takes all."""
        return None if self._events is None else frozenset(self._events)

    def __repr__(self) -> str:
        return f"Decider({self.name})"


class Loaded(Root, Generic[S]):
    """The state of a decider's aggregate, as ``repository.edit`` gives it: to be looked at, and recorded on.

    Attributes:
        id: The name of its stream.
        version: How many events have made the state.
        state: The state.
    """

    __slots__ = ("decider", "state")

    state: S

    def __init__(self, decider: Decider[S, Any, Any], id: str) -> None:
        self._begin(id)
        self.decider = decider
        self.state = decider.begin()

    @property
    def _kind(self) -> str:
        return self.decider.name

    def _taker(self, type: str) -> tuple[Callable[[Any, Any], object], type[Any]]:
        if not self.decider.takes(type):
            raise HandlerMissing(self._kind, type, decider=True)
        return self._evolve, self.decider.event_class(type)

    @staticmethod
    def _evolve(loaded: Loaded[Any], event: Any) -> None:
        decider = loaded.decider
        loaded.state = evolved(decider.evolve, decider.state_type, loaded.state, event)

    def _take(self, decided: Decided) -> None:
        """Record what a decision gave.

        Raises:
            UsageError: It is no event, nor several.
        """
        events = listed(decided)
        if events is None:
            raise UsageError(
                f"the decision gave {decided!r:.60}, which is no event", hint="Return an event, a list of them, or None"
            )
        for each in events:
            if isinstance(each, Draft):
                self.record(each.event, tags=each.tags, metadata=each.metadata, effective=each.effective)
            else:
                self.record(each)

    def __repr__(self) -> str:
        return f"Loaded({self.id!r}, version={self.version}, state={self.state!r})"


def evolved(evolve: Callable[[Any, Any], Any], declared: Any, state: Any, event: Any) -> Any:
    """The state after an event.

    Args:
        declared: What ``evolve`` says that it returns.

    Raises:
        UsageError: It returned nothing, and does not say that it may.
    """
    after = evolve(state, event)
    if after is None and state is not None and type(None) not in get_args(declared):
        raise UsageError(
            f"evolve={getattr(evolve, '__name__', evolve)!s:.60} returned None for {event!r:.60}",
            hint="Return the state after each event, also when it is the same; or say that it may be None:"
            " -> State | None",
        )
    return after


def begun(initial: S | Callable[[], S]) -> S:
    """A state before the first event: what a function or class makes, or a copy of a value."""
    given: Any = initial
    if callable(given) and (isinstance(given, type) or inspect.isroutine(given)):
        return given()  # type: ignore[no-any-return]
    return copy.deepcopy(given)  # type: ignore[no-any-return]


def listed(decided: object) -> list[Event | Plain | Draft] | None:
    """The events that a decision gave; None when it gave something else."""
    if decided is None:
        return []
    if isinstance(decided, Event | Plain | Draft):
        return [decided]
    if isinstance(decided, Iterable) and not isinstance(decided, str | bytes | Mapping):
        events = list(decided)
        if all(isinstance(each, Event | Plain | Draft) for each in events):
            return events
    return None


def _event_classes(evolve: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, type[Event]] | None:
    """The classes of events that the second parameter's annotation names; None when it does not name such."""
    try:
        parameters = [p for p in inspect.signature(evolve).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    except (TypeError, ValueError):
        return None
    if len(parameters) < 2:
        raise UsageError(f"{evolve!r:.60} takes no event", hint="Write def evolve(state, event): ...")
    annotation = annotation_of(evolve, parameters[1].name, names)
    parts = alternatives(annotation)
    if not all(isinstance(part, type) and issubclass(part, Event) and part is not Event for part in parts):
        return None
    return {type_name(part): part for part in parts}


def annotation_of(function: Callable[..., Any], name: str, names: Mapping[str, Any]) -> Any:
    """What a parameter (or ``return``) is annotated with; None without one, its text where it cannot be resolved."""
    try:
        return get_type_hints(function, localns=dict(names)).get(name)
    except Exception:
        found = getattr(function, "__annotations__", {}).get(name)
        return resolve(found, getattr(function, "__globals__", {}), names)
