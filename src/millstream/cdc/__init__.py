"""Pattern 2, change data capture: the changes of a database's rows become events, exactly once."""

from .capture import Capture, capture
from .change import Change, SchemaChanged, SnapshotCompleted, decoded
from .shape import Column, Shape
from .sync import Callback, Sink, Sync, sync
from .table import image, table
from .values import Interval, Json, Range, Unchanged, Undecodable

__all__ = [
    "Callback",
    "Capture",
    "Change",
    "Column",
    "Interval",
    "Json",
    "Range",
    "SchemaChanged",
    "Shape",
    "Sink",
    "SnapshotCompleted",
    "Sync",
    "Unchanged",
    "Undecodable",
    "capture",
    "decoded",
    "image",
    "sync",
    "table",
]
