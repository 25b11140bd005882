"""One attempt to decide a command: what it has loaded, and what it would append."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UsageError
from ..storage.base import StagedAppend
from .context import Context

if TYPE_CHECKING:
    from ..storage.database import Database


class Aggregates(Protocol):
    """What command handlers change: how it is loaded and what it recorded. The application provides it."""

    def accepts(self, cls: Any) -> bool:
        """Whether a class is of this kind."""

    def load(self, cls: type[Any], stream: str) -> Any:
        """One of the class, as its stream says, ready to be changed."""

    def stage(self, aggregate: Any) -> StagedAppend | None:
        """What it has recorded, to be appended at the version that it was loaded at."""

    def copy(self, aggregate: Any) -> Any:
        """Another one in the same state and at the same version, with nothing recorded."""


Loaded = dict[tuple[type[Any], str], Any]


class Attempt:
    """What one call of a handler works on.

    Args:
        context: The command, and what is known of it.
        aggregates: How aggregates are loaded.
        before: Aggregates that commands before this one, in the same commit, have changed.
        db: The transaction that it is decided in, if it is.
    """

    def __init__(
        self, context: Context, aggregates: Aggregates, before: Loaded | None = None, db: Database | None = None
    ) -> None:
        self.context = context
        self.db = db
        self.loaded: Loaded = {}
        self.extra: list[StagedAppend] = []
        """What others than aggregates add: decisions, outboxes."""
        self._aggregates = aggregates
        self._before = before

    def load(self, cls: type[Any], stream: str) -> Any:
        """The aggregate of a stream: the same one for all that ask for it."""
        key = (cls, stream)
        found = self.loaded.get(key)
        if found is None:
            if self._before is not None and key in self._before:
                found = self._aggregates.copy(self._before[key])
            else:
                found = self._aggregates.load(cls, stream)
            self.loaded[key] = found
        return found

    def staged(self, handler: str) -> list[StagedAppend]:
        """What is to be appended: what the aggregates recorded, then the rest; stamped with its causes.

        Raises:
            UsageError: Two aggregates recorded on one stream.
        """
        appends = [staged for a in self.loaded.values() if (staged := self._aggregates.stage(a)) is not None]
        if len(appends) > 1:
            self._check_apart(handler, appends)
        appends += self.extra
        self.context.stamp(appends)
        return appends

    def keep(self, before: Loaded) -> None:
        """Let commands after this one see what it changed."""
        for key, aggregate in self.loaded.items():
            before[key] = self._aggregates.copy(aggregate)

    def _check_apart(self, handler: str, appends: list[StagedAppend]) -> None:
        streams = [staged.stream for staged in appends]
        for stream in streams:
            if streams.count(stream) > 1:
                kinds = " and ".join(cls.__name__ for cls, of in self.loaded if of == stream)
                raise UsageError(
                    f"{handler} records on stream {stream!r} as {kinds}, which cannot both be at its next version",
                    hint="Give aggregates of different classes streams of their own",
                )
