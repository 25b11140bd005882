"""How far back in time the events behind a row may be, by what each operator is declared to do."""

from __future__ import annotations

from .alerts import Alert
from .distinct import Distinct, Top
from .entering import Entering
from .flow import Flow
from .joins import AsOfJoin, IntervalJoin
from .latest import Latest
from .match import Match
from .merging import Merge
from .revising import RevisingWindows
from .sequences import Sequences
from .shaping import Rowwise
from .state import Operator
from .trailing import SlidingWindows
from .tree import Meeting, Source
from .windowjoin import WindowJoin
from .windows import PaneWindows


def lookback(flow: Flow) -> int | None:
    """The longest time, in microseconds, from an event to the time of a row that it is behind; None without a bound."""
    reaches = [_reach(stage) for stage in flow.stages if not isinstance(stage, Rowwise)]
    source = flow.source
    if not isinstance(source, Source):
        inputs = [lookback(each) for each in source.inputs]
        reaches += [_reach(source), None if None in inputs else max(each or 0 for each in inputs)]
    known = [reach for reach in reaches if reach is not None]
    return sum(known) if len(known) == len(reaches) else None


def _reach(operator: Operator | Meeting) -> int | None:
    """The longest time from a row that an operator takes to one that it gives for it."""
    match operator:
        case PaneWindows() | SlidingWindows() | WindowJoin():
            return operator.window.size
        case RevisingWindows():
            # A row that is late by what is allowed has its result with the tick that follows.
            return operator.windows.window.size + operator.allowed + operator.tick
        case Match() | Sequences():
            return operator.within
        case IntervalJoin():
            return operator.back + operator.ahead
        case AsOfJoin() if operator.within is not None:
            return operator.back + operator.ahead
        case Alert() | Entering() | Distinct() | Top() | Latest() | Merge():
            return 0
    return None
