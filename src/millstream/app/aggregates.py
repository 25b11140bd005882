"""What command handlers change, as the write side asks for it: aggregates from repositories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..log import Log
from ..sourcing.aggregate import Aggregate
from ..sourcing.model import model_of
from ..sourcing.replay import Replay
from ..sourcing.repository import Repository
from ..storage.base import StagedAppend


class LoadedAggregates:
    """Loads and stages aggregates, with one repository per class: `cqrs.attempt.Aggregates`, filled in."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._repositories: dict[type[Aggregate], Repository[Any]] = {}

    def accepts(self, cls: Any) -> bool:
        """Whether a class is an aggregate's."""
        return isinstance(cls, type) and issubclass(cls, Aggregate) and cls is not Aggregate

    def load(self, cls: type[Any], stream: str) -> Any:
        """The aggregate of a stream; a new one when it has no events."""
        return self._repository(cls).load(stream)

    def stage(self, aggregate: Any) -> StagedAppend | None:
        """What the aggregate has recorded, expecting the version that it was loaded at."""
        return self._repository(type(aggregate)).stage(aggregate)

    def copy(self, aggregate: Any) -> Any:
        """Another one in the same state and at the same version, with nothing recorded."""
        return aggregate._copy()

    def recorded(self, aggregate: Any) -> tuple[int, Sequence[Any]]:
        """The version that it was loaded at, and what it has recorded since."""
        pending = aggregate.pending
        return aggregate.version - len(pending), pending

    def carry(self, aggregate: Any, since: int, events: Sequence[Any]) -> None:
        """Apply events that are about to follow a version of its stream, as far as it has not come to them."""
        Replay(self._log, model_of(type(aggregate))).foresee(aggregate, since, events)

    def _repository(self, cls: type[Any]) -> Repository[Any]:
        found = self._repositories.get(cls)
        if found is None:
            found = self._repositories[cls] = Repository(self._log, cls)
        return found
