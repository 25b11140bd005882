"""Aggregates: objects whose state follows from their events alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Self
from uuid import UUID

from ..errors import UsageError
from ..events import Draft, Event, Plain, type_name
from ..log.handlers import Handler, InvalidHandler, handler_table
from ..time import Moment
from .errors import CannotRecord, HandlerMissing

_UNCHANGING = frozenset({int, float, bool, str, bytes, Decimal, datetime, date, timedelta, UUID, type(None)})


class Aggregate:
    """Base class of aggregates: state as typed attributes, changed by handlers of events alone.

    Attributes with a type and a value are the state at the beginning; mutable values are copied for each
    instance. Methods decide: they check the rules (raising ``ms.Rejected``) and ``record`` what happened.
    Handlers, marked ``@ms.on``, change the state; they run once when an event is recorded and again whenever
    the aggregate is rebuilt, so they must follow from the event and the state alone. Events of types without
    a handler are passed over when the aggregate is rebuilt, and count in its version.

    Attributes:
        id: The name of its stream.
        version: How many events have made it what it is.

    Example:
        >>> import millstream as ms
        >>> class Deposited(ms.Event):
        ...     amount: int
        >>> class Account(ms.Aggregate):
        ...     balance: int = 0
        ...
        ...     def deposit(self, amount: int) -> None:
        ...         if amount <= 0:
        ...             raise ms.Rejected("deposit must be positive")
        ...         self.record(Deposited(amount=amount))
        ...
        ...     @ms.on
        ...     def deposited(self, event: Deposited) -> None:
        ...         self.balance += event.amount
        >>> account = Account("account-1")
        >>> account.deposit(5)
        >>> account
        Account('account-1', version=1, balance=5)
    """

    # What is ours lives in slots, so that an instance's __dict__ is its state and nothing else.
    __slots__ = ("__dict__", "__weakref__", "_pending", "_position", "_sealed", "id", "version")

    id: str
    version: int
    _pending: list[Event | Plain | Draft]
    _position: int
    _sealed: tuple[str, str] | None

    __defaults: ClassVar[dict[str, Any]] = {}
    __table: ClassVar[dict[str, Handler] | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("id", "version", "record", "pending"):
            if name in vars(cls):
                raise UsageError(
                    f"{cls.__qualname__}.{name} hides what every aggregate has under that name",
                    hint="Give the attribute another name",
                )
        defaults = dict(cls.__defaults)
        for name, annotation in vars(cls).get("__annotations__", {}).items():
            if name in vars(cls) and not _is_class_variable(annotation):
                defaults[name] = vars(cls)[name]
        cls.__defaults = defaults
        cls.__table = None

    def __init__(self, id: str = "") -> None:
        self.id = id
        self.version = 0
        self._pending = []
        self._position = 0
        self._sealed = None
        self.__dict__.update(copied(self.__defaults))

    @property
    def pending(self) -> tuple[Event | Plain | Draft, ...]:
        """What was recorded and is not in the log yet, in order."""
        return tuple(self._pending)

    def record(
        self,
        event: Event | Plain,
        *,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        effective: Moment | None = None,
    ) -> None:
        """Say that something has happened: its handler changes the state, and it will be appended.

        Args:
            event: What happened.
            tags: Labels to find the event by.
            metadata: JSON-like data that describes the event.
            effective: When it was true in the world, if that is not when it is recorded.

        Raises:
            CannotRecord: The aggregate is of the past or only to be read, or a handler is running.
            HandlerMissing: No handler takes the event.
        """
        if self._sealed is not None:
            reason, hint = self._sealed
            raise CannotRecord(type(self).__name__, self.id, reason, hint=hint)
        handler = type(self)._handlers().get(type_name(event))
        if handler is None:
            raise HandlerMissing(type(self).__name__, type_name(event))
        self._sealed = APPLYING
        try:
            handler.function(self, event)
        finally:
            self._sealed = None
        self.version += 1
        extra = tags or metadata is not None or effective is not None
        self._pending.append(Draft(event, tags=tuple(tags), metadata=metadata, effective=effective) if extra else event)

    @classmethod
    def _handlers(cls) -> dict[str, Handler]:
        """The handlers by type of event, inherited ones included.

        Raises:
            InvalidHandler: A handler's type cannot be told, or it asks for more than the event.
        """
        if cls.__table is None:
            table = handler_table(cls)
            for handler in table.values():
                for parameter in handler.parameters:
                    if parameter.required:
                        raise InvalidHandler(
                            f"{cls.__qualname__}.{handler.method}",
                            f"it asks for {parameter.name!r} beside the event",
                            hint="An aggregate's state follows from its events alone; put it into the event",
                        )
            cls.__table = table
        return cls.__table

    def __repr__(self) -> str:
        state = "".join(f", {name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({self.id!r}, version={self.version}{state})"

    def _copy(self) -> Self:
        """Another one in the same state, with nothing pending."""
        other = type(self).__new__(type(self))
        other.id = self.id
        other.version = self.version
        other._pending = []
        other._position = self._position
        other._sealed = self._sealed
        other.__dict__.update(copied(self.__dict__))
        return other


APPLYING = ("is being changed by a handler", "Record in methods; handlers only change the state")


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by name, with values that can change copied."""
    return {name: value if type(value) in _UNCHANGING else copy.deepcopy(value) for name, value in state.items()}


def _is_class_variable(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.startswith(("ClassVar", "typing.ClassVar"))
    return getattr(annotation, "__origin__", annotation) is ClassVar
