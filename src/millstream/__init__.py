"""Millstream: event sourcing, change data capture, CQRS and stream processing on one append-only log."""

from . import aio
from .errors import *  # noqa: F403
from .events import Draft, Event, Plain
from .log import Log, Recorded, Run, open
from .storage.base import Matching, Receipt, StreamInfo
from .storage.sqlite.database import Database

__all__ = [
    "Database",
    "Draft",
    "Event",
    "Log",
    "Matching",
    "Plain",
    "Receipt",
    "Recorded",
    "Run",
    "StreamInfo",
    "aio",
    "open",
]
