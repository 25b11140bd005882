"""The two styles of aggregates behind one face: what a repository needs to know of a class or a decider."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

from ..errors import UsageError
from ..events import Draft, Event, Plain
from .aggregate import Aggregate
from .codec import AttributesCodec, Codec, StateCodec
from .decider import Decider, Loaded
from .fingerprint import fingerprint
from .root import Root
from .values import is_frozen, parts_of

S = TypeVar("S")

Apply = Callable[[Any, Any], object]
"""Changes an aggregate by an event."""

OWN = frozenset({"StreamClosed"})
"""Types of the log's own events, which no aggregate need know."""


class Model(ABC, Generic[S]):
    """A kind of aggregate: how one begins, which events change it, and what its state is."""

    name: str
    codec: Codec[Any]
    """How its states become bytes and come back."""

    @abstractmethod
    def new(self, id: str) -> Root:
        """One before its first event."""

    @abstractmethod
    def copy(self, root: Root) -> Root:
        """Another one in the same state, with nothing pending."""

    @abstractmethod
    def released(self, root: Root) -> Root:
        """One in the same state to go on with, while the given one stays in its caller's hands."""

    @abstractmethod
    def adopt(self, root: Root, other: Root) -> None:
        """Give one the state and the version of another."""

    @abstractmethod
    def state(self, root: Root) -> S:
        """What a user sees of it."""

    @abstractmethod
    def take(self, root: Root, decided: object) -> None:
        """Record what a change of it has returned, where that is how it says so."""

    @abstractmethod
    def applied(self, type: str) -> tuple[Apply | None, type[Any]] | None:
        """How events of a type change it, and the class to decode them with; None when it does not know them.

        Without a function they are passed over.
        """

    @property
    @abstractmethod
    def types(self) -> frozenset[str] | None:
        """The types of events that change it; None: all."""

    @abstractmethod
    def mark(self) -> str:
        """What a snapshot of it is valid for; see `fingerprint`."""

    def fields(self, root: Root) -> dict[str, Any]:
        """Its state by names: attributes, fields, or ``state`` alone."""
        return fields_of(self.state(root))


class AggregateModel(Model[Any]):
    """A class derived from `Aggregate`."""

    def __init__(self, cls: type[Aggregate]) -> None:
        self.cls = cls
        self.name = cls.__name__
        self._handlers = cls._handlers()
        self.codec = AttributesCodec(cls._shape()[0])

    def new(self, id: str) -> Aggregate:
        try:
            made = self.cls(id)
        except TypeError as error:
            if _takes_one(self.cls):
                raise
            raise UsageError(
                f"{self.name}.__init__ cannot be called with the name of a stream alone",
                hint="Leave it out, or write def __init__(self, id: str): super().__init__(id)",
            ) from error
        if not hasattr(made, "_pending"):
            raise UsageError(
                f"{self.name}.__init__ does not call that of ms.Aggregate",
                hint="Write super().__init__(id) in it first",
            )
        return made

    def copy(self, root: Root) -> Root:
        return cast(Aggregate, root)._copy()

    def released(self, root: Root) -> Root:
        aggregate = cast(Aggregate, root)
        other = aggregate._shell()
        # Its attributes go on; the one before keeps them as they are now.
        other.__dict__, aggregate.__dict__ = aggregate.__dict__, dict(aggregate.__dict__)
        return other

    def adopt(self, root: Root, other: Root) -> None:
        root.version, root._position = other.version, other._position
        cast(Aggregate, root).__dict__ = cast(Aggregate, other).__dict__

    def state(self, root: Root) -> Any:
        return root

    def take(self, root: Root, decided: object) -> None:
        if decided is None:
            return
        if inspect.isawaitable(decided) or inspect.isgenerator(decided):
            decided.close()  # type: ignore[union-attr]
            raise UsageError(
                f"the change of {self.name} {root.id!r} is a coroutine or a generator, which does nothing by itself",
                hint="Write it with a plain def, without yield",
            )
        if inspect.ismethod(decided) and decided.__self__ is root and not root._pending:
            raise UsageError(
                f"the change of {self.name} {root.id!r} gave its method {decided.__name__!r} uncalled",
                hint=f"Call it: lambda it: it.{decided.__name__}()",
            )
        if isinstance(decided, Event | Plain | Draft) and not root._pending:
            raise UsageError(
                f"the change of {self.name} {root.id!r} gave {decided!r:.60}, and recorded nothing",
                hint="Record it: self.record(…) in a method; only functions for deciders return events",
            )

    def applied(self, type: str) -> tuple[Apply | None, type[Any]] | None:
        handler = self._handlers.get(type)
        if handler is not None:
            return handler.function, handler.event
        return (None, Plain) if type in OWN or self.cls._ignores(type) else None

    @property
    def types(self) -> frozenset[str] | None:
        return frozenset(self._handlers)

    def mark(self) -> str:
        hints, version = self.cls._shape()
        events = [handler.event for handler in self._handlers.values()]
        return fingerprint(self.cls, Aggregate, hints, events, version)


