"""SQLite as a source of changes."""

from .source import SQLiteSource

__all__ = ["SQLiteSource"]
