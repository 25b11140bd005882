"""Pattern 2, change data capture: the changes of a database's rows become events, exactly once."""

from .capture import Capture, capture
from .change import Change, SchemaChanged, SnapshotCompleted, Undecodable, decoded
from .sync import Callback, Sink, Sync, sync
from .table import table

__all__ = [
    "Callback",
    "Capture",
    "Change",
    "SchemaChanged",
    "Sink",
    "SnapshotCompleted",
    "Sync",
    "Undecodable",
    "capture",
    "decoded",
    "sync",
    "table",
]
