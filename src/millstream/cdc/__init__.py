"""Pattern 2, change data capture: the changes of a database's rows become events, exactly once."""

from .capture import Capture, capture
from .change import Change, SchemaChanged, SnapshotCompleted, decoded
from .parking import Parked, parked, retry, skip
from .shape import Column, Shape
from .sinks.base import Sink, SinkBase
from .sinks.callback import Callback
from .sinks.replica import Replica
from .sync import Sync, sync
from .table import table
from .values import Interval, Json, Range, Unchanged, Undecodable

__all__ = [
    "Callback",
    "Capture",
    "Change",
    "Column",
    "Interval",
    "Json",
    "Parked",
    "Range",
    "Replica",
    "SchemaChanged",
    "Shape",
    "Sink",
    "SinkBase",
    "SnapshotCompleted",
    "Sync",
    "Unchanged",
    "Undecodable",
    "capture",
    "decoded",
    "parked",
    "retry",
    "skip",
    "sync",
    "table",
]
