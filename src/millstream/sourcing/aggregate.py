"""Aggregates: objects whose state follows from their events alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

from ..errors import UsageError
from ..events import Event
from ..log.handlers import Handler, InvalidHandler, class_options, handler_table, resolve
from ..log.reading import type_names
from .errors import HandlerMissing
from .root import Root, copied, fresh


class Aggregate(Root):
    """Base class of aggregates: state as typed attributes, changed by handlers of events alone.

    Attributes with a type and a value are the state at the beginning; mutable values are copied for each
    instance, and need a type. Methods decide: they check the rules (raising ``ms.Rejected``) and ``record``
    what happened. Handlers, marked ``@ms.on``, change the state; they run once when an event is recorded and again
    whenever the aggregate is rebuilt, so they must follow from the event and the state alone. Events of types without
    a handler cannot be recorded, and when one is met in the stream, that is an error; but those that the class
    option ``ignore`` names (``ignore="*"``: any) are passed over, and count in the version alone.

    Class options: ``ignore``, types of events to pass over; ``version``, to be raised when a function outside the
    class that handlers call has changed, so that snapshots of the states it made are no longer used.

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

    __slots__ = ("__dict__", "__weakref__")

    __defaults: ClassVar[dict[str, Any]] = {}
    __table: ClassVar[dict[str, Handler] | None] = None
    __hints: ClassVar[dict[str, Any]] = {}
    __ignored: ClassVar[frozenset[str]] = frozenset()
    __state_version: ClassVar[object] = 0

    def __init_subclass__(
        cls, *, ignore: Iterable[str | type[Event]] | str = (), version: object = None, **options: Any
    ) -> None:
        with class_options(cls, "an aggregate", "ignore= and version=", options):
            super().__init_subclass__(**options)
        for name in ("id", "version", "record", "pending"):
            if name in vars(cls):
                raise UsageError(
                    f"{cls.__qualname__}.{name} hides what every aggregate has under that name",
                    hint="Give the attribute another name",
                )
        annotations = vars(cls).get("__annotations__", {})
        for name in vars(cls).keys() - annotations.keys():
            if type(vars(cls)[name]) in (list, dict, set) and not (name.startswith("__") or name.isupper()):
                # One object for all instances, which handlers would go on changing with each rebuild.
                raise UsageError(
                    f"{cls.__qualname__}.{name} has no type, so that all instances would share its value",
                    hint="Annotate it; with ClassVar if it is no state",
                )
        defaults, hints = dict(cls.__defaults), dict(cls.__hints)
        # Names that are local to a function are at hand only now.
        around = sys._getframe(1)
        for name, annotation in annotations.items():
            if _is_class_variable(annotation):
                continue
            hints[name] = resolve(annotation, around.f_globals, around.f_locals)
            if name in vars(cls):
                defaults[name] = vars(cls)[name]
        cls.__defaults, cls.__hints = defaults, hints
        cls.__table = None
        cls.__ignored |= frozenset(type_names(ignore) or ())
        if version is not None:
            cls.__state_version = version

    def __init__(self, id: str = "") -> None:
        self._begin(id)
        self.__dict__.update(fresh(self.__defaults))

    def _taker(self, type: str) -> tuple[Callable[[Any, Any], object], type[Any]]:
        handler = self._handlers().get(type)
        if handler is None:
            raise HandlerMissing(self._kind, type)
        return handler.function, handler.event

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

    @classmethod
    def _ignores(cls, type: str) -> bool:
        """Whether events of a type are passed over."""
        return type in cls.__ignored or "*" in cls.__ignored

    @classmethod
    def _shape(cls) -> tuple[dict[str, Any], object]:
        """The types of its attributes, as far as they are declared, and the class option ``version``."""
        return cls.__hints, cls.__state_version

    def __repr__(self) -> str:
        state = "".join(f", {name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({self.id!r}, version={self.version}{state})"

    def _copy(self) -> Self:
        """Another one in the same state, with nothing pending."""
        other = self._shell()
        other._sealed = self._sealed
        other.__dict__.update(copied(self.__dict__))
        return other


def _is_class_variable(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.startswith(("ClassVar", "typing.ClassVar"))
    return getattr(annotation, "__origin__", annotation) is ClassVar
