"""One attempt to decide a command: what it has loaded, and what it would append."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UsageError
from ..storage.base import Matching, StagedAppend, StagedRun
from .context import Context
from .errors import Unseen

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

    def recorded(self, aggregate: Any) -> tuple[int, Sequence[Any]]:
        """The version that it was loaded at, and what it has recorded since."""

    def carry(self, aggregate: Any, since: int, events: Sequence[Any]) -> None:
        """Apply events that are about to follow a version of its stream, as far as it has not come to them.

        Raises:
            VersionConflict: Its stream is at another version: somebody else has appended to it.
        """


Loaded = dict[tuple[type[Any], str], Any]


class Earlier:
    """What commands before one, in the same commit, have decided: the log does not show it yet."""

    def __init__(self, aggregates: Aggregates) -> None:
        self._aggregates = aggregates
        self._loaded: Loaded = {}
        self._recorded: dict[str, tuple[int, list[Any]]] = {}
        """By stream, what aggregates are about to append, and behind which version."""
        self._others: set[str] = set()
        """The streams that decisions and outboxes are about to append to: at which version is not known."""
        self._by_type: dict[str, StagedRun] = {}
        self._by_tag: dict[str, list[StagedRun]] = {}

    def load(self, cls: type[Any], stream: str, command: str) -> Any:
        """The aggregate of a stream as it will be, for a command to change.

        Raises:
            Unseen: Something else than an aggregate is about to append to its stream.
            VersionConflict: Another writer came first.
        """
        if stream in self._others:
            raise Unseen(command, f"decides on stream {stream!r}, to which a decision of")
        kept = self._loaded.get((cls, stream))
        found = self._aggregates.load(cls, stream) if kept is None else self._aggregates.copy(kept)
        if stream in self._recorded:
            self._aggregates.carry(found, *self._recorded[stream])
        return found

    def changes(self, stream: str) -> bool:
        """Whether a stream is about to be appended to."""
        return stream in self._recorded

    def check(self, query: Matching, command: str) -> None:
        """See that nothing of what a decision is made on is still to be appended.

        Raises:
            Unseen: Something is.
        """
        for part in query.any_of:
            tags = set(part.tags)
            # Without tags the first of a type says as much as all of them.
            for run in self._by_tag.get(part.tags[0], ()) if tags else self._by_type.values():
                if (not part.types or run.type in part.type_names) and tags <= set(run.tags):
                    raise Unseen(command, f"makes a decision on events of type {run.type!r}, which")

    def add(self, loaded: Loaded, extra: Sequence[StagedAppend], appends: Sequence[StagedAppend]) -> None:
        """Let commands after one see what it has changed."""
        for (cls, stream), aggregate in loaded.items():
            since, events = self._aggregates.recorded(aggregate)
            if events:
                self._recorded.setdefault(stream, (since, []))[1].extend(events)
            self._loaded[cls, stream] = aggregate  # its handler has ended; whoever loads it next gets a copy
        self._others.update(append.stream for append in extra)
        for run in (run for append in appends for run in append.runs):
            self._by_type.setdefault(run.type, run)
            for tag in run.tags:
                self._by_tag.setdefault(tag, []).append(run)


class Attempt:
    """What one call of a handler works on.

    Args:
        context: The command, and what is known of it.
        aggregates: How aggregates are loaded.
        before: What commands before this one, in the same commit, have decided.
        db: The transaction that it is decided in, if it is.

    Attributes:
        unseen: Why it has to wait until what was decided before it is in the log, if it has to.
    """

    def __init__(
        self, context: Context, aggregates: Aggregates, before: Earlier | None = None, db: Database | None = None
    ) -> None:
        self.context = context
        self.db = db
        self.loaded: Loaded = {}
        self.extra: list[StagedAppend] = []
        """What others than aggregates add: decisions, outboxes."""
        self.unseen: Unseen | None = None
        self._aggregates = aggregates
        self._before = before

    def load(self, cls: type[Any], stream: str) -> Any:
        """The aggregate of a stream: the same one for all that ask for it."""
        key = (cls, stream)
        found = self.loaded.get(key)
        if found is None:
            if self._before is None:
                found = self._aggregates.load(cls, stream)
            else:
                try:
                    found = self._before.load(cls, stream, self._command)
                except Unseen as unseen:
                    self.unseen = unseen
                    raise
            self.loaded[key] = found
        return found

    def about(self, query: Matching) -> None:
        """Be told that a decision is to be made on what a query finds in the log."""
        if self._before is not None:
            try:
                self._before.check(query, self._command)
            except Unseen as unseen:
                self.unseen = unseen  # the handler may catch what is raised
                raise

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

    def leans(self, appends: Sequence[StagedAppend]) -> bool:
        """Whether it has looked at what was decided before it, and expects nothing of it where it appends.

        If what was decided before it did not come to be, nobody would notice that this was decided on it.
        """
        expecting = {append.stream for append in appends if append.expect is not None}
        return self._before is not None and any(
            self._before.changes(stream) and stream not in expecting for _, stream in self.loaded
        )

    def keep(self, before: Earlier, appends: Sequence[StagedAppend]) -> None:
        """Let commands after this one see what it has decided."""
        before.add(self.loaded, self.extra, appends)

    @property
    def _command(self) -> str:
        return type(self.context.command).__name__

    def _check_apart(self, handler: str, appends: list[StagedAppend]) -> None:
        streams = [staged.stream for staged in appends]
        for stream in streams:
            if streams.count(stream) > 1:
                kinds = " and ".join(cls.__name__ for cls, of in self.loaded if of == stream)
                raise UsageError(
                    f"{handler} records on stream {stream!r} as {kinds}, which cannot both be at its next version",
                    hint="Give aggregates of different classes streams of their own",
                )
