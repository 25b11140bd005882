"""Stream processing: event-time windows, alerts and patterns over the log, exactly once (pattern 4)."""

from .captured import Table, table
from .compatible import Compatibility
from .errors import (
    CannotCheck,
    FlowChanged,
    FlowError,
    MissingColumn,
    SpillFailed,
    UnsupportedExpression,
    UnsupportedPattern,
)
from .explaining import Explanation
from .filesource import Files, files
from .flow import Flow, stream
from .fork import Fork, ForkComparison
from .processing import KeyContext
from .progress import FlowProgress
from .referee import FlowCheck
from .running import Running, run, start
from .savepoints import Savepoint
from .sketches import quantile
from .windows import calendar, count, hopping, session, sliding, tumbling

__all__ = [
    "CannotCheck",
    "Compatibility",
    "Explanation",
    "Files",
    "Flow",
    "FlowChanged",
    "FlowCheck",
    "FlowError",
    "FlowProgress",
    "Fork",
    "ForkComparison",
    "KeyContext",
    "MissingColumn",
    "Running",
    "Savepoint",
    "SpillFailed",
    "Table",
    "UnsupportedExpression",
    "UnsupportedPattern",
    "calendar",
    "count",
    "files",
    "hopping",
    "quantile",
    "run",
    "session",
    "sliding",
    "start",
    "stream",
    "table",
    "tumbling",
]
