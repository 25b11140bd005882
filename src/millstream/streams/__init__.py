"""Stream processing: event-time windows, alerts and patterns over the log, exactly once (pattern 4)."""

from .flow import Flow, stream
from .windows import hopping, sliding, tumbling

__all__ = ["Flow", "hopping", "sliding", "stream", "tumbling"]
