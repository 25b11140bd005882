"""What can go wrong with aggregates."""

from __future__ import annotations

from ..errors import MillstreamError, UsageError


class CannotRecord(UsageError):
    """An event is recorded on an aggregate that takes none: a past one, or one that is only read."""

    code = "cannot-record"

    def __init__(self, aggregate: str, stream: str, reason: str, *, hint: str) -> None:
        super().__init__(f"{aggregate} {stream!r} {reason}, so nothing can be recorded on it", hint=hint)
        self.aggregate = aggregate
        self.stream = stream


class HandlerMissing(MillstreamError):
    """An aggregate meets an event that it has no handler for: one that it records, or one in its stream."""

    code = "handler-missing"

    def __init__(self, aggregate: str, type: str, position: int | None = None, *, decider: bool = False) -> None:
        where = "records" if position is None else "finds"
        at = "" if position is None else f" at position {position}"
        if decider:
            hint = "Name its class in the annotation of the event that evolve takes"
            option = "Decider(…, ignore="
        else:
            hint = "Add one with @ms.on; its body is `pass` when the event changes nothing"
            option = "the class option ignore="
        if position is not None:
            hint += f", or pass such events over with {option}[{type!r}]{')' if decider else ''}"
        super().__init__(f"{aggregate} {where} {type!r}{at} but has no handler for it", hint=hint)
        self.aggregate = aggregate
        self.type = type
        self.position = position


class WrongAggregate(UsageError):
    """A stream begins with an event that the aggregate does not know: it is of another kind."""

    code = "wrong-aggregate"

    def __init__(self, aggregate: str, stream: str, type: str) -> None:
        super().__init__(
            f"stream {stream!r} is no {aggregate}: it begins with {type!r}, for which {aggregate} has no handler",
            hint="Ask the repository of its own kind, or give the type a handler",
        )
        self.aggregate = aggregate
        self.stream = stream
        self.type = type


class SnapshotWarning(UserWarning):
    """A snapshot could not be read or made; states are rebuilt from their events instead."""


class InvalidDecision(UsageError):
    """A decision is not put together as it must be, or gave something that is no event."""

    code = "invalid-decision"

    def __init__(self, decision: str, reason: str, *, hint: str) -> None:
        super().__init__(f"decision {decision!r}: {reason}", hint=hint)
        self.decision = decision
        self.reason = reason
