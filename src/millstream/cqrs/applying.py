"""How the handlers of projections are called: with what they ask for, by annotation or name."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from ..log.handlers import Handler, InvalidHandler, handler_table
from ..log.records import Recorded
from ..storage.database import Database
from .binding import named
from .pieces import Apply

if TYPE_CHECKING:
    from .projection import Projection  # which has its handlers bound by this module


class Bound(msgspec.Struct, frozen=True):
    """What is done with the events of one type.

    Attributes:
        apply: Applies an event, or the frame of a batch.
        event: The class to decode as.
        wants_recorded: Whether the envelope is asked for.
        batch: The name of the method, if it takes frames.
        effects: Whether it has effects on the outside.
    """

    apply: Apply
    event: type[Any]
    wants_recorded: bool
    batch: str
    effects: bool = False


def bound_of(projection: type[Projection]) -> dict[str, Bound]:
    """What is done with the events that a projection handles, by type.

    Raises:
        InvalidHandler: It handles none, or a handler asks for what it cannot be given.
    """
    instance = projection()
    table = handler_table(projection, batches=True)
    if not table:
        raise InvalidHandler(projection.__qualname__, "it handles no event", hint="Mark its handlers with @ms.on")
    return {name: _apply(projection, instance, handler) for name, handler in table.items()}


def _apply(projection: type[Projection], instance: Projection, handler: Handler) -> Bound:
    database = envelope = effects = ""
    for parameter in handler.parameters:
        if named(parameter.annotation, "Database") or (parameter.annotation is None and parameter.name == "db"):
            database = parameter.name
        elif not handler.batch and (
            named(parameter.annotation, "Recorded") or (parameter.annotation is None and parameter.name == "recorded")
        ):
            envelope = parameter.name
        elif not handler.batch and (named(parameter.annotation, "Effects") or parameter.name == "effects"):
            effects = parameter.name
        elif parameter.required:
            raise InvalidHandler(
                f"{projection.__qualname__}.{handler.method}",
                f"it asks for {parameter.name!r}, which a projection cannot give",
                hint="Ask for the frame and db: ms.Database; the envelope is in the frame's columns"
                if handler.batch
                else "Ask for the event, db: ms.Database, recorded: ms.Recorded and effects: ms.Effects",
            )
    method = getattr(instance, handler.method)
    apply: Apply
    if effects:
        from .effects import Effects

        _check_performs(projection)
        name = projection.name

        def apply(event: Any, db: Database, given: Recorded | None) -> object:
            assert given is not None
            asked: dict[str, Any] = {effects: Effects(db, name, given.position)}
            if database:
                asked[database] = db
            if envelope:
                asked[envelope] = given
            return method(event, **asked)

    elif database and envelope:
        apply = lambda e, db, r: method(e, **{database: db, envelope: r})  # noqa: E731
    elif database:
        apply = lambda e, db, r: method(e, **{database: db})  # noqa: E731
    elif envelope:
        apply = lambda e, db, r: method(e, **{envelope: r})  # noqa: E731
    else:
        apply = lambda e, db, r: method(e)  # noqa: E731
    wants_recorded = bool(envelope or effects)
    return Bound(apply, handler.event, wants_recorded, handler.method if handler.batch else "", bool(effects))


def _check_performs(projection: type[Projection]) -> None:
    from .projection import Projection

    name = f"{projection.__qualname__}.perform"
    if projection.perform is Projection.perform:
        raise InvalidHandler(
            name, "there is none, and handlers add effects", hint="Write def perform(self, effect: ms.Effect) -> None"
        )
    if inspect.iscoroutinefunction(projection.perform):
        raise InvalidHandler(
            name, "it is a coroutine, which nothing here would run", hint="Write def perform, and asyncio.run(…) in it"
        )
