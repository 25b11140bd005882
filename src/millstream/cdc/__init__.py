"""Pattern 2, change data capture: the changes of a database's rows become events, exactly once."""

from .capture import Capture, capture
from .change import Change, SchemaChanged, SnapshotCompleted, decoded
from .debezium import debezium, debezium_events
from .parking import Parked, parked, retry, skip
from .past.history import RowChange
from .shape import Column, Shape
from .sinks.base import Sink, SinkBase
from .sinks.cache import CacheInvalidation
from .sinks.callback import Callback
from .sinks.replica import Replica
from .sinks.search import Hit, SearchIndex
from .sinks.warehouse import Warehouse
from .sinks.webhook import Webhook, verify_webhook
from .sync import Sync, sync
from .table import Kept, diff, drop_table_images, image, row_history, table
from .types import CapturedRow, types
from .values import Interval, Json, Range, Unchanged, Undecodable
from .verify import CaptureVerified, RowDifference, TableVerified, verify

__all__ = [
    "CacheInvalidation",
    "Callback",
    "Capture",
    "CaptureVerified",
    "CapturedRow",
    "Change",
    "Column",
    "Hit",
    "Interval",
    "Json",
    "Kept",
    "Parked",
    "Range",
    "Replica",
    "RowChange",
    "RowDifference",
    "SchemaChanged",
    "SearchIndex",
    "Shape",
    "Sink",
    "SinkBase",
    "SnapshotCompleted",
    "Sync",
    "TableVerified",
    "Unchanged",
    "Undecodable",
    "Warehouse",
    "Webhook",
    "capture",
    "debezium",
    "debezium_events",
    "decoded",
    "diff",
    "drop_table_images",
    "image",
    "parked",
    "retry",
    "row_history",
    "skip",
    "sync",
    "table",
    "types",
    "verify",
    "verify_webhook",
]
