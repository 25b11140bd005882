"""Millstream: event sourcing, change data capture, CQRS and stream processing on one append-only log."""

from . import aio, cdc
from .app.app import App
from .app.supervisor import State, WorkerStatus
from .cdc import Callback, Capture, Change, SchemaChanged, Sync, capture, sync
from .cqrs.command import Command, Ref
from .cqrs.errors import (
    DuplicateHandler,
    ForeignReadModel,
    ProjectionFailed,
    ReadModelChanged,
    UnknownCommand,
    UnknownQuery,
)
from .cqrs.projection import Placement, Projection
from .cqrs.query import Query
from .errors import *  # noqa: F403
from .events import Draft, Event, Plain
from .log import Log, Recorded, Run, open
from .log.handlers import InvalidHandler, on
from .log.positions import Position
from .log.retry import Contended
from .sourcing.aggregate import Aggregate
from .sourcing.errors import CannotRecord, HandlerMissing
from .sourcing.repository import Changed, Difference, Repository, Step
from .storage.base import Matching, Receipt, StreamInfo
from .storage.sqlite.database import Database
from .streams.errors import FlowChanged, FlowError, MissingColumn, UnsupportedExpression, UnsupportedPattern
from .streams.flow import Flow, stream
from .streams.runner import Running, run
from .streams.windows import hopping, sliding, tumbling

__all__ = [
    "Aggregate",
    "App",
    "Callback",
    "CannotRecord",
    "Capture",
    "Change",
    "Changed",
    "Command",
    "Contended",
    "Database",
    "Difference",
    "Draft",
    "DuplicateHandler",
    "Event",
    "Flow",
    "FlowChanged",
    "FlowError",
    "ForeignReadModel",
    "HandlerMissing",
    "InvalidHandler",
    "Log",
    "Matching",
    "MissingColumn",
    "Placement",
    "Plain",
    "Position",
    "Projection",
    "ProjectionFailed",
    "Query",
    "ReadModelChanged",
    "Receipt",
    "Recorded",
    "Ref",
    "Repository",
    "Run",
    "Running",
    "SchemaChanged",
    "State",
    "Step",
    "StreamInfo",
    "Sync",
    "UnknownCommand",
    "UnknownQuery",
    "UnsupportedExpression",
    "UnsupportedPattern",
    "WorkerStatus",
    "aio",
    "capture",
    "cdc",
    "hopping",
    "on",
    "open",
    "run",
    "sliding",
    "stream",
    "sync",
    "tumbling",
]
