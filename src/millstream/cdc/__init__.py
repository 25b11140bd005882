"""Pattern 2, change data capture: the changes of a database's rows become events, exactly once."""

from .capture import Capture, capture
from .change import Change, SchemaChanged, SnapshotCompleted, decoded
from .debezium import debezium, debezium_events
from .parking import Parked, parked, retry, skip
from .shape import Column, Shape
from .sinks.base import Sink, SinkBase
from .sinks.cache import CacheInvalidation
from .sinks.callback import Callback
from .sinks.replica import Replica
from .sinks.search import Hit, SearchIndex
from .sinks.warehouse import Warehouse
from .sinks.webhook import Webhook, verify_webhook
from .sync import Sync, sync
from .table import table
from .values import Interval, Json, Range, Unchanged, Undecodable

__all__ = [
    "CacheInvalidation",
    "Callback",
    "Capture",
    "Change",
    "Column",
    "Hit",
    "Interval",
    "Json",
    "Parked",
    "Range",
    "Replica",
    "SchemaChanged",
    "SearchIndex",
    "Shape",
    "Sink",
    "SinkBase",
    "SnapshotCompleted",
    "Sync",
    "Unchanged",
    "Undecodable",
    "Warehouse",
    "Webhook",
    "capture",
    "debezium",
    "debezium_events",
    "decoded",
    "parked",
    "retry",
    "skip",
    "sync",
    "table",
    "verify_webhook",
]
