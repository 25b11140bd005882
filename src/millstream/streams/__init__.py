"""Stream processing: event-time windows, alerts and patterns over the log, exactly once (pattern 4)."""

from .errors import FlowChanged, FlowError, MissingColumn, UnsupportedExpression, UnsupportedPattern
from .flow import Flow, stream
from .runner import Running, run, start
from .windows import calendar, count, hopping, session, sliding, tumbling

__all__ = [
    "Flow",
    "FlowChanged",
    "FlowError",
    "MissingColumn",
    "Running",
    "UnsupportedExpression",
    "UnsupportedPattern",
    "calendar",
    "count",
    "hopping",
    "run",
    "session",
    "sliding",
    "start",
    "stream",
    "tumbling",
]
