"""Pattern 2, change data capture: the changes of a database's rows become events, exactly once."""

from .capture import Capture, capture
from .change import Change, SchemaChanged, SnapshotCompleted, decoded
from .past.history import RowChange
from .shape import Column, Shape
from .sync import Callback, Sink, Sync, sync
from .table import Kept, diff, drop_table_images, image, row_history, table
from .types import CapturedRow, types
from .values import Interval, Json, Range, Unchanged, Undecodable
from .verify import CaptureVerified, RowDifference, TableVerified, verify

__all__ = [
    "Callback",
    "Capture",
    "CaptureVerified",
    "CapturedRow",
    "Change",
    "Column",
    "Interval",
    "Json",
    "Kept",
    "Range",
    "RowChange",
    "RowDifference",
    "SchemaChanged",
    "Shape",
    "Sink",
    "SnapshotCompleted",
    "Sync",
    "TableVerified",
    "Unchanged",
    "Undecodable",
    "capture",
    "decoded",
    "diff",
    "drop_table_images",
    "image",
    "row_history",
    "sync",
    "table",
    "types",
    "verify",
]
