"""The rows that a flow leaves out of the past because they are late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from .flow import Flow
from .pipeline import Pipeline
from .replay import replay
from .state import widened

if TYPE_CHECKING:
    from ..log.log import Log
    from ..time import Moment
    from .filesource import Files


class _Keeping(Pipeline):
    """A pipeline that keeps the rows that come late."""

    def __init__(self, flow: Flow) -> None:
        # Late rows are told whole, also those columns that nothing else reads.
        super().__init__(msgspec.structs.replace(flow, late=flow.late or ("late", "Late")))
        self.late: list[pl.DataFrame] = []

    def _aside(self, late: list[pl.DataFrame]) -> list[pl.DataFrame]:
        left = super()._aside(late)
        self.late += left
        return left


def late_over(flow: Flow, history: Log | Files | object, since: Moment | None, until: Moment | None) -> pl.DataFrame:
    """See `Flow.late_over`."""
    keeping = _Keeping(flow)
    replay(flow, history, since=since, until=until, final=False, pipeline=keeping)
    return widened(keeping.late) if keeping.late else pl.DataFrame()
