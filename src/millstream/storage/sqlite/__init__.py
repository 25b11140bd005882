"""The log in one SQLite file, or in memory."""

from .store import SQLiteStore

__all__ = ["SQLiteStore"]