def _takes_one(cls: type[Aggregate]) -> bool:
    try:
        inspect.signature(cls).bind("")
    except TypeError:
        return False
    return True


class DeciderModel(Model[S]):
    """A `Decider`."""

    def __init__(self, decider: Decider[S, Any, Any]) -> None:
        self.decider = decider
        self.name = decider.name
        self.codec = StateCodec(decider.begin(), decider.state_type)

    def new(self, id: str) -> Loaded[S]:
        return Loaded(self.decider, id)

    def copy(self, root: Root) -> Loaded[S]:
        other = self._with(root, _copied(self.state(root)))
        other._sealed = root._sealed
        return other

    def released(self, root: Root) -> Root:
        # Not a copy of the state, which may be large: evolve gives a new one.
        return self._with(root, self.state(root))

    def _with(self, root: Root, state: S) -> Loaded[S]:
        other = cast("Loaded[S]", root)._shell()
        other.decider, other.state = self.decider, state
        return other

    def adopt(self, root: Root, other: Root) -> None:
        root.version, root._position = other.version, other._position
        cast("Loaded[S]", root).state = cast("Loaded[S]", other).state

    def state(self, root: Root) -> S:
        return cast("Loaded[S]", root).state

    def take(self, root: Root, decided: object) -> None:
        cast("Loaded[S]", root)._take(decided)  # type: ignore[arg-type]

    def applied(self, type: str) -> tuple[Apply | None, type[Any]] | None:
        takes = self.decider.takes(type)
        if takes is None or (type in OWN and type not in (self.decider.types or ())):
            return None, Plain
        return (Loaded._evolve, self.decider.event_class(type)) if takes else None

    @property
    def types(self) -> frozenset[str] | None:
        return self.decider.types

    def mark(self) -> str:
        decider = self.decider
        events = [decider.event_class(type) for type in sorted(decider.types or ())]
        begin = self.codec.mark()
        return fingerprint(decider.evolve, None, {"initial": begin}, events, decider.version)


def model_of(kind: type[Any] | Decider[Any, Any, Any]) -> Model[Any]:
    """The model of an aggregate class or a decider.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(kind, Decider):
        return DeciderModel(kind)
    if isinstance(kind, type) and issubclass(kind, Aggregate):
        return AggregateModel(kind)
    raise UsageError(
        f"{kind!r:.60} is no kind of aggregate", hint="Give a class derived from millstream.Aggregate, or a Decider"
    )


def fields_of(state: Any) -> dict[str, Any]:
    """A state by names: attributes or fields where it has such, else ``state`` alone."""
    if isinstance(state, Mapping):
        return {str(name): value for name, value in state.items()}
    parts = parts_of(state)
    return {"state": state} if parts is None else parts


def _copied(state: Any) -> Any:
    return state if _is_fixed(state) else copy.deepcopy(state)


_ATOMS = (int, float, str, bytes, type(None))


def _is_fixed(state: Any) -> bool:
    """Whether a state can be shared, since nothing of it can be changed."""
    if isinstance(state, _ATOMS):
        return True
    if isinstance(state, tuple | frozenset):
        return all(map(_is_fixed, state))
    if is_frozen(state):
        return all(map(_is_fixed, (parts_of(state) or {}).values()))
    return type(state).__module__ in ("decimal", "datetime", "uuid")
