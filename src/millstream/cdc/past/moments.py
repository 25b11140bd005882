"""From a moment at the source to a position of the log."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from ...log.reading import scope_of
from ...time import from_micros
from .state import TYPES

if TYPE_CHECKING:
    from ...log import Log, Run


class _Timed(msgspec.Struct, gc=False):
    timestamp: datetime


_decoder = msgspec.json.Decoder(_Timed)


def last_not_after(log: Log, stream: str, micros: int, until: int) -> int:
    """The position of the last change, in the log's order, whose time is not after a moment; 0 when there is none.

    Where runs carry the commit's time at the source, headers tell it alone; else the changes are looked at, from the
    last one backwards.
    """
    moment = from_micros(micros)
    for runs in log.pages(scope_of(stream, TYPES), 0, until + 1, True, None):
        for run in runs:
            if run.effective is not None:
                if run.effective <= micros:
                    return run.last
            elif (index := _last_in(run, moment)) is not None:
                return run.position + index
    return 0


def _last_in(run: Run, moment: datetime) -> int | None:
    events = _decoder.decode_lines(run.text())
    for index in range(len(events) - 1, -1, -1):
        if events[index].timestamp <= moment:
            return index
    return None
