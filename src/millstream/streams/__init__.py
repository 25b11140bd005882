"""Stream processing: event-time windows, alerts and patterns over the log, exactly once (pattern 4)."""

from .errors import FlowChanged, FlowError, MissingColumn, UnsupportedExpression, UnsupportedPattern
from .flow import Flow, stream
from .runner import Running, run, start
from .windows import hopping, sliding, tumbling

__all__ = [
    "Flow",
    "FlowChanged",
    "FlowError",
    "MissingColumn",
    "Running",
    "UnsupportedExpression",
    "UnsupportedPattern",
    "hopping",
    "run",
    "sliding",
    "start",
    "stream",
    "tumbling",
]
