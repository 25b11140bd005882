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
    """An aggregate records an event that none of its handlers takes."""

    code = "handler-missing"

    def __init__(self, aggregate: str, type: str) -> None:
        super().__init__(
            f"{aggregate} records {type!r} but has no handler for it",
            hint="Add one with @ms.on; its body is `pass` when the event changes nothing",
        )
        self.aggregate = aggregate
        self.type = type


class InvalidDecision(UsageError):
    """A decision is not put together as it must be, or gave something that is no event."""

    code = "invalid-decision"

    def __init__(self, decision: str, reason: str, *, hint: str) -> None:
        super().__init__(f"decision {decision!r}: {reason}", hint=hint)
        self.decision = decision
        self.reason = reason
