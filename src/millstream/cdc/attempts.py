"""Attempts to give changes to a sink: how long to wait between them, and what a failure is about."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ..errors import ConsumerFenced, DatabaseError, SinkGone, SinkUnavailable, StorageError, UsageError
from .change import Change, decode_change

if TYPE_CHECKING:
    from ..log import Recorded, Run

    Item = tuple[Change, Recorded]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_LONGEST_ASKED = 600.0

_NOT_THE_CHANGE = (ConsumerFenced, SinkGone, SinkUnavailable, StorageError)
"""Failures that say nothing of the changes that were given (but a `DatabaseError` may)."""


def pause(failures: int, error: Exception | None = None) -> float:
    """Seconds to wait after so many failures in a row: they double up to a cap, and are spread, so that many
    followers of one server do not come all at once. A server that says when to come again is believed."""
    doubled = min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 20), _LONGEST_PAUSE)
    asked = error.after if isinstance(error, SinkUnavailable) and error.after else 0.0
    return max(doubled * random.uniform(0.5, 1.0), min(asked, _LONGEST_ASKED))


def is_about_changes(error: Exception) -> bool:
    """Whether a failure counts against the changes that were given."""
    # A UsageError is of the sink's settings; those of its kin that are more exact, such as an InvalidEvent, are not.
    return isinstance(error, DatabaseError) or not (isinstance(error, _NOT_THE_CHANGE) or type(error) is UsageError)


def parts_of(run: Run, step: int) -> list[Run]:
    """A run in parts of so many events."""
    parts = (run.cut(run.position + first - 1, run.position + first + step) for first in range(0, run.count, step))
    return [part for part in parts if part is not None]


def items_of(run: Run) -> list[Item]:
    """A run's changes with their values as the source holds them, each with its envelope."""
    return [
        (decode_change(event, run.schema), recorded) for event, recorded in zip(run.events(Change), run, strict=True)
    ]
